"""Fit a law to runs, with what the runs say of it and what they don't.

The constants are positive: the search is over their logarithms, by nonlinear least squares from many random starts. It
is over epsilon itself, which may well be 0. The errors come from the Jacobian at the best solution; those of anything
that follows from the law, from a bootstrap.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from gaussq_jax.scaling_laws.capybara import CapybaraLaw
from gaussq_jax.scaling_laws.determination import APART, Determination
from gaussq_jax.scaling_laws.laws import ScalingLaw, at_least, positive
from gaussq_jax.scaling_laws.runs import read_columns, unseen_constants

SEARCH = dict(jac='2-point', xtol=1e-8, ftol=1e-8, gtol=1e-8, max_nfev=300)
FINISH = dict(jac='3-point', xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=3000)
FAR = 1e100  # a residual where the law has no value
OBJECTIVES = ('squares', 'huber', 'log_huber')
HUBER = 1.345  # standard deviations from which on a residual counts less: 95 % efficient for normal ones
LOG_HUBER = 1e-3  # the same of the logarithm of a loss, in itself
FACTOR = 7  # to which a constant is known, at 95 %, at the least
UNDETERMINED = np.log(FACTOR) / 1.96  # relative standard error
AS_GOOD = 3.84  # squared standard deviations by which a fit may be worse and yet hold the truth, at 95 %
NO_EPSILON = 1e-6  # of the mean loss: the search stops short of its bound
HOLDS = 10.0, 0.1  # standard deviations that a logarithm's distance from a search's start costs it, in turn
NULL_SHARE = 0.01  # of a constant in such a direction
NULL = 1e-9  # singular values below this part of the largest are of directions that the runs don't see


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A law fitted to runs.

    Attributes:
      law: with the fitted constants.
      names: the constants that were fitted, in the order of `covariance`.
      covariance: of the logarithms of the constants, and of epsilon itself, (p, p); infinite on the diagonal where the
        runs don't see a constant, or a solution with another one is about as good.
      predicted: the law's loss of each run, (r,), and
      residuals: the runs' losses less that.
      rmse: the root mean square of the residuals.
      noise: the estimated standard deviation of a loss of weight 1, from r - p degrees of freedom; with log_huber, of
        one as large as the mean.
      undetermined: the constants that the runs don't determine, not to a factor of 7 at 95 %: by their standard errors,
        because they are at a bound, or because another solution found is about as good.
    """

    law: ScalingLaw
    names: tuple[str, ...]
    covariance: np.ndarray
    predicted: np.ndarray
    residuals: np.ndarray
    rmse: float
    noise: float
    undetermined: tuple[str, ...]
    _problem: '_Problem' = dataclasses.field(repr=False)
    _starts: tuple[np.ndarray, ...] = dataclasses.field(repr=False)  # points

    @property
    def num_runs(self) -> int:
        """r, the runs that were fitted."""
        return len(self.residuals)

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of each fitted constant: the constant times the standard error of its logarithm; epsilon's own."""
        errors = np.sqrt(np.diag(self.covariance)).tolist()
        return {name: _scale(self.law, name) * error for name, error in zip(self.names, errors)}

    @functools.cached_property
    def determination(self) -> Determination:
        """What the runs leave open, by the laws that serve as well: searched for where constants are undetermined."""
        return self._problem.determination(self)

    @property
    def correlations(self) -> np.ndarray:
        """Of what `covariance` is of, (p, p); NaN where the runs don't see a constant."""
        errors = np.sqrt(np.diag(self.covariance))
        errors = np.where(np.isfinite(errors), errors, np.nan)
        return self.covariance / np.outer(errors, errors)

    def confidence_intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Of each fitted constant, by Student's t of r - p degrees of freedom.

        exp(log c ± t standard errors of log c); of epsilon, epsilon ± t standard errors, and not below 0.
        """
        t = scipy.special.stdtrit(self.num_runs - len(self.names), 0.5 + _level(level) / 2)
        with np.errstate(over='ignore'):
            errors = t * np.sqrt(np.diag(self.covariance))
            factors = dict(zip(self.names, np.exp(errors).tolist()))
        constants = {name: getattr(self.law, name) for name in self.names}
        intervals = {name: (value / factors[name], value * factors[name]) for name, value in constants.items()}
        if 'epsilon' in intervals:
            value, error = constants['epsilon'], float(errors[self.names.index('epsilon')])
            intervals['epsilon'] = max(value - error, 0.0), value + error
        return intervals

    def bootstrap(self, num_draws: int = 200, *, seed: int = 0) -> list[ScalingLaw]:
        """Laws fitted to what might as well have been measured: the predicted losses plus residuals drawn from these.

        The residuals are enlarged by sqrt(r / (r - p)), which the fit took from them.
        """
        rng, scale = np.random.default_rng(seed), np.sqrt(self.num_runs / (self.num_runs - len(self.names)))
        weight = np.sqrt(self._problem.weights)
        weighted, laws = self.residuals * weight, []
        for _ in range(num_draws):
            loss = self.predicted + scale * rng.choice(weighted, self.num_runs) / weight
            problem = dataclasses.replace(self._problem, loss=loss)
            laws.append(problem.law(problem.solve(problem.point(self.law), SEARCH).x))
        return laws

    def interval(
        self, quantity: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw] | None = None, *, level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """The interval of what follows from the law, as `lambda law: law.critical_data_size(1e9, 2, 1, 128)`.

        NaN where the runs say nothing of it, whatever the draws say: they stay where the search happened to end.

        Args:
          quantity: from a law to a number or an array.
          draws: of `bootstrap`, if several quantities are to share them.
          level: the part of the draws between the two ends.
        """
        ends = quantile_interval(quantity, self.bootstrap() if draws is None else draws, level=level)
        unknown = self.determination.is_unknown(quantity)
        return tuple(np.where(unknown, np.nan, end) for end in ends)


def quantile_interval(
    quantity: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw], *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of what the middle part `level` of the draws says of a quantity, which may be infinite."""
    tail = (1 - _level(level)) / 2
    values = [quantity(law) for law in draws]
    low, high = np.quantile(values, (tail, 1 - tail), axis=0, method='closest_observation')
    return low, high


