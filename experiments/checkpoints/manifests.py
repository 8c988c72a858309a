"""A directory's manifest: the SHA-256 of every file in it, by which a damaged one is known."""

import hashlib
import os
import pathlib

from experiments.files import paths

MANIFEST = 'manifest.sha256'


def find_damage(directory: pathlib.Path) -> str | None:
    """Reads every file: None if all are what the manifest says, else what is wrong, in words."""
    try:
        lines = paths.check_file(directory / MANIFEST).read_text(encoding='utf-8').splitlines()
        digests = {name: digest for digest, name in (line.split('  ', 1) for line in lines)}
        if links := [path for path in directory.rglob('*') if path.is_symlink()]:
            return f'{links[0].relative_to(directory)} is a link, whose file may be any'
        files = _files(directory)
        if missing := sorted(digests.keys() - files.keys()):
            return f'{missing[0]} is missing'
        if unlisted := sorted(files.keys() - digests.keys()):
            return f'{unlisted[0]} is not in {MANIFEST}'
        if not files:
            return f'there is nothing beside {MANIFEST}'
        for name, path in files.items():
            if _sha256(path) != digests[name]:
                return f'{name} is not what was written (its SHA-256 differs)'
    except FileNotFoundError as error:
        return f'{pathlib.Path(error.filename).name} is missing'
    except OSError as error:
        return f'it cannot be read ({error})'
    except ValueError:
        return f'{MANIFEST} is not a manifest'
    return None


def write_manifest(directory: pathlib.Path) -> None:
    """Writes the manifest of all files in the directory; they, and it, are on the disk when it returns."""
    lines = [f'{_sha256(path, flush=True)}  {name}\n' for name, path in sorted(_files(directory).items())]
    with open(directory / MANIFEST, 'w') as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def sha256_of_manifest(directory: pathlib.Path) -> str:
    """What names all that is in the directory; OSError if there is no manifest."""
    return _sha256(directory / MANIFEST)


def _files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob('*') if path.is_file()}
    files.pop(MANIFEST, None)
    return files


def _sha256(path: pathlib.Path, *, flush: bool = False) -> str:
    with open(path, 'rb') as file:
        if flush:  # a step is renamed, and older ones deleted, only when the disk has it
            os.fsync(file.fileno())
        return hashlib.file_digest(file, 'sha256').hexdigest()
