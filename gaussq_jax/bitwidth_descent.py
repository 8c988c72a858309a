"""An optimizer of bitwidths: each block goes to the format that is worth its bits."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaussq_jax.bitwidths import LEAST_BITS, MOST_BITS, STORED_BITS
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
    raises the loss in proportion to its variance, and so the gradient falls with b_t:

        -dL/db_t = 2 ln 2 w 4^-b_t,    w 4^-b_t what the noise of b_t bits adds to L

    One step's gradient is mostly noise, of one draw of R and one batch. Its variance, too, is proportional to 4^-b_t,
    and so the best estimate of w is a ratio of averages over steps, whatever b_t was in them. A block moves to the
    whole bitwidth b whose format is the best buy, by at most (b_init - b_target) / steps bits a step:

        w    = average(-dL/db_t) / average(4^-b_t) / (2 ln 2)
        w   <- m + t^2 / (t^2 + v) (w - m)           v: variance of this estimate
        b    = argmin  w 4^-b + price / blocks * bits of format_for_bitwidth(b),    b_target <= b <= 10

    The second line takes out of the differences between the blocks of a matrix what noise explains of them: m is their
    mean, weighted by 1 / v, and t^2 the variance of what w really is, as it is estimated for random effects. Blocks
    count alike, whatever their size. No block goes beyond what the transform's format holds. A block that still moves
    when training ends is stored in the wider of the formats that it is between. A NaN makes NaN of a matrix's b_i.

    Args:
      transform: the sampling whose state is optimised; it knows b_init and b_target.
      price: what a stored bit a weight is worth, in units of the loss. With .05, bits are given up as long as that
        costs less than .05 nats for each bit of what weights take on average.
      steps: in how many a block that the loss doesn't hold falls from b_init to b_target, if that is a whole bitwidth.
      start: how many steps bitwidths stay where they are before that; what the loss says is averaged meanwhile.
      averaging: decay of the averages, at least 0 and less than 1.

    Returns:
      `init(b_i)` and `update(gradients, state, b_i)`, to be used as of optax, by itself or in `optax.partition`.

    Raises:
      ValueError: naming the argument, unless price and steps are positive and finite, start is at least 0, and
        averaging is in its range; for a transform that learns no bitwidths, and for a b_target below 3, which no format
        is narrow enough for, or above 10, which bfloat16 is for.

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
    2104.09987, section 3.4); t^2 is DerSimonian and Laird's (Controlled Clinical Trials 7, 1986, 177-188); the rest is
    ours.
    """
    for name, value in (('price', price), ('steps', steps)):
        if not 0 < value < math.inf:
            raise ValueError(f'{name}={value!r} must be positive and finite')
    if not start >= 0:
        raise ValueError(f'start={start!r} must be at least 0')
    if not 0 <= averaging < 1:
        raise ValueError(f'averaging={averaging!r} must be at least 0 and less than 1')
    of_block = lambda b_i: transform.bitwidths({'': b_i})['']
    if transform.block_size is None:
        raise ValueError('this transform learns no bitwidths: there is nothing to optimise')
    with jax.ensure_compile_time_eval():
        b_target, b_init = (float(of_block(jnp.float32(b_i))) for b_i in (0, 1))
        span = b_init - b_target  # bits for each 1 of b_i; 0 if bitwidths are constant
        b_most = float(of_block(jnp.float32(jnp.inf))) if span else b_init
    if span and not LEAST_BITS <= b_target <= MOST_BITS:
        raise ValueError(f'b_target={b_target:g} must be of {LEAST_BITS} to {MOST_BITS}, the bits that formats are for')
    most = (b_most - b_target) / (span or 1) * (1 - 1e-6)  # of b_i, and not a rounding error more

    def init(b_i):
        zeros = lambda: jax.tree.map(jnp.zeros_like, b_i)
        return BitwidthDescentState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(gradients, state, b_i):
        if not span:
            return jax.tree.map(jnp.zeros_like, b_i), state._replace(count=state.count + 1)
        blocks = sum(leaf.size for leaf in jax.tree.leaves(b_i))
        average = lambda old, new: averaging * old + (1 - averaging) * new
        falls = jax.tree.map(lambda gradient: -gradient / span, gradients)  # of the loss, by b_t
        powers = jax.tree.map(lambda b_i: jnp.exp2(-2 * of_block(b_i)), b_i)
        squares = jax.tree.map(lambda fall, power: fall * fall / power, falls, powers)
        state = BitwidthDescentState(
            state.count + 1,
            *(jax.tree.map(average, *both) for both in zip(state[1:], (falls, powers, squares))),
        )
        moves = state.count > max(math.floor(start), 1)  # of one step alone, nothing is known of the noise

        def change(b_i, *averages):
            worth = _shrunk(*worth_and_noise(*averages, state.count, averaging))
            best = _best_bitwidths(worth, price / blocks, b_target, b_most)
            step = jnp.clip(best - of_block(b_i), -span / steps, span / steps) / span
            return jnp.where(moves, jnp.clip(b_i + step, 0, most) - b_i, 0)

        return jax.tree.map(change, b_i, *state[1:]), state

    return BitwidthDescent(init, update)


