"""Laws with where they are from and how sure they are: published, fitted to a table of runs, or stored."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.laws.law_choices import LAWS, LawChoice, extra_columns
from experiments.laws.tables import table_remarks
from experiments.laws.tables.reading import AS_IT_IS, Reading
from experiments.laws.tables.run_tables import RunTable, read_runs, select
from gaussq_jax import scaling_laws
from gaussq_jax.scaling_laws.inputs import REFERENCE

NUM_STARTS = 16  # of a fit
RANGES = ('N', 'D', 'b', 'B')
NUM_DRAWS = 1000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class KnownLaw:
    """A law, and what is known of it."""

    law: scaling_laws.ScalingLaw
    origin: str
    ranges: dict[str, tuple[float, float]]  # of the runs behind it the least and the greatest N and D, b and B
    draws: tuple[scaling_laws.ScalingLaw, ...] = ()  # laws that the runs might as well have given; none if not known
    undetermined: tuple[str, ...] = ()  # constants that the runs did not determine
    noise: float | None = None  # standard deviation of a run's loss about the law
    determination: scaling_laws.Determination | None = None  # what the runs leave open
    scatter: scaling_laws.Scatter | None = None  # how runs lie about it
    errors: str | None = None  # what the draws assume, a key of scaling_laws.ERRORS

    @property
    def name(self) -> str:
        """'capybara'; of a law of one's own, the name of its class."""
        names = (name for name, choice in LAWS.items() if choice.family is type(self.law))
        return next(names, type(self.law).__name__)

    def value(self, quantity: Callable[[Any], Any]) -> np.ndarray:
        """A number, or an array, that follows from the law; NaN where it depends on what the runs leave open."""
        value = np.asarray(quantity(self.law), float)
        return value if self.determination is None else np.where(self.determination.is_unknown(quantity), np.nan, value)

    def interval(self, quantity: Callable[[Any], Any]) -> np.ndarray | None:
        """Both ends of its 95 % interval, NaN where it is; None if not known."""
        return self._ends(quantity, scaling_laws.quantile_interval) if self.draws else None

    def prediction_interval(self, loss: Callable[[Any], Any]) -> np.ndarray | None:
        """The same of the loss of a run, which lies about what the law says as those did that it was fitted to."""
        return self._ends(loss, self.scatter.interval) if self.draws and self.scatter else None

    def _ends(self, quantity, interval):
        try:
            with np.errstate(all='ignore'):  # of laws that are far off, and of what is infinite
                ends = np.array(interval(quantity, self.draws), float)
                return np.where(np.isnan(self.value(quantity)), np.nan, ends)
        except ValueError:  # a law among them for which there is no such thing
            return None

    def describe(self) -> dict[str, Any]:
        """For programs."""
        return {
            'law': self.name,
            'origin': self.origin,
            'constants': self.law.constants(),
            'undetermined': self.undetermined,
            'has_intervals': bool(self.draws),
            'errors': self.errors,
        }

    @property
    def says_unknown(self) -> str:
        """What 'unknown' means."""
        return f'unknown: the runs leave it open, with {", ".join(self.undetermined)}; laws that fit alike differ there'

    @property
    def says_assumed(self) -> str:
        """What intervals assume."""
        return f'intervals take it that {scaling_laws.ERRORS[self.errors]}' if self.errors else ''

    def remarks(self, *, N: float | None = None, D: float | None = None) -> list[str]:
        """What a reader of its predictions, for this N and D, has to know."""
        remarks = []
        if self.undetermined:
            remarks.append(f'the runs did not determine {", ".join(self.undetermined)}')
        for column, value, what in (('N', N, 'weights'), ('D', D, 'tokens')):
            low, high = self.ranges[column]
            if value is not None and not low / 1.01 <= value <= high * 1.01:
                times, end = (value / high, 'most') if value > high else (low / value, 'fewest')
                direction = 'beyond' if value > high else 'below'
                times = f'{times:,.0f}' if times > 10 else f'{times:.3g}'
                remarks.append(
                    f'extrapolated: {column} is {times} times {direction} the {end} {what} of the runs behind the law'
                )
        return remarks


NO_ERRORS = 'whose authors give no errors of its constants: no intervals'
SIZES_OF_QAT = {'N': (74e6, 594e6), 'D': (10e9, 100e9)}
PUBLISHED = {
    'capybara': KnownLaw(
        scaling_laws.PUBLISHED_CAPYBARA,
        f'Capybara, as published (arXiv 2501.02423), {NO_ERRORS}',
        {'N': (40_894_464, 679_477_248), 'D': (10_485_760_000, 104_857_600_000)},
    ),
    'chinchilla': KnownLaw(
        scaling_laws.CHINCHILLA_REFIT,
        'Chinchilla, refitted to its runs (arXiv 2404.10102), without intervals: its constants depend on each other',
        {'N': (57e6, 16e9), 'D': (3e8, 4e11)},
    ),
    'chinchilla-as-first-published': KnownLaw(
        scaling_laws.CHINCHILLA_AS_FIRST_PUBLISHED,
        'Chinchilla, as first published (arXiv 2203.15556), which does not describe its own runs: see chinchilla',
        {'N': (57e6, 16e9), 'D': (3e8, 4e11)},
    ),
    'kaplan': KnownLaw(
        scaling_laws.PUBLISHED_KAPLAN,
        f'Kaplan, as published (arXiv 2001.08361), {NO_ERRORS}',
        {'N': (768, 1.5e9), 'D': (2.2e7, 2.3e10)},
    ),
    'outer': KnownLaw(
        scaling_laws.PUBLISHED_OUTER_EXPONENT,
        f'an outer exponent, as published with Quartet (arXiv 2505.14669), {NO_ERRORS}',
        {'N': (30e6, 200e6), 'D': (7.5e8, 1.6e11)},
    ),
    'quartet': KnownLaw(
        scaling_laws.PUBLISHED_QUARTET,
        f'Quartet, as published (arXiv 2505.14669), {NO_ERRORS}',
        {'N': (30e6, 200e6), 'D': (7.5e8, 1.6e11)},
    ),
    **{
        f'qat-{bits}': KnownLaw(
            law, f'QAT in {bits.upper()}, as published (arXiv 2505.14302), {NO_ERRORS}', SIZES_OF_QAT
        )
        for bits, law in scaling_laws.PUBLISHED_QAT.items()
    },
}


