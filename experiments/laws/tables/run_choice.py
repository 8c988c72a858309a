"""Which rows of a table are the runs that are asked for: of a value, at their end, and the best of those that tune."""

import collections
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments.laws.tables.reading import Reading
from experiments.laws.tables.run_cells import NUMBERS, is_history, word
from experiments.laws.tables.table_files import Line

MOST_SHOWN = 10  # values of a column
TUNED = 'learning_rate', 'dataset'  # columns that no law knows
SETTING = ({*NUMBERS} - {'loss'}) | {'B', 'method', 'forward', 'backward', 'seed'}

Run = dict[str, Any]


def having(
    path: pathlib.Path, lines: Sequence[Line], where: Iterable[tuple[str, str]], left_out: collections.Counter
) -> Sequence[Line]:
    """The lines with these values in these columns, equal as texts or as numbers; the others are counted.

    Raises:
      ValueError: if there is none, with the values there are.
    """
    for name, value in where:
        kept = [line for line in lines if _is_equal(word(line[1].get(name)), value)]
        if not kept:
            there = collections.Counter(word(cells.get(name)) for _, cells in lines).most_common()
            told = ', '.join(f'{text!r:.80} ({number})' for text, number in there[:MOST_SHOWN])
            more = f' and {len(there) - MOST_SHOWN} more' if len(there) > MOST_SHOWN else ''
            raise ValueError(f'--where={name}={value}: {path} has no such run; there are {told}{more}')
        if len(kept) < len(lines):
            left_out[f'without {name}={value}'] += len(lines) - len(kept)
        lines = kept
    return lines


def rename(path: pathlib.Path, runs: Sequence[Run], recipes: Mapping[str, str]) -> Iterator[str]:
    """Reads recipes as others, and tells so.

    Raises:
      ValueError: for one that no run has.
    """
    there = dict.fromkeys(run[side] for run in runs for side in ('forward', 'backward') if run[side])
    for name, other in recipes.items():
        if runs and name.lower() not in there:
            told = ', '.join(f'{text!r:.80}' for text in [*there][:MOST_SHOWN]) or 'none'
            raise ValueError(f'--recipes={name}={other}: {path} has no such recipe; there are {told}')
        yield f'the recipe {name.lower()!r:.80} is read as {other.lower()!r:.80}'
    lower = {name.lower(): other.lower() for name, other in recipes.items()}
    for run in runs:
        run.update({side: lower.get(run[side], run[side]) for side in ('forward', 'backward')})


def choose(
    path: pathlib.Path,
    runs: Sequence[Run],
    columns: Mapping[str, str],
    reading: Reading,
    left_out: collections.Counter,
) -> tuple[Sequence[Run], list[str]]:
    """The last steps of runs, and the best of those that differ in what was tuned, if that is asked for.

    Args:
      path: of the table, for errors.
      runs: its rows.
      columns: ours -> the file's.
      reading: what is asked for.
      left_out: in which the others are counted.

    Returns:
      the runs, and what a reader must be told.

    Raises:
      ValueError: for steps of runs that nothing tells apart.
    """
    remarks = []
    if is_history(columns):
        if not {'run', 'name'} & columns.keys():
            raise ValueError(
                f"{path} has steps ('_step'), and no column names their run: --columns=run=NAME says which does"
            )
        groups = _groups(runs, lambda run: (run['run'], run['name']))
        if len(groups) < len(runs):
            remarks.append("rows are steps of runs ('_step'): the last of each run that has a loss is taken")
            left_out['before the last step of their run'] += len(runs) - len(groups)
        step = lambda run: -math.inf if math.isnan(run['_step']) else run['_step']
        runs = [max(group, key=step) for group in groups]
    groups = _groups(runs, lambda run: tuple(str(run[column]) for column in [*SETTING, *reading.extra]))
    for column in TUNED:
        if values := [there for group in groups if len(there := dict.fromkeys(run[column] for run in group)) > 1]:
            told = ', '.join(f'{value or "none"!r:.80}' for value in [*values[0]][:MOST_SHOWN])
            told = f'runs of one N, D and recipe differ in {columns[column]!r:.80} ({told})'
            if column == 'dataset':
                remarks.append(f'{told}: --where takes those of one')
            elif not reading.best_of:
                remarks.append(f'{told}: --best_of takes the best')
    if reading.best_of:
        best = [min(group, key=lambda run: run['loss']) for group in groups]
        if len(best) == len(runs):
            remarks.append('no two runs have one N, D and recipe: --best_of changes nothing')
        else:
            left_out['not the best of its N, D and recipe'] += len(runs) - len(best)
        runs = best
    return runs, remarks


def _is_equal(text: str, value: str) -> bool:
    try:
        return text == value or float(text) == float(value)
    except ValueError:
        return False


def _groups(runs: Iterable[Run], key) -> list[list[Run]]:
    groups = collections.defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return list(groups.values())
