"""Paths as users write them, in flags and in fields of configs."""

import os
import pathlib
import re


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
