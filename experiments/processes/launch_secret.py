"""The secret of one launch, by which its processes know each other: nobody else has it.

It is what the environment variable GAUSSQ_SECRET has. Without that it is in the file .secret of the workdir, which all
hosts see: process 0 writes a new one there at every start, and removes it when all processes have met.
"""

import contextlib
import errno
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator, Mapping

from gaussq_jax.atomic_files import new_file

VARIABLE = 'GAUSSQ_SECRET'
LEAST_CHARACTERS, MOST_CHARACTERS = 16, 1024


class LaunchSecret:
    """What all processes of a launch know, and nobody else.

    name: where it comes from, for errors, which never have the secret itself.

    Args:
      workdir: of the training; all processes see it.
      environment: as os.environ.

    Raises:
      ValueError: GAUSSQ_SECRET is set, and is too short or too long.

    Example:
      >>> secret = LaunchSecret(pathlib.Path('runs/tiny'), {'GAUSSQ_SECRET': 'correct horse battery'})
      >>> secret.name, secret.read()
      ('GAUSSQ_SECRET', b'correct horse battery')
    """

    def __init__(self, workdir: pathlib.Path, environment: Mapping[str, str]):
        self._path = workdir / '.secret'
        self._given = None
        self.name = str(self._path)
        if VARIABLE in environment:
            self._given = os.fsencode(environment[VARIABLE].strip())
            self.name = VARIABLE
            if not LEAST_CHARACTERS <= len(self._given) <= MOST_CHARACTERS:
                raise ValueError(
                    f'{VARIABLE} has {len(self._given)} characters, of {LEAST_CHARACTERS} to {MOST_CHARACTERS} that are'
                    ' allowed: set the same in all processes, made by `openssl rand -hex 32`, say'
                )

    @contextlib.contextmanager
    def published(self) -> Iterator[bytes]:
        """In process 0: the secret, which the others can read meanwhile.

        Raises:
          OSError: the file can't be written, or not so that nobody else can read it.
        """
        if self._given:
            yield self._given
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        secret = secrets.token_hex(32).encode()
        for_us_alone = lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600)
        with new_file(self._path) as partial, open(partial, 'xb', opener=for_us_alone) as file:
            file.write(secret)
            written = os.fstat(file.fileno())
        try:
            self.read()  # where the file system doesn't keep owners and modes, the others couldn't
            yield secret
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(self._path.lstat(), written):  # not one that another start has put in its place
                    self._path.unlink()

    def read(self) -> bytes:
        """In the others: the secret as it is now.

        Raises:
          OSError: the file isn't there, or is one that somebody else can have written or read.
        """
        if self._given:
            return self._given
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'{self._path} is not there: process 0 writes it, into a workdir that all hosts see; or set {VARIABLE}'
                ' in all processes'
            ) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(f'{self._path} is a symbolic link, and must be a regular file') from None
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f'{self._path} is not a regular file, and must be one')
            if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o077:
                raise PermissionError(
                    f'{self._path} is of user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):03o}, and must be'
                    f" of this process's user, {os.geteuid()}, or root with mode 600; where the file system can't keep"
                    f' that, set {VARIABLE} in all processes'
                )
            secret = os.read(descriptor, MOST_CHARACTERS).strip()
        finally:
            os.close(descriptor)
        if len(secret) < LEAST_CHARACTERS:
            raise OSError(f'{self._path} has {len(secret)} characters, and must have at least {LEAST_CHARACTERS}')
        return secret
