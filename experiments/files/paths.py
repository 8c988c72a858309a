"""Paths as users write them, in flags and in fields of configs, and what lies there."""

import os
import pathlib
import re
import stat


def parse(text: str | os.PathLike, what: str) -> pathlib.Path:
    """A path on this machine's file system; `~` and `~user` are the homes that they are in a shell.

    Args:
      text: of the path.
      what: the flag or the field that it is from, for errors.

    Raises:
      ValueError: an empty path; a `scheme://`, of which none is supported; `~` where nobody has a home.

    Example:
      >>> parse('runs/tiny', '--workdir').as_posix()
      'runs/tiny'
    """
    text = os.fspath(text)
    if not text or '\0' in text:
        raise ValueError(f'{what}={text!r} is no path')
    if scheme := re.match(r'[A-Za-z][\w+.-]*://', text):
        raise ValueError(
            f'{what}={text!r}: {scheme[0]} is not supported; give a path on this machine, such as where it is mounted'
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{what}={text!r}: this user's home is not known; give the whole path, or set HOME") from None


def parse_new(text: str | os.PathLike, what: str) -> pathlib.Path:
    """The path of a file to write, as `parse` has it; ValueError, before all work, if there is no folder for it."""
    path = parse(text, what)
    if not path.parent.is_dir():
        raise ValueError(f'{what}={path}: there is no folder {path.parent}')
    return path


def check_file(path: pathlib.Path) -> pathlib.Path:
    """The path itself, of a file that can be opened without waiting for anybody, as for the writer of a pipe.

    Raises:
      ValueError: it is a folder, a pipe, a socket or a device.
      OSError: there is nothing, or it can't be looked at.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f'{path} is no file')
    return path
