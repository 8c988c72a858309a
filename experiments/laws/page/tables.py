"""Tables of a page: cells as they are read, and as they are sorted."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.laws import studies
from experiments.laws.comparisons import comparison_table
from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import UNKNOWN, human, value_text
from experiments.laws.page.settings import Setting, stacked
from experiments.reports.pictures import evenly_chosen

MOST_SIZES = 5  # of models, in a table of D_crit


def cell(text: str, value: Any = None) -> dict[str, Any]:
    """A cell; with a number to sort it by, unless it is sorted by its text."""
    is_number = isinstance(value, int | float | np.number) and not math.isnan(value)
    return {'text': text} | ({'sort': max(-1e300, min(float(value), 1e300))} if is_number else {})


def number(value: float, write=human) -> dict[str, Any]:
    """A cell of a number; 'unknown' for NaN."""
    return cell(UNKNOWN if math.isnan(value) else write(value), value)


def table(columns: Sequence[str], rows: Iterable[Sequence[dict[str, Any] | str]]) -> dict[str, Any]:
    """A table, of cells or of texts, which begin with the number that they are sorted by if there is one.

    It also says of each column whether it has words only.
    """
    rows = [[cell(each, leading_number(each)) if isinstance(each, str) else each for each in row] for row in rows]
    words = [all('sort' not in row[i] for row in rows) for i in range(len(columns))]
    return {'columns': list(columns), 'words': words, 'rows': rows}


def leading_number(text: str) -> float | None:
    """The number that a text begins with.

    Example:
      >>> leading_number('± 0.5 (0.1)'), leading_number('3.2%'), leading_number('e4m3')
      (0.5, 3.2, None)
    """
    try:
        return float(text.lstrip('± ').split(' ')[0].rstrip('%'))
    except ValueError:
        return None


def constants(data: dict[str, Any]) -> dict[str, Any]:
    """Of the constants that Study.describe tells."""
    return table(*studies.constants_table(data))


def comparison(described: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of the laws that Comparison.describe tells, if there is one."""
    return described and table(*comparison_table(described))


def critical(known: KnownLaw, settings: Sequence[Setting], sizes: np.ndarray) -> dict[str, Any] | None:
    """D_crit of settings and model sizes with its intervals; None where more tokens never hurt, by the law."""
    settings = [setting for setting in settings if not setting.is_reference]
    if not settings:
        return None
    sizes = np.array(evenly_chosen(np.unique(sizes).tolist(), MOST_SIZES))
    values = critical_sizes(known.law, settings, sizes)
    if not np.isfinite(values).any():
        return None
    of_law = lambda law: critical_sizes(law, settings, sizes)
    known_values, ends = known.value(of_law), known.interval(of_law)
    rows = []
    for i, setting in enumerate(settings):
        cells = [cell(setting.name)]
        for j, value in enumerate(known_values[i].tolist()):
            text = UNKNOWN if math.isnan(value) else value_text(value, None if ends is None else ends[:, i, j], human)
            cells.append(cell(text, value))
        rows.append(cells)
    return table(['setting', *(f'N = {human(N)}' for N in sizes)], rows)


def critical_sizes(law: Any, settings: Sequence[Setting], sizes: np.ndarray) -> np.ndarray:
    """D_crit, (settings, sizes); infinite where more tokens never hurt."""
    shape = len(settings), len(sizes)
    return np.broadcast_to(law.critical_data_size(N=sizes, **stacked(settings, 1)), shape)


HARDWARE_COLUMNS = ('hardware', 'option', 'price', 'N', 'D', 'loss', 'note')


def hardware(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The plan against hardware: a table and a chart of the best loss of a budget, by hardware and by what is trained.

    Without what has no price on any device; None where there is one thing to train.

    Args:
      rows: each with hardware and option (text), price (of an operation, relative to BF16's; None where that isn't
        known), N, D, loss (None where it isn't) and note (text, maybe '').
    """
    rows = [row for row in rows if row['price'] is not None or row['option'] in priced_options(rows)]
    if len({row['option'] for row in rows}) < 2:
        return None
    or_nan = lambda value: math.nan if value is None else float(value)
    writers = {'price': '{:.3g}'.format, 'N': human, 'D': human, 'loss': '{:.4f}'.format}
    cells = [[number(or_nan(row[k]), writers[k]) if k in writers else row[k] for k in HARDWARE_COLUMNS] for row in rows]
    points = [
        {'hardware': row['hardware'], 'option': row['option'], 'loss': row['loss'], 'text': hardware_text(row)}
        for row in rows
        if row['loss'] is not None and math.isfinite(row['loss'])
    ]
    options = list(dict.fromkeys(point['option'] for point in points))
    return {
        'table': table([*HARDWARE_COLUMNS[:2], 'price (BF16: 1)', *HARDWARE_COLUMNS[3:]], cells),
        'points': [point | {'look': options.index(point['option'])} for point in points],
        'options': [{'label': option, 'look': i} for i, option in enumerate(options)],
    }


def priced_options(rows: Sequence[dict[str, Any]]) -> set[str]:
    """What has a price on some device."""
    return {row['option'] for row in rows if row['price'] is not None and row['hardware'] != 'ideal'}


def hardware_text(row: dict[str, Any]) -> str:
    price = f'an operation costs {row["price"]:.3g} of one in BF16'
    told = f'{row["option"]} on {row["hardware"]}: {price}\nN = {human(row["N"])}, D = {human(row["D"])}'
    return f'{told}\nloss {row["loss"]:.4f}' + f'\n{row["note"]}' * bool(row['note'])
