"""Folders that Hugging Face's `datasets` wrote with `save_to_disk`: of a Dataset, or of a DatasetDict."""

import pathlib

from experiments.data.sources import columnar_files
from experiments.data.sources.document_files import DocumentFiles, local_file
from experiments.files import json_files

STATE, SPLITS = 'state.json', 'dataset_dict.json'


def is_one(folder: pathlib.Path) -> bool:
    """Whether a folder is one of `save_to_disk`."""
    return any((folder / name).exists() for name in (STATE, SPLITS))


def open_folder(folder: pathlib.Path, split: str, features: tuple[str, ...], has_splits: bool) -> DocumentFiles:
    """The documents of a folder in their order.

    Args:
      folder: has state.json, or dataset_dict.json and a folder for each split.
      split: of a DatasetDict.
      features: columns that are read, as by `columnar_files.cut_arrow`.
      has_splits: whether a Dataset is that of the split; a DatasetDict always has them.

    Raises:
      ValueError: a split that it lacks; what is damaged; a Dataset whose rows are those of an index.
    """
    if (folder / SPLITS).exists():
        splits = json_files.read(folder / SPLITS, splits=list)['splits']
        if split not in splits:
            raise ValueError(f'split={split!r}: {folder} has {splits!s:.200}')
        _check_name(split, folder / SPLITS)
        folder, has_splits = folder / split, True
    state = json_files.read(folder / STATE, _data_files=list)
    if state.get('_indices_data_files') or state.get('_indices_files'):
        raise ValueError(f'{folder / STATE}: the rows are those of an index; flatten_indices() and save it again')
    files = []
    for file in state['_data_files']:
        name = json_files.require(file, folder / STATE, {'filename': str})['filename']
        files.append(local_file(folder / _check_name(name, folder / STATE)))
    return DocumentFiles(str(folder), tuple(files), has_splits, features, columnar_files.cut_arrow)


def _check_name(name: str, where: pathlib.Path) -> str:
    """The name of something in the folder itself."""
    if pathlib.PurePath(name).name != name or name == '..' or '\0' in name:
        raise ValueError(f'{where} names {name!r:.80}, which is not in its folder')
    return name
