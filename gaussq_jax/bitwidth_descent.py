"""An optimizer of bitwidths: each block goes to the format that is worth its bits."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.bitwidths import LEAST_BITS, MOST_BITS, format_for_bitwidth
from gaussq_jax.param_transforms import ParamTransform

SLOPE = 2 * math.log(2)  # of -4^-b by b, in units of 4^-b


class BitwidthDescentState(NamedTuple):
    """What `bitwidth_descent` remembers: averages over the last steps, of each block. Trees are like b_i."""

    count: jax.Array  # int32, updates so far
    fall: Any  # of -dL/db_t
    power: Any  # of 4^-b_t
    square: Any  # of (dL/db_t)^2 / 4^-b_t


class BitwidthDescent(NamedTuple):
    """A pair of pure functions, as optax's GradientTransformation is one."""

    init: Callable[[Any], BitwidthDescentState]
    update: Callable[..., tuple[Any, BitwidthDescentState]]


def bitwidth_descent(
    transform: ParamTransform, *, price: float, steps: float, start: float = 0, averaging: float = 0.99
) -> BitwidthDescent:
    """Finds the format of each block that is worth its bits: an optimizer of b_i.

    It minimises L + price * stored bits a weight, and is handed the gradient of L. Noise of a step of 2^(1 - b_t)
    raises the loss by as much as its variance is large, and so the gradient falls with b_t:

        -dL/db_t = 2 ln 2 w 4^-b_t,    w 4^-b_t what the noise of b_t bits adds to L

    One step's gradient is mostly noise, of one draw of R and one batch, whose variance, too, is proportional to 4^-b_t.
    Then the best estimate of w is a ratio of averages over steps, whatever b_t was in them. A block moves to the whole
    bitwidth b whose format is the best buy, by at most (b_init - b_target) / steps bits a step:

        w    = average(-dL/db_t) / average(4^-b_t) / (2 ln 2)
        w   <- m + s (w - m)                         m: mean of w over the blocks of a matrix
        b    = argmin  w 4^-b + price / blocks * bits of format_for_bitwidth(b),    b_target <= b <= 10

    s takes out of the differences between a matrix's blocks what noise explains of them: s = max(0, 1 - noise /
    variance), variance that of w over the blocks, noise the mean variance of these estimates (James and Stein).

    Args:
      transform: the sampling whose state is optimised; it knows b_init and b_target.
      price: what a stored bit a weight is worth, in units of the loss. With .05, bits are given up as long as that
        costs less than .05 nats for each bit of what weights take on average.
      steps: in how many a block that the loss doesn't hold falls from b_init to b_target.
      start: how many steps bitwidths stay at b_init before that; what the loss says is averaged meanwhile.
      averaging: decay of the averages, at least 0 and less than 1.

    Returns:
      `init(b_i)` and `update(gradients, state, b_i)`, to be used as of optax, by itself or in `optax.partition`.

    Raises:
      ValueError: naming the argument, unless price and steps are positive and finite, start is at least 0, and
        averaging is in its range; for a b_target below 3, which no format is narrow enough for.

    Example:
      >>> pqt = gq.gaussian_weight_sampling(b_init=8, b_target=3)
      >>> optimizer = bitwidth_descent(pqt, price=0.05, steps=10)
      >>> b_i = pqt.init({'up': {'kernel': jnp.ones((64, 32))}})
      >>> state = optimizer.init(b_i)
      >>> for _ in range(30):  # with more bits for the first block, the loss would fall
      ...     gradients = {'up/kernel': jnp.array([[-100.0], [-0.1]]) * 4.0 ** -pqt.bitwidths(b_i)['up/kernel']}
      ...     updates, state = optimizer.update(gradients, state, b_i)
      ...     b_i = jax.tree.map(jnp.add, b_i, updates)
      >>> [round(float(b), 2) for b in pqt.bitwidths(b_i)['up/kernel'].ravel()]
      [5.0, 3.0]

    Source: the gradient is that of arXiv 2505.11170, section 3; a price of the model's size is DiffQ's (arXiv
    2104.09987, section 3.4); the estimate and the choice of formats are ours.
    """
    for name, value in (('price', price), ('steps', steps)):
        if not 0 < value < math.inf:
            raise ValueError(f'{name}={value!r} must be positive and finite')
    if not start >= 0:
        raise ValueError(f'start={start!r} must be at least 0')
    if not 0 <= averaging < 1:
        raise ValueError(f'averaging={averaging!r} must be at least 0 and less than 1')
    of_block = lambda b_i: transform.bitwidths({'': b_i})['']
    with jax.ensure_compile_time_eval():
        b_target, b_init = (float(of_block(jnp.float32(b_i))) for b_i in (0, 1))
    span = b_init - b_target  # bits for each 1 of b_i; 0 if bitwidths are constant
    if span and b_target < LEAST_BITS:
        raise ValueError(f'b_target={b_target:g} must be at least {LEAST_BITS}: fewer bits have no narrower format')
    share = (1 - averaging) / (1 + averaging)  # of the variance of one step, what an average has

    def init(b_i):
        zeros = lambda: jax.tree.map(jnp.zeros_like, b_i)
        return BitwidthDescentState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(gradients, state, b_i):
        blocks = sum(leaf.size for leaf in jax.tree.leaves(b_i))
        average = lambda old, new: averaging * old + (1 - averaging) * new
        falls = jax.tree.map(lambda gradient: -gradient / (span or 1), gradients)  # of the loss, by b_t
        powers = jax.tree.map(lambda b_i: jnp.exp2(-2 * of_block(b_i)), b_i)
        squares = jax.tree.map(lambda fall, power: fall * fall / power, falls, powers)
        state = BitwidthDescentState(
            state.count + 1,
            *(jax.tree.map(average, *both) for both in zip(state[1:], (falls, powers, squares))),
        )
        unbiased = 1 - averaging ** state.count.astype(jnp.float32)

        def change(b_i, *averages):
            worth, noise = worth_and_noise(*averages, unbiased, share)
            best = _best_bitwidths(_shrunk(worth, noise), price / blocks, b_target)
            step = jnp.clip(best - of_block(b_i), -span / steps, span / steps) / (span or 1)
            return jnp.where(state.count > start, jnp.maximum(b_i + step, 0) - b_i, 0)

        return jax.tree.map(change, b_i, *state[1:]), state

    return BitwidthDescent(init, update)


