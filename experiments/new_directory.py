"""A directory that is there whole, or not at all."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

WRITING = '.writing'


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """What to write into: `<path>.writing`, renamed to `path` at the end; after an error, or an interrupt, removed.

    Args:
      path: is not there yet, or an empty directory. What a killed process left as `<path>.writing` is removed.

    Raises:
      ValueError: there is something.

    Example:
      with new_directory(pathlib.Path('exported')) as directory:
          (directory / 'config.json').write_text('{}')
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f'{path} is there already, and what is in it is not overwritten; give another')
    partial = path.with_name(path.name + WRITING)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
