"""Files and directories that are there whole, or as they were: written under another name, then renamed.

That name, `.<name>.<random>.writing`, is no other's: what is there is neither written into nor followed, if it is a
link, and two writers don't mix. A killed process leaves its own.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write a file that replaces `path` at the end; after an error, or an interrupt, all is as it was.

    Raises:
      ValueError: there is something that is no file, such as a device.
      OSError: naming `path`, if that fails, or is a folder.

    Example:
      with new_file(pathlib.Path('picture.png')) as partial:
          figure.savefig(partial, format='png')
    """
    if path.exists() and not path.is_file():
        kind = IsADirectoryError if path.is_dir() else ValueError
        raise kind(f'{path} is no file, and is not replaced by one')
    partial = _partial(path)
    try:
        with named_errors(path, partial):
            yield partial
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a file in one step: a reader, a kill or a power cut finds the old text or the new. OSErrors name it."""
    with new_file(path) as partial, open(partial, 'x', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """What to write into, renamed to `path` at the end; after an error, or an interrupt, removed.

    Args:
      path: is not there yet, or an empty directory.

    Raises:
      ValueError: there is something, before, or at the end, written by another meanwhile.
      OSError: it can't be made there; names it.

    Example:
      with new_directory(pathlib.Path('exported')) as directory:
          (directory / 'config.json').write_text('{}')
    """
    path = path.absolute()
    check_is_free(path)
    partial = _partial(path)
    with named_errors(path, partial):
        partial.mkdir(parents=True)
    try:
        yield partial
        check_is_free(path)
        partial.rename(path)  # which fails, too, if something has come into it since
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_is_free(path: pathlib.Path):
    """ValueError unless a directory can be made there: nothing is, or an empty one."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ValueError(f'{path} is there already, and what is in it is not overwritten; give another')


def open_own(path: pathlib.Path, mode: str) -> IO[str]:
    """Opens a file to write to it where it is: 'w', 'a' or 'r+', made if it isn't there. A link is not followed.

    Raises:
      OSError: naming it; `path` is a link, say.
    """
    flags = {'w': os.O_WRONLY | os.O_TRUNC, 'a': os.O_WRONLY | os.O_APPEND, 'r+': os.O_RDWR}[mode]
    if path.is_symlink():
        raise OSError(f'{path} is a link, which is not followed: put the file itself there')
    return open(os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666), mode, encoding='utf-8')


@contextlib.contextmanager
def named_errors(path: pathlib.Path, partial: pathlib.Path | None = None) -> Iterator[None]:
    """Errors of the operating system name the file: of their own, those of writing don't, or name the partial one."""
    try:
        yield
    except OSError as error:
        names = (error.filename, error.filename2)  # of a copy, its source and its target
        is_ours = names == (None, None) or (partial is not None and str(partial) in map(str, names))
        if error.errno is None or not is_ours:
            raise  # in words of ours, or of this or another file
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _partial(path):
    return path.with_name(f'.{path.name}.{secrets.token_hex(8)}.writing')
