"""A directory's manifest: the SHA-256 of every file in it, by which a damaged one is known."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments.checkpoints.file_digests import FileStat, file_stat, sha256, sha256_of_each
from experiments.checkpoints.process_shares import Share, files_of
from experiments.files import paths

MANIFEST = 'manifest.sha256'
ALL = Share()


class Seen(NamedTuple):
    """A directory as it was: the SHA-256 of its manifest, and the stat of each other file."""

    manifest: str
    stats: Mapping[str, FileStat]


def find_damage(directory: pathlib.Path, share: Share = ALL) -> str | None:
    """Reads every file: None if all are what the manifest says, else what is wrong, in words.

    Args:
      directory: of a checkpoint.
      share: of several processes each reads its share of the files, and the first looks at their names: lists of
        directories that others have may be old ones, on network file systems.
    """
    try:
        lines = paths.check_file(directory / MANIFEST).read_text(encoding='utf-8').splitlines()
        digests = {name: digest for digest, name in (line.split('  ', 1) for line in lines)}
        if share.process == 0 and (damage := _misnamed(directory, digests)):
            return damage
        names = share.of(sorted(digests))
        files = [paths.check_file(directory / name) for name in names]
        for name, found in zip(names, sha256_of_each(files), strict=True):
            if found != digests[name]:
                return f'{name} is not what was written (its SHA-256 differs)'
    except FileNotFoundError as error:
        return f'{pathlib.Path(error.filename).name} is missing'
    except OSError as error:
        return f'it cannot be read ({error})'
    except ValueError:
        return f'{MANIFEST} is not a manifest'
    return None


class Verified:
    """Directories that were whole, each as it was then: what is the same since needs no second reading.

    Example:
      verified = Verified()
      verified.find_damage(directory)   # reads every file
      verified.find_damage(directory)   # reads the manifest alone, if all was whole and nothing was touched
    """

    def __init__(self):
        self._seen: dict[pathlib.Path, Seen] = {}

    def find_damage(
        self, directory: pathlib.Path, find: Callable[[pathlib.Path], str | None] = find_damage, *, again: bool = False
    ) -> str | None:
        """What `find` says; it is not asked about what was whole and is untouched, unless `again`."""
        now = _look(directory)
        if not again and now and self._seen.get(directory) == now:
            return None
        damage = find(directory)
        if damage is None and now:
            self._seen[directory] = now
        return damage

    def add(self, directory: pathlib.Path, stats: Mapping[str, FileStat]) -> None:
        """What was written there with these stats is whole."""
        self._seen[directory] = Seen(sha256_of_manifest(directory), stats)

    def forget(self, directory: pathlib.Path) -> None:
        """What is there next is another one."""
        self._seen.pop(directory, None)


def write_manifest(directory: pathlib.Path, digests: Mapping[str, str] | None = None) -> None:
    """Writes the manifest of all files in the directory; it is on the disk when it returns.

    Args:
      directory: of a checkpoint.
      digests: the SHA-256 by name of all its files, which are on the disk. None: they are read and flushed here.
    """
    if digests is None:
        digests = {name: sha256(path, flush=True) for name, path in _files(directory).items()}
    with open(directory / MANIFEST, 'w') as file:
        file.writelines(f'{digest}  {name}\n' for name, digest in sorted(digests.items()))
        file.flush()
        os.fsync(file.fileno())


def sha256_of_manifest(directory: pathlib.Path) -> str:
    """What names all that is in the directory; OSError if there is no manifest."""
    return sha256(directory / MANIFEST)


def _misnamed(directory: pathlib.Path, digests: Mapping[str, str]) -> str | None:
    """What files are missing, or are too many."""
    if links := [path for path in directory.rglob('*') if path.is_symlink()]:
        return f'{links[0].relative_to(directory)} is a link, whose file may be any'
    files = _files(directory)
    if missing := sorted(digests.keys() - files.keys()):
        return f'{missing[0]} is missing'
    if unlisted := sorted(files.keys() - digests.keys()):
        return f'{unlisted[0]} is not in {MANIFEST}'
    return None if files else f'there is nothing beside {MANIFEST}'


def _files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    return {name: path for name, path in files_of(directory).items() if name != MANIFEST}


def _look(directory: pathlib.Path) -> Seen | None:
    """What is there now; None if there is no manifest, or something is lost meanwhile."""
    try:
        manifest = paths.check_file(directory / MANIFEST).read_bytes()
        entries = (path for path in directory.rglob('*') if path.is_symlink() or not path.is_dir())
        stats = {path.relative_to(directory).as_posix(): file_stat(path) for path in entries}
    except (OSError, ValueError):
        return None
    del stats[MANIFEST]
    return Seen(hashlib.sha256(manifest).hexdigest(), stats)
