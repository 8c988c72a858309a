"""Files by a path, a pattern or a URL: all that there are, in one order, and one line for what is not there."""

import json

import fsspec
import pytest
from pyarrow import parquet, table
from small_sources import open_text, rows_of

from experiments.data.sources import document_files


@pytest.fixture
def memory():
    """A file system in memory, empty."""
    system = fsspec.filesystem('memory')
    system.rm('/', recursive=True)
    yield system
    system.rm('/', recursive=True)


def test_files_are_sorted_with_their_sizes(tmp_path, monkeypatch):
    """Paths are as given: relative ones are in the folder where the program starts."""
    names = ['b.txt', 'a.txt', 'a/c.txt', 'a/b/d.txt', 'B.txt', 'e.jsonl']
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x' * i)
    size = lambda *expected: tuple((name, names.index(name)) for name in expected)
    monkeypatch.chdir(tmp_path)
    assert document_files.find('*.txt', '') == size('B.txt', 'a.txt', 'b.txt')
    assert document_files.find('**/*.txt', '') == size('B.txt', 'a.txt', 'a/b/d.txt', 'a/c.txt', 'b.txt')
    assert document_files.find('**/**/d.txt', '') == size('a/b/d.txt'), 'once, though glob finds it twice'
    assert document_files.find('a/*/d.t?t', '') == size('a/b/d.txt')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert document_files.find('~/[a].txt', '') == ((str(tmp_path / 'a.txt'), 1),)


def test_a_name_that_is_not_utf8(tmp_path):
    """No JSON can hold it, as manifests are."""
    with open(bytes(tmp_path) + b'/na\xefve.jsonl', 'w'):
        pass
    with pytest.raises(ValueError, match='has a name that is not UTF-8, which no manifest can hold: rename it'):
        document_files.find(f'{tmp_path}/*.jsonl', '')


def test_a_name_with_brackets_is_a_name(tmp_path):
    (tmp_path / 'a[1].txt').write_text('x')
    assert rows_of(open_text(tmp_path / 'a[1].txt')) == [(b'x',)]


def test_files_elsewhere(memory, tmp_path):
    """By fsspec, as those of object stores, with the same documents in the same blocks."""
    texts = [f'document {i}' for i in range(5)]
    lines = ''.join(json.dumps({'text': text}) + '\n' for text in texts).encode()
    for name in 'data/b.jsonl', 'data/a.jsonl', 'data/a.txt', 'data/more/c.jsonl':
        memory.pipe(f'/{name}', lines)
    source = open_text('memory://data/*.jsonl')
    assert source.files == (('memory:///data/a.jsonl', len(lines)), ('memory:///data/b.jsonl', len(lines)))
    assert rows_of(source) == 2 * [(text,) for text in texts]
    assert rows_of(open_text('memory://data/a.txt')) == [(lines,)]
    assert len(open_text('memory://data/**/*.jsonl').files) == 3
    with memory.open('/data/a.parquet', 'wb') as file:
        parquet.write_table(table({'text': texts}), file)
    assert rows_of(open_text('memory://{split}/a.parquet', 'data')) == [(text.encode(),) for text in texts]


@pytest.mark.parametrize(
    'dataset', ['memory://data/*.jsonl', 'memory://data/a.jsonl', '/nonexistent/*.txt', '~/none.txt']
)
def test_nothing_there_is_one_error(memory, dataset):
    with pytest.raises(ValueError, match='there is no file') as error:
        open_text(dataset)
    assert str(error.value).startswith(f'dataset={dataset!r}: ')


def test_a_file_system_whose_package_is_not_installed():
    fsspec.register_implementation('elsewhere', 'elsewherefs.FileSystem', clobber=True, errtxt='Install elsewherefs')
    with pytest.raises(ValueError, match=r'elsewhere://a/b.txt .* not installed: pip install elsewherefs'):
        open_text('elsewhere://a/b.txt')
    with pytest.raises(ValueError, match=r'nowhere://a/b.txt .*Protocol not known'):
        open_text('nowhere://a/b.txt')


def test_a_file_that_can_not_be_read_is_named(memory, monkeypatch):
    """Whatever a file system raises."""

    class Unreachable(Exception):
        pass

    def fail(*args, **options):
        raise Unreachable('no\ncredentials')

    memory.pipe('/a.txt', b'x')
    source = open_text('memory://a.txt')
    monkeypatch.setattr(type(memory), 'open', fail)
    with pytest.raises(ValueError, match=r"memory:///a\.txt can't be read, or is damaged: no credentials"):
        rows_of(source)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / 'folder.txt').mkdir()
    (tmp_path / 'gone.jsonl').symlink_to('nothing')
    with pytest.raises(ValueError, match=r'folder\.txt is no file'):
        open_text(tmp_path / '*.txt')
    with pytest.raises(OSError, match=r'gone\.jsonl'):
        open_text(tmp_path / '*.jsonl')
