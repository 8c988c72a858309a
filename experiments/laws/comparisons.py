"""Laws by how they predict runs that they were not fitted to: some of all, the largest models, the most compute."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from experiments.laws import known_laws
from experiments.laws.law_choices import LawChoice, extra_columns
from experiments.laws.notation import UNKNOWN, human
from experiments.laws.tables.reading import Reading
from experiments.laws.tables.run_tables import RunTable, read_runs, select
from gaussq_jax import scaling_laws
from gaussq_jax.scaling_laws import FitResult
from gaussq_jax.text_table import text_table

NUM_FOLDS = 5  # of runs held out
USUAL_WAYS = 'folds,size:4,compute:10'
progress = functools.partial(tqdm.tqdm, desc='runs held out', unit='law', leave=False, delay=1, disable=None)


class Way(NamedTuple):
    """Which runs are held out: the options of `scaling_laws.hold_out`, and what to call the error on them."""

    title: str
    options: dict[str, Any]


class Compared(NamedTuple):
    """A law fitted to all runs, and its errors on runs held out by each way, in order; or why there is none."""

    result: FitResult
    errors: tuple[float | str, ...]


class Comparison(NamedTuple):
    """Laws, the best first by the first way to hold out; each error is over the runs that all of them predict."""

    ways: tuple[Way, ...]
    laws: tuple[Compared, ...]
    num_runs: tuple[int, ...]  # that are predicted, by each way
    left_out: tuple[str, ...]  # laws that can't be fitted, and why

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            'held_out': [{'way': way.title, 'runs': number} for way, number in zip(self.ways, self.num_runs)],
            'laws': [
                {
                    'law': law.result.title,
                    'constants': len(law.result.names),
                    'rmse': law.result.rmse,
                    'errors': [error if isinstance(error, float) else None for error in law.errors],
                    'reasons': [error if isinstance(error, str) else None for error in law.errors],
                }
                for law in self.laws
            ],
            'laws_left_out': list(self.left_out),
        }


def usual_ways(table: RunTable) -> tuple[Way, ...]:
    """5 parts of the pairs of N and D, and what is largest, where others are left to fit."""
    ways = []
    for name in USUAL_WAYS.split(','):
        try:
            ways += parse_ways(name, table)
        except ValueError:  # there is one model size, say
            continue
    return tuple(ways)


def parse_ways(text: str, table: RunTable) -> tuple[Way, ...]:
    """Of --held_out: which runs are held out, as 'folds,size:4,compute:10'.

        folds        5 parts of the pairs of N and D, each in turn
        sizes        5 parts of the N
        one          each pair of N and D in turn
        size:R       the runs of models more than 1/R of the largest N
        compute:R    the runs of more than 1/R of the most N D
        largest:K    those of the K largest N
        none         none

    Raises:
      ValueError: for anything else, and for what leaves no run to fit.
    """
    N, products = table.columns['N'], table.columns['N'] * table.columns['D']
    ways = []
    for name in filter(None, map(str.strip, text.split(','))):
        if name == 'none':
            continue
        if name in ('folds', 'one'):
            title = 'N and D held out' + ', each' * (name == 'one')
            ways.append(Way(title, {} if name == 'one' else {'num_folds': NUM_FOLDS}))
            continue
        if name == 'sizes':
            ways.append(Way('N held out', {'groups': N.tolist(), 'num_folds': NUM_FOLDS}))
            continue
        match = re.fullmatch(r'(size|compute):(\d+\.?\d*)|(largest):([1-9]\d*)', name)
        if not match or float(match[2] or 2) <= 1:
            allowed = 'folds, sizes, one, size:R and compute:R with R above 1, largest:K with a whole number K, or none'
            raise ValueError(f'--held_out={name!r} must be of {allowed}')
        if match[3]:
            sizes = np.unique(N)
            least = sizes[-int(match[4])] if int(match[4]) < len(sizes) else 0
            chosen, title = least <= N, f'N of {human(least)} and more held out'
        else:
            values = N if match[1] == 'size' else products
            least = values.max() / float(match[2])
            what = 'N above {}' if match[1] == 'size' else '6 N D above {}'
            chosen = values > least
            title = f'{what.format(human(least) if match[1] == "size" else f"{6 * least:.2g}")} held out'
        if chosen.all():
            raise ValueError(f'--held_out={name} leaves no run to fit')
        ways.append(Way(title, {'groups': [is_out or None for is_out in chosen.tolist()]}))
    return tuple(ways)


def table_of(choices: Mapping[str, LawChoice], path: str, reading: Reading, *, must_all: bool) -> RunTable:
    """The runs of a table; those that have what all of the laws need, if they must serve them all.

    Raises:
      ValueError: as read_runs and select do; as `runs_for` for a law that they must serve and don't.
    """
    table = read_runs(path, reading._replace(extra=extra_columns(choices.values())))
    if must_all:
        table = select(table, tuple(dict.fromkeys(name for choice in choices.values() for name in choice.needs)))
        for choice in choices.values():
            table = known_laws.usable(choice, table)._replace(remarks=table.remarks)  # which are said of each
    return table


def serves(table: RunTable, choice: LawChoice) -> bool:
    """Whether every run of the table has what a law needs, and some are quantized if it is a law of that."""
    try:
        return known_laws.usable(choice, select(table, choice.needs)).num_runs == table.num_runs
    except ValueError:
        return False


def compare(
    choices: Sequence[LawChoice],
    table: RunTable,
    ways: Sequence[Way],
    *,
    fitted: Sequence[FitResult] = (),
    objective: str = 'squares',
    errors: str = 'cr3',
) -> Comparison:
    """Fits laws to a table that all its runs serve, and compares them by their errors on runs held out.

    Args:
      choices: of laws; those that can't be fitted to these runs are left out, and told.
      table: of runs.
      ways: to hold out runs.
      fitted: laws that are already fitted to these runs, to compare with the others.
      objective, errors: as of `scaling_laws.fit`.

    Raises:
      ValueError: as `scaling_laws.fit` does, if no law can be fitted.
    """
    results, left_out, reason = list(fitted), [], None
    for choice in choices:
        try:
            results.append(known_laws.fit(choice, table, objective=objective, errors=errors))
        except ValueError as error:
            reason = error
            left_out.append(f'{choice.family.title()} is left out: {error}')
    if not results:
        raise reason or ValueError(f'{table.path}: no law is given that its runs serve')
    rows, num_runs = [[] for _ in results], []
    loss = table.columns['loss']
    tasks = [(way, result) for way in ways for result in results]
    predicted = []
    for way, result in progress(tasks):
        try:
            columns = known_laws.columns_for(LawChoice(type(result.law)), table)
            (held,) = scaling_laws.hold_out([result], columns, num_starts=known_laws.NUM_STARTS, **way.options)
            predicted.append(held.predicted)
        except ValueError as error:
            predicted.append(str(error))
    for i in range(len(ways)):
        of_way = predicted[i * len(results) : (i + 1) * len(results)]
        arrays = [np.isfinite(of_law) for of_law in of_way if not isinstance(of_law, str)]
        known = np.logical_and.reduce(arrays) if arrays else np.zeros(len(loss), bool)
        num_runs.append(int(known.sum()))
        for row, of_law in zip(rows, of_way):
            is_told = isinstance(of_law, str) or not known.any()
            row.append(of_law if is_told else float(np.sqrt(np.mean((of_law[known] / loss[known] - 1) ** 2))))
    laws = [Compared(result, tuple(row)) for result, row in zip(results, rows)]
    by_error = lambda law: law.errors[0] if ways and isinstance(law.errors[0], float) else np.inf
    laws = sorted(laws, key=lambda law: (by_error(law), law.result.rmse))
    return Comparison(tuple(ways), tuple(laws), tuple(num_runs), tuple(left_out))


def comparison_table(description: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and rows of what Comparison.describe tells."""
    percent = lambda error: UNKNOWN if error is None else f'{error:.2%}'
    titles = [f'{way["way"]} ({way["runs"]} run{"s" * (way["runs"] != 1)})' for way in description['held_out']]
    return ('law', 'constants', 'residuals (nats)', *titles), [
        (law['law'], str(law['constants']), f'{law["rmse"]:.4f}', *map(percent, law['errors']))
        for law in description['laws']
    ]


def comparison_lines(description: dict[str, Any]) -> list[str]:
    """What Comparison.describe tells, for people."""
    header, rows = comparison_table(description)
    lines = [text_table([header, *rows])]
    if description['held_out']:
        lines += ['', 'errors on runs held out are relative, root mean square, of laws fitted to the other runs']
    for law in description['laws']:
        for way, reason in zip(description['held_out'], law['reasons']):
            lines += [f'{law["law"]}, {way["way"]}: {reason}'] * bool(reason)
    return [*lines, *description['laws_left_out']]
