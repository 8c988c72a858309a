"""Nothing that is read from disk runs, and a damaged or hostile file is one error of one line, or read as it was.

Each kind of file is mutated many times, and read in a process of its own, which may be ended by what it reads. A
mutation that fails is read again, its traceback shown, by the command that the failure names.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest

READING = pathlib.Path(__file__).with_name('hostile_reading.py')
KINDS = {  # how many mutations of each
    **{'packed': 1000, 'packed, sealed': 1000, 'packed run, sealed': 1000, 'Hugging Face': 1000, 'tokenizers': 1000},
    **{'checkpoint': 500, 'checkpoint, sealed': 1000, 'config of a run': 300, 'metrics': 500, 'result': 1000},
    **{'comparison': 1000, 'casts': 1000, 'table, CSV': 1000, 'table, JSONL': 1000, 'table, Parquet': 1000},
    **{'law': 1000, 'tokens': 1000, 'texts': 1000},
}
FEW = 24


def test_hostile_files(tmp_path):
    _check({kind: FEW for kind in KINDS}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_many_hostile_files(kind, tmp_path):
    _check({kind: KINDS[kind]}, tmp_path)


def _check(counts: dict[str, int], folder: pathlib.Path):
    outcomes = read_mutations(counts, folder)
    assert collections.Counter(outcome['kind'] for outcome in outcomes) == counts
    refused = sum('refused' in outcome for outcome in outcomes)
    print(f'{len(outcomes)} mutations: {refused} refused, {sum("read" in outcome for outcome in outcomes)} read')
    assert refused > len(outcomes) / 10
    faults = collections.defaultdict(list)
    for outcome in outcomes:
        if 'fault' in outcome:
            faults[outcome['fault']].append(outcome)
    told = [
        f'{len(alike)} times {fault}: {one.get("message") or one.get("refused", "")}\n'
        f'  {one["what"]}\n  python {READING} "{one["kind"]}:{one["number"]}:{one["number"] + 1}"'
        for fault, (one, *_) in faults.items()
        for alike in [faults[fault]]
    ]
    assert not told, '\n'.join(told)


def read_mutations(counts: dict[str, int], folder: pathlib.Path) -> list[dict]:
    """What became of the mutations 0 to count of each kind, in processes that go on after what ended one."""
    outcomes, left = [], {kind: (0, count) for kind, count in counts.items()}
    while left:
        parts = [f'{kind}:{first}:{end}' for kind, (first, end) in left.items()]
        with open(folder / 'output', 'w+') as output, open(folder / 'errors', 'w+') as errors:
            environment = {'HOSTILE_FILES': str(folder)}
            process = subprocess.run(
                [sys.executable, READING, *parts], stdout=output, stderr=errors, env={**os.environ, **environment}
            )
            lines, told = [file.seek(0) or file.read() for file in (output, errors)]
        begun = None
        for line in map(json.loads, filter(lambda line: line.startswith('{"kind"'), lines.splitlines())):
            begun = {**(begun or {}), **line} if 'seconds' in line else line
            if 'seconds' in line:
                outcomes.append(begun)
                begun = None
            left[line['kind']] = line['number'] + 1, counts[line['kind']]
        if begun:
            outcomes.append({**begun, 'fault': f'the process ended, {process.returncode}: {_last_place(told)}'})
        elif process.returncode:
            raise RuntimeError(told)
        left = {kind: (first, end) for kind, (first, end) in left.items() if first < end}
    return outcomes


def _last_place(errors: str) -> str:
    """The innermost line of ours in what faulthandler has written, else the last line."""
    lines = errors.strip().splitlines() or ['nothing said']
    current = errors.rpartition('(most recent call first)')[2].splitlines()
    ours = [line.strip() for line in current if f'"{READING.parents[1]}/' in line and '/.venv/' not in line]
    return (ours or lines[-1:])[0]
