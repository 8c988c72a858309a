"""An optimizer of bitwidths: descent on the loss plus a price of what is stored, in which noise counts for less."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaussq_jax.bitwidths import stored_bits
from gaussq_jax.param_transforms import ParamTransform


class BitwidthDescentState(NamedTuple):
    """What `bitwidth_descent` remembers. Trees are like b_i."""

    count: jax.Array  # int32, updates so far
    mean: Any  # of the loss's gradient by b_t, over the last steps, in prices of a bit
    square: Any  # of its square


class BitwidthDescent(NamedTuple):
    """A pair of pure functions, as optax's GradientTransformation is one."""

    init: Callable[[Any], BitwidthDescentState]
    update: Callable[..., tuple[Any, BitwidthDescentState]]


def bitwidth_descent(
    transform: ParamTransform,
    *,
    price: float,
    steps: float,
    start: float = 0,
    averaging: float = 0.98,
    cost: Callable[[jax.Array], jax.Array] = stored_bits,
) -> BitwidthDescent:
    """Finds the bitwidths at which the loss would rise by as much as fewer bits save: an optimizer of b_i.

    It minimises L + price * mean over blocks of cost(b_t), step by step, with the gradient of L alone handed to it:

        g_t   <- dL/db_t * blocks / price                    what the loss loses by a bit, in prices of a bit
        mean  <- averaging * mean + (1 - averaging) * g_t    and the same of g_t^2
        g     =  m + s (mean - m)                            m: mean over the blocks of a matrix
        b_t   <- max(b_t - (b_init - b_target) / steps * (cost'(b_t) + g), b_target)

    One step's g_t is mostly noise, of one draw of R and one batch. It is averaged over steps, and what then is left of
    the noise is taken out of the differences between the blocks of a matrix, as far as it explains them:
    s = max(0, 1 - noise / variance), where variance is that of `mean` over the blocks, and noise is
    (1 - averaging) / (1 + averaging) times the mean over the blocks of the variance of g_t (James and Stein).

    Unlike Adam's, a step grows with the gradient: a block that the loss holds stays, one that it doesn't hold falls.

    Args:
      transform: the sampling whose state is optimised; it knows b_init and b_target.
      price: what a bit a weight is worth, in units of the loss. With .05, bits are given up as long as that costs less
        than .05 nats for each bit of the model's mean.
      steps: in how many a block falls from b_init to b_target where the loss doesn't hold it, and a bit of bitwidth
        saves a stored bit.
      start: how many steps bitwidths stay at b_init before that; what the loss says is averaged meanwhile.
      averaging: decay of the averages, at least 0 and less than 1.
      cost: of a bitwidth, elementwise.

    Returns:
      `init(b_i)` and `update(gradients, state, b_i)`, to be used as of optax, by itself or in `optax.partition`.

    Raises:
      ValueError: naming the argument, unless price and steps are positive and finite, start is at least 0, and
        averaging is in its range.

    Example:
      >>> pqt = gq.gaussian_weight_sampling(b_init=8, b_target=3)
      >>> optimizer = bitwidth_descent(pqt, price=0.05, steps=10)
      >>> b_i = pqt.init({'up': {'kernel': jnp.ones((64, 32))}})
      >>> state = optimizer.init(b_i)
      >>> gradients = {'up/kernel': jnp.array([[-0.5], [0.0]])}  # more bits for the first block would lower the loss
      >>> for _ in range(30):
      ...     updates, state = optimizer.update(gradients, state, b_i)
      ...     b_i = jax.tree.map(jnp.add, b_i, updates)
      >>> [round(float(b), 2) for b in pqt.bitwidths(b_i)['up/kernel'].ravel()]
      [9.5, 3.0]

    Source: the gradient is that of arXiv 2505.11170, section 3; a price of the model's size is DiffQ's (arXiv
    2104.09987, section 3.4); descent and shrinkage are ours.
    """
    for name, value in (('price', price), ('steps', steps)):
        if not 0 < value < math.inf:
            raise ValueError(f'{name}={value!r} must be positive and finite')
    if not start >= 0:
        raise ValueError(f'start={start!r} must be at least 0')
    if not 0 <= averaging < 1:
        raise ValueError(f'averaging={averaging!r} must be at least 0 and less than 1')
    of_block = lambda b_i: transform.bitwidths({'': b_i})['']
    slope = jax.vmap(jax.grad(cost))

    def init(b_i):
        zeros = lambda: jax.tree.map(jnp.zeros_like, b_i)
        return BitwidthDescentState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(gradients, state, b_i):
        blocks = sum(leaf.size for leaf in jax.tree.leaves(b_i))
        bits_per_unit = of_block(jnp.float32(1)) - of_block(jnp.float32(0))  # b_init - b_target
        unit = jnp.where(bits_per_unit > 0, bits_per_unit * price / max(blocks, 1), jnp.inf)
        average = lambda old, new: averaging * old + (1 - averaging) * new
        in_prices = jax.tree.map(lambda gradient: gradient / unit, gradients)
        mean = jax.tree.map(average, state.mean, in_prices)
        square = jax.tree.map(lambda old, g: average(old, g * g), state.square, in_prices)
        count = state.count + 1
        unbiased = 1 - averaging ** count.astype(jnp.float32)
        moves = (count > start) & (bits_per_unit > 0)

        def change(b_i, mean, square):
            held = _shrunk(mean / unbiased, square / unbiased, (1 - averaging) / (1 + averaging))
            bits = of_block(b_i)
            pull = slope(bits.ravel()).reshape(bits.shape)
            return jnp.where(moves, jnp.maximum(b_i - (pull + held) / steps, 0) - b_i, 0)

        return jax.tree.map(change, b_i, mean, square), BitwidthDescentState(count, mean, square)

    return BitwidthDescent(init, update)


def signal_and_noise(mean: jax.Array, square: jax.Array, share: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squares of what a gradient is, and of how far one step's is from it; sums over all blocks, float32.

    Args:
      mean, square: averages of a gradient and of its square over some steps.
      share: of the variance of one step's gradient that `mean` has.
    """
    noise = jnp.sum(jnp.maximum(square - mean * mean, 0)) / (1 - share)
    return jnp.maximum(jnp.sum(mean * mean) - share * noise, 0), noise


def _shrunk(mean: jax.Array, square: jax.Array, share: float) -> jax.Array:
    """The means of blocks (.., rows, columns), those of a matrix drawn together as far as noise has them apart."""
    over_blocks = lambda x: jnp.mean(x, axis=(-2, -1), keepdims=True)
    of_matrix = over_blocks(mean)
    noise = share / (1 - share) * over_blocks(jnp.maximum(square - mean * mean, 0))
    variance = over_blocks(jnp.square(mean - of_matrix))
    kept = jnp.maximum(1 - noise / jnp.where(variance > 0, variance, jnp.inf), 0)
    return of_matrix + kept * (mean - of_matrix)
