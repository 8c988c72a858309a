"""What is best by a law, whichever it is: searched for, where a law has no closed form of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gaussq_jax.scaling_laws.inputs import at_least, positive

OPERATIONS = 6  # a weight and a token in training, forward and backward
MOST = 1e40  # weights or tokens
NUM_POINTS = 65  # of a grid, which is laid anew around its best point
NUM_GRIDS = 12
ENDS = 1e-9  # relative, within which the best is at an end


class Optimum(NamedTuple):
    """What to train for a budget: parameters, tokens, and the loss that the law predicts."""

    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray


def optimal_training(
    law: Any,
    C: ArrayLike,
    *,
    price: ArrayLike = 1.0,
    serve: ArrayLike = 0.0,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    **inputs: Any,
) -> Optimum:
    """N and D of least loss at the cost C = 6 N D price + serve N.

    Found by a search over ln N, to about a millionth of N; by every law. All arguments broadcast.

    Args:
      law: a ScalingLaw.
      C: cost, in the operations of training in BF16.
      price: of an operation of training, relative to one in BF16.
      serve: of serving the model, for each weight: 2 operations a token of it, times their price.
      N: weights, if they are given: D is what is left; or
      D: tokens, if they are: N is what is left.
      **inputs: what the law takes besides N and D, by name.

    Raises:
      ValueError: if more of N, or of D, is always better; if C leaves no token for N weights.

    Example:
      >>> laws = gq.scaling_laws
      >>> best = laws.optimal_training(laws.CHINCHILLA_REFIT, 5.76e23)
      >>> served = laws.optimal_training(laws.CHINCHILLA_REFIT, 5.76e23, serve=2 * 2e12)  # and 2T tokens served
      >>> bool(served.N < best.N), f'{best.D / best.N:.0f} tokens a weight, and {served.D / served.N:.0f}'
      (True, '18 tokens a weight, and 45')

    Source: serving, Sardana et al., Beyond Chinchilla-optimal (arXiv 2401.00448), section 2.
    """
    C, price, serve = positive('C', C), positive('price', price), at_least('serve', serve, 0)
    if N is not None and D is not None:
        raise ValueError('N and D leave nothing to choose: give one of them, or neither')
    tokens = lambda N: (C - serve * N) / (OPERATIONS * N * price)
    if N is not None:
        N = positive('N', N)
        D = tokens(N)
        if np.any(D < 1):
            served = f', and to serve them costs {np.max(serve * N):g}' * bool(np.any(serve))
            raise ValueError(f'C={np.min(C):g} leaves no token for N={np.max(N):g} weights{served}')
    elif D is not None:
        D = positive('D', D)
        N = C / (OPERATIONS * D * price + serve)
    else:
        most = C / (OPERATIONS * price + serve)  # with one token
        best = minimize(lambda N: law.loss(N=N, D=np.maximum(tokens(N), 1e-300), **inputs), 1.0, most)
        if np.any((best <= 1) | (best >= most * (1 - ENDS))):
            raise ValueError(
                f'C={np.min(C):g}: by this law there is no best N, as more weights or more tokens always win'
            )
        N, D = best, tokens(best)
    return Optimum(*np.broadcast_arrays(N, D, law.loss(N=N, D=D, **inputs)))


def minimize(of: Callable[[np.ndarray], np.ndarray], low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """The x between low and high, above 0, of the least of a function, of each element; an end where it is there.

    The function gets points of shape (points, *shape), where low and high broadcast to `shape`, and gives what
    broadcasts with them.
    """
    low, high = np.broadcast_arrays(np.log(low), np.log(high))
    shape = np.shape(of(np.exp(low))[None])[1:]
    low, high = first, last = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
    for _ in range(NUM_GRIDS):
        points = np.linspace(low, high, NUM_POINTS)
        with np.errstate(all='ignore'):
            values = np.nan_to_num(of(np.exp(points)), nan=np.inf)
        best = np.argmin(values, axis=0)
        around = np.clip(np.stack([best - 1, best, best + 1]), 0, NUM_POINTS - 1)
        low, middle, high = np.take_along_axis(points, around, axis=0)
    return np.exp(np.select([middle - first < ENDS, last - middle < ENDS], [first, last], middle))
