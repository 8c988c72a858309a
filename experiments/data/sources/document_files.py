"""Files of documents, on this machine or wherever fsspec reads: found, opened, and as a source."""

import contextlib
import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

import fsspec

from experiments.data.sources.source import Block, SourceFile
from experiments.files import paths

Cut = Callable[[str, tuple[str, ...]], Iterator[Block]]  # the blocks of a file, with these features


@dataclasses.dataclass(frozen=True)
class DocumentFiles:
    """A `Source`: files that are cut into blocks by `cut`."""

    name: str
    files: tuple[SourceFile, ...]
    has_splits: bool
    features: tuple[str, ...]
    cut: Cut

    def blocks(self, file: int) -> Iterator[Block]:
        path = self.files[file].path
        with naming(path):
            yield from self.cut(path, self.features)


def is_remote(path: str) -> bool:
    """Whether it is a URL, as gs://bucket/file."""
    return bool(re.match(r'[A-Za-z][\w+.-]*://', path))


def find(pattern: str, dataset: str) -> tuple[SourceFile, ...]:
    """The files of a path or a pattern, sorted by their paths, with their sizes.

    Args:
      pattern: a path with *, ?, [...] and **, as of `glob`, or a URL that fsspec reads, with the same.
      dataset: what the user gave, for errors.

    Raises:
      ValueError: there is none; a file system whose package is not installed, or that can't be asked.
      OSError: a file that can't be looked at.
    """
    if is_remote(pattern):
        with naming(pattern):
            system, path = _file_system(pattern)
            found = {path: system.info(path)} if system.isfile(path) else system.glob(path, detail=True)
            if folders := [name for name, info in found.items() if info['type'] != 'file']:
                raise ValueError(f'{system.unstrip_protocol(folders[0])} is no file')
            if unknown := [name for name, info in found.items() if info.get('size') is None]:
                raise ValueError(
                    f'{system.unstrip_protocol(unknown[0])} has no size that its server tells; download it'
                )
            files = [SourceFile(system.unstrip_protocol(name), info['size']) for name, info in found.items()]
    else:
        pattern = os.fspath(paths.parse(pattern, 'dataset'))
        names = [pattern] if os.path.lexists(pattern) else set(glob.glob(pattern, recursive=True))
        files = [local_file(pathlib.Path(name)) for name in names]
    if not files:
        raise ValueError(f'dataset={dataset!r}: there is no file {pattern!r}')
    return tuple(sorted(files))


def local_file(path: pathlib.Path) -> SourceFile:
    """A file on this machine, with its size; errors as `paths.check_file`, and for a name that is no UTF-8."""
    if any('\ud800' <= character <= '\udfff' for character in str(path)):
        raise ValueError(f'{path} has a name that is not UTF-8, which no manifest can hold: rename it')
    return SourceFile(str(path), paths.check_file(path).stat().st_size)


def open_file(path: str) -> IO[bytes]:
    """A file as `find` names it, for reading.

    Raises:
      ValueError, OSError: it can't be opened.
    """
    if not is_remote(path):
        return open(paths.check_file(pathlib.Path(path)), 'rb')
    system, name = _file_system(path)
    return system.open(name, 'rb')


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Any error while a file is read becomes a ValueError or an OSError that names it; file systems raise others."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError | OSError) and path in str(error):
            raise
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} can't be read, or is damaged: {reason}") from None


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = getattr(error.__cause__ or error, 'name', None) or url.split('://')[0]
        raise ValueError(f'{url} needs a package that is not installed: pip install {package}') from None
