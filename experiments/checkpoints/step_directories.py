"""Which steps a directory of checkpoints has, and which of them are whole: what there is to know without the arrays."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

from experiments.checkpoints.contents import read_contents
from experiments.checkpoints.manifests import find_damage, sha256_of_manifest
from experiments.files import foreign_text

LAST_STEP = 2**31 - 1  # of a state, whose step is an int32
WRITING = '.writing'  # after the name of a step that isn't whole yet


def all_steps(directory: pathlib.Path, at_most: int | None = None) -> list[int]:
    """The steps in `directory`, of at most this number and LAST_STEP, newest first, whole or not."""
    names = [path.name for path in directory.glob('*')]
    steps = (int(name) for name in names if name.isdecimal() and len(name) <= len(str(LAST_STEP)))
    last = LAST_STEP if at_most is None else min(at_most, LAST_STEP)
    return sorted((step for step in steps if step <= last), reverse=True)


def newest_step(directory: pathlib.Path) -> int | None:
    """The newest step in `directory`, which was whole when it was written; nothing is read."""
    return next(iter(all_steps(directory)), None)


def newest_whole_step(directory: pathlib.Path, at_most: int | None = None) -> int | None:
    """The newest step, of at most this number, all of whose files are what was written; None where nothing was saved.

    A warning tells which ones are passed over, and why; and of a first save that was never finished.

    Raises:
      ValueError: there are some, but none is whole.
    """
    return first_whole_step(directory, all_steps(directory, at_most), find_damage, warnings.warn)


def first_whole_step(
    directory: pathlib.Path,
    steps: list[int],
    find: Callable[[pathlib.Path], str | None],
    tell: Callable[[str], None],
) -> int | None:
    """The first of these steps in which `find` finds no damage; as `newest_whole_step`, with `tell` for warnings."""
    for step in steps:
        damage = find(directory / str(step))
        if damage is None:
            return step
        tell(foreign_text.printable(f'skipping the damaged checkpoint {directory / str(step)}: {damage}'))
    if steps:
        raise ValueError(
            f'{directory} holds {len(steps)} checkpoint(s), but none is whole (each was named in a warning). '
            'Restore one from a copy, or start again in another --workdir.'
        )
    for leftover in directory.glob(f'*{WRITING}'):
        tell(f'{leftover} was never finished, and there is no checkpoint before it')
    return None


def load_contents(directory: pathlib.Path, at_most: int | None = None) -> dict[str, Any]:
    """Step, config, leaves, and the manifest's SHA-256, of the newest whole checkpoint; ValueError if there is none.

    Of one of step `at_most` or before, if that is given.
    """
    directory = directory.absolute()
    step = newest_whole_step(directory, at_most)
    if step is None:
        raise ValueError(f'{directory} holds no checkpoint')
    newest = directory / str(step)
    return read_contents(newest) | {'sha256': sha256_of_manifest(newest)}
