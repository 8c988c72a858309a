"""The documents of a TFDS dataset that is prepared on this machine, or is `python_stdlib`."""

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import tensorflow_datasets as tfds

from experiments.data.datasets import feature_classes, python_stdlib
from experiments.files import paths

INVALID = ('error', 'replace', 'skip')  # what becomes of documents that are not UTF-8


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
            "(for some datasets that needs TensorFlow; reading doesn't)."
        )
    raise ValueError(f'dataset={dataset!r} is not prepared in data_dir={str(data_dir)!r}{reason}. {remedy}')


def folder_name(builder: tfds.core.DatasetBuilder) -> str:
    """Of its tokens, which its dataset_info.json must not put elsewhere."""
    name = builder.info.full_name
    if not all(re.fullmatch(r'[\w.+=-]+', part) and part.strip('.') for part in name.split('/')):
        raise ValueError(f'{builder.data_path}: dataset_info.json names the dataset {name!r:.80}, which is no name')
    return name


def read_documents(
    builder: tfds.core.DatasetBuilder, split: str, text_feature: str, invalid: str
) -> Iterator[tuple[str | None, bool]]:
    """The documents of a split, in their order: the text, None where it is left out, and whether it is UTF-8.

    Args:
      builder: of the dataset, as from `open_dataset`.
      split: TFDS split, slices allowed.
      text_feature: the feature that holds the text.
      invalid: of `INVALID`.

    Raises:
      ValueError: another file format than array_record, a split that isn't there, a damaged file, a feature that is no
        text; for 'error', a document that is not UTF-8, with its file and row.
    """
    name = builder.info.full_name
    try:
        source: Sequence = builder.as_data_source(split)
    except NotImplementedError:
        raise ValueError(
            f'dataset {name} in {builder.data_path} is written as {builder.info.file_format.value}; allowed: '
            'array_record. Prepare it in another data_dir with --file_format=array_record.'
        ) from None
    except (KeyError, ValueError):
        splits = sorted(builder.info.splits)
        raise ValueError(f'split={split!r}: {name} in {builder.data_path} has {splits}, and slices of them.') from None
    for start in range(0, len(source), 128):
        rows = range(start, min(start + 128, len(source)))
        try:
            examples = source.__getitems__(rows)
        except Exception as error:  # ArrayRecord raises RuntimeErrors
            reason = ' '.join(str(error).split())[:200]
            raise ValueError(f'{_place(builder, split, start)} and after it: damaged, {reason}') from None
        for index, example in enumerate(examples, start):
            text = example[text_feature]
            if not isinstance(text, bytes | str):
                kind = type(text).__name__
                raise ValueError(f'text_feature={text_feature!r}: {name} has {kind} there; allowed: text.')
            yield decode(text, invalid, lambda index=index: _place(builder, split, index))


def decode(text: bytes | str, invalid: str, place: Callable[[], str]) -> tuple[str | None, bool]:
    if isinstance(text, str):
        return text, True
    try:
        return text.decode(), True
    except UnicodeDecodeError as error:
        if invalid == 'error':
            raise ValueError(
                f'{place()}: the document is not UTF-8, byte {error.start} is 0x{text[error.start]:02x};'
                ' --config.invalid_text=replace puts U+FFFD there, --config.invalid_text=skip leaves it out.'
            ) from None
        return text.decode(errors='replace') if invalid == 'replace' else None, False


def _place(builder: tfds.core.DatasetBuilder, split: str, index: int) -> str:
    """The file and the row, counted from 0, of a document of a split, which may be a slice."""
    for part in builder.info.splits[split].file_instructions:
        if index < part.examples_in_shard if part.take < 0 else index < part.take:
            return f'{part.filename}, row {part.skip + index}'
        index -= part.examples_in_shard if part.take < 0 else part.take
    return f'{builder.info.full_name}, {split}, document {index}'
