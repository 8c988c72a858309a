"""Which steps a directory of checkpoints has, and which of them are whole: what there is to know without the arrays."""

import pathlib
import warnings
from typing import Any

from experiments.checkpoints.contents import read_contents
from experiments.checkpoints.manifests import find_damage, sha256_of_manifest
from experiments.files import foreign_text

LAST_STEP = 2**31 - 1  # of a state, whose step is an int32
WRITING = '.writing'  # after the name of a step that isn't whole yet


def all_steps(directory: pathlib.Path) -> list[int]:
    """The steps in `directory`, of at most LAST_STEP, newest first, whole or not."""
    names = [path.name for path in directory.glob('*')]
    steps = (int(name) for name in names if name.isdecimal() and len(name) <= len(str(LAST_STEP)))
    return sorted((step for step in steps if step <= LAST_STEP), reverse=True)


def newest_step(directory: pathlib.Path) -> int | None:
    """The newest step in `directory`, which was whole when it was written; nothing is read."""
    return next(iter(all_steps(directory)), None)


def newest_whole_step(directory: pathlib.Path, at_most: int | None = None) -> int | None:
    """The newest step, of at most this number, all of whose files are what was written; None where nothing was saved.

    A warning tells which ones are passed over, and why; and of a first save that was never finished.

    Raises:
      ValueError: there are some, but none is whole.
    """
    steps = [step for step in all_steps(directory) if at_most is None or step <= at_most]
    for step in steps:
        damage = find_damage(directory / str(step))
        if damage is None:
            return step
        told = foreign_text.printable(f'skipping the damaged checkpoint {directory / str(step)}: {damage}')
        warnings.warn(told, stacklevel=2)
    if steps:
        raise ValueError(
            f'{directory} holds {len(steps)} checkpoint(s), but none is whole (each was named in a warning). '
            'Restore one from a copy, or start again in another --workdir.'
        )
    for leftover in directory.glob(f'*{WRITING}'):
        warnings.warn(f'{leftover} was never finished, and there is no checkpoint before it', stacklevel=2)
    return None


def load_contents(directory: pathlib.Path) -> dict[str, Any]:
    """Step, config, leaves, and the manifest's SHA-256, of the newest whole checkpoint; ValueError if there is none."""
    directory = directory.absolute()
    step = newest_whole_step(directory)
    if step is None:
        raise ValueError(f'{directory} holds no checkpoint')
    newest = directory / str(step)
    return read_contents(newest) | {'sha256': sha256_of_manifest(newest)}
