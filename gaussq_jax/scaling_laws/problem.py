"""The least squares behind a fit: its search, its solution's errors, and what else serves as well.

The constants are positive: the search is over their logarithms, by nonlinear least squares from many random starts. It
is over epsilon itself, which may well be 0. The errors of the constants come from the Jacobian at the best solution;
those of anything that follows from the law, from a bootstrap.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from gaussq_jax.scaling_laws.determination import APART, Determination, tie
from gaussq_jax.scaling_laws.errors import Scatter, degrees_of_freedom, delete_groups, student_t
from gaussq_jax.scaling_laws.fit_result import FitResult
from gaussq_jax.scaling_laws.inputs import REFERENCE, at_least, positive
from gaussq_jax.scaling_laws.law import ScalingLaw

SEARCH = dict(jac='2-point', xtol=1e-8, ftol=1e-8, gtol=1e-8, max_nfev=300)
FINISH = dict(jac='3-point', xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=3000)
FAR = 1e100  # a residual where the law has no value
DEVIATION = 1.4826  # standard deviations in the median absolute one of a normal distribution
FACTOR = 7  # to which a constant is known, at 95 %, at the least
AS_GOOD = 3.84  # squared standard deviations by which a fit may be worse and yet hold the truth, at 95 %
NO_EPSILON = 1e-6  # of the mean loss: the search stops short of its bound
HOLDS = 10.0, 0.1  # standard deviations that a logarithm's distance from a search's start costs it, in turn
NULL_SHARE = 0.01  # of a constant in such a direction
NULL = 1e-9  # singular values below this part of the largest are of directions that the runs don't see


@dataclasses.dataclass(frozen=True)
class Problem:
    """Least squares over points: the logarithms of the constants named, and epsilon in units of the mean loss."""

    family: type[ScalingLaw]
    columns: dict[str, Any]  # of the law, in float64, and B as BlockSizes
    loss: np.ndarray
    weights: np.ndarray
    errors: str
    groups: np.ndarray  # a number a run, from 0
    objective: str
    names: tuple[str, ...]
    fixed: dict[str, float]
    ties: dict[str, str]  # constants that equal others
    bounds: tuple[np.ndarray, np.ndarray]  # points
    unit: float  # of epsilon
    is_log: bool = False  # whether residuals are those of the logarithms of losses
    delta: float | None = None  # of Huber's function; None for squares

    @classmethod
    def create(cls, family, columns, loss, *, fixed, bounds, weights, errors, groups, objective):
        """Of runs that `read_columns` has read, and options that are as `fit` got them.

        Raises:
          ValueError: as `fit` does.
        """
        of_runs = family.constants_of(columns)
        fixed, bounds = (
            _by_constant(option, given, family, of_runs) for option, given in (('fixed', fixed), ('bounds', bounds))
        )
        names = tuple(name for name in of_runs if name not in fixed)
        fixed = {name: fixed.get(value, value) if isinstance(value, str) else value for name, value in fixed.items()}
        ties = {name: value for name, value in fixed.items() if isinstance(value, str)}
        for name, other in ties.items():
            if other not in names:
                raise ValueError(f'fixed[{name!r}]={other!r} must be a number, or one of {", ".join(names)}')
        fixed = {name: value for name, value in fixed.items() if name not in ties}
        for name, value in fixed.items():
            at_least(f'fixed[{name!r}]', value, 0) if name == 'epsilon' else positive(f'fixed[{name!r}]', value)
        if not names:
            raise ValueError('fixed leaves no constant to fit')
        if len(loss) <= len(names):
            runs = f'{len(loss)} run is' if len(loss) == 1 else f'{len(loss)} runs are'
            raise ValueError(f'{runs} too few for the {len(names)} constants of {family.__name__}')
        ends = np.array([(0.0, np.inf)] * len(names))
        for name, given in bounds.items():
            if name not in names:
                raise ValueError(f'bounds[{name!r}]: it is not fitted to these runs; those are {", ".join(names)}')
            try:
                low, high = map(float, given)
            except (TypeError, ValueError):
                low, high = np.inf, 0.0
            if not 0 <= low < high:
                raise ValueError(f'bounds[{name!r}]={given!r} must be two numbers, 0 <= least < greatest')
            ends[names.index(name)] = low, high
        if groups.max() + 1 == len(loss) and errors == 'cr3':
            errors = 'hc3'
        unit = float(loss.mean())
        problem = cls(family, columns, loss, weights, errors, groups, objective, names, fixed, ties, (), unit)
        return dataclasses.replace(problem, bounds=tuple(problem._to_point(ends.T)))

    @functools.cached_property
    def is_epsilon(self):
        return np.array(self.names) == 'epsilon'

    @functools.cached_property
    def units(self):
        """Of a point's numbers, (p,)."""
        return np.where(self.is_epsilon, self.unit, 1.0)

    def _to_point(self, values):
        with np.errstate(divide='ignore'):
            return np.where(self.is_epsilon, values / self.unit, np.log(values))

    def point(self, law):
        """Of a law's constants, moved inside the bounds."""
        (low, high), constants = self.bounds, law.constants()
        return np.clip(self._to_point(np.array([constants[name] for name in self.names])), low + 1e-9, high - 1e-9)

    def law(self, point):
        values = np.where(self.is_epsilon, point * self.unit, np.exp(point))
        values = dict(zip(self.names, values.tolist()))
        return self.family.from_constants(self.fixed | values | tie(values, self.ties))

    def predict(self, point):
        return self.law(point)._loss(*self.columns.values())

    def residuals(self, point):
        """Finite ones, wherever the search goes."""
        with np.errstate(all='ignore'):
            try:
                predicted = self.predict(point)
                difference = np.log(predicted / self.loss) if self.is_log else predicted - self.loss
            except ValueError:  # a constant has under- or overflowed
                difference = np.full(len(self.loss), FAR)
        return np.sqrt(self.weights) * np.nan_to_num(difference, nan=FAR, posinf=FAR, neginf=-FAR)

    def solve(self, start, options, hold=None):
        """From a start, which holds the search: what is minimized has hold^2 (x - start)^2 / 2 beside, hold (p,)."""
        loss = {} if self.delta is None else dict(loss='huber', f_scale=self.delta)

        def residuals(x):
            return self.residuals(x) if hold is None else np.concatenate([self.residuals(x), hold * (x - start)])

        with np.errstate(all='ignore'):  # squares of what is far away
            return scipy.optimize.least_squares(residuals, start, x_scale='jac', bounds=self.bounds, **loss, **options)

    def redrawn(self, point, residuals):
        """The law found from a point if the losses were those of the point and these weighted residuals."""
        residuals = residuals / np.sqrt(self.weights)
        with np.errstate(all='ignore'):  # of constants that nothing determines
            predicted = self.predict(point)
        loss = predicted * np.exp(residuals) if self.is_log else predicted + residuals
        options = SEARCH if self.delta is None else FINISH  # which ends early where there are kinks
        return self.law(dataclasses.replace(self, loss=loss).solve(point, options).x)

    def result(self, solution, solutions, starts):
        """The solution with its errors, and what the others say of it; ValueError if the law has no loss there."""
        x = np.where(self.is_epsilon & (solution.x < NO_EPSILON), 0.0, solution.x)
        law = self.law(x)
        with np.errstate(all='ignore'):  # constants that nothing determines may be huge
            predicted = self.predict(x)
        if np.shape(predicted) != self.loss.shape or not np.all(np.isfinite(predicted)):
            raise ValueError(f'{law} has no finite loss for each of the {len(self.loss)} runs, but {predicted}')
        certainty = self._certainty(solution.x)
        ambiguous, distances = self._ambiguous(solution, solutions, certainty.chi_squared)
        covariance = certainty.covariance.copy()
        unseen = np.any(np.abs(certainty.unseen) > NULL_SHARE, axis=0)
        unseen |= ambiguous & (distances > APART * np.sqrt(np.diag(certainty.plain)))
        covariance[unseen, unseen] = np.inf  # the diagonal
        t = student_t(degrees_of_freedom(len(self.loss), len(self.names), self.groups))
        least = np.log(FACTOR) * np.where(self.is_epsilon, law.constants().get('epsilon', 1.0), 1.0)
        undetermined = ambiguous | (t * np.sqrt(np.diag(covariance)) > least) | (solution.active_mask != 0)
        return FitResult(
            law=law,
            fixed=self.fixed | self.ties,
            objective=self.objective,
            names=self.names,
            errors=self.errors,
            groups=self.groups,
            covariance=covariance,
            predicted=predicted,
            residuals=self.loss - predicted,
            scatter=certainty.scatter,
            rmse=float(np.sqrt(np.mean((self.loss - predicted) ** 2))),
            noise=float(np.sqrt(certainty.variance) * (self.unit if self.is_log else 1)),
            undetermined=tuple(name for name, out in zip(self.names, undetermined) if out),
            _problem=self,
            _starts=tuple(starts),
        )

    def determination(self, result):
        """With the laws that serve as well near the starts of the search.

        A start holds the search by the undetermined constants, all of them or all but one: fast, loosely, not at all.
        """
        x = self.point(result.law)
        certainty = self._certainty(x)
        solutions = [self.solve(x, FINISH)]
        is_open = np.isin(self.names, result.undetermined)
        for start, free in itertools.product(result._starts if is_open.any() else (), ('', *result.undetermined)):
            point, is_held = np.where(is_open, start, x), is_open & (np.array(self.names) != free)
            for hold in HOLDS:
                point = self.solve(point, SEARCH, hold * np.sqrt(certainty.chi_squared) * is_held).x
            solutions.append(self.solve(point, SEARCH))
        along = certainty.unseen * self.units  # in constants' own units, where the search has epsilon in others
        return Determination(
            result.law,
            self.names,
            along / np.linalg.norm(along, axis=1, keepdims=True),
            certainty.plain,
            tuple(self.law(other.x) for other in self._as_good(solutions, certainty.chi_squared)),
            self.ties,
        )

    def _certainty(self, x):
        """Of a solution, by the derivatives there."""
        residuals, r, p = self.residuals(x), len(self.loss), len(self.names)
        jacobian = dataclasses.replace(self, delta=None).solve(x, dict(jac='3-point', max_nfev=1)).jac
        basis, values, directions = np.linalg.svd(jacobian, full_matrices=False)
        seen = values > NULL * values[0]
        back = directions[seen].T / values[seen]  # from U's coordinates to points
        delta = np.inf if self.delta is None else self.delta
        scores = np.clip(residuals, -delta, delta)
        slopes = self._slopes(residuals)
        inside = max(np.mean(slopes), 1 / r)
        variance = scores @ scores / (r - p) / inside**2
        deletions = delete_groups(basis[:, seen], residuals, scores, slopes, self.groups)
        plain, unseen = variance * back @ back.T, directions[~seen]
        covariance = plain
        if self.errors != 'plain':
            changes = deletions.moves @ back.T
            lone = deletions.lone @ back.T
            covariance = changes.T @ changes
            unseen = np.concatenate([unseen, lone / np.linalg.norm(lone, axis=1, keepdims=True)])
        scales = np.outer(self.units, self.units)
        scatter = Scatter(-deletions.residuals, self.is_log)
        return Certainty(variance, variance * inside, plain * scales, covariance * scales, unseen, scatter)

    def _slopes(self, residuals):
        """Of the scores, with the 0 and 1 of Huber's function spread out where few residuals are within delta."""
        if self.delta is None:
            return np.ones_like(residuals)
        bandwidth = 1.06 * DEVIATION * np.median(np.abs(residuals)) * len(residuals) ** -0.2  # Silverman's
        within = max(self.delta, bandwidth)
        return (np.abs(residuals) <= within) * (self.delta / within)

    def _ambiguous(self, solution, solutions, variance):
        """Which constants are elsewhere in a solution that is about as good, by more than `FACTOR`; and how far.

        Epsilon, which is added to others, is elsewhere at half or twice its value.

        Twice the objective, divided by `variance`, grows from its least as chi^2 does.
        """
        others = np.array([other.x for other in self._as_good(solutions, variance)])
        differences, elsewhere = np.abs(others - solution.x), np.log(FACTOR)
        elsewhere = np.where(self.is_epsilon, np.maximum(others, solution.x) / 2, elsewhere)
        farthest = np.max(differences, axis=0) * self.units
        return np.any(differences > elsewhere, axis=0), farthest

    def _as_good(self, solutions, variance):
        """Those that are about as good as the best."""
        best = min(other.cost for other in solutions)
        return [other for other in solutions if other.cost <= best + AS_GOOD / 2 * variance]


