"""Fit a law to runs, with what the runs say of it and what they don't."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gaussq_jax.scaling_laws.capybara import CapybaraLaw
from gaussq_jax.scaling_laws.errors import ERRORS, number_labels, run_groups
from gaussq_jax.scaling_laws.fit_result import FitResult
from gaussq_jax.scaling_laws.inputs import positive
from gaussq_jax.scaling_laws.law import ScalingLaw
from gaussq_jax.scaling_laws.problem import DEVIATION, FINISH, SEARCH, Problem
from gaussq_jax.scaling_laws.runs import read_columns

OBJECTIVES = ('squares', 'huber', 'log_huber')
HUBER = 1.345  # standard deviations from which on a residual counts less: 95 % efficient for normal ones
LOG_HUBER = 1e-3  # the same of the logarithm of a loss, in itself


def fit(
    law: type[ScalingLaw],
    runs: Mapping[str, Any],
    *,
    fixed: Mapping[str, float | str] | None = None,
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
      fixed: constants that keep a number, or equal another constant, which is named: {'gamma': 1, 'beta': 'alpha'}.
        Unless given here, `log2_channel` is fitted if the runs have both channels and blocks of numbers, and else keeps
        its published value; the constants of 'tensor' are if they have that.
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
      >>> runs = {'N': N, 'D': D, 'loss': laws.CHINCHILLA_REFIT.loss(N, D)}
      >>> result = laws.fit(laws.ChinchillaLaw, runs)
      >>> round(result.law.alpha, 6), result.undetermined
      (0.3478, ())

    Source: log_huber, Hoffmann et al., Training Compute-Optimal Large Language Models (arXiv 2203.15556), appendix D.3;
    errors, MacKinnon, Nielsen and Webb, Cluster-robust inference: a guide to empirical practice (Journal of
    Econometrics 232, 2023).
    """
    for option, given, allowed in (('objective', objective, OBJECTIVES), ('errors', errors, ERRORS)):
        if given not in allowed:
            raise ValueError(f'{option}={given!r} must be one of {", ".join(allowed)}')
    columns, losses = read_columns(law, runs)
    if not len(losses):
        raise ValueError('0 runs are too few: no law is fitted to none')
    problem = Problem.create(
        law,
        columns,
        losses,
        fixed=fixed or {},
        bounds=bounds or {},
        weights=_weights(weights, losses),
        errors=errors,
        groups=_groups(runs, columns, len(losses), errors, groups),
        objective=objective,
    )
    rng = np.random.default_rng(seed)
    starts = [law.random(rng, problem.columns, problem.loss) for _ in range(num_starts)]
    if start is not None:
        if type(start) is not law:
            raise ValueError(f'start={start!r} must be a {law.__name__}')
        missing = set(problem.names) - set(start.constants())
        known = law.random(rng, problem.columns, problem.loss).constants()
        starts.insert(0, start.replace(**{name: known[name] for name in missing}))
    if not starts:
        raise ValueError(f'num_starts={num_starts} must be above 0, or start a law')
    points = [problem.point(law) for law in starts]
    if objective == 'log_huber':  # from where squares of logarithms are least: it hardly tells far points apart
        problem = dataclasses.replace(problem, is_log=True)
        points += [problem.solve(point, SEARCH).x for point in points]
        problem = dataclasses.replace(problem, delta=LOG_HUBER)
    solutions = [problem.solve(point, SEARCH) for point in points]
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
