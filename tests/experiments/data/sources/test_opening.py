"""What `config.dataset` names: one kind, found or refused in one line."""

import gzip
import json
import pathlib

import pytest
import zstandard
from pyarrow import parquet, table
from small_sources import open_text, rows_of

from experiments.data.sources.opening import open_source


def write_kinds(folder, texts):
    """The same documents in each kind of file."""
    lines = ''.join(json.dumps({'text': text}) + '\n' for text in texts).encode()
    (folder / 'a.jsonl').write_bytes(lines)
    (folder / 'a.jsonl.gz').write_bytes(gzip.compress(lines))
    (folder / 'a.jsonl.zst').write_bytes(zstandard.compress(lines))
    parquet.write_table(table({'text': texts}), folder / 'a.parquet')


@pytest.mark.parametrize('ending', ['jsonl', 'jsonl.gz', 'jsonl.zst', 'parquet'])
def test_a_split_in_a_path(tmp_path, ending):
    for split in 'train', 'validation':
        (tmp_path / split).mkdir()
        write_kinds(tmp_path / split, [f'one {split}', f'two {split}'])
    as_text = lambda source: [value if isinstance(value, str) else value.decode() for (value,) in rows_of(source)]
    source = open_text(f'{tmp_path}/{{split}}/*.{ending}', 'validation')
    assert source.has_splits and as_text(source) == ['one validation', 'two validation']
    both = open_text(f'{tmp_path}/*/*.{ending}', 'validation')
    assert not both.has_splits
    assert as_text(both) == ['one train', 'two train', 'one validation', 'two validation']


@pytest.mark.parametrize(
    ('pattern', 'message'),
    [
        ('a.*', r'a\.\w+ and .*a\.\w+.* are of two kinds; allowed: files of one'),
        ('a.jsonl*', r'a\.jsonl and .*a\.jsonl\.gz are of two kinds'),
        ('*.csv', r'b\.csv is of no kind that is read; allowed: \.parquet, \.jsonl, '),
        ('b.csv', r'b\.csv is of no kind that is read'),
        ('none/*.jsonl', r"there is no file '.*none/\*\.jsonl'"),
        ('.', 'is no folder of Hugging Face datasets; name the files in it, as .*/\\*.parquet'),
    ],
)
def test_what_is_not_read_is_refused(tmp_path, pattern, message):
    write_kinds(tmp_path, ['x'])
    (tmp_path / 'b.csv').write_text('text\nx\n')
    with pytest.raises(ValueError, match=message) as error:
        open_text(f'{tmp_path}/{pattern}')
    assert str(error.value).startswith(f"dataset='{tmp_path}/{pattern}'")


def test_neither_a_dataset_nor_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'web').mkdir()
    options = dict(data_dir=tmp_path / 'tfds', cache_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"dataset='data/web' is not prepared.* Nor is there a file or a folder 'data/web'"
    ):
        open_source('data/web', 'train', ('text',), **options)
    with pytest.raises(ValueError, match="'web' is here, but is no file or folder of documents"):
        open_source('web', 'train', ('text',), **options)


def test_a_file_of_any_name_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('tokens.bin').write_bytes(b'xx')
    with pytest.raises(ValueError, match=r"dataset='tokens\.bin': tokens\.bin is of no kind that is read"):
        open_text('tokens.bin')
