"""Documents in columns: every row of Parquet files and Arrow streams, of whatever types, a bounded part at a time."""

import io
import random

import pyarrow
import pytest
from pyarrow import ipc, parquet
from small_sources import blocks_of, open_text, places_of, rows_of

from experiments.data.documents import read_texts
from experiments.data.sources import columnar_files

TEXTS = ['one', '', 'naïve 日本 \U0001f600', 'two\nlines', 'x' * 300]
MESSAGES = [
    [{'role': 'user', 'content': 'naïve'}, {'role': 'assistant', 'content': 'yes'}],
    [],
    [{'role': 'user', 'content': None}],
]


def write(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


def write_stream(path, table, rows=None):
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, rows)
    return path


TYPES = {
    'string': pyarrow.string(),
    'large': pyarrow.large_string(),
    'view': pyarrow.string_view(),
    'binary': pyarrow.binary(),
    'large binary': pyarrow.large_binary(),
    'dictionary': pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    'dictionary of large': pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
}


@pytest.mark.parametrize('kind', TYPES)
@pytest.mark.parametrize('is_parquet', [True, False])
def test_texts_of_all_types(tmp_path, kind, is_parquet):
    values = [text.encode() if 'binary' in kind else text for text in TEXTS]
    column = pyarrow.array(values).dictionary_encode() if 'dictionary' in kind else pyarrow.array(values)
    table = pyarrow.table({'id': range(len(TEXTS)), 'text': column.cast(TYPES[kind])})
    if is_parquet:
        parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=2)
        blocks = blocks_of(open_text(tmp_path / 'a.parquet'))
    else:
        path = write_stream(tmp_path / 'a.arrow', table, rows=3)
        blocks = list(columnar_files.cut_arrow(str(path), ('text',)))
    assert [row for block in blocks for row in block.rows()] == [(text.encode(),) for text in TEXTS]


def test_text_that_is_not_utf8(tmp_path):
    """As strings of damaged tables may be, too."""
    array = pyarrow.array([b'x', b'na\xefve'])
    texts = pyarrow.StringArray.from_buffers(2, array.buffers()[1], array.buffers()[2])
    for path in write(tmp_path / 'a.parquet', text=array), write(tmp_path / 'b.parquet', text=texts):
        (block,) = blocks_of(open_text(path))
        assert list(read_texts(block, 'replace')) == [('x', True), ('na\ufffdve', False)]
        with pytest.raises(ValueError, match=rf'{path.name}, row 1: the document is not UTF-8, byte 2 is 0xef'):
            list(read_texts(block, 'error'))


def test_a_null_is_no_text(tmp_path):
    (block,) = blocks_of(open_text(write(tmp_path / 'a.parquet', text=['x', None, 'y'])))
    for invalid in 'error', 'replace':
        with pytest.raises(ValueError, match=r'a\.parquet, row 1: the document is null.*invalid_text=skip'):
            list(read_texts(block, invalid))
    assert list(read_texts(block, 'skip')) == [('x', True), (None, False), ('y', True)]


def test_chats(tmp_path):
    prompts = ['what?', 'é', '']
    path = write(tmp_path / 'a.parquet', prompt=prompts, completion=MESSAGES, messages=MESSAGES)
    assert rows_of(open_text(path, features=('messages',))) == [(messages,) for messages in MESSAGES]
    expected = [(prompt.encode(), messages) for prompt, messages in zip(prompts, MESSAGES)]
    assert rows_of(open_text(path, features=('prompt', 'completion'))) == expected
    write(path, messages=MESSAGES + [None])
    with pytest.raises(ValueError, match=r"'messages': .*a\.parquet, row 3 has null there; allowed: a list"):
        rows_of(open_text(path, features=('messages',)))


