"""`python_stdlib`: the source of the running Python's standard library, as a TFDS dataset.

About 12 MB of real text that every machine with Python already has: nothing is downloaded, and TensorFlow
isn't needed. Another Python has other files, so its version is part of the config's name:
`python_stdlib/cpython-3.11.7`.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import platform
import sys
import sysconfig
import tokenize
from collections.abc import Iterator

import tensorflow_datasets as tfds
from absl import logging
from etils import epath

NAME = 'python_stdlib'
CONFIG = f'{sys.implementation.name}-{platform.python_version()}'

# Tests, what isn't the standard library, and what was generated when this Python was installed.
EXCLUDED_FOLDERS = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
EXCLUDED_FILES = {'sitecustomize.py', 'usercustomize.py'}
EXCLUDED_PREFIXES = ('config-', '_sysconfigdata')

# One file in 16 is for validation: 5.4 % of the bytes of CPython 3.11.7, 5.5 % of 3.12.1.
VALIDATION_FILES = 16


def prepare(data_dir: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Writes the dataset below `data_dir` as array_record, unless it is there, and returns its builder.

    The folder appears under its name only when it is complete. Processes that start at once each write one,
    with the same contents, and the first to finish wins. A killed one leaves a folder `incomplete.*` that is
    never read.

    Args:
      data_dir: the root folder of TFDS datasets, created if missing.

    Returns:
      A builder; `builder.as_data_source('train')` is a sequence of `{'text': bytes, 'path': bytes}`.

    Raises:
      ValueError: the standard library of this Python has no source files.

    Example:
      >>> len(prepare('data').as_data_source('validation')) > 20
      True
    """
    builder = PythonStdlib(data_dir=data_dir, file_format='array_record')
    if not builder.data_path.exists():
        logging.info('Writing %s to %s', builder.info.full_name, builder.data_path)
        try:
            # TFDS prints and draws progress bars whether or not a terminal is there, for one second of work.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                builder.download_and_prepare()
        except OSError:
            if not builder.data_path.exists():  # else another process was first
                raise
    return PythonStdlib(data_dir=data_dir)


def source_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The `*.py` files of a standard library, sorted, without tests and what differs by installation."""
    return [
        path
        for path in sorted(root.rglob('*.py'))
        if not EXCLUDED_FOLDERS.intersection(path.relative_to(root).parts)
        and path.name not in EXCLUDED_FILES
        and not any(part.startswith(EXCLUDED_PREFIXES) for part in path.relative_to(root).parts)
    ]


def split_of(path: str) -> str:
    """The split of a file, by its path in the standard library, '/'-separated, and nothing else."""
    digest = hashlib.sha256(path.encode()).digest()
    return 'validation' if int.from_bytes(digest[:8]) % VALIDATION_FILES == 0 else 'train'


def read_source(path: pathlib.Path) -> str | None:
    """The text of a Python file in its declared encoding, lines ending in '\\n'; None if undecodable."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (UnicodeDecodeError, SyntaxError):  # SyntaxError: an encoding that Python doesn't know
        return None


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """Source files of the running Python's standard library."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=CONFIG, description=f'The standard library of {CONFIG}.'),)
    # TFDS 4.9.10 looks for it with the package importlib_resources, which it doesn't install.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Source files of Python's standard library; one example a file, split by file.",
            features=tfds.features.FeaturesDict(
                {'text': tfds.features.Text(), 'path': tfds.features.Text()},
            ),
            homepage='https://docs.python.org/3/library/',
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        root = pathlib.Path(sysconfig.get_path('stdlib'))
        paths = source_files(root)
        if not paths:
            raise ValueError(
                f'{NAME}: no *.py files in {root}, the standard library of {sys.executable}; '
                'allowed: a Python that is installed with its source files.'
            )
        return {split: self._generate_examples(root, paths, split) for split in ('train', 'validation')}

    def _generate_examples(
        self, root: pathlib.Path, paths: list[pathlib.Path], split: str
    ) -> Iterator[tuple[str, dict[str, str]]]:
        for path in paths:
            name = path.relative_to(root).as_posix()
            if split_of(name) == split and (text := read_source(path)):
                yield name, {'text': text, 'path': name}