def worth_and_noise(
    fall: jax.Array, power: jax.Array, square: jax.Array, count: jax.Array, averaging: float
) -> tuple[jax.Array, jax.Array]:
    """Estimates of w, and the variance of each: see `bitwidth_descent`.

    Args:
      fall, power, square: averages of a block, as its state has them, which began with zeros.
      count: updates so far; after the first, the variance is 0.
      averaging: decay of the averages.
    """
    total, share = weight_and_share(count, averaging)
    fall, power, square = fall / total, power / total, square / total
    slope = fall / power
    of_one_step = jnp.maximum(square - slope * fall, 0) / jnp.maximum(1 - share, 1e-6)  # times 4^-b_t, its variance
    return slope / SLOPE, share * of_one_step / power / SLOPE**2


def weight_and_share(count: jax.Array, averaging: float) -> tuple[jax.Array, jax.Array]:
    """Of an average that began with 0: the sum of its weights, and which share of one step's variance it has."""
    left = averaging ** jnp.maximum(count, 1).astype(jnp.float32)
    return 1 - left, (1 - averaging) / (1 + averaging) * (1 + left) / (1 - left)


def _best_bitwidths(worth: jax.Array, price: float, b_target: float, b_most: float) -> jax.Array:
    """The whole bitwidth of each block at which noise and bits cost least together; NaN of NaN."""
    allowed = {b: bits for b, bits in STORED_BITS.items() if b_target <= b <= b_most} or {MOST_BITS: 0}
    totals = [worth * 4.0**-b + price * bits for b, bits in allowed.items()]
    best = jnp.asarray([*allowed], jnp.float32)[jnp.argmin(jnp.stack(totals), axis=0)]
    return jnp.where(jnp.isnan(worth), worth, best)


def _shrunk(worth: jax.Array, noise: jax.Array) -> jax.Array:
    """Values of blocks (.., rows, columns), those of a matrix drawn together as far as noise has them apart.

    Args:
      worth: what was found for each block.
      noise: its variance.
    """
    over_blocks = lambda x: jnp.sum(x, axis=(-2, -1), keepdims=True)
    blocks = worth.shape[-2] * worth.shape[-1]
    noise = jnp.maximum(noise, 1e-6 * jnp.max(worth * worth, axis=(-2, -1), keepdims=True) + 1e-30)
    least = jnp.min(noise, axis=(-2, -1), keepdims=True)
    weight = least / noise  # at most 1: 1 / noise itself may be beyond float32
    total = over_blocks(weight)
    mean = over_blocks(weight * worth) / total
    heterogeneity = over_blocks(weight * jnp.square(worth - mean)) / least  # Cochran's Q, of mean blocks - 1
    between = least * jnp.maximum(heterogeneity - (blocks - 1), 0)
    between = between / jnp.maximum(total - over_blocks(weight * weight) / total, 1e-6)
    return mean + between / (between + noise) * (worth - mean)
