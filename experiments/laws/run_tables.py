"""Tables of runs, as scaling laws are fitted to them: CSV, JSONL and Parquet, among them the results.csv of a sweep."""

import collections
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.files import csv_files, json_files, paths
from experiments.methods import METHODS
from gaussq_jax.formats import parse_format

# For each column of a law, and for what else is told of a run, the names that it may have in a file; the first wins.
NAMES = {
    'N': ('N',),
    'D': ('D',),
    'loss': ('loss', 'validation/loss'),
    'E': ('E',),
    'M': ('M',),
    'B': ('B', 'block_size', 'quantization.block_size'),
    'b': ('b', 'bits/mean'),
    'format': ('format', 'quantization.format'),
    'method': ('method',),
    'seed': ('seed',),
    'name': ('name',),
    'run': ('run', 'run_id', 'run_name'),
    'status': ('status',),
}
READ = {*(name for names in NAMES.values() for name in names), 'quantization.b_init', 'quantization.b_target'}
EVERY_LAW = ('N', 'D', 'loss')
# Of a Parquet file, which may say in a few bytes of any number of rows what they are, and of any length.
MOST_PARQUET_BYTES = 2**29  # of all columns
MOST_LETTERS = 10_000
PARQUET_TEXTS = ('BYTE_ARRAY', 'FIXED_LEN_BYTE_ARRAY')
NO_LABELS = ('nan', 'none', 'null', 'na', '<na>')  # as other programs write an empty cell
NUMBERS = (*EVERY_LAW, 'E', 'M', 'b')
WORDS = ('format', 'method', 'seed', 'name', 'run')
UNQUANTIZED = {'E': 8.0, 'M': 7.0, 'B': 1.0, 'b': math.inf, 'format': 'bf16'}  # no penalty by any law

Line = tuple[str, dict[str, Any]]  # where it stands, and its cells


class RunTable(NamedTuple):
    """Runs that are done, with a finite loss."""

    path: str
    # N, D, loss, E, M and b are float64, NaN where a run has none; B has numbers, 'channel', 'tensor' and None, where a
    # run has none; format, method, seed, name and run are text, empty where they aren't known.
    columns: dict[str, np.ndarray]
    left_out: dict[str, int]  # why -> how many runs
    names: tuple[str, ...]  # the columns of the file

    @property
    def num_runs(self) -> int:
        return len(self.columns['loss'])

    def where(self, mask: np.ndarray, reason: str) -> 'RunTable':
        """The runs of a mask; the others are left out for this reason."""
        if mask.all():
            return self
        left_out = collections.Counter(self.left_out) + collections.Counter({reason: int(np.sum(~mask))})
        return self._replace(columns={name: column[mask] for name, column in self.columns.items()}, left_out=left_out)


def read_runs(path: str | pathlib.Path) -> RunTable:
    """The runs of a table, which has the columns N, D and loss, and those of E, M, B and b that there are.

    Of a sweep's results.csv, the loss is that of validation; E and M are those of the format; b is the mean bitwidth of
    sampled weights. E8M7 with B = 1 stands for the method bf16, and for bfloat16 without a block size.
    Runs that are not done, those without N, D or a loss, and those whose loss is not finite, are left out and counted.

    Raises:
      ValueError: naming file and line (of Parquet, the row): for a column that is missing, text in a number, a number
        that must be positive and isn't, a format or a block size that isn't there, a damaged line or file, an empty
        file, an unknown ending.
    """
    path = paths.parse(path, 'a table of runs')
    if path.suffix not in READERS:
        raise ValueError(f'{path}: a table of runs ends in {", ".join(READERS)}')
    lines = list(READERS[path.suffix](path))
    if not lines:
        raise ValueError(f'{path} has no runs in it')
    names = tuple(dict.fromkeys(name for _, cells in lines for name in cells))
    aliases = {column: next((name for name in NAMES[column] if name in names), None) for column in NAMES}
    if missing := [column for column in EVERY_LAW if aliases[column] is None]:
        raise _missing_column(path, names, missing[0])
    rows, left_out = [], collections.Counter()
    for where, cells in lines:
        try:
            run = _read_run({column: cells.get(name) for column, name in aliases.items()}, cells)
        except ValueError as error:
            raise ValueError(f'{path}, {where}: {error}') from None
        if isinstance(run, str):
            left_out[run] += 1
        else:
            rows.append(run)
    kinds = {**dict.fromkeys(NUMBERS, float), 'B': object, **dict.fromkeys(WORDS, str)}
    columns = {column: np.array([row[column] for row in rows], kind) for column, kind in kinds.items()}
    return RunTable(str(path), columns, dict(left_out), names)


def select(table: RunTable, columns: Sequence[str]) -> RunTable:
    """The runs that have all of these columns, the rest left out and counted.

    Raises:
      ValueError: if no run has one of them.
    """
    for column in columns:
        values = table.columns[column]
        has = np.array([value is not None for value in values]) if column == 'B' else ~np.isnan(values)
        if not has.any():
            if table.num_runs and not set(NAMES[column]) & set(table.names):
                raise _missing_column(table.path, table.names, column)
            told = ''.join(f'; {count} {reason}' for reason, count in table.left_out.items())
            raise ValueError(f'{table.path} has no run that is done and has {column}{told}')
        without = dict.fromkeys(table.columns['method'][~has])
        methods = f' ({", ".join(without)})' if any(without) else ''
        table = table.where(has, f'without {column}{methods}')
    return table


