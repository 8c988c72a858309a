"""By which command, and on which devices, a run was started, each time: command.json in its workdir."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from experiments.files import json_files
from gaussq_jax.atomic_files import replace_file

NAME = 'command.json'
DAMAGED = f'{NAME}.damaged'


class Start(NamedTuple):
    """A start of the training program."""

    from_step: int  # of the checkpoint that the run continued from; 0 is its beginning
    arguments: list[str]  # of `python -m experiments.train`
    devices: str  # in words: '8 x NVIDIA H100 80GB HBM3'


def add(workdir: pathlib.Path, start: Start) -> list[str]:
    """Records a start after those before it; one from the beginning is the first.

    Returns:
      Remarks: what is there and can't be read is put aside, since a training has to go on all the same.

    Raises:
      OSError: it can't be written.
    """
    before, remarks = [], []
    if start.from_step:
        try:
            before = read(workdir)
        except ValueError as error:
            os.replace(workdir / NAME, workdir / DAMAGED)
            remarks = [f'how it was started before is not recorded any more, and {NAME} is now {DAMAGED}: {error}']
    start = start._replace(arguments=[_readable(text) for text in start.arguments])
    starts = [of._asdict() for of in (*before, start)]
    replace_file(workdir / NAME, json.dumps({'starts': starts}, indent=2) + '\n')
    return remarks


def read(workdir: pathlib.Path) -> list[Start]:
    """The starts, in order; none of a run of a version that did not record them.

    Raises:
      ValueError: the file is damaged, or another program's.
    """
    path = workdir / NAME
    if not path.exists():
        return []
    starts = json_files.read(path, starts=list)['starts']
    return [_start(of, f'{path}: a start') for of in starts]


def _start(of: object, where: str) -> Start:
    kinds = {'from_step': int, 'arguments': list, 'devices': str}
    values = json_files.require(of, where, kinds)
    if not _are_texts(values['arguments']):
        raise ValueError(f"{where}: 'arguments' must be texts")
    return Start(*(values[name] for name in kinds))


def _readable(argument: str) -> str:
    """In UTF-8, whatever the locale is: bytes that are none are escaped, since JSON can't hold them."""
    return os.fsencode(argument).decode(errors='backslashreplace')


def _are_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)
