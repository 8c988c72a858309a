"""Lines of JSON: every document of every line, whatever they are compressed by; cut where the contents say."""

import gzip
import io
import json
import random

import pytest
import zstandard
from small_sources import blocks_of, open_text, places_of, rows_of

from experiments.data.documents import read_texts
from experiments.data.sources import line_files

TEXTS = ['one', '', 'naïve 日本 \U0001f600', 'two\nlines\r\n', '"quoted" \\ {[', '\u2028 \x00 \x85', 'x' * 300]
COMPRESSED = {
    '.jsonl': lambda lines: lines,
    '.jsonl.gz': gzip.compress,
    '.jsonl.zst': zstandard.compress,
    '.json.gz': gzip.compress,
}


def write(path, lines: bytes):
    ending = '.' + path.name.split('.', 1)[1]
    path.write_bytes(COMPRESSED[ending](lines))
    return path


def lines_of(texts, ends='\n', **options) -> bytes:
    return ''.join(json.dumps({'id': i, 'text': text}, **options) + ends for i, text in enumerate(texts)).encode()


@pytest.mark.parametrize('ending', COMPRESSED)
@pytest.mark.parametrize(
    'change',
    [
        lambda lines: lines,
        lambda lines: lines.rstrip(b'\n'),
        lambda lines: lines.replace(b'\n', b'\r\n'),
        lambda lines: b'\xef\xbb\xbf' + lines,
        lambda lines: b'\n \n\r\n' + lines.replace(b'\n', b'\n\n\t\n'),
    ],
    ids=['plain', 'no last end', 'CRLF', 'byte order mark', 'blank lines'],
)
@pytest.mark.parametrize('ensure_ascii', [True, False])
def test_documents_are_those_of_the_lines(tmp_path, ending, change, ensure_ascii):
    path = write(tmp_path / f'a{ending}', change(lines_of(TEXTS, ensure_ascii=ensure_ascii)))
    assert rows_of(open_text(path)) == [(text,) for text in TEXTS]


@pytest.mark.parametrize('ending', ['.jsonl.gz', '.jsonl.zst'])
def test_members_and_frames_are_read_as_one(tmp_path, ending):
    first, second = lines_of(TEXTS[:3]), lines_of(TEXTS[3:])
    pieces = [first[:20], first[20:] + second[:5], b'', second[5:]]
    path = tmp_path / f'a{ending}'
    path.write_bytes(b''.join(map(COMPRESSED[ending], pieces)))
    assert rows_of(open_text(path)) == [(text,) for text in TEXTS]


@pytest.mark.parametrize('ending', ['.jsonl.gz', '.jsonl.zst'])
@pytest.mark.parametrize('end', [0, 1, 7, 60, -9, -1])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, ending, end):
    path = write(tmp_path / f'a{ending}', lines_of(TEXTS))
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=f'a{ending}'):
        rows_of(open_text(path))


def test_damage_that_a_checksum_tells_is_an_error(tmp_path):
    path = write(tmp_path / 'a.jsonl.gz', lines_of(TEXTS))
    contents = bytearray(path.read_bytes())
    contents[-6] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz can't be read, or is damaged: .*incorrect data check"):
        rows_of(open_text(path))


class Slow(io.FileIO):
    """A file that gives some bytes at a time, as file systems may."""

    def read(self, size=-1):
        return super().read(random.randint(1, size))


@pytest.mark.parametrize('seed', range(10))
def test_blocks_are_a_function_of_the_contents(tmp_path, monkeypatch, seed):
    """The most whole lines that BLOCK_BYTES hold, or a longer one, however much is read at a time."""
    monkeypatch.setattr(line_files, 'BLOCK_BYTES', 50)
    generator = random.Random(seed)
    lines = [b'x' * generator.choice((0, 0, 1, 9, 48, 49, 50, 51, 99, 100, 150, 700)) + b'\n' for _ in range(60)]
    lines[-1] = lines[-1][: generator.choice((-1, None))]
    expected = []
    for line in filter(None, lines):
        if expected and len(expected[-1] + line) <= 50 - (not line.endswith(b'\n')):
            expected[-1] += line
        else:
            expected.append(line)
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b''.join(lines))
    assert [block.lines for block in line_files.cut(str(path), ('text',))] == expected
    monkeypatch.setattr(line_files, 'open_file', Slow)
    blocks = list(line_files.cut(str(path), ('text',)))
    assert [block.lines for block in blocks] == expected
    assert [block.first_row for block in blocks] == [b''.join(expected[:i]).count(b'\n') for i in range(len(expected))]


