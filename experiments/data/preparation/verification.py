"""Whether files of tokens are what they were: small ones are read when they are opened, large ones meanwhile."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from experiments.files import json_files

MOST_AT_ONCE = 256 * 2**20
PIECE = 2**23
_one_at_a_time = threading.Lock()


class DamagedFile(OSError):
    """A file, `path`, isn't what it is claimed to be."""

    def __init__(self, path: pathlib.Path, told: str):
        super().__init__(f'{path} {told}')
        self.path = path


class Claim(NamedTuple):
    """What a file is said to hold.

    sha256: of all of it; '' where nothing says.
    dtype, offset, num_ids: of tokens after so many bytes, each of which must be below num_ids; None: not asked
    """

    path: pathlib.Path
    sha256: str = ''
    dtype: np.dtype | None = None
    offset: int = 0
    num_ids: int = 0


class Verification(NamedTuple):
    """raise_if_damaged: DamagedFile, once a file is known to be. is_complete: whether all have been read."""

    raise_if_damaged: Callable[[], None] = lambda: None
    is_complete: Callable[[], bool] = lambda: True


VERIFIED = Verification()


def verify(claims: Sequence[Claim], cache_dir: pathlib.Path) -> Verification:
    """Reads the files and compares them with what is claimed.

    Up to MOST_AT_ONCE bytes in all are read before it returns. More are read by a thread of its own, and
    `cache_dir/verified` remembers each file's digest, by its path, size, times of change and inode. Processes of a host
    take turns, a file each time: a file is read by one of them, and all know what was found.

    Args:
      claims: of each file, what it is said to be; the files have been looked at, and are there.
      cache_dir: for what is remembered.

    Returns:
      What is known so far; asking takes no time.

    Raises:
      DamagedFile: of files that are read at once, or were read by an earlier run.

    Example:
      verification = verify([Claim(path, sha256)], pathlib.Path('~/.cache/gaussq_jax').expanduser())
    """
    if sum(claim.path.stat().st_size for claim in claims) <= MOST_AT_ONCE:
        for claim in claims:
            _check(claim, _read(claim))
        return VERIFIED
    for claim in claims:
        if found := _remembered(claim, cache_dir):
            _check(claim, found)
    damage, verified = [], threading.Event()

    def raise_if_damaged():
        if damage:
            raise damage[0]

    def read_all():
        for claim in claims:
            try:
                with _one_at_a_time, _alone(cache_dir / 'verified'):
                    found = _remembered(claim, cache_dir) or _read_and_remember(claim, cache_dir)
                _check(claim, found)
            except DamagedFile as error:
                damage.append(error)
                return
            except Exception as error:  # of whichever kind: a run doesn't go on unverified
                damage.append(DamagedFile(claim.path, f"can't be verified: {error}"))
                return
        verified.set()

    threading.Thread(target=read_all, name='verification', daemon=True).start()
    return Verification(raise_if_damaged, verified.is_set)


def _check(claim: Claim, found: dict[str, Any]) -> None:
    if claim.sha256 and found['sha256'] != claim.sha256:
        raise DamagedFile(claim.path, f'is damaged: its SHA-256 is {found["sha256"]}, and should be {claim.sha256}')
    if claim.dtype is not None and not 0 <= found['smallest'] <= found['largest'] < claim.num_ids:
        wrong = found['largest'] if found['largest'] >= claim.num_ids else found['smallest']
        raise DamagedFile(claim.path, f'holds the token {wrong}; the vocabulary has 0 to {claim.num_ids - 1}')


def _read(claim: Claim) -> dict[str, Any]:
    """The SHA-256 of a file, and the smallest and the largest of its tokens."""
    digest, smallest, largest = hashlib.sha256(), 0, 0
    buffer = memoryview(bytearray(PIECE))
    with open(claim.path, 'rb') as file:  # buffered: else a read may end within a token
        digest.update(file.read(claim.offset))
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            if claim.dtype is not None:
                tokens = np.frombuffer(buffer[: size - size % claim.dtype.itemsize], claim.dtype)
                smallest = min(smallest, int(tokens.min(initial=0)))
                largest = max(largest, int(tokens.max(initial=0)))
    return {'sha256': digest.hexdigest(), 'smallest': smallest, 'largest': largest}


def _read_and_remember(claim: Claim, cache_dir: pathlib.Path) -> dict[str, Any]:
    state, found = _state(claim), _read(claim)
    try:
        json_files.write(_record(claim, cache_dir), {**state, **found})
    except (OSError, ValueError) as error:
        logging.warning('%s is not remembered as verified: %s', claim.path, error)
    return found


def _remembered(claim: Claim, cache_dir: pathlib.Path) -> dict[str, Any] | None:
    """What was read of the file as it is; None if nothing was."""
    path, state = _record(claim, cache_dir), _state(claim)
    if not path.is_file():
        return None
    try:
        found = json_files.read(
            path, sha256=str, smallest=int, largest=int, **{name: type(state[name]) for name in state}
        )
    except ValueError:  # damaged: what it is about is read again
        return None
    return found if all(found[name] == state[name] for name in state) else None


def _state(claim: Claim) -> dict[str, Any]:
    status = claim.path.stat()
    dtype = '' if claim.dtype is None else claim.dtype.str
    return {
        **dict(file=os.path.abspath(claim.path), size=status.st_size, mtime_ns=status.st_mtime_ns),
        **dict(ctime_ns=status.st_ctime_ns, inode=status.st_ino, dtype=dtype, offset=claim.offset),
    }


def _record(claim: Claim, cache_dir: pathlib.Path) -> pathlib.Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(claim.path))).hexdigest()[:32]
    return cache_dir / 'verified' / f'{name}.json'


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process of this host is at it; where nothing can be locked, for none."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / '.lock', 'a'))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            told = '%s: not locked (%s); other processes may read the same files'
            logging.log_first_n(logging.WARNING, told, 1, folder, error.strerror)
        yield
