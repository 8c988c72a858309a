"""Laws with where they are from and how sure they are: published, fitted to a table of runs, or stored."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from experiments.files import foreign_text, json_files, paths
from experiments.laws.run_tables import RunTable, read_runs, select
from gaussq_jax import scaling_laws
from gaussq_jax.atomic_files import replace_file

LAWS = {
    'capybara': scaling_laws.CapybaraLaw,
    'chinchilla': scaling_laws.ChinchillaLaw,
    'kaplan': scaling_laws.KaplanLaw,
    'kumar': scaling_laws.KumarLaw,
    'bitwidth': scaling_laws.BitwidthLaw,
}
NUM_STARTS = 16  # of a fit
NUM_DRAWS = 1000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class KnownLaw:
    """A law, and what is known of it."""

    law: scaling_laws.ScalingLaw
    origin: str
    ranges: dict[str, tuple[float, float]]  # the least and the greatest N and D of the runs that it was fitted to
    draws: tuple[scaling_laws.ScalingLaw, ...] = ()  # laws that the runs might as well have given; none if not known
    undetermined: tuple[str, ...] = ()  # constants that the runs did not determine
    noise: float | None = None  # standard deviation of a run's loss about the law
    determination: scaling_laws.Determination | None = None  # what the runs leave open
    scatter: scaling_laws.Scatter | None = None  # how runs lie about it
    errors: str | None = None  # what the draws assume, a key of scaling_laws.ERRORS

    @property
    def name(self) -> str:
        return next(name for name, family in LAWS.items() if type(self.law) is family)

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


PUBLISHED = KnownLaw(
    scaling_laws.PUBLISHED_CAPYBARA,
    'Capybara, as published (arXiv 2501.02423), whose authors give no errors of its constants: no intervals',
    {'N': (40_894_464, 679_477_248), 'D': (10_485_760_000, 104_857_600_000)},
)


def fit(
    family: type[scaling_laws.ScalingLaw], table: RunTable, *, objective: str, errors: str
) -> scaling_laws.FitResult:
    """A law fitted to a table, which `runs_for` has read."""
    return scaling_laws.fit(family, table.columns, objective=objective, errors=errors, num_starts=NUM_STARTS)


def fitted(result: scaling_laws.FitResult, table: RunTable) -> KnownLaw:
    """The law of a fit, with the draws of its bootstrap."""
    return KnownLaw(
        result.law,
        f'{result.law.title()}, fitted to {result.num_runs} runs of {table.path}',
        {column: (float(np.min(table.columns[column])), float(np.max(table.columns[column]))) for column in 'ND'},
        tuple(result.bootstrap(NUM_DRAWS)),
        tuple(result.undetermined),
        float(result.noise),
        result.determination,
        result.scatter,
        result.errors,
    )


def needs(family: type[scaling_laws.ScalingLaw]) -> tuple[str, ...]:
    """The columns of a table of runs that a law is fitted to; P comes from E and M."""
    return tuple(dict.fromkeys(column for name in family.COLUMNS for column in ('EM' if name == 'P' else name)))


def runs_for(family: type[scaling_laws.ScalingLaw], path: str | pathlib.Path, *, exclude_e0: bool) -> RunTable:
    """The runs of a table that a law can be fitted to.

    Raises:
      ValueError: as read_runs and select do; if all are of one kind, not quantized, while the law is of those that are;
        for `exclude_e0` with a law that knows no formats.
    """
    table = select(read_runs(path), needs(family))
    for column, unquantized in (('B', 1), ('b', np.inf)):
        if column in needs(family) and np.all(table.columns[column] == unquantized):
            raise ValueError(f'{table.path} has only runs that are not quantized: none that is done has {column}')
    methods = sorted(set(table.columns['method']) - {'', 'bf16'})
    if len(methods) > 1:
        raise ValueError(f'{table.path} has runs of {" and ".join(methods)}: a law is of one method; keep one of them')
    if exclude_e0 and 'E' not in needs(family):
        raise ValueError(f'exclude_e0 would do nothing: a {family.__name__} knows no exponent bits')
    return table.where(table.columns['E'] != 0, 'with E = 0') if exclude_e0 else table


def write_law(path: str | pathlib.Path, known: KnownLaw):
    """Writes a law as JSON, for `read_law`."""
    content = {
        'law': known.name,
        'origin': foreign_text.printable(' '.join(known.origin.split())),
        'constants': known.law.constants(),
        'noise': known.noise,
        'undetermined': known.undetermined,
        'determination': known.determination
        and {
            'names': known.determination.names,
            'unseen': known.determination.unseen.tolist(),
            'covariance': known.determination.covariance.tolist(),
            'alternatives': _laws_as_json(known.determination.alternatives),
        },
        'ranges': known.ranges,
        'bootstrap': _laws_as_json(known.draws),
        'errors': known.errors,
        'scatter': known.scatter and {**known.scatter._asdict(), 'residuals': known.scatter.residuals.tolist()},
    }
    replace_file(paths.parse(path, '--output'), json.dumps(content, indent=1) + '\n')


def read_law(path: str | pathlib.Path) -> KnownLaw:
    """Reads what `write_law` has written; ValueError if it is something else."""
    content = json_files.read(paths.parse(path, '--law'))
    try:
        law = LAWS[content['law']](**dict(zip(content['constants'], _numbers(content['constants'].values()))))
        origin, errors = content['origin'], content.get('errors')
        if not isinstance(origin, str) or not origin.isprintable() or len(origin) > 1000:
            raise ValueError('its origin is no line of text')
        if errors not in (None, *scaling_laws.ERRORS):
            raise ValueError(f'errors={errors!r} must be one of {", ".join(scaling_laws.ERRORS)}')
        return KnownLaw(
            law,
            origin,
            {column: _range_of_json(content['ranges'][column]) for column in 'ND'},
            _laws_of_json(law, content['bootstrap']),
            _names_of_constants(law, content['undetermined']),
            None if content['noise'] is None else _numbers([content['noise']])[0],
            _determination_of_json(law, content.get('determination')),
            _scatter_of_json(content.get('scatter')),
            errors,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f'it has no {error}' if isinstance(error, KeyError) else f'{error}'[:200]
        raise ValueError(f'{path} is not a law as `fit --output={path}` writes it: {reason}') from None


def _laws_as_json(laws: Iterable[scaling_laws.ScalingLaw]) -> list[list[float]]:
    """The constants of laws of one family and one choice of constants, in their order."""
    return [list(law.constants().values()) for law in laws]


def _laws_of_json(like: scaling_laws.ScalingLaw, content: Any) -> tuple[scaling_laws.ScalingLaw, ...]:
    names = list(like.constants())
    return tuple(type(like)(**dict(zip(names, _numbers(values), strict=True))) for values in content)


def _numbers(values: Iterable[Any]) -> list[float]:
    values = list(values)
    if wrong := [value for value in values if not json_files.is_a(value, float)]:
        raise ValueError(f'{wrong[0]!r:.80} is no number')
    return list(map(float, values))


def _names_of_constants(law: scaling_laws.ScalingLaw, names: Iterable[Any]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in list(law.constants())]:
        raise ValueError(f'{unknown[0]!r:.80} is no constant of the law')
    return tuple(names)


def _range_of_json(content: Any) -> tuple[float, float]:
    low, high = _numbers(content)
    if not 0 < low <= high:
        raise ValueError(f'{low:g} to {high:g} is no range')
    return low, high


def _determination_of_json(law: scaling_laws.ScalingLaw, content: Any) -> scaling_laws.Determination | None:
    """None where a file has none, as those of version 0.1."""
    if content is None:
        return None
    names = _names_of_constants(law, content['names'])
    return scaling_laws.Determination(
        law,
        names,
        np.array(content['unseen'], float).reshape(-1, len(names)),
        np.array(content['covariance'], float),
        _laws_of_json(law, content['alternatives']),
    )


def _scatter_of_json(content: Any) -> scaling_laws.Scatter | None:
    """None where a file has none, as those of version 0.1."""
    if content is None:
        return None
    residuals = np.array(content['residuals'], float)
    if residuals.ndim != 1 or not residuals.size or not np.all(np.isfinite(residuals)):
        raise ValueError('scatter must have residuals, finite numbers')
    return scaling_laws.Scatter(residuals, bool(content['is_relative']))