def test_a_line_above_the_limit_is_refused(tmp_path, monkeypatch):
    """Before all of it is in memory: of a hundred million bytes, compressed to some thousands."""
    monkeypatch.setattr(line_files, 'BLOCK_BYTES', 2**16)
    monkeypatch.setattr(line_files, 'MOST_LINE_BYTES', 2**18)
    path = write(tmp_path / 'a.jsonl', lines_of(['x' * (2**18 - 50)]))
    assert len(rows_of(open_text(path))) == 1
    compressor = zstandard.ZstdCompressor().compressobj()
    chunks = [compressor.compress(bytes(10**6)) for _ in range(100)]
    bomb = tmp_path / 'bomb.jsonl.zst'
    bomb.write_bytes(zstandard.compress(lines_of(TEXTS)) + b''.join(chunks) + compressor.flush())
    read = 0
    decompressed = line_files._decompressed

    def counting(path, file):
        stream = decompressed(path, file)

        class Counting:
            def __enter__(self):
                return self

            def __exit__(self, *args):
                stream.close()

            def read(self, size):
                nonlocal read
                read += size
                return stream.read(size)

        return Counting()

    monkeypatch.setattr(line_files, '_decompressed', counting)
    with pytest.raises(ValueError, match=r'bomb\.jsonl\.zst has a line of more than 262,144 bytes'):
        rows_of(open_text(bomb))
    assert read < 2**20


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (
            '{"content": "x", "id": 1}',
            r"text_feature='text': .*, row 2 \(line 3\) has no .*; it has \['content', 'id'\]",
        ),
        ('{"text": 7}', r"text_feature='text': .*, row 2 \(line 3\) has int there; allowed: text"),
        ('{"text": ["x"]}', r'has list there; allowed: text'),
        ('["x"]', r'row 2 \(line 3\) must hold a JSON object, not list'),
        ('{"text": "x"', r'row 2 \(line 3\) is no JSON'),
        ('{"text": "x"} {"text": "y"}', r'row 2 \(line 3\) is no JSON'),
        ('{"text": "x", "text": "y"}', r'row 2 \(line 3\).* a key twice'),
        ('{"text": ' + 10**5 * '[', r'row 2 \(line 3\).* levels'),
        ('{"text": 1' + 5000 * '0' + '}', r'row 2 \(line 3\)'),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, line, message):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"text": "x"}\n\n' + line + '\n')
    with pytest.raises(ValueError, match=message) as error:
        rows_of(open_text(path))
    assert str(path) in str(error.value)


def test_places_count_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(line_files, 'BLOCK_BYTES', 30)
    path = tmp_path / 'a.jsonl'
    path.write_text('{"text": "x"}\n\n{"text": "y"}\n{"text": "z"}\n  \n{"text": "w"}')
    assert places_of(open_text(path)) == [f'{path}, row {row} (line {row + 1})' for row in (0, 2, 3, 5)]


@pytest.mark.parametrize(
    ('line', 'told', 'replaced'),
    [
        (b'{"text": "na\xefve"}', 'not UTF-8, byte 2 is 0xef', 'na\ufffdve'),
        (b'{"text": "a\\ud83d"}', 'not UTF-8, character 1 is half a surrogate pair, U\\+D83D', 'a\ufffd'),
        (b'{"text": "a\\ud83d\xff"}', 'not UTF-8', 'a\ufffd\ufffd'),
    ],
)
def test_text_that_is_not_utf8(tmp_path, line, told, replaced):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b'{"text": "x"}\n\n' + line + b'\n{"text": "y", "more": "\xff"}')
    (block,) = blocks_of(open_text(path))
    with pytest.raises(ValueError, match=rf'a\.jsonl, row 2 \(line 3\): the document is {told}'):
        list(read_texts(block, 'error'))
    others = ('x', True), ('y', True)
    assert list(read_texts(block, 'replace')) == [others[0], (replaced, False), others[1]]
    assert list(read_texts(block, 'skip')) == [others[0], (None, False), others[1]]


def test_chats_are_lists_of_messages(tmp_path):
    messages = [
        {'role': 'user', 'content': 'naïve'},
        {'role': 'assistant', 'content': None, 'tool_calls': [{'x': 1.5}]},
    ]
    path = tmp_path / 'a.jsonl'
    path.write_text(json.dumps({'messages': messages, 'prompt': messages[:1], 'completion': 'yes'}))
    assert rows_of(open_text(path, features=('messages',))) == [(messages,)]
    assert rows_of(open_text(path, features=('prompt', 'completion'))) == [(messages[:1], 'yes')]
    path.write_text('{"messages": "x", "prompt": null, "completion": "y"}')
    with pytest.raises(ValueError, match=r"text_feature='messages': .* has str there; allowed: a list of messages"):
        rows_of(open_text(path, features=('messages',)))
    with pytest.raises(ValueError, match=r"'prompt': .* has null there; allowed: text or a list of messages"):
        rows_of(open_text(path, features=('prompt', 'completion')))
