"""An optimizer's state in half the memory: bfloat16, rounded stochastically."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaussq_jax.formats import parse_format
from gaussq_jax.param_tree import is_floating, map_leaves, path_hash
from kernels_pallas.float_rounding import round_to_representable
from kernels_pallas.philox import philox_4x32
from kernels_pallas.random_bits import places

_BFLOAT16 = parse_format('bfloat16').representable


class LowPrecisionState(NamedTuple):
    """Updates made, int32; and the state of the optimizer within, its floating arrays in bfloat16."""

    count: jax.Array
    inner_state: Any


def low_precision_state(inner: optax.GradientTransformation, seed: int) -> optax.GradientTransformation:
    """An optimizer that keeps its state in bfloat16, and computes with it in float32.

        update, s = inner.update(gradient, float32(state));    state = round(s),  E[round(s)] = s

    The rounding is to one of the two neighbours in bfloat16, the nearer one the likelier, so that the mean is exact. To
    the nearest, a moment that moves by less than half a step, 2^-9 of it, would stand still: with b2 = 0.999, the
    second moment could never fall. The update of this step is made from s, before the rounding. Values that bfloat16
    holds stay as they are, infinity and NaN too. Integers and scalars are kept as they are.

    The random bits are a function of (seed, count, the leaf's path, index): the same on every mesh, and after resuming.

    Args:
      inner: any optimizer with a float32 state, which starts at zeros or at other numbers that bfloat16 holds.
      seed: of the rounding.

    Returns:
      An optimizer with a `LowPrecisionState`. The paths of its leaves end as those of the inner state do.

    Example:
      >>> optimizer = low_precision_state(optax.adam(1e-3), seed=0)
      >>> optimizer.init(jnp.zeros(3)).inner_state[0].nu
      Array([0, 0, 0], dtype=bfloat16)

    Source: Gupta et al., Deep Learning with Limited Numerical Precision (arXiv 1502.02551), section 3.
    """

    def init(params):
        return LowPrecisionState(jnp.zeros([], jnp.int32), _cast(inner.init(params), jnp.bfloat16))

    def update(updates, state, params=None):
        updates, inner_state = inner.update(updates, _cast(state.inner_state, jnp.float32), params)
        rounded = map_leaves(functools.partial(_round, seed, state.count), inner_state)
        return updates, LowPrecisionState(optax.safe_increment(state.count), rounded)

    return optax.GradientTransformation(init, update)


def _cast(state, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_rounded(leaf) else leaf, state)


def _round(seed, count, path, leaf):
    if not _is_rounded(leaf):
        return leaf
    key = jnp.uint32(seed % 2**32), jnp.uint32(path_hash(path))
    random_bits = _random_bits(key, count.astype(jnp.uint32), leaf.shape)
    to = dict(representable=_BFLOAT16, overflow=math.inf, rounding='stochastic')
    return round_to_representable(leaf, random_bits, **to).astype(jnp.bfloat16)


def _random_bits(key, count, shape):
    """uint32 of this shape, by Philox of the key and (column, row, leading index, count).

    XLA fuses them with the rounding on every backend, so that they take no memory, as those of `jax.random` do on CPUs.
    """
    return philox_4x32(key, (*places(shape), count), rounds=7)[0]


def _is_rounded(leaf):
    return is_floating(leaf) and leaf.ndim > 0
