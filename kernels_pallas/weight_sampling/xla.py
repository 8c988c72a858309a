"""The reference: weight sampling in plain `jax.numpy`, for every platform, shape, sharding and block size.

Equivalent to, for each square block of W with its noise R,

    A = max |W|, over the finite weights;  step = A * scale;  W_hat = round(W + R * step)
    sums = sum(dW_hat * R)

with every choice that could move a bit (the noise's bits, the order of the sum, the rounding) fixed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernels_pallas import jax_internals
from kernels_pallas.philox import Words2, Words4
from kernels_pallas.random_bits import over_lanes
from kernels_pallas.rounding_on_bits import Representable, round_to_dtype
from kernels_pallas.weight_sampling import noise as noise_bits
from kernels_pallas.weight_sampling.blocks import block_step, exact_parts, round_sampled

Origin = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames=('block_size', 'noise', 'dtype', 'representable'))
def forward(
    key: Words2,
    origin: Origin,
    w: jax.Array,
    scale: jax.Array,
    *,
    block_size: int,
    noise: str,
    dtype: jnp.dtype,
    representable: Representable | None = None,
) -> tuple[jax.Array, jax.Array]:
    """W_hat (..., m, n) in `dtype`, and the step of each block (..., ceil(m / B), ceil(n / B)) in float32.

    Args:
      key: two uint32 scalars.
      origin: leading index, row and column of w[0, .., 0] in its leaf; uint32 scalars, row and column
        multiples of `block_size`.
      w: (..., m, n), float32 or bfloat16.
      scale: (..., ceil(m / B), ceil(n / B)), float32: 2^(1 - bitwidth).
      block_size: B, the side of a block.
      noise: 'rounded_normal' or 'uniform'.
      dtype: bfloat16 or float32.
      representable: the numbers of a low-bit format, to which W + R * step is rounded first, each block scaled by the
        power of two that puts A into the format's top binade.
    """
    w = w.astype(jnp.float32)
    magnitude = jnp.where(jnp.isfinite(w), jnp.abs(w), 0)
    absmax = _reduce_blocks(magnitude, block_size, jnp.maximum)
    step = block_step(absmax, scale, noise)
    expand = lambda x: _expand_blocks(_positive_computed_once(x), block_size, w.shape)
    r = draw(key, origin, w.shape, noise=noise, row_alignment=block_size)
    w_hat = w + r * expand(step)
    if representable is not None:
        w_hat = round_sampled(w, w_hat, absmax, representable, expand)
    return round_to_dtype(w_hat, dtype), step


@functools.partial(jax.jit, static_argnames=('block_size', 'noise'))
def backward(key: Words2, origin: Origin, dw_hat: jax.Array, *, block_size: int, noise: str) -> jax.Array:
    """sum(dW_hat * R) over each block, float32 (..., ceil(m / B), ceil(n / B)), from the same R, drawn again.

    The order of the sum is fixed: halving over the rows, then halving over the columns. The products are exact in
    float32, so that a fused multiply-add changes nothing; for that, a float32 cotangent meets the 16 bits
    of the uniform noise in three parts of eight bits.
    """
    r = draw(key, origin, dw_hat.shape, noise=noise, row_alignment=block_size)
    sums = [_reduce_blocks(part * r, block_size, jnp.add) for part in exact_parts(dw_hat, noise)]
    return functools.reduce(jnp.add, sums)


@functools.partial(jax.jit, static_argnames=('shape', 'noise', 'row_alignment'))
def draw(key: Words2, origin: Origin, shape: tuple[int, ...], *, noise: str, row_alignment: int = 1) -> jax.Array:
    """The noise R of `shape` (..., m, n), as float32; origin's row is a multiple of `row_alignment`."""
    *leading_shape, m, n = shape
    leading, row, column = origin
    most_shift = noise_bits.GROUP_ROWS - 1 if row_alignment % noise_bits.GROUP_ROWS else 0  # of row into its group
    groups = -(-(m + most_shift) // noise_bits.GROUP_ROWS)

    counters = (*leading_shape, groups, noise_bits.LANE_ROWS, n)
    index = lambda axis: jax.lax.broadcasted_iota(jnp.uint32, counters, axis % len(counters))
    lane_row = (row // noise_bits.GROUP_ROWS + index(-3)) * noise_bits.LANE_ROWS + index(-2)
    stride = 1
    for axis in reversed(range(len(leading_shape))):
        leading = leading + index(axis) * jnp.uint32(stride)
        stride *= leading_shape[axis]
    words = noise_bits.random_words(key, column + index(-1), lane_row, jnp.broadcast_to(leading, counters))

    unpack = _rounded_normal_lanes if noise == 'rounded_normal' else _uniform_lanes
    r = unpack(words).reshape(*leading_shape, groups * noise_bits.GROUP_ROWS, n)
    if most_shift:
        shift = (row % noise_bits.GROUP_ROWS).astype(jnp.int32)
        return jax.lax.dynamic_slice_in_dim(r, shift, m, axis=r.ndim - 2)
    return r[..., :m, :]


def _rounded_normal_lanes(words: Words4) -> jax.Array:
    """(..., groups, 4, n) words -> (..., groups, 8, 4, n) float32 noise, by way of 4 bits a weight."""
    code = jnp.zeros_like(words[0])
    for i, lane in enumerate(noise_bits.lanes(words)):
        code |= (noise_bits.rounded_normal(lane) + 2).astype(jnp.uint32) << jnp.uint32(4 * i)
    code = jnp.expand_dims(_computed_once(code), -3)
    lane = jax.lax.broadcasted_iota(jnp.uint32, (*code.shape[:-3], noise_bits.LANES, *code.shape[-2:]), code.ndim - 3)
    return ((code >> (4 * lane)) & jnp.uint32(0xF)).astype(jnp.float32) - 2


def _uniform_lanes(words: Words4) -> jax.Array:
    """(..., groups, 4, n) words -> (..., groups, 8, 4, n) float32 noise."""
    return noise_bits.uniform(over_lanes(words, words[0].ndim - 2))


def _computed_once(bits: jax.Array) -> jax.Array:
    """Unsigned `bits`, of which not all are set, computed once although they are read many times.

    XLA:CPU fuses a producer that it deems cheap into each read of it: Philox would run once a lane, the block's
    maximum once a weight. A barrier keeps it from that.
    """
    return jax_internals.optimization_barrier(bits)


def _positive_computed_once(x: jax.Array) -> jax.Array:
    """The same for float32 numbers >= 0."""
    return jax.lax.bitcast_convert_type(_computed_once(jax.lax.bitcast_convert_type(x, jnp.uint32)), jnp.float32)


def _reduce_blocks(x: jax.Array, block_size: int, combine: Callable) -> jax.Array:
    """(..., m, n) -> (..., ceil(m / B), ceil(n / B)), in a fixed order; edge blocks are filled up with zeros."""
    *leading_shape, m, n = x.shape
    m_blocks, n_blocks = -(-m // block_size), -(-n // block_size)
    edges = [(0, 0)] * len(leading_shape) + [(0, m_blocks * block_size - m), (0, n_blocks * block_size - n)]
    x = jnp.pad(x, edges) if any(high for _, high in edges) else x
    x = x.reshape(*leading_shape, m_blocks, block_size, n_blocks, block_size)
    return _halving(_halving(x, x.ndim - 3, combine), x.ndim - 1, combine)[..., 0, :, 0]


def _halving(x: jax.Array, axis: int, combine: Callable) -> jax.Array:
    """Combines the two halves of `axis` until one entry is left; an odd one out waits for the next round."""
    while (size := x.shape[axis]) > 1:
        half = size // 2
        part = lambda start, stop, x=x: jax.lax.slice_in_dim(x, start, stop, axis=axis)
        combined = combine(part(0, half), part(half, 2 * half))
        x = jnp.concatenate([combined, part(2 * half, size)], axis) if size % 2 else combined
    return x


def _expand_blocks(x: jax.Array, block_size: int, shape: tuple[int, ...]) -> jax.Array:
    """(..., ceil(m / B), ceil(n / B)) -> `shape` (..., m, n): each block's value at each of its weights."""
    *leading_shape, m_blocks, n_blocks = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None], (*leading_shape, m_blocks, block_size, n_blocks, block_size))
    return x.reshape(*leading_shape, m_blocks * block_size, n_blocks * block_size)[..., : shape[-2], : shape[-1]]
