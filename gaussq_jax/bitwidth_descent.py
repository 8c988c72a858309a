"""An optimizer of bitwidths: descent on the loss plus a price of what is stored, in which noise counts for less."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaussq_jax.bitwidths import stored_bits
from gaussq_jax.param_transforms import ParamTransform


class BitwidthDescentState(NamedTuple):
    """What `bitwidth_descent` remembers: averages over the last steps, of each block. Trees are like b_i."""

    count: jax.Array  # int32, updates so far
    gradient: Any  # of -dL/db_t, in prices of a bit
    power: Any  # of 4^-b_t
    square: Any  # of (dL/db_t)^2 / 4^-b_t


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
    averaging: float = 0.99,
    cost: Callable[[jax.Array], jax.Array] = stored_bits,
) -> BitwidthDescent:
    """Finds the bitwidths at which the loss would rise by as much as fewer bits save: an optimizer of b_i.

    It minimises L + price * mean over blocks of cost(b_t), and is handed the gradient of L alone. Noise of a step
    size of 2^(1 - b_t) raises the loss in proportion to its variance, and so does its gradient fall with b_t:

        -dL/db_t * blocks / price = c 4^-b_t    in prices of a bit; c is what a block's precision is worth

    A single step's gradient is mostly noise, of one draw of R and one batch, whose variance is proportional to 4^-b_t,
    too. Then the best estimate of c is a ratio of averages over steps, whatever b_t was in them; with it, b_t goes to
    where the slope is 0 by Newton's steps, of at most (b_init - b_target) / steps bits:

        c    = average(-dL/db_t * blocks / price) / average(4^-b_t)
        c    = m + s (c - m)                           m: mean of c over the blocks of a matrix
        b_t <- b_t - (cost'(b_t) - c 4^-b_t) / (2 ln 2 c 4^-b_t), and not below b_target

    s takes out of the differences between a matrix's blocks what noise explains of them: s = max(0, 1 - noise /
    variance), variance that of c over the blocks, noise the mean of what c's own is (James and Stein).

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
    share = (1 - averaging) / (1 + averaging)  # of the variance of one step, what an average has

    def init(b_i):
        zeros = lambda: jax.tree.map(jnp.zeros_like, b_i)
        return BitwidthDescentState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(gradients, state, b_i):
        blocks = sum(leaf.size for leaf in jax.tree.leaves(b_i))
        span = of_block(jnp.float32(1)) - of_block(jnp.float32(0))  # b_init - b_target, in bits for each 1 of b_i
        learns = span > 0
        unit = jnp.where(learns, span * price / max(blocks, 1), jnp.inf)
        average = lambda old, new: averaging * old + (1 - averaging) * new
        powers = jax.tree.map(lambda b_i: jnp.exp2(-2 * of_block(b_i)), b_i)
        squares = jax.tree.map(lambda gradient, power: jnp.square(gradient / unit) / power, gradients, powers)
        state = BitwidthDescentState(
            state.count + 1,
            jax.tree.map(lambda old, gradient: average(old, -gradient / unit), state.gradient, gradients),
            jax.tree.map(average, state.power, powers),
            jax.tree.map(average, state.square, squares),
        )
        unbiased = 1 - averaging ** state.count.astype(jnp.float32)
        moves = learns & (state.count > start)

        def change(b_i, power, *averages):
            c, noise = worth_and_noise(*averages, unbiased, share)
            held = _shrunk(c, noise) * power
            bits = of_block(b_i)
            surplus = slope(bits.ravel()).reshape(bits.shape) - held
            newton = surplus / (2 * math.log(2) * jnp.maximum(held, 1e-6))
            step = jnp.clip(newton, -span / steps, span / steps) / jnp.where(learns, span, 1)
            return jnp.where(moves, jnp.maximum(b_i - step, 0) - b_i, 0)

        return jax.tree.map(change, b_i, powers, state.gradient, state.power, state.square), state

    return BitwidthDescent(init, update)


def worth_and_noise(
    gradient: jax.Array, power: jax.Array, square: jax.Array, unbiased: jax.Array, share: float
) -> tuple[jax.Array, jax.Array]:
    """What a block's precision is worth, c, and the variance of this estimate; from averages as the state has them."""
    gradient, power, square = gradient / unbiased, power / unbiased, square / unbiased
    c = gradient / power
    of_one_step = jnp.maximum(square - c * gradient, 0) / (1 - share)  # its variance is this times 4^-b_t
    return c, share * of_one_step / power


def _shrunk(c: jax.Array, noise: jax.Array) -> jax.Array:
    """Values of blocks (.., rows, columns), those of a matrix drawn together as far as noise has them apart."""
    over_blocks = lambda x: jnp.mean(x, axis=(-2, -1), keepdims=True)
    variance = over_blocks(jnp.square(c - over_blocks(c)))
    kept = jnp.maximum(1 - over_blocks(noise) / jnp.where(variance > 0, variance, jnp.inf), 0)
    return over_blocks(c) + kept * (c - over_blocks(c))
