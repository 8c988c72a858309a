"""The classes that a prepared dataset's features.json names: TFDS imports them, from wherever they are.

So a folder of data could run code, such as a module beside the program that is started. Those of TFDS itself are all
that text needs.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.files import json_files, paths

ALLOWED = 'tensorflow_datasets.core.features.'
NAMING = ('pythonClassName', 'python_class_name', 'type')  # the last by TFDS before 4.6


def check(directory: pathlib.Path):
    """Refuses a dataset, in all its configs and versions, whose features are of other classes.

    Args:
      directory: `data_dir/name`; one that isn't there has none.

    Raises:
      ValueError: naming file and class; for what is no file, as a pipe.
    """
    for path in _files(directory):
        paths.check_file(path)  # what TFDS would wait for
        if path.name != 'features.json':
            continue
        try:
            names = list(_class_names(json_files.read(path)))
        except RecursionError:
            raise ValueError(f'{path} has too many levels') from None
        for name in names:
            if not name.startswith(ALLOWED) or not name.isascii():
                raise ValueError(f'{path} names the class {name!r:.80}, which TFDS would import; allowed: {ALLOWED}*')


def _files(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """All that there are, also in folders that are links, which TFDS follows."""
    seen = set()
    for folder, folders, names in os.walk(directory, followlinks=True, onerror=_raise if directory.exists() else None):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (path for name in sorted(names) if (path := pathlib.Path(folder, name)).exists())


def _raise(error):
    raise error


def _class_names(contents: Any) -> Iterator[str]:
    if isinstance(contents, list):
        for item in contents:
            yield from _class_names(item)
    elif isinstance(contents, dict):
        for key, value in contents.items():
            if key in NAMING and isinstance(value, str):
                yield value
            elif key in ('json', 'content') and isinstance(value, str):
                with contextlib.suppress(ValueError):  # of what is no JSON in JSON, which TFDS reads so
                    yield from _class_names(json.loads(value))
            else:
                yield from _class_names(value)
