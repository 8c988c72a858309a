"""Files that tables of runs are in: CSV and its kin, JSON, JSON lines and Parquet, each read within limits."""

import itertools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from experiments.files import csv_files, json_files, paths

# Of a Parquet file, which may say in a few bytes of any number of rows what they are, and of any length.
MOST_PARQUET_BYTES = 2**29  # of all columns
MOST_LETTERS = 10_000
PARQUET_TEXTS = ('BYTE_ARRAY', 'FIXED_LEN_BYTE_ARRAY')
# Of JSON, in which each row has columns of its own, and an object in another makes names longer.
MOST_COLUMNS = 10_000
MOST_NAME_LETTERS = 1_000

Line = tuple[str, dict[str, Any]]  # where it stands, and its cells
Choice = Callable[[Sequence[str]], Collection[str]]


class TableFile(NamedTuple):
    """The contents of a table."""

    names: tuple[str, ...]  # of its columns
    lines: list[Line]
    has_decimal_commas: bool  # whether a comma in a number may be a decimal one: none separates cells


def read(path: pathlib.Path, choose: Choice) -> TableFile:
    """Reads a table; what separates the cells of a .csv follows from its header, by `csv_files.find_delimiter`.

    An object in an object of JSON is columns of the names `outer.inner`.

    Args:
      path: of the file, which ends in one of READERS.
      choose: from the names of all columns to those that are needed; of Parquet, no others are read.

    Raises:
      ValueError: naming file and line (of Parquet, the row): for another ending, what is damaged or too large, a column
        twice, no rows.
      OSError: it can't be read.
    """
    if path.suffix.lower() not in READERS:
        raise ValueError(f'{path}: a table of runs ends in {", ".join(READERS)}')
    table = READERS[path.suffix.lower()](path, choose)
    if not table.lines:
        raise ValueError(f'{path} has no runs in it')
    return table


def _read_csv(path: pathlib.Path, choose: Choice) -> TableFile:
    del choose
    delimiter = '\t' if path.suffix.lower() == '.tsv' else csv_files.find_delimiter(path)
    return _table(path, csv_files.read(path, delimiter), delimiter != ',')


def _read_json(path: pathlib.Path, choose: Choice) -> TableFile:
    """An array of objects, or JSON lines, which some write to such a file."""
    with open(paths.check_file(path), 'rb') as file:
        contents = file.read(json_files.MOST_BYTES + 1)
    contents = contents.removeprefix(b'\xef\xbb\xbf').strip()
    if not contents.startswith(b'['):
        first, *others = contents.splitlines() or [b'']
        if contents and not (others and first.rstrip().endswith(b'}')):
            raise ValueError(f"{path} must hold an array of objects, as pandas' to_json(orient='records') writes it")
        return _read_jsonl(path, choose)
    rows = ((f'row {number}', row) for number, row in enumerate(json_files.parse(contents, path), 1))
    return _table(path, ((where, _flat(row, f'{path}, {where}')) for where, row in rows))


def _read_jsonl(path: pathlib.Path, choose: Choice) -> TableFile:
    del choose
    return _table(path, _json_lines(path))


def _json_lines(path: pathlib.Path) -> Iterator[Line]:
    with open(paths.check_file(path), 'rb') as file:
        lines = iter(lambda: file.readline(json_files.MOST_BYTES + 1), b'')
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f'{path}, line {number}'
                yield f'line {number}', _flat(json_files.parse(line, where), where)


def _flat(row: Any, where: str) -> dict[str, Any]:
    """The cells of a row, those of objects in it, too."""
    cells = {}
    for name, value in _cells(json_files.require(row, where, {}), where):
        if name in cells:
            raise ValueError(f'{where} has more than one column {name!r:.80}')
        cells[name] = value
    return cells


def _cells(row: dict[str, Any], where: str, outer: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if len(outer + name) > MOST_NAME_LETTERS:
            raise ValueError(f'{where}: a column has a name of more than {MOST_NAME_LETTERS:,} letters')
        if isinstance(value, dict):
            yield from _cells(value, where, f'{outer}{name}.')
        else:
            yield outer + name, value


def _table(path: pathlib.Path, lines: Iterable[Line], has_decimal_commas: bool = False) -> TableFile:
    lines = list(itertools.islice(lines, csv_files.MOST_ROWS + 1))
    if len(lines) > csv_files.MOST_ROWS:
        raise ValueError(f'{path} has more than {csv_files.MOST_ROWS:,} rows')
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(cells for _, cells in lines)))
    return TableFile(_few(path, names), lines, has_decimal_commas)


def _few(path: pathlib.Path, names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MOST_COLUMNS:
        raise ValueError(f'{path} has {len(names):,} columns; allowed are {MOST_COLUMNS:,}')
    return tuple(names)


def _read_parquet(path: pathlib.Path, choose: Choice) -> TableFile:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f'{path}: reading Parquet needs pyarrow: pip install "pyarrow>=14.0.1"') from None
    try:
        with open(paths.check_file(path), 'rb') as stream:
            names, rows = _parquet_rows(path, stream, choose, pyarrow, parquet)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is damaged, or not Parquet: {[*str(error).splitlines(), ""][0]}') from None
    return TableFile(names, [(f'row {number}', cells) for number, cells in enumerate(rows, 1)], False)


def _parquet_rows(path, stream, choose, pyarrow, parquet) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The names of all columns, and the cells of those that are read."""
    schema = parquet.read_schema(stream)
    names = _few(path, schema.names)
    chosen = set(choose(names))
    read = [name for name in names if name in chosen]
    if repeated := [name for name in read if read.count(name) > 1]:
        raise ValueError(f'{path} has more than one column {repeated[0]!r}')
    if nested := [name for name in read if pyarrow.types.is_nested(schema.field(name).type)]:
        raise ValueError(f'{path}: the column {nested[0]!r} has several values in a cell')
    metadata = parquet.read_metadata(stream)
    # Not by column: what is damaged there ends the process, by pyarrow 26.
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    columns = map(metadata.schema.column, range(metadata.num_columns))
    texts = [column.path for column in columns if column.path in read and column.physical_type in PARQUET_TEXTS]
    file = parquet.ParquetFile(stream, read_dictionary=texts)  # a text that many rows have is in memory once
    if metadata.num_rows > csv_files.MOST_ROWS:
        raise ValueError(f'{path} has {metadata.num_rows:,} rows; allowed are {csv_files.MOST_ROWS:,}')
    if size > MOST_PARQUET_BYTES:
        raise ValueError(f'{path} would take {size:,} bytes; allowed are {MOST_PARQUET_BYTES:,}')
    table = file.read(read)
    for chunk in (chunk for name in texts for chunk in table.column(name).chunks):
        values = chunk.dictionary if pyarrow.types.is_dictionary(chunk.type) else chunk
        if any(len(str(value)) > MOST_LETTERS for value in values.to_pylist()):
            raise ValueError(f'{path} has a text of more than {MOST_LETTERS:,} letters')
    return names, table.to_pylist()


READERS = {
    '.csv': _read_csv,
    '.tsv': _read_csv,
    '.jsonl': _read_jsonl,
    '.json': _read_json,
    '.parquet': _read_parquet,
}