def worth_and_noise(
    fall: jax.Array, power: jax.Array, square: jax.Array, unbiased: jax.Array, share: float
) -> tuple[jax.Array, jax.Array]:
    """Estimates of w, and the variance of each: see `bitwidth_descent`.

    Args:
      fall, power, square: averages of a block, as its state has them, which began with zeros.
      unbiased: what 1 would be in such an average by now.
      share: of the variance of one step, what an average has.
    """
    fall, power, square = fall / unbiased, power / unbiased, square / unbiased
    slope = fall / power
    of_one_step = jnp.maximum(square - slope * fall, 0) / (1 - share)  # its variance is this times 4^-b_t
    return slope / SLOPE, share * of_one_step / power / SLOPE**2


def _best_bitwidths(worth: jax.Array, price: float, b_target: float) -> jax.Array:
    """The whole bitwidth of each block at which noise and bits cost least together."""
    bitwidths = np.arange(math.ceil(b_target), MOST_BITS + 1)
    bits = np.array([format_for_bitwidth(b).bits for b in bitwidths])
    totals = [worth * 4.0 ** -float(b) + price * float(stored) for b, stored in zip(bitwidths, bits)]
    return jnp.asarray(bitwidths, jnp.float32)[jnp.argmin(jnp.stack(totals), axis=0)]


def _shrunk(worth: jax.Array, noise: jax.Array) -> jax.Array:
    """Values of blocks (.., rows, columns), those of a matrix drawn together as far as noise has them apart."""
    over_blocks = lambda x: jnp.mean(x, axis=(-2, -1), keepdims=True)
    variance = over_blocks(jnp.square(worth - over_blocks(worth)))
    kept = jnp.maximum(1 - over_blocks(noise) / jnp.where(variance > 0, variance, jnp.inf), 0)
    return over_blocks(worth) + kept * (worth - over_blocks(worth))
