"""Documents in columns: Parquet, and Arrow streams as Hugging Face's `datasets` writes them."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow
from pyarrow import ipc, parquet, types

from experiments.data.sources.document_files import naming, open_file
from experiments.data.sources.source import BLOCK_BYTES, MOST_BYTES, check_names, types_of, wrong_type
from experiments.files import paths

ROWS = 256  # that are decoded at a time
BUFFER_BYTES = 2**20  # of each column of a Parquet file that are read at a time
END_OF_STREAM = b'\xff\xff\xff\xff\0\0\0\0'  # what an Arrow stream ends with


class ColumnBlock(NamedTuple):
    """Some rows of a file, as an Arrow stream of the features."""

    path: str
    first_row: int
    stream: bytes
    file_bytes: int

    def rows(self) -> Iterator[tuple[Any, ...]]:
        with ipc.open_stream(self.stream) as batches:
            for batch in batches:
                yield from zip(*(column.to_pylist() for column in batch.columns))

    def place(self, row: int) -> str:
        return f'{self.path}, row {self.first_row + row}'


def cut_parquet(path: str, features: tuple[str, ...]) -> Iterator[ColumnBlock]:
    """The blocks of a Parquet file, of which ROWS are decoded at a time, however large its row groups are.

    Args:
      path: of the file.
      features: columns; of text or bytes, plain or dictionary-encoded, and of chats also lists of structs.

    Raises:
      ValueError, OSError: a file that is damaged; a column that isn't there, twice, or of another type, or has a null
        that is no text; a document of more than MOST_BYTES.
    """
    with open_file(path) as stream:
        file = parquet.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
        _check(path, features, file.schema_arrow)
        yield from _cut(path, features, file.iter_batches(ROWS, columns=list(features)), stream.tell)


def cut_arrow(path: str, features: tuple[str, ...]) -> Iterator[ColumnBlock]:
    """The blocks of an Arrow stream on this machine, which is mapped into memory; as `cut_parquet`."""
    paths.check_file(pathlib.Path(path))
    with pyarrow.memory_map(path) as file:
        if file.read_at(len(END_OF_STREAM), max(file.size() - len(END_OF_STREAM), 0)) != END_OF_STREAM:
            raise ValueError(f'{path} is cut off, or no Arrow stream')
        with ipc.open_stream(file) as reader:
            _check(path, features, reader.schema)
            slices = (batch.slice(row, ROWS) for batch in reader for row in range(0, batch.num_rows, ROWS))
            yield from _cut(path, features, slices, file.tell)
        if file.tell() != file.size():
            raise ValueError(f'{path} has something after the end of its Arrow stream')


def _check(path: str, features: tuple[str, ...], schema: pyarrow.Schema):
    """Refuses columns that don't hold what `types_of` says."""
    check_names(features, schema.names, path)
    for feature in features:
        if schema.names.count(feature) > 1:
            raise ValueError(f'{path} has more than one column {feature!r}')
        kind = schema.field(feature).type
        if _value_type(kind) not in types_of(feature, features):
            raise wrong_type(feature, features, path, str(kind)[:100])


def _value_type(kind: pyarrow.DataType) -> type | None:
    """Of what a column of this type holds, once it is made plain."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    if any(is_text(kind) for is_text in TEXTS):
        return bytes
    is_list = types.is_list(kind) or types.is_large_list(kind)
    return list if is_list and types.is_struct(kind.value_type) else None


TEXTS = (
    *(types.is_string, types.is_large_string, types.is_string_view),
    *(types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary),
)


def _cut(
    path: str, features: tuple[str, ...], batches: Iterator[pyarrow.RecordBatch], tell: Callable[[], int]
) -> Iterator[ColumnBlock]:
    """As many whole rows a block as BLOCK_BYTES hold, or a larger one."""
    pieces, size, row, first_row = [], 0, 0, 0
    for batch in batches:
        for piece in _halves(_plain(path, row, features, batch)):
            if pieces and size + piece.nbytes > BLOCK_BYTES:
                yield _block(path, first_row, pieces, tell())
                pieces, size, first_row = [], 0, row
            if piece.nbytes > MOST_BYTES:
                raise ValueError(f'{path}, row {row}: a document of {piece.nbytes:,} bytes; allowed are {MOST_BYTES:,}')
            pieces.append(piece)
            size, row = size + piece.nbytes, row + piece.num_rows
    if pieces:
        yield _block(path, first_row, pieces, tell())


def _plain(path: str, row: int, features: tuple[str, ...], batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """The columns of the features, whose offsets are known to be right: texts as bytes, which may not be UTF-8."""
    columns = []
    for feature in features:
        column = batch.column(feature)
        with naming(f'{path}, rows {row} to {row + len(column) - 1}, {feature!r}'):
            if types.is_dictionary(column.type):
                column.validate(full=True)
                column = column.dictionary_decode()
            if _value_type(column.type) is bytes:
                column = column.cast(pyarrow.large_binary())
            column.validate(full=True)
        if column.null_count and type(None) not in types_of(feature, features):
            raise wrong_type(feature, features, f'{path}, row {row + column.is_null().index(True).as_py()}', 'null')
        columns.append(column)
    return pyarrow.RecordBatch.from_arrays(columns, list(features))


def _halves(batch: pyarrow.RecordBatch) -> Iterator[pyarrow.RecordBatch]:
    """The batch, in parts that a block holds, or of one row."""
    if batch.nbytes <= BLOCK_BYTES or batch.num_rows == 1:
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _halves(batch.slice(0, half))
        yield from _halves(batch.slice(half))


def _block(path: str, first_row: int, pieces: list[pyarrow.RecordBatch], file_bytes: int) -> ColumnBlock:
    sink = pyarrow.BufferOutputStream()
    with ipc.new_stream(sink, pieces[0].schema) as writer:
        for piece in pieces:
            writer.write_batch(piece)
    return ColumnBlock(path, first_row, sink.getvalue().to_pybytes(), file_bytes)
