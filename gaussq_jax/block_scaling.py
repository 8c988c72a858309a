"""Fake quantization: blocks of a tensor scaled to a low-bit format's range, rounded there, and scaled back."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax import block_scales, explicit_sharding, hadamard
from gaussq_jax.blocks import Blocks
from gaussq_jax.quantizer import Quantizer, check_quantizer
from gaussq_jax.rounding import check_input, check_rounding, straight_through
from kernels_pallas.random_bits import key_words, random_bits_16
from kernels_pallas.rounding_on_bits import fast_round_to_representable, round_to_dtype

Axis = int | Sequence[int]


def fake_quantize(x: jax.Array, quantizer: Quantizer, *, axis: Axis = -1, key: jax.Array | None = None) -> jax.Array:
    """x quantized and dequantized, in its own dtype: what is left of it in the quantizer's format and scales.

    Computed in float32. No infinity and no NaN is made of finite values, zeros stay zeros; infinite and NaN values
    come out as they are, and don't enter the maximum of their block. A block whose largest magnitude is below 2^-123
    (for MX 2^-125, or what a scale of 2^-127 is for; 2^-105 of the whole tensor for NVFP4) is scaled as if it were
    that. Float32 subnormals count as zero where the device flushes them, as CPUs do; so do values some 2^128 times
    smaller than the largest of their block, in formats that wide. The gradient is straight through, dx = dy, unless
    the quantizer clips it. With a Hadamard transform, which is computed in float32, values that are not finite, or
    whose sums aren't, make NaN of all the values that they are transformed with.

    Args:
      x: float32, bfloat16 or float16, of any shape.
      quantizer: says what shares a scale along `axis`, and what the values are rounded to.
      axis: an axis of x, or several that are read as one, flattened in the order given. For the GEMM operand that x
        is, its contraction axis.
      key: a JAX PRNG key; needed where the quantizer draws random bits, and for nothing else. One key means the same
        bits: under `jax.vmap`, map it too. They are those of `round_to_format`, 16 a value, the same on any mesh.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: for a dtype or an axis that x can't have; for tiles along another axis than one of the last two; for
        an axis whose length is no multiple of the Hadamard transform's size; a key missing, or given for nothing.

    Example:
      >>> fake_quantize(jnp.array([[0.1, -0.7, 3.0, 5.0]]), Quantizer('e2m1', block_size=2))
      Array([[ 0.11666667, -0.7       ,  3.3333335 ,  5.        ]], dtype=float32)

    Source: arXiv 2501.02423, section 3.
    """
    check_input(x)
    check_quantizer(quantizer)
    check_key(quantizer, key)
    axes = check_axis(axis, x.ndim, quantizer.block_size)
    matrix = None if quantizer.hadamard is None else quantizer.hadamard.matrix(signs_key(key))

    def quantize(x, key, matrix):
        y, is_held = quantize_values(x, quantizer, axes, key, matrix)
        y = y if matrix is None else hadamard.transform(y, axes, matrix.T)
        return to_dtype(y, x.dtype), is_held

    y, is_held = explicit_sharding.like(x, quantize)(x, key, matrix)
    if is_held is None:
        return straight_through(x, y)
    return clipped(axes, x, y, is_held, matrix)


def quantize_values(
    x: jax.Array, quantizer: Quantizer, axes: tuple[int, ...], key: jax.Array | None, matrix: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """What `fake_quantize` computes in float32, before it undoes the Hadamard transform by `matrix`, if there is one.

    Returns:
      The values, float32 of x's shape; and whether each of them is held by its block's scale, bool, if the quantizer
      clips the gradient, None otherwise.
    """
    wide = x.astype(jnp.float32)
    wide = wide if matrix is None else hadamard.transform(wide, axes, matrix)
    blocks = Blocks(x.shape, axes, quantizer.block_size)
    split = blocks.split(wide)
    random_bits = None
    if quantizer.rounding == 'stochastic':
        random_bits = blocks.split(random_bits_16(key_words(key), x.shape))
    scale, inverse, shift = block_scales.of_blocks(split, blocks, quantizer, key)
    representable = quantizer.fmt.representable.shifted(shift)
    scaled = split * scale
    rounded = fast_round_to_representable(scaled, random_bits, representable=representable, rounding=quantizer.rounding)
    is_held = blocks.join(jnp.abs(scaled) <= representable.largest) if quantizer.clips_gradient else None
    return blocks.join(jnp.where(jnp.isfinite(split), rounded * inverse, split)), is_held


def to_dtype(y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """float32 values in a dtype: finite ones beyond its largest number, as scales rounded up give, become that."""
    if dtype == jnp.float32:
        return y
    largest = float(jnp.finfo(dtype).max)
    return round_to_dtype(jnp.where(jnp.isfinite(y), jnp.clip(y, -largest, largest), y), dtype)


def signs_key(key: jax.Array | None) -> jax.Array | None:
    """The key of random signs."""
    return None if key is None else jax.random.fold_in(key, 7)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def clipped(
    axes: tuple[int, ...], x: jax.Array, y: jax.Array, is_held: jax.Array, matrix: jax.Array | None
) -> jax.Array:
    """y, with the derivatives of x where, transformed by the matrix, `is_held`, and 0 elsewhere."""
    del axes, x, is_held, matrix
    return y


@clipped.defjvp
def _clipped_jvp(axes, primals, tangents):
    _, _, is_held, matrix = primals
    return clipped(axes, *primals), clip(tangents[0], axes, is_held, matrix)


def clip(d: jax.Array, axes: tuple[int, ...], is_held: jax.Array, matrix: jax.Array | None) -> jax.Array:
    """A gradient, 0 where the value that it is of isn't held; of the values as `matrix` transforms them."""
    if matrix is None:
        return jnp.where(is_held, d, jnp.zeros((), d.dtype))
    held = jnp.where(is_held, hadamard.transform(d.astype(jnp.float32), axes, matrix), 0)
    return hadamard.transform(held, axes, matrix.T).astype(d.dtype)


