"""Nothing that is read from disk runs, and a damaged or hostile file is one error of one line, or is read as it should.

Files of each kind are mutated many times, and read in a process of their own, which they may end. A mutation is a
function of its kind and number: the failure names the command that reads it again, and shows its traceback.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

READING = pathlib.Path(__file__).with_name('hostile_reading.py')
KINDS = dict.fromkeys(  # how many mutations of each
    (
        *('packed', 'packed, sealed', 'packed run, sealed', 'Hugging Face', 'Hugging Face, low-bit', 'tokenizers'),
        *('checkpoint', 'checkpoint, sealed', 'config of a run', 'metrics', 'result', 'comparison', 'casts'),
        *('table, CSV', 'table, JSON', 'table, JSONL', 'table, Parquet', 'law', 'tokens', 'texts', 'chats'),
        *('source, lines', 'source, a.jsonl.gz', 'source, a.jsonl.zst', 'source, a.txt', 'source, a.parquet'),
        'source, Hugging Face',
        *('tokens, nanogpt', 'tokens, llmc', 'tokens, llmc of Llama 3', 'tokens, megatron', 'tokens, megatron, int32'),
    ),
    1000,
)
ONE_OF = 50  # is read by the test that always runs


def test_hostile_files(tmp_path):
    check({kind: count // ONE_OF for kind, count in KINDS.items()}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_many_hostile_files(kind, tmp_path):
    check({kind: KINDS[kind]}, tmp_path)


def check(counts: dict[str, int], folder: pathlib.Path):
    """Reads so many mutations of each kind; all faults are told, each with the first mutation that shows it."""
    outcomes = read_mutations(counts, folder)
    assert collections.Counter(outcome['kind'] for outcome in outcomes) == counts
    faults = collections.defaultdict(list)
    for outcome in outcomes:
        if 'fault' in outcome:
            faults[outcome['fault']].append(outcome)
    told = []
    for fault, alike in faults.items():
        kind, number = alike[0]['kind'], alike[0]['number']
        message = alike[0].get('message') or alike[0].get('refused', '')
        told.append(f'{len(alike)} times {fault}: {message[:200]!r}\n  {alike[0]["what"]}')
        told.append(f'  python {READING} {f"{kind}:{number}:{number + 1}"!r}')
    if faults:
        pytest.fail('\n'.join([f'{len(faults)} faults, in {len(outcomes)} mutations', *told]), pytrace=False)


def read_mutations(counts: dict[str, int], folder: pathlib.Path) -> list[dict]:
    """What became of the mutations 0 to count of each kind; after what ended a process, another one goes on."""
    outcomes, next_number = [], dict.fromkeys(counts, 0)
    while parts := [
        f'{kind}:{next_number[kind]}:{count}' for kind, count in counts.items() if next_number[kind] < count
    ]:
        output, errors = folder / 'output', folder / 'errors'
        with open(output, 'w') as stdout, open(errors, 'w') as stderr:
            environment = {**os.environ, 'HOSTILE_FILES': str(folder)}
            command = [sys.executable, READING, *parts]
            status = subprocess.run(command, stdout=stdout, stderr=stderr, env=environment).returncode
        begun = None
        for line in output.read_text().splitlines():
            if line.startswith('{"kind"'):
                begun = {**(begun or {}), **json.loads(line)}
                next_number[begun['kind']] = begun['number'] + 1
                if 'seconds' in begun:
                    outcomes.append(begun)
                    begun = None
        if begun:
            outcomes.append({**begun, 'fault': f'the process ended, {status}: {last_place(errors.read_text())}'})
        elif status:
            raise RuntimeError(errors.read_text())
    return outcomes


def last_place(errors: str) -> str:
    """The innermost line of ours in what faulthandler has written of the thread that reads, else the last line."""
    threads = re.split(r'\n(?=Current thread|Thread 0x)', f'\n{errors.strip()}')
    reading = next((thread for thread in threads if thread.startswith('Current')), threads[-1])
    ours = [
        line.strip() for line in reading.splitlines() if f'"{READING.parents[1]}/' in line and '/.venv/' not in line
    ]
    return (ours or errors.strip().splitlines()[-1:] or ['nothing said'])[0]
