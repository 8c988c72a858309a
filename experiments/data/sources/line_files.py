"""Lines of JSON, each an object that is a document: plain, by gzip, or by Zstandard."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow

from experiments.data.sources.document_files import open_file
from experiments.data.sources.source import BLOCK_BYTES, BYTE_ORDER_MARK, select
from experiments.files import json_files

CODECS = {'.jsonl': None, '.jsonl.gz': 'gzip', '.jsonl.zst': 'zstd'}
CODECS |= {ending.replace('l', '', 1): codec for ending, codec in CODECS.items()}  # as others name the same
MOST_LINE_BYTES = json_files.MOST_BYTES


class LineBlock(NamedTuple):
    """Whole lines of a file; a row is a line, empty ones among them, which are no documents."""

    path: str
    features: tuple[str, ...]
    first_row: int
    lines: bytes
    file_bytes: int

    def rows(self) -> Iterator[tuple[Any, ...]]:
        for row, line in self._documents():
            yield self._parse(row, line)

    def place(self, row: int) -> str:
        return self._place(next(itertools.islice(self._documents(), row, None))[0])

    def _documents(self) -> Iterator[tuple[int, bytes]]:
        for row, line in enumerate(self.lines.split(b'\n'), self.first_row):
            if line and not line.isspace():
                yield row, line

    def _place(self, row: int) -> str:
        return f'{self.path}, row {row} (line {row + 1})'

    def _parse(self, row: int, line: bytes) -> tuple[Any, ...]:
        place = self._place(row)
        try:
            text, is_valid = line.decode(), True
        except UnicodeDecodeError:
            text, is_valid = line.decode(errors='surrogateescape'), False
        document = json_files.parse(text, place, allow_half_surrogates=True)
        if not isinstance(document, dict):
            raise ValueError(f'{place} must hold a JSON object, not {type(document).__name__}')
        values = select(document, self.features, place)
        return values if is_valid else tuple(map(_unescaped, values))


def cut(path: str, features: tuple[str, ...]) -> Iterator[LineBlock]:
    """The blocks of a file: as many whole lines as BLOCK_BYTES hold, or a longer line.

    Args:
      path: ends in one of `CODECS`; several members or frames in one file are read as one.
      features: that each document has.

    Raises:
      ValueError, OSError: a file that is cut off, or damaged; a line of more than MOST_LINE_BYTES.
    """
    first_row = 0
    with open_file(path) as file, _decompressed(path, file) as stream:
        for lines in _cut_lines(path, stream.read):
            num_lines = lines.count(b'\n')
            lines = lines if first_row else lines.removeprefix(BYTE_ORDER_MARK)
            yield LineBlock(path, features, first_row, lines, file.tell())
            first_row += num_lines


def _decompressed(path: str, file) -> pyarrow.NativeFile:
    codec, stream = CODECS[next(ending for ending in CODECS if path.endswith(ending))], pyarrow.PythonFile(file, 'r')
    if codec is None:
        return stream
    if not file.read(1):
        raise ValueError(f'{path} is empty; a file by {codec} never is')
    file.seek(0)
    return pyarrow.CompressedInputStream(stream, codec)


def _cut_lines(path: str, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The same, however much `read` gives at a time."""
    rest, is_end = b'', False
    while rest or not is_end:
        size, end = BLOCK_BYTES, 0
        while not end:
            rest = _fill(read, rest, size)
            is_end = len(rest) < size
            if len(rest) < BLOCK_BYTES:
                end = len(rest)
                break
            end = rest.rfind(b'\n', 0, BLOCK_BYTES) + 1 or rest.find(b'\n', BLOCK_BYTES) + 1 or is_end * len(rest)
            if not end and size >= MOST_LINE_BYTES:
                raise ValueError(f'{path} has a line of more than {MOST_LINE_BYTES:,} bytes, which are allowed')
            size *= 2
        if end:
            yield rest[:end]
        rest = rest[end:]


def _fill(read: Callable[[int], bytes], start: bytes, size: int) -> bytes:
    """`start` and what follows it, `size` bytes in all, fewer at the end only."""
    parts, missing = [start], size - len(start)
    while missing > 0 and (part := read(missing)):
        parts.append(part)
        missing -= len(part)
    return b''.join(parts)


def _unescaped(value: Any) -> Any:
    """Text as the bytes that it was before they were decoded with surrogateescape."""
    try:
        return value.encode(errors='surrogateescape') if isinstance(value, str) else value
    except UnicodeEncodeError:  # an escape of JSON is half a surrogate pair, too
        return value
