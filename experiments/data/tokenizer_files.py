"""A run's own copy of its tokenizer's files, WORKDIR/tokenizer: it is opened by these, wherever it has been moved.

Beside a packed file they are looked for, too, so that one in its run's workdir finds them.
"""

import contextlib
import os
import pathlib
import shutil

from experiments.files import json_files, paths
from experiments.files.huggingface_folder import TOKENIZER_FILES, TOKENIZERS, copy_own_file
from gaussq_jax.atomic_files import new_file

DIRECTORY = 'tokenizer'


def keep(spec: str, workdir: pathlib.Path) -> list[str]:
    """Copies the file of a tokenizer into the workdir; of a model's folder, all that say how texts become tokens.

    The file itself may be a link to anywhere, which its user has named; what lies beside it may not.

    Returns:
      What was not copied, and why.

    Raises:
      ValueError: WORKDIR/tokenizer is a link.
      OSError: the file can't be read, or the copy not written.
    """
    path, directory = paths.parse(spec, 'config.tokenizer'), workdir / DIRECTORY
    if spec == 'bytes':
        return []
    if directory.is_symlink():
        raise ValueError(f'{directory} is a link, which is not followed: a run keeps its tokenizer there')
    if directory.resolve() in (path.parent.resolve(), path.resolve().parent):  # it is the copy
        return []
    directory.mkdir(parents=True, exist_ok=True)
    with new_file(directory / path.name) as partial:
        shutil.copyfile(path, partial)
    for name in set(TOKENIZER_FILES) - {path.name}:  # of another tokenizer, with which a training was started here
        (directory / name).unlink(missing_ok=True)
    remarks = []
    for name in TOKENIZER_FILES if path.name in TOKENIZERS else ():
        if name != path.name and os.path.lexists(path.parent / name):
            try:
                copy_own_file(path.parent / name, directory)
            except (ValueError, OSError) as error:
                remarks.append(f'not kept in {directory}: {error}')
    return remarks


def keep_if_missing(spec: str, workdir: pathlib.Path) -> list[str]:
    """As `keep`, of a run that is there already, and goes on without the copy where it can't be made."""
    try:
        return [] if spec == 'bytes' or copy_of(spec, workdir) else keep(spec, workdir)
    except (ValueError, OSError) as error:
        return [f'not kept in {workdir / DIRECTORY}: {error}']


def copy_of(spec: str, directory: pathlib.Path) -> str | None:
    """The file of a tokenizer's name in the directory's DIRECTORY, or in itself; None if there is none."""
    name = pathlib.PurePath(spec).name
    candidates = (directory / DIRECTORY / name, directory / name)
    return next((str(path) for path in candidates if spec != 'bytes' and name and path.is_file()), None)


def of_run(name: str, workdir: pathlib.Path) -> str | None:
    """The file of this name that the config.json of a run names, as one of version 0.1, which has no copy of it."""
    with contextlib.suppress(ValueError, OSError):
        spec = json_files.read(workdir / 'config.json', tokenizer=str)['tokenizer']
        if pathlib.PurePath(spec).name == name and paths.parse(spec, 'tokenizer').is_file():
            return spec
    return None