def fit(
    law: type[ScalingLaw],
    runs: Mapping[str, Any],
    *,
    fixed: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    weights: Any = None,
    objective: str = 'squares',
    start: ScalingLaw | None = None,
    num_starts: int = 16,
    seed: int = 0,
) -> FitResult:
    """The constants of a law for which the sum over the runs of weight times what a residual counts is least.

        squares:   (loss - law)^2 / 2
        huber:     huber(loss - law), of 1.345 standard deviations, which are taken from the residuals' median
        log_huber: huber(log loss - log law), of 1e-3

    where huber(x), of d, is x^2 / 2 up to |x| = d, and d (|x| - d / 2) beyond: so outliers count less.

    Args:
      law: its class, as CapybaraLaw.
      runs: columns by name, of one length: those in `law.COLUMNS`, and loss. A dict of arrays, or a DataFrame. P may be
        left to E and M. B is a number, 'channel' or 'tensor'.
      fixed: constants that keep this value. Unless given here, `log2_channel` is fitted if the runs have both channels
        and blocks of numbers, and else keeps its published value; the constants of 'tensor' are if they have that.
      bounds: the least and the greatest value of a constant.
      weights: a positive number a run, in proportion to 1 / variance of its loss. All alike if not given.
      objective: 'squares', 'huber' or 'log_huber'; the last one is what most published laws were fitted with.
      start: a law to start from, beside the random starts.
      num_starts: random starts, of `seed`.

    Raises:
      ValueError: for a column that is missing, has text or an impossible value (with the row, from 0), fewer runs than
        constants + 1, an unknown constant in `fixed` or `bounds`, bounds in the wrong order, another objective.

    Example:
      >>> laws = gq.scaling_laws
      >>> N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e8, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
      >>> runs = {'N': N, 'D': D, 'loss': laws.PUBLISHED_CHINCHILLA.loss(N, D)}
      >>> result = laws.fit(laws.ChinchillaLaw, runs)
      >>> round(result.law.alpha, 6), result.undetermined
      (0.34, ())

    Source: log_huber, Hoffmann et al., Training Compute-Optimal Large Language Models (arXiv 2203.15556), appendix D.3.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f'objective={objective!r} must be one of {", ".join(OBJECTIVES)}')
    problem = _Problem.create(law, runs, fixed or {}, bounds or {}, weights)
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
            scale = max(1.4826 * np.median(deviations), np.finfo(float).eps * problem.loss.mean())
            problem = dataclasses.replace(problem, delta=HUBER * scale)
            solution = problem.solve(solution.x, FINISH)
        solutions = [problem.solve(other.x, SEARCH) for other in solutions]  # by what counts now
    return problem.result(solution, solutions, [problem.point(law) for law in starts])


def fit_capybara(runs: Mapping[str, Any], *, include_e0: bool = True, **options) -> FitResult:
    """`fit` of the Capybara law.

    Args:
      runs: N, D, E, M, B, loss.
      include_e0: with False, runs of E = 0 are left out. The quantizer gives E0M7 the grid of E1M6, where the law has a
        penalty 22 times as large: those runs pull the constants from those of the others.
      **options: of `fit`.
    """
    if not include_e0:
        columns, loss = read_columns(CapybaraLaw, runs)
        keep = columns['E'] > 0
        if (weights := options.get('weights')) is not None:
            options |= {'weights': _weights(weights, loss)[keep]}
        runs = {name: np.asarray(runs[name], object)[keep] for name in (*CapybaraLaw.COLUMNS, 'loss')}
    return fit(CapybaraLaw, runs, **options)


def _scale(law, name):
    """What a standard error in `covariance` is to be multiplied by."""
    return 1.0 if name == 'epsilon' else getattr(law, name)


def _weights(weights, loss):
    weights = np.ones(len(loss)) if weights is None else positive('weights', weights)
    if weights.shape != loss.shape:
        raise ValueError(f'weights has shape {weights.shape}, for {len(loss)} runs')
    return weights


def _level(level):
    if not 0 < level < 1:
        raise ValueError(f'level={level!r} must be between 0 and 1')
    return level


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Least squares over points: the logarithms of the constants named, and epsilon in units of the mean loss."""

    family: type[ScalingLaw]
    columns: dict[str, Any]  # of the law, in float64, and B as BlockSizes
    loss: np.ndarray
    weights: np.ndarray
    names: tuple[str, ...]
    fixed: dict[str, float]
    bounds: tuple[np.ndarray, np.ndarray]  # points
    unit: float  # of epsilon
    is_log: bool = False  # whether residuals are those of the logarithms of losses
    delta: float | None = None  # of Huber's function; None for squares

    @classmethod
    def create(cls, family, runs, fixed, bounds, weights):
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
        problem = cls(family, columns, loss, _weights(weights, loss), names, dict(fixed), (), float(loss.mean()))
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

    def solve(self, start, how, hold=None):
        """From a start, which holds the search: what is minimized has hold^2 (x - start)^2 / 2 beside, hold (p,)."""
        loss = {} if self.delta is None else dict(loss='huber', f_scale=self.delta)

        def residuals(x):
            return self.residuals(x) if hold is None else np.concatenate([self.residuals(x), hold * (x - start)])

        with np.errstate(all='ignore'):  # squares of what is far away
            return scipy.optimize.least_squares(residuals, start, x_scale='jac', bounds=self.bounds, **loss, **how)

    def result(self, solution, solutions, starts):
        """With the covariance s^2 (J^T J)^-1, J the Jacobian of the weighted residuals; s^2 by Huber."""
        x = np.where(self.is_epsilon & (solution.x < NO_EPSILON), 0.0, solution.x)
        variance, by_cost = self._variance(x)
        covariance, null = self._covariance(solution.x, variance)
        ambiguous, distances = self._ambiguous(solution, solutions, by_cost)
        unseen = np.any(np.abs(null) > NULL_SHARE, axis=0)
        unseen |= ambiguous & (distances > APART * np.sqrt(np.diag(covariance)))
        covariance[unseen, unseen] = np.inf  # the diagonal
        law = self.law(x)
        with np.errstate(all='ignore'):  # constants that nothing determines may be huge
            predicted = self.predict(x)
        relative = [getattr(law, name) / _scale(law, name) for name in self.names]
        undetermined = ambiguous | (np.sqrt(np.diag(covariance)) > UNDETERMINED * np.array(relative))
        undetermined |= solution.active_mask != 0
        return FitResult(
            law=law,
            names=self.names,
            covariance=covariance,
            predicted=predicted,
            residuals=self.loss - predicted,
            rmse=float(np.sqrt(np.mean((self.loss - predicted) ** 2))),
            noise=float(np.sqrt(variance) * (self.unit if self.is_log else 1)),
            undetermined=tuple(name for name, out in zip(self.names, undetermined) if out),
            _problem=self,
            _starts=tuple(starts),
        )

    def determination(self, result):
        """With the laws that serve as well near the starts of the search.

        A start holds the search by the undetermined constants, all of them or all but one: fast, loosely, not at all.
        """
        x = self.point(result.law)
        variance, by_cost = self._variance(x)
        covariance, null = self._covariance(x, variance)
        solutions = [self.solve(x, FINISH)]
        is_open = np.isin(self.names, result.undetermined)
        for start, free in itertools.product(result._starts if is_open.any() else (), ('', *result.undetermined)):
            point, is_held = np.where(is_open, start, x), is_open & (np.array(self.names) != free)
            for hold in HOLDS:
                point = self.solve(point, SEARCH, hold * np.sqrt(by_cost) * is_held).x
            solutions.append(self.solve(point, SEARCH))
        along = null * self.units  # in constants' own units, where the search has epsilon in others
        return Determination(
            result.law,
            self.names,
            along / np.linalg.norm(along, axis=1, keepdims=True),
            covariance,
            tuple(self.law(other.x) for other in self._as_good(solutions, by_cost)),
        )

    def _variance(self, x):
        """Of a run's residual, and the one by which the objective is to be divided, as chi^2."""
        residuals, r, p = self.residuals(x), len(self.loss), len(self.names)
        delta = np.inf if self.delta is None else self.delta
        psi = np.clip(residuals, -delta, delta)
        inside = max(np.mean(psi == residuals), 1 / r)  # the mean of psi'
        variance = psi @ psi / (r - p) / inside**2
        return variance, variance * inside

    def _covariance(self, x, variance):
        """In the directions that the runs see, of constants' own units; and the others, (k, p), in the search's."""
        jacobian = dataclasses.replace(self, delta=None).solve(x, dict(jac='3-point', max_nfev=1)).jac
        _, values, directions = np.linalg.svd(jacobian, full_matrices=False)
        seen = values > NULL * values[0]
        covariance = (
            (directions[seen].T / values[seen] ** 2) @ directions[seen] * variance * np.outer(self.units, self.units)
        )
        return covariance, directions[~seen]

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
