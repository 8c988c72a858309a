"""What is assumed of the residuals of runs, and how sure a fit is then: of its constants, and of a run to come."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.special

from gaussq_jax.scaling_laws.law import ScalingLaw

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
      residuals: loss - law, of each run by the law without its group, times the root of its weight, (r,); or
      is_relative: log(loss / law).
    """

    residuals: np.ndarray
    is_relative: bool

    def interval(
        self, loss: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw], *, level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of the middle part `level` of the losses of runs of weight 1, every draw's with every residual.

        No end is inside those of the draws alone.

        Args:
          loss: from a law to a number or an array.
          draws: laws that are as likely as each other.
        """
        predicted, ends = np.array([loss(law) for law in draws], float), []
        for losses in np.reshape(predicted, (len(predicted), -1, 1)).swapaxes(0, 1):
            runs = losses * np.exp(self.residuals) if self.is_relative else losses + self.residuals
            of_law, of_run = (_middle(values.ravel(), level) for values in (losses, runs))
            ends.append((min(of_law[0], of_run[0]), max(of_law[1], of_run[1])))
        low, high = np.reshape(np.transpose(ends), (2, *predicted.shape[1:]))
        return low, high


def quantile_interval(
    quantity: Callable[[Any], np.ndarray], draws: Iterable[ScalingLaw], *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of what the middle part `level` of the draws says of a quantity, which may be infinite."""
    low, high = _middle([quantity(law) for law in draws], level)
    return low, high


def _middle(values, level):
    """Both ends of the middle part of values, (n, *shape)."""
    tail = (1 - check_level(level)) / 2
    return np.quantile(values, (tail, 1 - tail), axis=0, method='closest_observation')


def check_level(level: float) -> float:
    """The level of an interval; ValueError if it is none."""
    if not 0 < level < 1:
        raise ValueError(f'level={level!r} must be between 0 and 1')
    return level


def student_t(degrees: int, level: float = 0.95) -> float:
    """Standard errors from the middle of the middle part `level` of Student's t to its ends."""
    return float(scipy.special.stdtrit(degrees, 0.5 + check_level(level) / 2))


def degrees_of_freedom(num_runs: int, num_constants: int, groups: np.ndarray) -> int:
    """r - p, or g - 1 if there are so few groups; at least 1."""
    return max(min(num_runs - num_constants, int(groups.max())), 1)


def number_labels(name: str, labels: Iterable[Any], length: int, *, may_lack: bool = True) -> np.ndarray:
    """A number for each label, the same for the same, (length,); -1 for None, NaN, '' and what pandas has for them.

    Raises:
      ValueError: for another number of labels; if one lacks, and may not.
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(f'{name}={labels!r} must be a label a run')
    labels = [tuple(label) if isinstance(label, list | np.ndarray) else label for label in labels]
    if len(labels) != length:
        raise ValueError(f'{name} has {len(labels)} labels, for {length} runs')
    numbers: dict[Any, int] = {}
    found = np.array([-1 if _is_missing(label) else numbers.setdefault(label, len(numbers)) for label in labels])
    if not may_lack and np.any(found < 0):
        raise ValueError(f'{name} has no label for row {int(np.argmin(found))} of the runs')
    return found


def _is_missing(label):
    if label is None or (isinstance(label, str) and not label):
        return True
    try:
        return bool(label != label)  # NaN
    except TypeError:  # pandas.NA
        return True


def run_groups(N: np.ndarray, D: np.ndarray, seed: np.ndarray | None, run: np.ndarray | None) -> np.ndarray:
    """The number of each run's group, (r,), of those whose residuals may depend on each other.

    Runs of one N, D and seed see the same batches from the same initial weights, in whatever format; rows of one N and
    one run are checkpoints of it.

    Args:
      N, D: (r,).
      seed: a number a run, by `number_labels`; -1, which is one too, where it is not known.
      run: a number a run, by `number_labels`; -1 where it has none.
    """
    seed, run = (np.full(len(N), -1) if labels is None else labels for labels in (seed, run))
    firsts, links = {}, []
    for i, (n, d, of_seed, of_run) in enumerate(zip(N.tolist(), D.tolist(), seed.tolist(), run.tolist(), strict=True)):
        for label in [(n, d, of_seed)] + [('run', n, of_run)] * (of_run >= 0):
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
    return Deletions(np.array(moves), deleted, np.array(lone).reshape(len(lone), basis.shape[1]))
