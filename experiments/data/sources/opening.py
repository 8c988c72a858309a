"""The source that `config.dataset` names."""

import os
import pathlib
import re

from experiments.data.sources import (
    columnar_files,
    document_files,
    huggingface_dataset,
    line_files,
    text_files,
    tfds_dataset,
)
from experiments.data.sources.source import Source
from experiments.files import paths

CUTS = {
    '.parquet': columnar_files.cut_parquet,
    **dict.fromkeys(line_files.CODECS, line_files.cut),
    '.txt': text_files.cut,
}


def open_source(
    dataset: str,
    split: str,
    features: tuple[str, ...],
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: pathlib.Path,
) -> Source:
    """Opens the documents of a dataset, of whichever kind it is.

    A folder that is there and of a kind that is read comes before a TFDS dataset of the same name.

    Args:
      dataset: PATH/*.parquet, .jsonl, .jsonl.gz, .jsonl.zst (or .json for .jsonl) or .txt: a path, a pattern or a URL
        that fsspec reads, in which {split} stands for the split; a folder of `datasets.save_to_disk`; or else the name
        of a TFDS dataset.
      split: of a dataset that has splits; of TFDS, slices too.
      features: ('text',), or another one that holds text; of chats ('messages',) or ('prompt', 'completion').
      data_dir: of TFDS datasets. None: where TFDS keeps them; for `python_stdlib`, below cache_dir.
      cache_dir: for `python_stdlib`.

    Raises:
      ValueError: there is nothing; files of several kinds, or of one that is not read; as `document_files.find`,
        `huggingface_dataset.open_folder`, `tfds_dataset.open_dataset` and `tfds_dataset.TfdsDataset`.
      OSError: a file that can't be looked at.

    Example:
      >>> source = open_source('python_stdlib', 'validation', ('text',), cache_dir=pathlib.Path('cache'))
      >>> block = next(source.blocks(0))
      >>> block.place(0)[-7:], [type(value).__name__ for value in next(block.rows())]
      (', row 0', ['bytes'])
    """
    has_splits, path = '{split}' in dataset, dataset.replace('{split}', split)
    if not document_files.is_remote(path):
        is_path = has_splits or _is_path(path)
        folder = paths.parse(path, 'dataset') if is_path else pathlib.Path(path)
        if huggingface_dataset.is_one(folder):
            return huggingface_dataset.open_folder(folder, split, features, has_splits)
        if not is_path:
            builder = tfds_dataset.open_dataset(dataset, data_dir, cache_dir)
            return tfds_dataset.TfdsDataset(builder, split, features)
        if folder.is_dir():
            raise ValueError(
                f'dataset={dataset!r} is no folder of Hugging Face datasets; '
                f'name the files in it, as {folder}/*.parquet; allowed: {", ".join(CUTS)}'
            )
    files = document_files.find(path, dataset)
    kinds = {_ending(file.path): file.path for file in files}
    if None in kinds:
        raise ValueError(f'dataset={dataset!r}: {kinds[None]} is of no kind that is read; allowed: {", ".join(CUTS)}')
    if len(kinds) > 1:
        first, second = sorted(kinds.values())[:2]
        raise ValueError(f'dataset={dataset!r}: {first} and {second} are of two kinds; allowed: files of one')
    return document_files.DocumentFiles(dataset, files, has_splits, features, CUTS[_ending(files[0].path)])


def _is_path(text: str) -> bool:
    """Whether it is of files or a folder, and no name of a TFDS dataset."""
    looks_so = re.match(r'[/~]|\.{1,2}(/|$)', text) or re.search(r'[*?\[]|/$', text)
    return bool(looks_so) or _ending(text) is not None or os.path.isfile(text)


def _ending(path: str) -> str | None:
    return next((ending for ending in CUTS if path.endswith(ending)), None)