@pytest.mark.parametrize(
    ('columns', 'features', 'message'),
    [
        ({'content': ['x'], 'id': [1]}, ('text',), r"'text': .*a\.parquet has no such .*; it has \['content', 'id'\]"),
        ({'text': [1]}, ('text',), "'text': .*a.parquet has int64 there; allowed: text"),
        ({'text': [['x']]}, ('text',), r"'text': .* has list<.*> there; allowed: text"),
        ({'text': [None]}, ('text',), r"'text': .* has null there; allowed: text"),
        ({'messages': ['x']}, ('messages',), r"'messages': .* has string there; allowed: a list of messages"),
        ({'messages': [['x']]}, ('messages',), r"'messages': .* has list<.*: string> there"),
        ({'prompt': ['x'], 'completion': [1.5]}, ('prompt', 'completion'), r'allowed: text or a list of messages'),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path, columns, features, message):
    with pytest.raises(ValueError, match=message):
        rows_of(open_text(write(tmp_path / 'a.parquet', **columns), features=features))


def test_a_column_twice_is_refused(tmp_path):
    table = pyarrow.table([['x'], ['y']], names=['text', 'text'])
    parquet.write_table(table, tmp_path / 'a.parquet')
    with pytest.raises(ValueError, match=r"a\.parquet has more than one column 'text'"):
        rows_of(open_text(tmp_path / 'a.parquet'))


@pytest.mark.parametrize('seed', range(3))
def test_blocks_hold_so_many_bytes(tmp_path, monkeypatch, seed):
    """Of whole rows in their order, or one longer document; by the contents, not by how rows are grouped on disk."""
    monkeypatch.setattr(columnar_files, 'BLOCK_BYTES', 2000)
    generator = random.Random(seed)
    texts = ['x' * generator.choice((0, 10, 100, 900, 5000)) for _ in range(700)]
    path = write(tmp_path / 'a.parquet', text=texts)
    blocks = blocks_of(open_text(path))
    sizes = [[len(text) for (text,) in block.rows()] for block in blocks]
    assert [size for of_block in sizes for size in of_block] == [*map(len, texts)]
    assert all(sum(of_block) <= 2000 or len(of_block) == 1 for of_block in sizes)
    assert sum(map(sum, sizes)) / len(sizes) > 800
    assert places_of(open_text(path)) == [f'{path}, row {row}' for row in range(700)]


def test_a_document_above_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar_files, 'BLOCK_BYTES', 100)
    monkeypatch.setattr(columnar_files, 'MOST_BYTES', 1000)
    with pytest.raises(ValueError, match=r'a\.parquet, row 2: a document of 1,0\d\d bytes; allowed are 1,000'):
        rows_of(open_text(write(tmp_path / 'a.parquet', text=['x', 'y' * 900, 'z' * 1001])))


class Watched(io.FileIO):
    """A file that knows the most that was read of it at once."""

    most = 0

    def read(self, size=-1):
        Watched.most = max(Watched.most, len(contents := super().read(size)))
        return contents


def test_a_large_row_group_is_read_in_parts(tmp_path, monkeypatch):
    text = random.Random(0).randbytes(10_000)
    path = write(tmp_path / 'a.parquet', text=[text + bytes([i % 256]) for i in range(5000)])
    assert parquet.read_metadata(path).num_row_groups == 1
    monkeypatch.setattr(columnar_files, 'open_file', Watched)
    pool = pyarrow.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for _ in columnar_files.cut_parquet(str(path), ('text',)):
        most = max(most, pool.bytes_allocated() - before)
    assert Watched.most < 2**22 and most < 25_000_000, 'of 50 million bytes'


@pytest.mark.parametrize('end', [0, 3, 100, -8, -1])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, end):
    path = write(tmp_path / 'a.parquet', text=TEXTS)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r'a\.parquet'):
        rows_of(open_text(path))


def test_a_stream_that_is_cut_off_is_an_error(tmp_path):
    """Also after a whole batch, where Arrow sees an end; and what follows the end is none of it."""
    path = write_stream(tmp_path / 'a.arrow', pyarrow.table({'text': TEXTS}), rows=1)
    contents = path.read_bytes()
    for changed in contents[:0], contents[:-1], contents[:-8], contents[:-9], contents + contents, contents[8:]:
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r'a\.arrow'), columnar_files.naming(str(path)):
            list(columnar_files.cut_arrow(str(path), ('text',)))


def test_offsets_that_point_elsewhere_are_an_error(tmp_path):
    """Of a stream that was changed on purpose: what lies beside a text in memory is none of it."""
    path = write_stream(tmp_path / 'a.arrow', pyarrow.table({'text': ['abcd', 'efgh']}))
    contents = path.read_bytes()
    offsets = b''.join(number.to_bytes(4, 'little') for number in (0, 4, 8))
    assert contents.count(offsets) == 1
    path.write_bytes(contents.replace(offsets, offsets[:8] + (10**8).to_bytes(4, 'little')))
    with pytest.raises(ValueError, match=r"a\.arrow, rows 0 to 1, 'text' can't be read, or is damaged"):
        list(columnar_files.cut_arrow(str(path), ('text',)))
