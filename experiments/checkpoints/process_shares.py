"""Which process writes, hashes and verifies which files of a checkpoint, and how process 0 learns of the digests."""

import collections
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax

from experiments.checkpoints.file_digests import DigestsWhileWritten, FileDigest, FileStat

# Orbax writes these, each process its own; the data files in them appear while it writes.
OF_PROCESS = re.compile(r'state/(?:ocdbt\.|array_metadatas/)process_(\d{1,9})(?:/|$)')
PART = 'manifest.process_{}.json'  # {name: [SHA-256, [stat]]}; there while a checkpoint is written


class Share(NamedTuple):
    """Which of all processes verifies, and how many there are."""

    process: int = 0
    num_processes: int = 1

    def of(self, names: list[str]) -> list[str]:
        """The files of a checkpoint that this process verifies: each file is of exactly one process.

        A process has what it wrote, which it is likely to read again. If there are more processes than writers, the
        files of writer w are dealt to processes w, w + number of writers, ...; if there are fewer, to w modulo their
        number.

        Example:
          >>> Share(3, 4).of(['checkpoint.json', 'state/ocdbt.process_1/d/a', 'state/ocdbt.process_1/d/b'])
          ['state/ocdbt.process_1/d/b']
        """
        num_writers = 1 + max(map(writer_of, names), default=0)
        dealt, mine = collections.Counter(), []
        for name in names:
            writer = writer_of(name)
            readers = range(writer % self.num_processes, self.num_processes, num_writers)
            if readers[dealt[writer] % len(readers)] == self.process:
                mine.append(name)
            dealt[writer] += 1
        return mine


def writer_of(name: str) -> int:
    """The process that writes a file of a checkpoint; process 0 writes those that name none.

    Example:
      >>> writer_of('state/ocdbt.process_12/d/0f'), writer_of('state/manifest.ocdbt')
      (12, 0)
    """
    of_process = OF_PROCESS.match(name)
    return int(of_process[1]) if of_process else 0


def early_files(process: int) -> str:
    """A pattern of the data files that a process writes, also while their directory has its first name."""
    return f'state*/ocdbt.process_{process}/d/*'


def files_of(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """All files below a directory, by their names relative to it."""
    return {path.relative_to(directory).as_posix(): path for path in directory.rglob('*') if path.is_file()}


def gather_digests(
    directory: pathlib.Path, digests: DigestsWhileWritten, wait_for_all: Callable[[], None]
) -> dict[str, FileDigest] | None:
    """The digests of all files of a new checkpoint, each computed by its writer; None in all processes but process 0.

    Args:
      directory: of the checkpoint, which every process has written.
      digests: of this process.
      wait_for_all: a barrier of all processes.
    """
    process = jax.process_index()
    if jax.process_count() == 1:
        return digests.of(files_of(directory))
    if process != 0:
        found = digests.of(_files_of_process(directory, process))
        with open(directory / PART.format(process), 'w', encoding='utf-8') as file:
            json.dump(found, file)
            file.flush()
            os.fsync(file.fileno())
        return wait_for_all()
    found = digests.of({name: path for name, path in files_of(directory).items() if _is_of_first(name)})
    wait_for_all()
    for other in range(1, jax.process_count()):
        part = directory / PART.format(other)
        for name, (sha256, stat) in json.loads(part.read_text(encoding='utf-8')).items():
            found[name] = FileDigest(sha256, FileStat(*stat))
        part.unlink()
    rest = {name: path for name, path in files_of(directory).items() if name not in found}
    return found | digests.of(rest)


def _is_of_first(name: str) -> bool:
    return writer_of(name) == 0 and not re.fullmatch(PART.format(r'\d+'), name)


def _files_of_process(directory: pathlib.Path, process: int) -> dict[str, pathlib.Path]:
    """By their paths: on network file systems, the list of a directory may be an old one, which lacks them."""
    state = directory / 'state'
    files = [*(state / f'ocdbt.process_{process}').rglob('*'), state / 'array_metadatas' / f'process_{process}']
    return {path.relative_to(directory).as_posix(): path for path in files if path.is_file()}
