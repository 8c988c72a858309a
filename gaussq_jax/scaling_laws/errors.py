"""What is assumed of the residuals of runs, and how sure a fit is then: of its constants, and of a run to come."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from gaussq_jax.scaling_laws.laws import ScalingLaw

LONE = 1e-8  # of what all runs say in a direction: as good as nothing

ERRORS = {
    'cr3': 'groups of runs are independent; in one, residuals may be of any size and depend on each other',
    'hc3': 'runs are independent; their residuals may be of any size',
    'plain': 'runs are independent, and their residuals of one size',
}


class Deletions(NamedTuple):
    """What leaving out each group of runs in turn does to a fit, to first order.

    Attributes:
      moves: by which the point is elsewhere without a group, (g, k).
      residuals: of each run by the law without its group, (r,).
      lone: directions in which nothing is left without some group, (j, k): what the fit says there rests on that alone.
    """

    moves: np.ndarray
    residuals: np.ndarray
    lone: np.ndarray


class Scatter(NamedTuple):
    """How runs lie about a law that was not fitted to them: their noise, and what the law doesn't describe.

    Attributes:
      residuals: loss - law, of each run by the law without its group, (r,); or
      is_relative: log(loss / law).
    """

    residuals: np.ndarray
    is_relative: bool

    def interval(
        self, loss: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw], *, level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of the middle part `level` of the losses of runs, every draw's with every residual.

        Args:
          loss: from a law to a number or an array.
          draws: laws that are as likely as each other.
        """
        tail, ends = (1 - check_level(level)) / 2, []
        predicted = np.array([loss(law) for law in draws], float)
        for losses in np.reshape(predicted, (len(predicted), -1)).T:
            runs = np.multiply.outer(losses, np.exp(self.residuals)) if self.is_relative else None
            runs = np.add.outer(losses, self.residuals) if runs is None else runs
            ends.append(np.quantile(runs, (tail, 1 - tail), method='closest_observation'))
        low, high = np.reshape(np.transpose(ends), (2, *predicted.shape[1:]))
        return low, high


def quantile_interval(
    quantity: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw], *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of what the middle part `level` of the draws says of a quantity, which may be infinite."""
    tail = (1 - check_level(level)) / 2
    values = [quantity(law) for law in draws]
    low, high = np.quantile(values, (tail, 1 - tail), axis=0, method='closest_observation')
    return low, high


def check_level(level: float) -> float:
    """The level of an interval; ValueError if it is none."""
    if not 0 < level < 1:
        raise ValueError(f'level={level!r} must be between 0 and 1')
    return level


def run_groups(N: np.ndarray, D: np.ndarray, seed: Iterable[Any] | None, run: Iterable[Any] | None) -> np.ndarray:
    """The number of each run's group, (r,), of those whose residuals may depend on each other.

    Runs of one N, D and seed see the same batches from the same initial weights, in whatever format; rows of one N and
    one run are checkpoints of it.

    Args:
      N, D: (r,).
      seed: a label a run; all alike if not known.
      run: a label a run, '' or None where it has none.
    """
    seed = [''] * len(N) if seed is None else seed
    run = [''] * len(N) if run is None else run
    firsts, links = {}, []
    for i, (*batches, of_run) in enumerate(zip(N.tolist(), D.tolist(), map(str, seed), run)):
        for label in [tuple(batches)] + [('run', N[i], str(of_run))] * (of_run not in ('', None)):
            links.append((i, firsts.setdefault(label, i)))
    links = scipy.sparse.coo_array((np.ones(len(links)), np.transpose(links)), shape=(len(N), len(N)))
    return scipy.sparse.csgraph.connected_components(links, directed=False)[1]


def delete_groups(
    basis: np.ndarray, residuals: np.ndarray, scores: np.ndarray, slopes: np.ndarray, groups: np.ndarray
) -> Deletions:
    """Without a group g the point is elsewhere by

        (U^T W U - U_g^T W_g U_g)^-1 U_g^T psi_g

    one step of Newton's; for least squares, (1 - U_g^T U_g)^-1 U_g^T e_g.

    Args:
      basis: U, orthonormal, (r, k): the derivatives of residuals.
      residuals: e, (r,).
      scores: psi, the derivatives of what the residuals count, (r,).
      slopes: W, the derivatives of these, (r,).
      groups: a number a run, from 0.

    Source: MacKinnon, Nielsen and Webb, Fast and reliable jackknife and bootstrap methods for cluster-robust inference
    (Journal of Applied Econometrics 38, 2023). For groups of one run, MacKinnon and White, Some
    heteroskedasticity-consistent covariance matrix estimators with improved finite sample properties (Journal of
    Econometrics 29, 1985).
    """
    whole = (basis.T * slopes) @ basis
    moves, lone, deleted = [], [], residuals.copy()
    for group in range(groups.max() + 1):
        mine = groups == group
        part = basis[mine]
        values, vectors = np.linalg.eigh(whole - (part.T * slopes[mine]) @ part)
        is_left = values > LONE * np.trace(whole)
        lone.extend(vectors.T[~is_left])
        values, vectors = values[is_left], vectors[:, is_left]
        moves.append((vectors / values) @ (vectors.T @ (part.T @ scores[mine])))
        deleted[mine] += part @ moves[-1]
    return Deletions(np.array(moves), deleted, np.array(lone).reshape(-1, basis.shape[1]))
