"""A lock on a file, which ends with the process that holds it, however that ends."""

import errno
import fcntl
import os
import pathlib
import socket
import warnings
from typing import TextIO

CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def lock(file: TextIO, path: pathlib.Path, *, waits: bool = False) -> bool:
    """Locks an open file, as long as it is open in some process; False if another process holds the lock.

    On a file system that can't lock, a warning says so.

    Args:
      file: as `open_own(path, 'r+')` gives it.
      path: of the file.
      waits: whether to wait for the process that holds the lock.

    Raises:
      OSError: it can't be locked, and is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            file.close()
            raise
        told = f"{path} can't be locked ({error.strerror}): start no second process there"
        warnings.warn(told, stacklevel=3)
    return True


def sign(file: TextIO) -> None:
    """Tells others who holds the lock."""
    file.seek(0)
    file.truncate()
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
