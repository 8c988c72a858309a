"""A run's own copy of its tokenizer's files, WORKDIR/tokenizer: it is opened by these, wherever it has been moved.

Beside a packed file they are looked for, too, so that one in its run's workdir finds them.
"""

import pathlib
import shutil

from experiments import paths
from experiments.atomic_files import new_file
from experiments.huggingface_folder import TOKENIZER_FILES, TOKENIZERS, copy_tokenizer

DIRECTORY = 'tokenizer'


def keep(spec: str, workdir: pathlib.Path):
    """Copies the file of a tokenizer into the workdir; of a model's folder, all that say how texts become tokens.

    Raises:
      ValueError: as `copy_tokenizer` does.
      OSError: the file can't be read, or the copy not written.
    """
    path, directory = paths.parse(spec, 'config.tokenizer'), workdir / DIRECTORY
    if spec == 'bytes' or path.parent.resolve() == directory.resolve():
        return
    directory.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:  # of another tokenizer, with which a training was started here
        (directory / name).unlink(missing_ok=True)
    if path.name in TOKENIZERS:
        copy_tokenizer(path.parent, directory)
    else:
        with new_file(directory / path.name) as partial:
            shutil.copyfile(path, partial)


def is_kept(spec: str, workdir: pathlib.Path) -> bool:
    """Whether the workdir has the copy of a tokenizer, or needs none."""
    return spec == 'bytes' or copy_of(spec, workdir) is not None


def copy_of(spec: str, directory: pathlib.Path) -> str | None:
    """The file of a tokenizer's name in the directory, or in its DIRECTORY; None if there is none."""
    name = pathlib.PurePath(spec).name
    candidates = (directory / DIRECTORY / name, directory / name)
    return next((str(path) for path in candidates if spec != 'bytes' and name and path.is_file()), None)
