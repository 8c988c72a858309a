"""A directory that is there whole, or not at all."""

import contextlib
import pathlib
import shutil
import uuid
from collections.abc import Iterator

WRITING = '.writing'


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """What to write into, beside `path`, renamed to it at the end; after an error, or an interrupt, removed.

    It has a name that no other has, `.<name>.<random>.writing`: nobody else writes into it, and nothing that is there
    is removed. A killed process leaves it.

    Args:
      path: is not there yet, or an empty directory.

    Raises:
      ValueError: there is something, before, or at the end, written by another meanwhile.

    Example:
      with new_directory(pathlib.Path('exported')) as directory:
          (directory / 'config.json').write_text('{}')
    """
    path = path.absolute()
    _check_is_free(path)
    partial = path.with_name(f'.{path.name}.{uuid.uuid4().hex}{WRITING}')
    partial.mkdir(parents=True)
    try:
        yield partial
        _check_is_free(path)
        partial.rename(path)  # which fails, too, if something has come into it since
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_is_free(path):
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ValueError(f'{path} is there already, and what is in it is not overwritten; give another')
