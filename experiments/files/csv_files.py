"""Tables as CSV, read strictly, and written so that no spreadsheet runs what is in them."""

import collections
import csv
import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from experiments.files import paths
from gaussq_jax.atomic_files import replace_file

MOST_ROWS = 100_000
MOST_HEADER = 2**20  # letters in which the delimiter is looked for
MOST_LETTERS = 200  # of a column's name that are shown
MOST_NAMES = 50  # of columns that are shown
DELIMITERS = ',', '\t', ';', '|'
FORMULAS = ('=', '+', '-', '@', '\t', '\r')  # with one of these a formula begins
TEXT = "'"  # a spreadsheet takes what follows as text


def read(path: pathlib.Path, delimiter: str = ',') -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table that has a header: where each stands, for people, and its cells by column, stripped.

    Args:
      path: of the table.
      delimiter: what separates its cells, one of DELIMITERS.

    Raises:
      ValueError: naming file and line: no UTF-8, a row of another length than the header, a column twice, a damaged
        line, more than MOST_ROWS.
      OSError: it can't be read.

    Example:
      losses = [float(row['loss']) for where, row in csv_files.read(path)]
    """
    with open(paths.check_file(path), newline='', encoding='utf-8-sig') as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        try:
            if not (names := [_cell_of_text(name) for name in next(reader, [])]):
                raise ValueError(f'{path} has no header')
            if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
                raise ValueError(f'{path} has more than one column {repeated[0]!r}')
            for number, cells in enumerate(filter(None, reader)):
                if number == MOST_ROWS:
                    raise ValueError(f'{path} has more than {MOST_ROWS:,} rows')
                if len(cells) != len(names):
                    raise ValueError(
                        f'{path}, line {reader.line_num}: it has {len(cells)} cells, and the table {len(names)} columns'
                    )
                yield f'line {reader.line_num}', dict(zip(names, map(_cell_of_text, cells)))
        except csv.Error as error:
            raise ValueError(f'{path}, line {reader.line_num}: it is damaged: {error}') from None
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is no text in UTF-8 ({error.reason} at byte {error.start})') from None


def find_delimiter(path: pathlib.Path) -> str:
    """What separates the cells of a table: of DELIMITERS the one that its header has most of, outside of quotes.

    The first of those that it has equally many of; a comma if it has none.
    """
    with open(paths.check_file(path), encoding='utf-8', errors='replace') as file:
        header = re.sub(r'"[^"]*("|$)', '', file.readline(MOST_HEADER))
    return max(DELIMITERS, key=header.count)


def in_words(names: Iterable[str]) -> str:
    """The names of columns, for an error."""
    names = [' '.join(name.split())[:MOST_LETTERS] or "''" for name in names]
    more = [f'and {len(names) - MOST_NAMES} more'] if len(names) > MOST_NAMES else []
    return ', '.join(names[:MOST_NAMES] + more) or 'none'


def write(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]):
    """Writes a table in one step: a reader, or a kill, finds the old one or the new.

    A text that a spreadsheet would take for a formula gets an apostrophe, which `read` takes away.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerows([_text_of_cell(cell) for cell in row] for row in [columns, *rows])
    replace_file(path, text.getvalue())


def _text_of_cell(cell: Any) -> Any:
    if isinstance(cell, str) and cell.startswith((*FORMULAS, TEXT)):
        return cell if _is_number(cell) else TEXT + cell
    return cell


def _cell_of_text(text: str) -> str:
    text = text.strip()
    return text[1:] if text.startswith(tuple(TEXT + start for start in (*FORMULAS, TEXT))) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
