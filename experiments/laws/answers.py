"""What a law says of points that are asked for: as a table for people, and as JSON for programs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.laws.known_laws import KnownLaw
from experiments.laws.law_choices import NO_NUMBERS
from experiments.laws.notation import UNKNOWN, block_name, format_name, human, interval_text
from gaussq_jax.text_table import text_table

Point = Mapping[str, Any]  # inputs of a law, by their names; E with M is a format


class Answer(NamedTuple):
    """What a command says: to programs, and to people."""

    data: dict[str, Any]
    lines: list[str]


class Quantity(NamedTuple):
    """A function of a law and columns; how to write what it gives; and whether that is the loss of trainings."""

    of: Callable[[Any, dict[str, np.ndarray]], np.ndarray]
    write: Callable[[float], str]
    is_loss: bool = False


def tabulate(
    known: KnownLaw, points: Sequence[Point], quantities: Mapping[str, Quantity], remarks: Sequence[str] = ()
) -> Answer:
    """A row a point, with quantities and their intervals."""
    columns = columns_of(points)
    rows, cells = [dict(point) for point in points], [cells_of(point) for point in points]
    for name, (quantity, write, is_loss) in quantities.items():
        of_law = lambda law, quantity=quantity: np.broadcast_to(quantity(law, columns), len(points))
        intervals = {('interval', f'95 % interval of {name}'): known.interval(of_law)}
        if is_loss:
            intervals['prediction interval', '95 % interval of a run'] = known.prediction_interval(of_law)
        for i, value in enumerate(known.value(of_law)):
            rows[i][name], cells[i][name] = value, UNKNOWN if np.isnan(value) else write(value)
            for (key, title), ends in intervals.items():
                if ends is not None:
                    rows[i][f'{name}, {key}'] = ends[:, i]
                    cells[i][title] = interval_text(ends[:, i], write)
    remarks = [*remarks, known.says_assumed] if known.says_assumed else remarks
    remarks = list(dict.fromkeys([*remarks, *[known.says_unknown] * any(UNKNOWN in row.values() for row in cells)]))
    lines = [f'law         {known.origin}', '', text_table([list(cells[0]), *(row.values() for row in cells)])]
    return Answer({**known.describe(), 'rows': rows, 'remarks': remarks}, lines + [''] * bool(remarks) + remarks)


def columns_of(points: Sequence[Point]) -> dict[str, np.ndarray]:
    """An array an input of points, (points,), as the methods of laws take them."""
    return {
        name: np.array([point[name] for point in points], object if name in NO_NUMBERS else float)
        for name in points[0]
        if name != 'format'
    }


def cells_of(point: Point) -> dict[str, str]:
    """A point, for people."""
    cells = {}
    for name, value in point.items():
        match name:
            case 'N' | 'D':
                cells[{'N': 'N', 'D': 'tokens'}[name]] = human(value)
            case 'E':
                cells['format'] = format_name(value, point['M'])
            case 'B':
                cells['block'] = block_name(value)
            case 'P' | 'b' | 'new_P':
                cells[{'P': 'bits', 'b': 'bits', 'new_P': 'new bits'}[name]] = f'{value:g}'
            case 'format':
                cells['best format'] = value
            case 'M':  # beside E
                pass
            case _:
                cells[name] = value if isinstance(value, str) else f'{value:g}'
    return cells


def plain(value: Any) -> Any:
    """What JSON has: no arrays, and null for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
