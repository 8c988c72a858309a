"""Folders of Hugging Face's `datasets`: all rows of the split, in their order, and nothing from elsewhere."""

import json

import pyarrow
import pytest
from pyarrow import ipc
from small_sources import open_text, places_of, rows_of

TEXTS = [f'document {i} naïve' for i in range(7)]


def write_folder(folder, texts, num_files=2):
    """As `save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f'data-{i:05}-of-{num_files:05}.arrow' for i in range(num_files)]
    for i, name in enumerate(names):
        part = texts[i * len(texts) // num_files : (i + 1) * len(texts) // num_files]
        table = pyarrow.table({'id': range(len(part)), 'text': part})
        with ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, 2)
    state = {'_data_files': [{'filename': name} for name in names], '_fingerprint': 'x', '_split': None}
    (folder / 'state.json').write_text(json.dumps(state))
    (folder / 'dataset_info.json').write_text('{}')
    return folder


def write_splits(folder, **splits):
    for split, texts in splits.items():
        write_folder(folder / split, texts)
    (folder / 'dataset_dict.json').write_text(json.dumps({'splits': [*splits]}))
    return folder


def test_rows_of_a_dataset(tmp_path):
    source = open_text(write_folder(tmp_path / 'a', TEXTS))
    assert rows_of(source) == [(text.encode(),) for text in TEXTS] and not source.has_splits
    rows = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert places_of(source) == [f'{tmp_path}/a/data-0000{i}-of-00002.arrow, row {row}' for i, row in rows]
    assert [(path, size) for path, size in source.files] == [
        (str(path), path.stat().st_size) for path in sorted((tmp_path / 'a').glob('*.arrow'))
    ]


def test_rows_of_a_split(tmp_path):
    folder = write_splits(tmp_path / 'a', train=TEXTS[:5], test=TEXTS[5:])
    for dataset in folder, f'{folder}/{{split}}':
        source = open_text(dataset, 'test')
        assert rows_of(source) == [(text.encode(),) for text in TEXTS[5:]] and source.has_splits
    with pytest.raises(ValueError, match=r"split='validation': .*/a has \['train', 'test'\]"):
        open_text(folder, 'validation')


def test_a_relative_folder_comes_before_a_name_of_tfds(tmp_path, monkeypatch):
    write_folder(tmp_path / 'data/web', TEXTS)
    monkeypatch.chdir(tmp_path)
    assert len(rows_of(open_text('data/web'))) == len(TEXTS)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'_indices_data_files': [{'filename': 'indices.arrow'}]}, r'state\.json: the rows are those of an index'),
        (
            {'_data_files': [{'filename': '../b.arrow'}]},
            r"state\.json names '\.\./b\.arrow', which is not in its folder",
        ),
        ({'_data_files': [{'filename': '..'}]}, 'not in its folder'),
        ({'_data_files': [{'name': 'x'}]}, r"state\.json lacks 'filename'"),
        ({'_data_files': {}}, r"state\.json: '_data_files' must be an array"),
    ],
)
def test_a_state_that_is_not_read(tmp_path, change, message):
    path = write_folder(tmp_path / 'a', TEXTS) / 'state.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        open_text(tmp_path / 'a')


def test_a_split_is_a_folder_inside(tmp_path):
    folder = write_splits(tmp_path / 'a', train=TEXTS)
    write_folder(tmp_path / 'b', TEXTS)
    (folder / 'dataset_dict.json').write_text('{"splits": ["../b"]}')
    with pytest.raises(ValueError, match=r"dataset_dict\.json names '\.\./b', which is not in its folder"):
        open_text(folder, '../b')


def test_a_file_that_is_not_there(tmp_path):
    folder = write_folder(tmp_path / 'a', TEXTS)
    next(folder.glob('*.arrow')).unlink()
    with pytest.raises(OSError, match=r'data-0000\d-of-00002\.arrow'):
        open_text(folder)


def test_what_datasets_writes(tmp_path):
    """Of the library itself: in several files, with splits, of a selection of rows, and of chats."""
    datasets = pytest.importorskip('datasets', reason='compares with what Hugging Face datasets writes')
    datasets.disable_progress_bars()
    messages = [[{'role': 'user', 'content': text}] for text in TEXTS]
    whole = datasets.Dataset.from_dict({'text': TEXTS, 'messages': messages})
    whole.save_to_disk(tmp_path / 'whole', num_shards=3)
    assert rows_of(open_text(tmp_path / 'whole')) == [(text.encode(),) for text in TEXTS]
    assert rows_of(open_text(tmp_path / 'whole', features=('messages',))) == [(chat,) for chat in messages]
    splits = datasets.DatasetDict(train=whole, test=whole.select([4, 1, 6]))
    splits.save_to_disk(tmp_path / 'splits')
    assert rows_of(open_text(tmp_path / 'splits', 'test')) == [(TEXTS[i].encode(),) for i in (4, 1, 6)]
