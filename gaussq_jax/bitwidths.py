"""Learned bitwidths: from the trained b_i to the block's bitwidth b_t, and what pulls it down."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def effective_bitwidths(b_i: jax.Array, b_init: float, b_target: float) -> jax.Array:
    """The bitwidths that act: b_t = b_target + b_i (b_init - b_target).

    b_i starts at 1, where b_t = b_init; weight decay or a penalty pulls it to 0, where b_t = b_target.

    Args:
      b_i: trained parameter of each block, any shape, float32.
      b_init: bitwidth at the start, in bits.
      b_target: bitwidth without resistance from the loss, in bits; at least 1 and at most b_init.

    Returns:
      b_t, of b_i's shape and dtype, in bits.

    Raises:
      ValueError: unless 1 <= b_target <= b_init, both finite.

    Example:
      >>> effective_bitwidths(jnp.array([1.0, 0.5, 0.0]), b_init=6, b_target=4)
      Array([6., 5., 4.], dtype=float32)

    Source: arXiv 2505.11170, section 3.
    """
    if not (math.isfinite(b_init) and 1 <= b_target <= b_init):
        raise ValueError(f'b_target={b_target}, b_init={b_init}: allowed are finite 1 <= b_target <= b_init')
    return b_target + b_i * (b_init - b_target)


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
