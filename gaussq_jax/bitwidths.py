"""Learned bitwidths: from the trained b_i to the block's bitwidth b_t, its format, and what pulls it down."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from gaussq_jax.formats import FloatFormat

LEAST_BITS, MOST_BITS = 3, 10  # of bitwidths that have a format of their own; bfloat16 loses the noise of more


def effective_bitwidths(b_i: jax.Array, b_init: float, b_target: float, *, b_most: float | None = None) -> jax.Array:
    """The bitwidths that act: b_t = b_target + b_i (b_init - b_target), bounded by b_target and b_most.

    b_i starts at 1, where b_t = b_init; weight decay or a penalty pulls it to 0, where b_t = b_target. Beyond a bound,
    b_t is the bound, and the gradient of b_i is only what leads back: whatever pushes further out is 0. Derivatives are
    of reverse mode.

    Args:
      b_i: trained parameter of each block, any shape, float32.
      b_init: bitwidth at the start, in bits.
      b_target: least bitwidth, in bits; at least 1 and at most b_init.
      b_most: largest bitwidth, in bits; at least b_init. None for the larger of b_init and 10, as bfloat16 loses the
        noise of more bits.

    Returns:
      b_t, of b_i's shape and dtype, in bits.

    Raises:
      ValueError: unless 1 <= b_target <= b_init <= b_most, all finite.

    Example:
      >>> effective_bitwidths(jnp.array([1.0, 0.5, 0.0]), b_init=6, b_target=4)
      Array([6., 5., 4.], dtype=float32)

    Source: arXiv 2505.11170, section 3; the bounds are ours.
    """
    if not (math.isfinite(b_init) and 1 <= b_target <= b_init):
        raise ValueError(f'b_target={b_target}, b_init={b_init}: allowed are finite 1 <= b_target <= b_init')
    b_most = max(b_init, float(MOST_BITS)) if b_most is None else b_most
    if not (math.isfinite(b_most) and b_most >= b_init):
        raise ValueError(f'b_most={b_most}: it must be finite, and at least b_init={b_init}')
    if b_init == b_target:
        return b_target + 0 * b_i  # NaN stays NaN
    return b_target + _bounded(b_i, (b_most - b_target) / (b_init - b_target)) * (b_init - b_target)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _bounded(b_i: jax.Array, most: float) -> jax.Array:
    return jnp.clip(b_i, 0, most)


def _bounded_forward(b_i, most):
    return jnp.clip(b_i, 0, most), b_i


def _bounded_backward(most, b_i, gradient):
    """Descent moves b_i against its gradient: below 0 a negative one leads back, above `most` a positive one."""
    gradient = jnp.where(b_i < 0, jnp.minimum(gradient, 0), gradient)
    return (jnp.where(b_i > most, jnp.maximum(gradient, 0), gradient),)


_bounded.defvjp(_bounded_forward, _bounded_backward)


def format_for_bitwidth(b_t: float) -> FloatFormat:
    """The narrowest format in which the rounded normal noise of a bitwidth survives.

        M = ceil(b_t) - 2,    E the least with 2^E - 2 >= ceil(b_t) - 1,    b_t to a multiple of 2^-10, as it acts

    That many mantissa bits hold W + R step next to a block's largest weight; with that many binades the step, too,
    is a normal number, where the block is scaled so that its largest weight is in the top one.

    Args:
      b_t: a bitwidth, in bits. What is below 3 takes the format of 3, what is above 9 takes bfloat16.

    Raises:
      ValueError: for NaN.

    Example:
      >>> [format_for_bitwidth(b).name for b in (3, 4, 5, 6.5, 8, 9, 10)]
      ['e2m1', 'e3m2', 'e3m3', 'e3m5', 'e4m6', 'e4m7', 'bfloat16']

    Source: arXiv 2505.11170, section 3 (E3M2 for 4 bits); the others follow in the same way.
    """
    if math.isnan(b_t):
        raise ValueError('b_t is NaN; it must be a number of bits')
    b = _whole_bits(min(max(b_t, LEAST_BITS), MOST_BITS))
    if b == MOST_BITS:
        return FloatFormat(8, 7, 'ieee')
    return next(fmt for fmt in (FloatFormat(e, b - 2) for e in range(2, 8)) if holds_noise(fmt, b))


def holds_noise(fmt: FloatFormat, b_t: float) -> bool:
    """Whether rounded normal noise of this bitwidth survives in the format: see `format_for_bitwidth`."""
    b = _whole_bits(b_t)
    top_exponent = math.frexp(fmt.max)[1] - 1
    return fmt.mantissa_bits >= b - 2 and top_exponent - fmt.min_exponent >= b - 1


def most_bits_held(fmt: FloatFormat) -> float:
    """The largest whole bitwidth whose rounded normal noise survives in the format; -inf if there is none."""
    return max((float(b) for b in range(1, MOST_BITS + 1) if holds_noise(fmt, b)), default=-math.inf)


def _whole_bits(b_t: float) -> int:
    return math.ceil(round(b_t * 1024) / 1024)


STORED_BITS = {b: format_for_bitwidth(b).bits for b in range(LEAST_BITS, MOST_BITS + 1)}  # of a weight


def bitwidth_penalty(bitwidths: Any) -> jax.Array:
    """Mean bitwidth over all blocks: add a multiple of it to the loss to pull the bitwidths down.

    Args:
      bitwidths: pytree of b_t, as `ParamTransform.bitwidths` returns it, in bits.

    Returns:
      Scalar float32: sum of b_t over the blocks of all leaves, divided by the number of blocks.

    Raises:
      ValueError: if there is no bitwidth in the tree.

    Example:
      >>> float(bitwidth_penalty({'a': jnp.array([[4.0, 6.0]]), 'b': jnp.array([[5.0]])}))
      5.0

    Source: DiffQ, arXiv 2104.09987, section 3.4 (a penalty on the model's size).
    """
    leaves = jax.tree.leaves(bitwidths)
    blocks = sum(leaf.size for leaf in leaves)
    if not blocks:
        raise ValueError('bitwidths has no entry: this ParamTransform learns none, so there is nothing to penalise')
    return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in leaves) / blocks
