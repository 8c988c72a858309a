"""SHA-256 digests of files, computed in threads; also of files that are still being written.

The digest of a file is known by what `FileStat` says of it. It counts as long as all of that is the same: a file that
was touched since is read again.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

THREADS_TO_READ = 8  # they wait for the disk; hashlib releases the GIL
THREADS_WHILE_WRITTEN = 2  # the page cache has what they read, and a run goes on beside them
SECONDS_AT_REST = 0.05  # of a file, until it counts as written
SECONDS_OF_TICK = 0.02  # in which a file may change, and its times remain what they are
MOST_READS = 5  # of a file that changes


class FileStat(NamedTuple):
    """What changes whenever a file is written to or replaced; ctime is the kernel's alone."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class FileDigest(NamedTuple):
    """The SHA-256 of a file in hexadecimal, and the file's stat before it was read."""

    sha256: str
    stat: FileStat


def file_stat(path: pathlib.Path) -> FileStat:
    """The stat of a file, or of a link itself."""
    stat = path.lstat()
    return FileStat(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def sha256(path: pathlib.Path, *, flush: bool = False) -> str:
    """The SHA-256 of a file in hexadecimal; with `flush`, the file is on the disk when it returns."""
    with open(path, 'rb') as file:
        if flush:
            os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):  # the disk reads ahead: it is faster by a half
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return hashlib.file_digest(file, 'sha256').hexdigest()


def sha256_of_each(paths: Iterable[pathlib.Path]) -> Iterator[str]:
    """The SHA-256 of each file, in order, read by THREADS_TO_READ at a time.

    Example:
      for path, digest in zip(paths, sha256_of_each(paths), strict=True):
          ...
    """
    executor = concurrent.futures.ThreadPoolExecutor(THREADS_TO_READ, thread_name_prefix='sha256')
    try:
        yield from executor.map(sha256, paths)
    finally:
        executor.shutdown(cancel_futures=True)


class DigestsWhileWritten:
    """Reads files below a directory in the background as soon as each is written, and tells all digests in the end.

    A file counts as written if it has been the same at two looks. One that changes later is read again.

    Args:
      directory: need not be there yet.
      pattern: of the files that are read early, relative to `directory`, as `pathlib.Path.glob` takes it.

    Example:
      with contextlib.closing(DigestsWhileWritten(directory, 'state*/ocdbt.process_0/d/*')) as digests:
          ...  # others write
          found = digests.of({'state/ocdbt.process_0/d/1f': path})
    """

    def __init__(self, directory: pathlib.Path, pattern: str):
        self._directory, self._pattern = directory, pattern
        self._early: dict[FileStat, concurrent.futures.Future[str]] = {}
        self._executor = concurrent.futures.ThreadPoolExecutor(THREADS_WHILE_WRITTEN, thread_name_prefix='sha256')
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name='written files', daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Ends the threads."""
        self._stop.set()
        self._watcher.join()
        self._executor.shutdown(cancel_futures=True)

    def of(self, files: Mapping[str, pathlib.Path]) -> dict[str, FileDigest]:
        """The digests of these files, which nobody writes to any more; they are on the disk when it returns.

        Raises:
          OSError: a file can't be read, or still changes.
        """
        self._stop.set()
        self._watcher.join()
        time.sleep(SECONDS_OF_TICK)
        digests: dict[str, FileDigest] = {}
        for _ in range(MOST_READS):
            changed = {}
            for name, path in files.items():
                stat = file_stat(path)
                if name not in digests or digests[name].stat != stat:
                    changed[name] = stat, self._digest_of(path, stat)
            if not changed:
                return digests
            digests |= {name: FileDigest(future.result(), stat) for name, (stat, future) in changed.items()}
        raise OSError(f'{next(iter(changed))} changes while its checkpoint is saved')

    def _digest_of(self, path: pathlib.Path, stat: FileStat) -> concurrent.futures.Future:
        """Of a file with this stat; a new one, unless it was read early and without an error."""
        early = self._early.pop(stat, None)
        with open(path, 'rb') as file:  # a step is renamed, and older ones deleted, only when the disk has it
            os.fsync(file.fileno())
        if early and early.exception() is None:
            return early
        return self._executor.submit(sha256, path)

    def _watch(self) -> None:
        seen: dict[str, FileStat] = {}
        while not self._stop.wait(SECONDS_AT_REST):
            now = {}
            with contextlib.suppress(OSError):  # a directory is renamed in between
                for path in self._directory.glob(self._pattern):
                    now[path.name] = stat = file_stat(path)
                    if seen.get(path.name) == stat and stat not in self._early:
                        self._early[stat] = self._executor.submit(sha256, path)
            seen |= now
