"""The documents of a TFDS dataset that is prepared on this machine, or is `python_stdlib`."""

import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from experiments.data.datasets import feature_classes, python_stdlib
from experiments.data.sources.source import BLOCK_BYTES, SourceFile, check_names, select
from experiments.files import paths

ROWS = 128  # that are read at a time


class TfdsDataset:
    """A `Source`: a split of a dataset, or a slice of one.

    Args:
      builder: of the dataset, as from `open_dataset`.
      split: TFDS split, slices allowed.
      features: names of features that hold text.

    Attributes:
      builder: that it was made with.
      files: that hold the split; of a slice, the first and the last may be read in part.

    Raises:
      ValueError: another file format than array_record; a split or a feature that isn't there.
    """

    has_splits = True

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, features: tuple[str, ...]):
        self.builder, self._split, self._features = builder, split, features
        self.name = _name(builder)
        check_names(features, builder.info.features, f'{self.name} in {builder.data_path}')
        try:
            builder.as_data_source(split)
        except NotImplementedError:
            raise ValueError(
                f'dataset {self.name} in {builder.data_path} is written as {builder.info.file_format.value}; allowed: '
                'array_record. Prepare it in another data_dir with --file_format=array_record.'
            ) from None
        except (KeyError, ValueError):
            splits = sorted(builder.info.splits)
            raise ValueError(
                f'split={split!r}: {self.name} in {builder.data_path} has {splits}, and slices of them.'
            ) from None
        self._parts = builder.info.splits[split].file_instructions
        num_documents = sum(info.num_examples for info in builder.info.splits.values())
        self._rows_of_block = max(1, BLOCK_BYTES * num_documents // max(1, builder.info.dataset_size))

    @functools.cached_property
    def files(self) -> tuple[SourceFile, ...]:
        return tuple(SourceFile(part.filename, os.path.getsize(part.filename)) for part in self._parts)

    def blocks(self, file: int) -> Iterator['TfdsBlock']:
        start = sum(part.take for part in self._parts[:file])
        part, directory = self._parts[file], str(self.builder.data_path)
        for row in range(0, part.take, self._rows_of_block):
            count = min(self._rows_of_block, part.take - row)
            read = self.files[file].size * (row + count) // part.take
            place = (part.filename, part.skip + row, directory, self._split, start + row, count)
            yield TfdsBlock(*place, self._features, read)


class TfdsBlock(NamedTuple):
    """Some rows of a file, which are read where they are parsed: as many as have BLOCK_BYTES on average."""

    path: str
    first_row: int
    directory: str  # of the dataset
    split: str
    start: int  # in the split
    count: int
    features: tuple[str, ...]
    file_bytes: int

    def rows(self) -> Iterator[tuple[Any, ...]]:
        documents = tfds.builder_from_directory(self.directory).as_data_source(self.split)
        for first in range(0, self.count, ROWS):
            rows = range(self.start + first, self.start + min(first + ROWS, self.count))
            try:
                examples = documents.__getitems__(rows)
            except Exception as error:  # ArrayRecord raises RuntimeErrors
                reason = ' '.join(str(error).split())[:200]
                raise ValueError(f'{self.place(first)} and after it: damaged, {reason}') from None
            for row, example in enumerate(examples, first):
                yield select(example, self.features, self.place(row))

    def place(self, row: int) -> str:
        return f'{self.path}, row {self.first_row + row}'


def open_dataset(dataset: str, data_dir: str | os.PathLike | None, cache_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    """The builder of a prepared dataset; any way in which TFDS can't give it becomes one ValueError."""
    name = dataset.split('/')[0].split(':')[0]
    is_python_stdlib = name == python_stdlib.NAME
    if data_dir is None:
        data_dir = cache_dir / 'tensorflow_datasets' if is_python_stdlib else tfds.core.constants.DATA_DIR
    data_dir = paths.parse(data_dir, 'data_dir')
    feature_classes.check(data_dir / name)
    if dataset in (python_stdlib.NAME, f'{python_stdlib.NAME}/{python_stdlib.CONFIG}'):
        return python_stdlib.prepare(data_dir)
    reason = ''
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
        if builder.data_path.exists() and builder.is_prepared():
            return builder
    except Exception as error:  # TFDS raises ValueError, AssertionError, RuntimeError, ImportError, …
        reason = f' ({str(error).strip().splitlines()[0][:200]})' if str(error).strip() else ''
    if is_python_stdlib:
        remedy = f'This Python writes {python_stdlib.NAME}/{python_stdlib.CONFIG} and no other.'
    else:
        remedy = (
            f"Prepare it once with 'tfds build {dataset} --data_dir={data_dir} --file_format=array_record' "
            "(for some datasets that needs TensorFlow; reading doesn't). "
            + (
                f'{dataset!r} is here, but is no file or folder of documents.'
                if os.path.exists(dataset)
                else f'Nor is there a file or a folder {dataset!r}.'
            )
        )
    raise ValueError(f'dataset={dataset!r} is not prepared in data_dir={str(data_dir)!r}{reason}. {remedy}')


def _name(builder: tfds.core.DatasetBuilder) -> str:
    """Its name, by which its dataset_info.json must not put its tokens elsewhere."""
    name = builder.info.full_name
    if not all(re.fullmatch(r'[\w.+=-]+', part) and part.strip('.') for part in name.split('/')):
        raise ValueError(f'{builder.data_path}: dataset_info.json names the dataset {name!r:.80}, which is no name')
    return name