def seed_noise(table: RunTable) -> dict[str, float] | None:
    """How much the losses of runs differ that differ in their seed only, pooled over such settings.

    Returns:
      standard_deviation, in nats; of how many settings; degrees_of_freedom, the runs less the settings. None where no
      setting was run more than once.
    """
    settings = collections.defaultdict(dict)
    columns = [map(str, table.columns[name]) for name in ('N', 'D', 'E', 'M', 'B', 'b', 'method')]
    for *setting, name, seed, loss in zip(*columns, *(table.columns[name] for name in ('name', 'seed', 'loss'))):
        setting = re.sub(r'seed=\d+', '', name) or tuple(setting)  # a sweep's names tell of all that it varies
        settings[setting].setdefault(seed, []).append(loss)
    several = [
        [loss for losses in by_seed.values() for loss in losses]
        for by_seed in settings.values()
        if len(by_seed) > 1 and all(len(losses) == 1 for losses in by_seed.values())
    ]
    if not several:
        return None
    degrees = sum(map(len, several)) - len(several)
    squares = sum(np.var(losses) * len(losses) for losses in several)
    deviation = float(np.sqrt(squares / degrees))
    return {'standard_deviation': deviation, 'settings': len(several), 'degrees_of_freedom': degrees}


def _missing_column(path: str | pathlib.Path, names: Sequence[str], column: str) -> ValueError:
    """The error to raise for a column that a file hasn't."""
    known = ' or '.join(map(repr, NAMES[column] + (NAMES['format'] if column in 'EM' else ())))
    return ValueError(f'{path} has no column {known}; its columns are {csv_files.in_words(names)}')


def _read_run(cells: dict[str, Any], others: dict[str, Any]) -> dict[str, Any] | str:
    """The columns of a run, or why it is left out."""
    words = {column: _word(cells[column]) for column in (*WORDS, 'status')}
    words |= {column: '' for column in ('seed', 'run') if words[column].lower() in NO_LABELS}
    if words['status'] not in ('', 'done'):
        return f'with status {words["status"]}'
    if blank := [column for column in ('loss', 'N', 'D') if _word(cells[column]) == '']:
        return f'without {"a loss" if blank[0] == "loss" else blank[0]}'
    numbers = {column: _number(column, cells[column]) for column in NUMBERS}
    if not math.isfinite(numbers['loss']):
        return 'whose loss is not finite'
    for column in EVERY_LAW:
        if not 0 < numbers[column] < math.inf:
            raise ValueError(f'{column}={cells[column]!r:.80} must be a positive number')
    for column in 'EMb':
        if numbers[column] < 0 or (column == 'b' and numbers[column] == 0):
            raise ValueError(f'{column}={cells[column]!r:.80} must be {"above" if column == "b" else "at least"} 0')
    method = words['method']
    if method == 'bf16':
        return numbers | words | UNQUANTIZED
    found = METHODS.get(method)
    if found and found.learns_bitwidths:
        bits = [_number(name, others.get(f'quantization.{name}')) for name in ('b_init', 'b_target')]
        if bits[0] == bits[1]:  # constant, where the mean has the rounding of a float32
            numbers['b'] = bits[0]
        return numbers | words | {'E': math.nan, 'M': math.nan, 'B': None}
    has_default = cells['format'] is not None and found is not None  # the column is there, and empty
    fmt = words['format'] or (found.default_format if has_default else '')
    if fmt and math.isnan(numbers['E']):
        parsed = parse_format({'bf16': 'bfloat16'}.get(fmt, fmt.lower()))
        numbers |= {'E': float(parsed.exponent_bits), 'M': float(parsed.mantissa_bits)}
    block = _block_size(cells['B'])
    if not _word(cells['B']) and (numbers['E'], numbers['M']) == (UNQUANTIZED['E'], UNQUANTIZED['M']):
        block = UNQUANTIZED['B']  # bfloat16 has no blocks
    return numbers | words | {'B': block, 'format': fmt}


def _number(column: str, value: Any) -> float:
    """NaN for an empty cell."""
    if value is None or value == '':
        return math.nan
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'{column}={value!r:.80} is not a number') from None


def _word(value: Any) -> str:
    return '' if value is None else str(value).strip()


def _block_size(value: Any) -> float | str | None:
    """A number, 'channel' or 'tensor'; None for an empty cell and for rectangles, of which the laws know nothing."""
    text = _word(value)
    if text in ('channel', 'tensor'):
        return text
    if not text or re.fullmatch(r'\d+x\d+', text):
        return None
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 1 <= size < math.inf:
        raise ValueError(f"B={value!r:.80} is neither a block size, at least 1, nor 'channel' or 'tensor'")
    return size


def _read_jsonl(path: pathlib.Path) -> Iterator[Line]:
    with open(paths.check_file(path), 'rb') as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f'{path}, line {number}'
                yield f'line {number}', json_files.require(json_files.parse(line, where), where, {})


def _read_parquet(path: pathlib.Path) -> Iterator[Line]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f'{path}: reading Parquet needs pyarrow: pip install "pyarrow>=14.0.1"') from None
    try:
        with open(paths.check_file(path), 'rb') as stream:
            names, rows = _parquet_rows(path, stream, pyarrow, parquet)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is damaged, or not Parquet: {[*str(error).splitlines(), ""][0]}') from None
    unread = dict.fromkeys(names)
    for number, cells in enumerate(rows, 1):
        yield f'row {number}', unread | cells


def _parquet_rows(path, stream, pyarrow, parquet) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of all columns, and the cells of those that are read."""
    schema = parquet.read_schema(stream)
    read = [field.name for field in schema if field.name in READ]
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
    return schema.names, table.to_pylist()


READERS = {'.csv': csv_files.read, '.jsonl': _read_jsonl, '.parquet': _read_parquet}