def largest_magnitudes(x: jax.Array, quantizer: Quantizer, *, axis: Axis = -1) -> jax.Array:
    """The largest magnitude that each value's block can hold: fmt.max / S, or fmt.max s with MX and NVFP4's scales.

    It is what `fake_quantize` makes of the finite values beyond, but for the rounding to x's dtype: 0 in a block whose
    scale is 0. With 'absmax' scales it is the block's largest magnitude itself, within float32 rounding.

    Args:
      x: float32, bfloat16 or float16, of any shape.
      quantizer: as for `fake_quantize`; its rounding is of no account.
      axis: as for `fake_quantize`.

    Returns:
      float32, of x's shape.

    Raises:
      ValueError: for a dtype or an axis that x can't have; for tiles along another axis than one of the last two.

    Example:
      >>> largest_magnitudes(jnp.array([[0.1, -0.7, 3.0, 7.0]]), Quantizer('e2m1', block_size=2, scale='mx'))
      Array([[0.75, 0.75, 6.  , 6.  ]], dtype=float32)

    Source: arXiv 2501.02423, section 3; OCP Microscaling Formats v1.0, section 6.3.
    """
    check_input(x)
    check_quantizer(quantizer)
    axes = check_axis(axis, x.ndim, quantizer.block_size)
    _check_stored(quantizer)
    blocks = Blocks(x.shape, axes, quantizer.block_size)

    def of_blocks(x):
        split = blocks.split(x.astype(jnp.float32))
        _, inverse, shift = block_scales.of_blocks(split, blocks, quantizer)
        largest = quantizer.fmt.representable.shifted(shift).largest
        inverse = jax.lax.optimization_barrier(inverse)  # or XLA multiplies its constant factor by `largest` first
        return blocks.join(jnp.broadcast_to(largest * inverse, split.shape))

    return explicit_sharding.like(x, of_blocks)(x)


