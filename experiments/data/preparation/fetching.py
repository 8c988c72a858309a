"""Prepared folders elsewhere, fetched to this machine: each file whole or not there, and verified as it comes."""

import contextlib
import hashlib
import pathlib
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import tqdm

from experiments.data.preparation import manifest
from experiments.files import locks
from gaussq_jax.atomic_files import new_file, open_own

PIECE = 2**23
MOST_BYTES = 2**26  # of a manifest, as of all JSON


def fetch_prepared(url: str, cache_dir: pathlib.Path) -> pathlib.Path | None:
    """A copy of a prepared folder in `cache_dir/fetched`; None if there is no manifest at that URL.

    The copy is named by the manifest's contents; what is there of it is not fetched again. Each file appears under its
    name when all of it has come and its SHA-256 is the manifest's.

    Args:
      url: of the folder, of any file system that fsspec knows.
      cache_dir: where copies go.

    Raises:
      ValueError: a file system whose package is not installed, or that can't be asked; as `manifest.read_manifest`.
      OSError: a file whose SHA-256 is another, or that can't be written.

    Example:
      folder = fetch_prepared('gs://bucket/prepared', pathlib.Path('cache'))
    """
    with _naming(url):
        system, root = fsspec.core.url_to_fs(url)
        names = [manifest.NAME] if system.isfile(posixpath.join(root, manifest.NAME)) else _of_parts(system, root)
        contents = {}
        for name in names:
            with system.open(posixpath.join(root, name), 'rb') as file:
                contents[name] = file.read(MOST_BYTES)
    if not contents:
        return None
    digest = hashlib.sha256(b'\0'.join(contents.values())).hexdigest()
    readable = re.sub(r'[^\w.-]', '_', posixpath.basename(url.rstrip('/')))[:60]
    folder = cache_dir / 'fetched' / f'{readable}-{digest[:16]}'
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for name, text in contents.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            with new_file(path) as partial:
                partial.write_bytes(text)
        _fetch_shards(system, root, folder, url)
    return folder


def _fetch_shards(system: Any, root: str, folder: pathlib.Path, url: str) -> None:
    """All that the manifest says and the folder lacks, said, with a bar on a terminal."""
    of_all, lacking = manifest.read_manifest(folder), []
    for split in of_all.splits.values():
        for shard in split.shards:
            for ending, size in shard.file_sizes(of_all.dtype).items():
                name = f'{shard.name}.{ending}'
                path = folder / name
                if not (path.is_file() and path.stat().st_size == size):
                    lacking.append((name, size, shard.sha256[ending]))
    if not lacking:
        return
    total = sum(size for _, size, _ in lacking)
    print(f'fetching {len(lacking)} files of {url}, {total / 1e6:,.0f} MB, to {folder}', flush=True)
    with tqdm.tqdm(total=total, unit='B', unit_scale=True, disable=None) as bar:
        for name, _, sha256 in lacking:
            _fetch(system, posixpath.join(root, name), folder / name, sha256, f'{url}/{name}', bar.update)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """One process of several that want the same folder at the same time fetches it, and the others wait for that."""
    path = folder.with_name(f'.{folder.name}.lock')
    with open_own(path, 'r+') as file:
        locks.lock(file, path, waits=True)
        yield


def _of_parts(system: Any, root: str) -> list[str]:
    """The manifests of a folder in several parts."""
    if not system.isdir(root):
        return []
    names = (posixpath.basename(path.rstrip('/')) for path in system.ls(root, detail=False))
    parts = sorted(name for name in names if manifest.SHARD_FOLDER.fullmatch(name))
    return [f'{name}/{manifest.NAME}' for name in parts if system.isfile(posixpath.join(root, name, manifest.NAME))]


def _fetch(system: Any, source: str, path: pathlib.Path, sha256: str, url: str, tell: Callable[[int], Any]) -> None:
    digest = hashlib.sha256()
    with new_file(path) as partial, open(partial, 'xb') as target:
        for piece in _pieces(system, source, url):
            digest.update(piece)
            target.write(piece)
            tell(len(piece))
        if digest.hexdigest() != sha256:
            raise OSError(f'{url} is damaged: its SHA-256 is {digest.hexdigest()}, and should be {sha256}')


def _pieces(system: Any, source: str, url: str) -> Iterator[bytes]:
    """What a file holds; errors of its file system name it, and those of whoever takes the pieces are their own."""
    with _naming(url), system.open(source, 'rb') as file:
        while piece := file.read(PIECE):
            yield piece


@contextlib.contextmanager
def _naming(url: str) -> Iterator[None]:
    """What a file system raises, of whichever kind, as one line that names the URL."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f'{url} needs a package that is not installed: {error}') from None
    except Exception as error:
        told = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"{url} can't be read: {told[0]:.300}") from None
