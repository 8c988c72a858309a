"""Shards as files: written under another name, then there at once; and the SHA-256 of all of a split."""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import IO, Any

from experiments.data.preparation.encoding import Encoded
from experiments.data.preparation.manifest import DOCUMENTS, MASK, TOKENS, Counts, Manifest, Shard, split_sha256
from gaussq_jax.atomic_files import named_errors

WRITING = '.writing'  # the ending of a file that isn't whole yet
OF_SHARDS = re.compile(rf'\.?[a-z]+-\d{{5,}}\.({TOKENS}|{MASK}|{DOCUMENTS})({re.escape(WRITING)})?')
OF_MANIFEST = re.compile(r'\.manifest\.json\.[0-9a-f]+\.writing')


class ShardFiles:
    """The files of one shard.

    Args:
      folder: where they are.
      name: of the shard.
    """

    def __init__(self, folder: pathlib.Path, name: str):
        self._folder, self._name = folder, name
        self._files: dict[str, IO[bytes]] = {}
        self._digests: dict[str, Any] = {}
        self._counts = Counts()

    def add(self, encoded: Encoded) -> None:
        """Adds what a block gives; OSErrors name the file."""
        parts = {TOKENS: encoded.tokens, MASK: encoded.mask, DOCUMENTS: encoded.lengths}
        for ending, values in parts.items():
            if values is not None:
                path = self._path(ending)
                with named_errors(path, path):
                    if ending not in self._files:
                        self._files[ending] = open(path, 'xb')  # noqa: SIM115, closed by `finish` or `close`
                        self._digests[ending] = hashlib.sha256()
                    self._files[ending].write(values.data)
                self._digests[ending].update(values.data)
        self._counts += encoded.counts

    @property
    def counts(self) -> Counts:
        return self._counts

    def finish(self, ends: tuple[int, int, int]) -> Shard:
        """The shard, whose files are on the disk, under their names."""
        for ending, file in self._files.items():
            path = self._path(ending)
            with named_errors(path, path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                path.rename(self._folder / f'{self._name}.{ending}')
        digests = {ending: digest.hexdigest() for ending, digest in self._digests.items()}
        return Shard(self._name, self._counts, digests, ends)

    def close(self) -> None:
        """Leaves out what was written and not finished."""
        for ending, file in self._files.items():
            with contextlib.suppress(OSError):
                file.close()
            self._path(ending).unlink(missing_ok=True)

    def _path(self, ending: str) -> pathlib.Path:
        return self._folder / f'.{self._name}.{ending}{WRITING}'


def is_left_over(name: str) -> bool:
    """Whether a file that no manifest knows is what a process has left that was killed."""
    return bool(OF_SHARDS.fullmatch(name) or OF_MANIFEST.fullmatch(name))


def remove_leftovers(folder: pathlib.Path, manifest: Manifest) -> None:
    """Removes what a process that was killed has left: files of shards that the manifest doesn't know."""
    known = {
        f'{shard.name}.{ending}'
        for split in manifest.splits.values()
        for shard in split.shards
        for ending in shard.sha256
    }
    for path in folder.iterdir():
        if path.name not in known and is_left_over(path.name):
            path.unlink()


class SplitDigests(contextlib.AbstractContextManager):
    """The SHA-256 of each split, of its shards as they are read again, one after the other, by a thread.

    Args:
      folder: where the shards are.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._digests: dict[str, Any] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, 'hashing shards')
        self._last: concurrent.futures.Future | None = None

    def add(self, split: str, shard: Shard) -> None:
        """Adds the next shard of a split. Raises what came up with one before."""
        if self._last is not None and self._last.done():
            self._last.result()
        self._last = self._thread.submit(self._read, split, shard, self._last)

    def sha256(self, splits: Mapping[str, Counts]) -> dict[str, str]:
        """Of all shards, once they are read.

        Raises:
          OSError: a shard isn't what was written; names it.
        """
        if self._last is not None:
            self._last.result()
        return {
            split: split_sha256(self._digests.get(split, hashlib.sha256()), counts) for split, counts in splits.items()
        }

    def _read(self, split: str, shard: Shard, before: concurrent.futures.Future | None) -> None:
        if before is not None:
            before.result()
        path = self._folder / f'{shard.name}.{TOKENS}'
        own, of_split = hashlib.sha256(), self._digests.setdefault(split, hashlib.sha256())
        with open(path, 'rb') as file:
            while chunk := file.read(2**22):
                own.update(chunk)
                of_split.update(chunk)
        if own.hexdigest() != shard.sha256[TOKENS]:
            raise OSError(f'{path} is not what was written to it: is the disk failing? Prepare the folder anew')

    def __exit__(self, *_) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