def _by_constant(option, given, family, of_runs):
    """What an option gives, by names of constants as the law has them.

    In names of recipes case doesn't count. One that no run is of may be fixed: the law knows it then.
    """
    fields, mappings = [field.name for field in dataclasses.fields(family)], family.mappings()
    possible = dict.fromkeys([*of_runs, *(name for name in fields if name not in mappings)])
    by_constant = {}
    for name, value in given.items():
        if name not in possible:
            field, _, recipe = name.removesuffix(']').partition('[')
            recipe = recipe.strip().lower()
            if field not in mappings or not name.endswith(']') or recipe in ('', REFERENCE):
                raise ValueError(f'{option}[{name!r}]: {family.__name__} has the constants {", ".join(possible)}')
            name = f'{field}[{recipe}]'
        by_constant[name] = value
    return by_constant


class Certainty(NamedTuple):
    """What the derivatives at a solution say of it."""

    variance: float  # of a run's residual
    chi_squared: float  # by which twice the objective is to be divided, to be one
    plain: np.ndarray  # s^2 (J^T J)^-1 in the directions that the runs see, of constants' own units, (p, p)
    covariance: np.ndarray  # the same by the errors asked for
    unseen: np.ndarray  # directions of points that the runs don't see, or one group of them alone, (k, p)
    scatter: Scatter