class Scaled(NamedTuple):
    """A quantized tensor in the parts that are stored: X's numbers in the format, and what they are multiplied by.

        Y = numbers * 2^-shift * (scales * 2^shift)                      MX and absmax scales
        Y = numbers * (scales / divisor)                                 NVFP4's

    Attributes:
      numbers: float32, of x's shape: numbers of the format times 2^shift.
      scales: float32, one a block: times 2^shift, a power of two or any number; of NVFP4, a number of float8_e4m3fn.
      divisor: float32 scalar, g of NVFP4; None for others.
      shift: an integer; 0 for NVFP4.
    """

    numbers: jax.Array
    scales: jax.Array
    divisor: jax.Array | None
    shift: int


def quantize(x: jax.Array, quantizer: Quantizer, *, axis: Axis = -1) -> Scaled:
    """x as numbers of the quantizer's format and scales, whose product in float32 `fake_quantize` gives.

    Args:
      x: float32, bfloat16 or float16, of any shape.
      quantizer: as for `fake_quantize`, not of stochastic rounding.
      axis: as for `fake_quantize`.

    Returns:
      The parts; `scales` has x's shape, with the number of blocks in the place of their size.

    Raises:
      ValueError: as `fake_quantize`.

    Example:
      >>> scaled = quantize(jnp.array([[0.1, -0.7, 3.0, 8.0]]), Quantizer('e2m1', block_size=2, scale='mx'))
      >>> (scaled.numbers * 2.0**-scaled.shift).tolist(), (scaled.scales * 2.0**scaled.shift).tolist()
      ([[1.0, -6.0, 1.5, 4.0]], [[0.125, 2.0]])

    Source: OCP Microscaling Formats v1.0, section 6.3; NVIDIA's NVFP4.
    """
    check_input(x)
    check_quantizer(quantizer)
    check_key(quantizer, None)
    _check_stored(quantizer)
    blocks = Blocks(x.shape, check_axis(axis, x.ndim, quantizer.block_size), quantizer.block_size)
    split = blocks.split(x).astype(jnp.float32)
    scale, inverse, shift = block_scales.of_blocks(split, blocks, quantizer)
    representable = quantizer.fmt.representable.shifted(shift)
    numbers = fast_round_to_representable(split * scale, representable=representable, rounding=quantizer.rounding)
    divisor = None
    if quantizer.scale == 'nvfp4':
        inverse, divisor = block_scales.nvfp4_codes(split, blocks, quantizer)
    return Scaled(blocks.join(numbers), jnp.squeeze(inverse, blocks.within), divisor, shift)


def _check_stored(quantizer: Quantizer):
    """ValueError for one whose result isn't the product of numbers of the format and scales."""
    if quantizer.hadamard is not None or quantizer.prescale != 1 or quantizer.fit == 'eden':
        raise ValueError(
            f'{quantizer}: what is transformed, prescaled or corrected is no product of its numbers and scales'
        )


def check_key(quantizer: Quantizer, key: jax.Array | None):
    """ValueError unless there is a key if, and only if, the quantizer draws random bits."""
    if not quantizer.needs_key or quantizer.rounding == 'stochastic':
        check_rounding(quantizer.rounding, key)
    elif key is None:
        raise ValueError(f'{quantizer.summary}: it draws random bits and needs a key, such as key=jax.random.key(0)')


def check_axis(axis: Axis, ndim: int, block_size: Any) -> tuple[int, ...]:
    given = (axis,) if isinstance(axis, str) or np.ndim(axis) == 0 else tuple(axis)
    if not all(hasattr(i, '__index__') and not isinstance(i, bool) for i in given):
        raise ValueError(f'axis={axis!r}: it must be an integer, or several')
    axes = tuple(operator.index(i) + ndim * (i < 0) for i in given)
    if len(set(axes)) < len(axes) or not all(0 <= i < ndim for i in axes):
        raise ValueError(
            f'axis={axis} of an array of {ndim} axes; allowed are those from {-ndim} to {ndim - 1}, once each'
        )
    if isinstance(block_size, tuple) and (ndim < 2 or len(axes) != 1 or axes[0] < ndim - 2):
        raise ValueError(f'axis={axis} of an array of {ndim} axes: tiles of {block_size} need one of the last two')
    return axes
