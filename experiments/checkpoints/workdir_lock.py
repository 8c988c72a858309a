"""One training at a time in a workdir: it holds the lock of the file .lock there, which ends with it, however it ends.

Reading takes no lock. A program that starts a training, as a sweep does, takes the lock and hands it on: the process
inherits the descriptor, and finds its number in the environment. On a file system that can't lock, a warning says so.
"""

import os
import pathlib
from typing import TextIO

from experiments.files import locks
from gaussq_jax.atomic_files import open_own

INHERITED = 'GAUSSQ_WORKDIR_LOCK'  # the environment variable with the number of an inherited descriptor


class WorkdirLocked(OSError):
    """Another process trains in the workdir."""


def acquire(workdir: pathlib.Path) -> TextIO:
    """Locks a workdir, which is made if it isn't there, as long as the returned file is open in some process.

    Raises:
      WorkdirLocked: another process holds the lock; says which, if that has signed it.
      OSError: the workdir can't be written to.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / '.lock'
    file = _inherited(path) or open_own(path, 'r+')
    if not locks.lock(file, path):
        with file:
            holder = file.read().strip()
        raise WorkdirLocked(
            f'{workdir} is in use by another training{holder and f", {holder}"}; wait for its end, or give another'
            ' --workdir'
        )
    return file


def sign(lock: TextIO) -> None:
    """Tells others who holds the lock."""
    locks.sign(lock)


def _inherited(path: pathlib.Path) -> TextIO | None:
    """The file of an inherited descriptor, if it is this path's."""
    descriptor = os.environ.pop(INHERITED, None)
    try:
        if descriptor is not None and os.path.samestat(os.fstat(int(descriptor)), path.stat()):
            return os.fdopen(int(descriptor), 'r+')
    except OSError:  # closed, or there is no such file
        pass
    return None