def fit(
    choice: LawChoice, table: RunTable, *, objective: str = 'squares', errors: str = 'cr3'
) -> scaling_laws.FitResult:
    """A law fitted to a table, which `runs_for` has read."""
    how = dict(fixed=choice.fixed, objective=objective, errors=errors, num_starts=NUM_STARTS)
    return scaling_laws.fit(choice.family, columns_for(choice, table), **how)


def columns_for(choice: LawChoice, table: RunTable) -> dict[str, np.ndarray]:
    """The columns of a table that a law is fitted to, with its default where a run lacks what may be left out."""
    columns = dict(table.columns)
    for name, default in choice.family.DEFAULTS.items():
        if columns[name].dtype == float:
            columns[name] = np.where(np.isnan(columns[name]), default, columns[name])
    return columns


def fitted(result: scaling_laws.FitResult, table: RunTable) -> KnownLaw:
    """The law of a fit, with the draws of its bootstrap."""
    return KnownLaw(
        result.law,
        f'{result.title}, fitted to {result.num_runs} runs of {table.path}',
        _ranges(result.law, table),
        tuple(result.bootstrap(NUM_DRAWS)),
        tuple(result.undetermined),
        float(result.noise),
        result.determination,
        result.scatter,
        result.errors,
    )


def _ranges(law, table):
    """Of bitwidths and block sizes, those of runs that are quantized, by blocks of a number."""
    ranges = {}
    for column in (name for name in RANGES if name in law.COLUMNS):
        values = [value for value in table.columns[column].tolist() if not isinstance(value, str)]
        if values := [value for value in values if np.isfinite(value) and (column, value) != ('B', 1)]:
            ranges[column] = float(min(values)), float(max(values))
    return ranges


def runs_for(
    choice: LawChoice, path: str | pathlib.Path, reading: Reading = AS_IT_IS, *, exclude_e0: bool = False
) -> RunTable:
    """The runs of a table that a law can be fitted to.

    Raises:
      ValueError: as read_runs and select do; if all are of one kind, not quantized, while the law is of those that are;
        if they are of several methods, while the law is of one; if none is of BF16, which recipes are compared with;
        for `exclude_e0` with a law that knows no formats.
    """
    return runs_of(choice, read_runs(path, reading._replace(extra=extra_columns([choice]))), exclude_e0=exclude_e0)


def runs_of(choice: LawChoice, table: RunTable, *, exclude_e0: bool = False) -> RunTable:
    """Those of a table that is read, as `runs_for`; ValueError but for what is wrong with the file."""
    table = select(table, choice.needs)
    if exclude_e0:
        if 'E' not in choice.needs:
            raise ValueError(f'exclude_e0 would do nothing: a {choice.family.__name__} knows no exponent bits')
        table = table.where(table.columns['E'] != 0, 'with E = 0')
    return usable(choice, table)


def usable(choice: LawChoice, table: RunTable) -> RunTable:
    """Runs that have what a law needs, with what is to be said of them; ValueError as `runs_for` does."""
    if 'B' in choice.needs and 'E' not in choice.family.COLUMNS:  # it takes numbers
        table = table.where(
            np.array([not isinstance(B, str) for B in table.columns['B']], bool), 'by channel or tensor'
        )
        if not table.num_runs:
            raise ValueError(
                f'{table.path} has blocks by channel or tensor alone, and {choice.family.title()} takes numbers'
            )
    columns = table.columns
    for column, unquantized in (('B', 1), ('b', np.inf)):
        if column in choice.needs and np.all(columns[column] == unquantized):
            raise ValueError(f'{table.path} has only runs that are not quantized: none that is done has {column}')
    if 'forward' in choice.needs:
        if not (set(columns['forward']) | set(columns['backward'])) - {REFERENCE, ''}:
            raise ValueError(f'{table.path} has only runs of {REFERENCE}: there is no recipe to compare with it')
        if not set(columns['forward']) & {REFERENCE, ''}:
            known = ', '.join(sorted(set(columns['forward'])))
            raise ValueError(
                f'{table.path} has no run of {REFERENCE}, which recipes are compared with, but of {known}: --recipes'
                ' can say which it is'
            )
        without = np.sum(columns['forward'] == '')
        told = [f'{without} of {table.num_runs} runs say no forward recipe, and count as {REFERENCE}'] * bool(without)
        return table._replace(remarks=(*table.remarks, *told))
    methods = sorted(set(columns['method']) - {'', 'bf16'})
    if len(methods) > 1 and choice.knows_precision:
        raise ValueError(
            f'{table.path} has runs of {" and ".join(methods)}: a law is of one method; keep one of them by'
            f' --where=method={methods[0]}'
        )
    told = table_remarks.of_recipes(columns, choice.family.COLUMNS, choice.family.title())
    return table._replace(remarks=(*table.remarks, *told))
