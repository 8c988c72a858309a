"""Fit a law to runs, with what the runs say of it and what they don't.

The constants are positive: the search is over their logarithms, by nonlinear least squares from many random starts. It
is over epsilon itself, which may well be 0. The errors of the constants come from the Jacobian at the best solution;
those of anything that follows from the law, from a bootstrap.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from gaussq_jax.scaling_laws.capybara import CapybaraLaw
from gaussq_jax.scaling_laws.determination import APART, Determination
from gaussq_jax.scaling_laws.errors import (
    ERRORS,
    Scatter,
    degrees_of_freedom,
    delete_groups,
    number_labels,
    run_groups,
    student_t,
)
from gaussq_jax.scaling_laws.fit_result import FitResult
from gaussq_jax.scaling_laws.laws import ScalingLaw, at_least, positive
from gaussq_jax.scaling_laws.runs import read_columns, unseen_constants

SEARCH = dict(jac='2-point', xtol=1e-8, ftol=1e-8, gtol=1e-8, max_nfev=300)
FINISH = dict(jac='3-point', xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=3000)
FAR = 1e100  # a residual where the law has no value
OBJECTIVES = ('squares', 'huber', 'log_huber')
HUBER = 1.345  # standard deviations from which on a residual counts less: 95 % efficient for normal ones
DEVIATION = 1.4826  # standard deviations in the median absolute one of a normal distribution
LOG_HUBER = 1e-3  # the same of the logarithm of a loss, in itself
FACTOR = 7  # to which a constant is known, at 95 %, at the least
AS_GOOD = 3.84  # squared standard deviations by which a fit may be worse and yet hold the truth, at 95 %
NO_EPSILON = 1e-6  # of the mean loss: the search stops short of its bound
HOLDS = 10.0, 0.1  # standard deviations that a logarithm's distance from a search's start costs it, in turn
NULL_SHARE = 0.01  # of a constant in such a direction
NULL = 1e-9  # singular values below this part of the largest are of directions that the runs don't see


def fit(
    law: type[ScalingLaw],
    runs: Mapping[str, Any],
    *,
    fixed: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    weights: Any = None,
    objective: str = 'squares',
    errors: str = 'cr3',
    groups: Sequence[Any] | None = None,
    start: ScalingLaw | None = None,
    num_starts: int = 16,
    seed: int = 0,
) -> FitResult:
    """The constants of a law for which the sum over the runs of what a residual counts is least.

        squares:   (loss - law)^2 / 2
        huber:     huber(loss - law), of 1.345 standard deviations, which are taken from the residuals' median
        log_huber: huber(log loss - log law), of 1e-3

    where huber(x), of d, is x^2 / 2 up to |x| = d, and d (|x| - d / 2) beyond: so outliers count less. With weights,
    x is the residual times the root of its run's weight.

    The errors of the constants, with J_g the derivatives of the residuals e_g of a group of runs:

        cr3:    the jackknife over groups, sum_g m_g m_g^T with m_g = (J^T J - J_g^T J_g)^-1 J_g^T e_g, the constants'
                change without the group, to first order: groups are independent, whatever there is within them
        hc3:    the same, each run a group: runs are independent, their noise of any size
        plain:  s^2 (J^T J)^-1: runs are independent, with noise of one size s

    With Huber's functions, e_g are the derivatives of what residuals count, and J^T J is weighted by the second ones:
    of few runs, or one of which nothing is left without some group, 'cr3' and 'hc3' say that constants have no error.

    Args:
      law: its class, as CapybaraLaw.
      runs: columns by name, of one length: those in `law.COLUMNS`, and loss. A dict of arrays, or a DataFrame. P may be
        left to E and M. B is a number, 'channel' or 'tensor'.
      fixed: constants that keep this value. Unless given here, `log2_channel` is fitted if the runs have both channels
        and blocks of numbers, and else keeps its published value; the constants of 'tensor' are if they have that.
      bounds: the least and the greatest value of a constant.
      weights: a positive number a run, in proportion to 1 / variance of its loss. All alike if not given.
      objective: 'squares', 'huber' or 'log_huber'; the last one is what most published laws were fitted with.
      errors: 'cr3', 'hc3' or 'plain'. If no group has more than a run, 'cr3' is 'hc3', and called so in the result.
      groups: a label a run, for 'cr3'. By default runs of one N, D and seed are a group, and so are those of one N and
        one run: `seed` and `run` are columns of the runs that may be missing, as if they were the same seed and
        different runs.
      start: a law to start from, beside the random starts.
      num_starts: random starts, of `seed`.

    Raises:
      ValueError: for a column that is missing, has text or an impossible value (with the row, from 0), fewer runs than
        constants + 1, an unknown constant in `fixed` or `bounds`, bounds in the wrong order, another objective, other
        errors, groups without need.

    Example:
      >>> laws = gq.scaling_laws
      >>> N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e8, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
      >>> runs = {'N': N, 'D': D, 'loss': laws.PUBLISHED_CHINCHILLA.loss(N, D)}
      >>> result = laws.fit(laws.ChinchillaLaw, runs)
      >>> round(result.law.alpha, 6), result.undetermined
      (0.34, ())

    Source: log_huber, Hoffmann et al., Training Compute-Optimal Large Language Models (arXiv 2203.15556), appendix D.3;
    errors, MacKinnon, Nielsen and Webb, Cluster-robust inference: a guide to empirical practice (Journal of
    Econometrics 232, 2023).
    """
    for option, given, allowed in (('objective', objective, OBJECTIVES), ('errors', errors, ERRORS)):
        if given not in allowed:
            raise ValueError(f'{option}={given!r} must be one of {", ".join(allowed)}')
    problem = _Problem.create(law, runs, fixed or {}, bounds or {}, weights, errors, groups)
    rng = np.random.default_rng(seed)
    starts = [law.random(rng, problem.columns, problem.loss) for _ in range(num_starts)]
    if start is not None:
        if type(start) is not law:
            raise ValueError(f'start={start!r} must be a {law.__name__}')
        missing = set(problem.names) - set(start.constants())
        known = law.random(rng, problem.columns, problem.loss).constants()
        starts.insert(0, dataclasses.replace(start, **{name: known[name] for name in missing}))
    if not starts:
        raise ValueError(f'num_starts={num_starts} must be above 0, or start a law')
    if objective == 'log_huber':
        problem = dataclasses.replace(problem, is_log=True, delta=LOG_HUBER)
    solutions = [problem.solve(problem.point(law), SEARCH) for law in starts]
    best = min(solutions, key=lambda solution: solution.cost)
    solution = problem.solve(best.x, FINISH)
    if objective == 'huber':
        for _ in range(10):  # the standard deviation from the fit, and the fit with it, in turn
            deviations = np.abs(problem.residuals(solution.x))
            scale = max(DEVIATION * np.median(deviations), np.finfo(float).eps * problem.loss.mean())
            problem = dataclasses.replace(problem, delta=HUBER * scale)
            solution = problem.solve(solution.x, FINISH)
        solutions = [problem.solve(other.x, SEARCH) for other in solutions]  # by what counts now
    return problem.result(solution, solutions, [problem.point(law) for law in starts])


def fit_capybara(runs: Mapping[str, Any], *, include_e0: bool = True, **options) -> FitResult:
    """`fit` of the Capybara law.

    Args:
      runs: N, D, E, M, B, loss.
      include_e0: with False, runs of E = 0 are left out. The quantizer gives E0M7 the numbers of E1M6, where the law
        has a penalty 22 times as large: those runs pull the constants from those of the others.
      **options: of `fit`.
    """
    if not include_e0:
        columns, loss = read_columns(CapybaraLaw, runs)
        keep = columns['E'] > 0
        if (weights := options.get('weights')) is not None:
            options |= {'weights': _weights(weights, loss)[keep]}
        if (groups := options.get('groups')) is not None:
            options |= {'groups': number_labels('groups', groups, len(loss), may_lack=False)[keep]}
        labels = [name for name in ('seed', 'run') if name in runs]
        for name in labels:
            number_labels(name, runs[name], len(loss))  # which refuses another number of them
        runs = {name: list(itertools.compress(runs[name], keep)) for name in (*CapybaraLaw.COLUMNS, 'loss', *labels)}
    return fit(CapybaraLaw, runs, **options)


def _weights(weights, loss):
    weights = np.ones(len(loss)) if weights is None else positive('weights', weights)
    if weights.shape != loss.shape:
        raise ValueError(f'weights has shape {weights.shape}, for {len(loss)} runs')
    return weights


def _groups(runs, columns, num_runs, errors, groups):
    if errors != 'cr3' and groups is not None:
        raise ValueError(f"groups are for errors='cr3', not {errors!r}")
    if groups is not None:
        return number_labels('groups', groups, num_runs, may_lack=False)
    if errors != 'cr3':
        return np.arange(num_runs)
    seed, run = (number_labels(name, runs[name], num_runs) if name in runs else None for name in ('seed', 'run'))
    return run_groups(*(columns.get(name, np.arange(num_runs)) for name in 'ND'), seed, run)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Least squares over points: the logarithms of the constants named, and epsilon in units of the mean loss."""

    family: type[ScalingLaw]
    columns: dict[str, Any]  # of the law, in float64, and B as BlockSizes
    loss: np.ndarray
    weights: np.ndarray
    errors: str
    groups: np.ndarray  # a number a run, from 0
    names: tuple[str, ...]
    fixed: dict[str, float]
    bounds: tuple[np.ndarray, np.ndarray]  # points
    unit: float  # of epsilon
    is_log: bool = False  # whether residuals are those of the logarithms of losses
    delta: float | None = None  # of Huber's function; None for squares

    @classmethod
    def create(cls, family, runs, fixed, bounds, weights, errors, groups):
        columns, loss = read_columns(family, runs)
        constants = [field.name for field in dataclasses.fields(family)]
        for option, given in (('fixed', fixed), ('bounds', bounds)):
            for name in given:
                if name not in constants:
                    raise ValueError(f'{option}[{name!r}]: {family.__name__} has the constants {", ".join(constants)}')
        for name, value in fixed.items():
            at_least(f'fixed[{name!r}]', value, 0) if name == 'epsilon' else positive(f'fixed[{name!r}]', value)
        names = tuple(name for name in constants if name not in set(fixed) | unseen_constants(columns))
        if not names:
            raise ValueError('fixed leaves no constant to fit')
        if len(loss) <= len(names):
            raise ValueError(f'{len(loss)} runs are too few for the {len(names)} constants of {family.__name__}')
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
        groups = _groups(runs, columns, len(loss), errors, groups)
        if groups.max() + 1 == len(loss) and errors == 'cr3':
            errors = 'hc3'
        weights, unit = _weights(weights, loss), float(loss.mean())
        problem = cls(family, columns, loss, weights, errors, groups, names, dict(fixed), (), unit)
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
        low, high = self.bounds
        return np.clip(self._to_point(np.array([getattr(law, name) for name in self.names])), low + 1e-9, high - 1e-9)

    def law(self, point):
        values = np.where(self.is_epsilon, point * self.unit, np.exp(point))
        return self.family(**self.fixed, **dict(zip(self.names, values.tolist())))

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
        """The solution with its errors, and what the others say of it."""
        x = np.where(self.is_epsilon & (solution.x < NO_EPSILON), 0.0, solution.x)
        certainty = self._certainty(solution.x)
        ambiguous, distances = self._ambiguous(solution, solutions, certainty.chi_squared)
        covariance = certainty.covariance.copy()
        unseen = np.any(np.abs(certainty.unseen) > NULL_SHARE, axis=0)
        unseen |= ambiguous & (distances > APART * np.sqrt(np.diag(certainty.plain)))
        covariance[unseen, unseen] = np.inf  # the diagonal
        law = self.law(x)
        with np.errstate(all='ignore'):  # constants that nothing determines may be huge
            predicted = self.predict(x)
        t = student_t(degrees_of_freedom(len(self.loss), len(self.names), self.groups))
        least = np.log(FACTOR) * np.where(self.is_epsilon, getattr(law, 'epsilon', 1.0), 1.0)
        undetermined = ambiguous | (t * np.sqrt(np.diag(covariance)) > least) | (solution.active_mask != 0)
        return FitResult(
            law=law,
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
        return _Certainty(variance, variance * inside, plain * scales, covariance * scales, unseen, scatter)

    def _slopes(self, residuals):
        """Of the scores, with the 0 and 1 of Huber's function spread out where few residuals are within delta."""
        if self.delta is None:
            return np.ones_like(residuals)
        bandwidth = 1.06 * DEVIATION * np.median(np.abs(residuals)) * len(residuals) ** -0.2  # Silverman's
        within = max(self.delta, bandwidth)
        return (np.abs(residuals) <= within) * (self.delta / within)

    def _ambiguous(self, solution, solutions, variance):
        """Which constants are elsewhere, by more than that factor, in a solution that is about as good; and how far.

        Twice the objective, divided by `variance`, grows from its least as chi^2 does.
        """
        others = np.array([other.x for other in self._as_good(solutions, variance)])
        differences, elsewhere = np.abs(others - solution.x), np.log(FACTOR)
        elsewhere = np.where(self.is_epsilon, (1 - 1 / FACTOR) * np.maximum(others, solution.x), elsewhere)
        farthest = np.max(differences, axis=0) * self.units
        return np.any(differences > elsewhere, axis=0), farthest

    def _as_good(self, solutions, variance):
        """Those that are about as good as the best."""
        best = min(other.cost for other in solutions)
        return [other for other in solutions if other.cost <= best + AS_GOOD / 2 * variance]


class _Certainty(NamedTuple):
    """What the derivatives at a solution say of it."""

    variance: float  # of a run's residual
    chi_squared: float  # by which twice the objective is to be divided, to be one
    plain: np.ndarray  # s^2 (J^T J)^-1 in the directions that the runs see, of constants' own units, (p, p)
    covariance: np.ndarray  # the same by the errors asked for
    unseen: np.ndarray  # directions of points that the runs don't see, or one group of them alone, (k, p)
    scatter: Scatter
