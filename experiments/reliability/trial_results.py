"""What trainings leave on disk, and whether it is the same: to the bit, but for what a clock says."""

import json
import pathlib
import re
import subprocess
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

LEARNED = re.compile(r'step|N|D|parameters|learning_rate|(train|validation|bits|rollback)/.*')  # and no clock's reading


class Unexpected(Exception):
    """A fault had another outcome than it should have."""


def check_same_result(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """Raises Unexpected if two complete trainings differ in a bit of what they have learned, or of what they report."""
    results = _result(workdir)
    for name, expected in _result(reference).items():
        result = results[name]
        differing = [key for key in {**expected, **result} if result.get(key) != expected.get(key)]
        if differing or not expected:
            raise Unexpected(f'{name} is not what it is without the fault: {", ".join(differing[:3])}')


def check_whole(workdir: pathlib.Path) -> list[int]:
    """The steps of which there is a checkpoint; raises Unexpected if sha256sum finds one damaged."""
    for step in saved_steps(workdir):
        command = ['sha256sum', '--check', '--status', '--strict', 'manifest.sha256']
        if subprocess.run(command, cwd=workdir / 'checkpoints' / str(step), check=False).returncode:
            raise Unexpected(f'checkpoint {step} is damaged')
    return saved_steps(workdir)


def learned_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a clock says; NaN is a string there."""
    return [_learned(json.loads(line)) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def last_step(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl, 0 before there is one."""
    try:
        *lines, _ = (workdir / 'metrics.jsonl').read_bytes().split(b'\n')  # the last may be cut off
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])['step'] if lines else 0


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of finished saves."""
    return [int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdecimal()]


def newest_step(workdir: pathlib.Path) -> int:
    """The step of the newest checkpoint whose save was finished, 0 before there is one."""
    return max(saved_steps(workdir), default=0)


def largest_file(directory: pathlib.Path) -> pathlib.Path:
    return max((path for path in directory.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def _result(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """All that a complete training leaves, but for what a clock says."""
    checkpoint = workdir / 'checkpoints' / str(last_step(workdir))
    return {
        'metrics.jsonl': {f'line {i}': line for i, line in enumerate(learned_metrics(workdir), start=1)},
        'the final checkpoint': _leaves(checkpoint),
        "the data iterator's state": json.loads((checkpoint / 'checkpoint.json').read_text())['data_state'],
        'summary.json': _learned(json.loads((workdir / 'summary.json').read_text())),
    }


def _learned(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if LEARNED.fullmatch(name)}


def _leaves(checkpoint: pathlib.Path) -> dict[str, tuple]:
    """The leaves as Orbax reads them, to the bit, wherever they were sharded."""
    checkpointer = ocp.PyTreeCheckpointer()
    stored = dict(checkpointer.metadata(checkpoint / 'state').item_metadata.tree)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    leaves = checkpointer.restore(checkpoint / 'state', restore_args=as_numpy)
    return {name: (str(leaf.dtype), leaf.shape, leaf.tobytes()) for name, leaf in leaves.items()}
