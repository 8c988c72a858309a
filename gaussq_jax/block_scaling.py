"""Fake quantization: blocks of a tensor scaled to a low-bit format's range, rounded there, and scaled back."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax import explicit_sharding
from gaussq_jax.formats import FloatFormat
from gaussq_jax.rounding import as_format, check_input, check_rounding, straight_through
from kernels_pallas.rounding_on_bits import (
    ROUNDINGS,
    BlockScale,
    power_of_two_scale,
    round_to_dtype,
    round_to_representable,
)

SCALES = ('absmax', 'mx', 'nvfp4')
Axis = int | Sequence[int]

_NVFP4_BLOCK_SIZES = (16, (1, 16), (16, 1), (16, 16))
_NVFP4_SCALE = FloatFormat(4, 3, 'fn')
_LARGEST = float(np.finfo(np.float32).max) * (1 - 2.0**-22)  # scaled back and rounded, it is still finite


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """How a tensor is quantized: to which format, and what shares a scale.

    Attributes:
      fmt: a FloatFormat, or a name for `parse_format`.
      block_size: what shares a scale, along an axis that is chosen where the quantizer is used.
        an integer: so many consecutive values along the axis; the last block may be shorter.
        'channel': the whole of the axis.
        'tensor': the whole tensor; under `jax.vmap` and `jax.shard_map`, each slice or shard, as of NVFP4's g.
        (rows, cols): a tile of `cols` values along the axis and `rows` along the other one of the last two axes.
      scale: how a block's scale follows from A, its largest magnitude.
        'absmax': S = fmt.max / A in float32, Y = round(X S) / S.
        'mx': s = 2^(floor(log2 A) - floor(log2 fmt.max)), exponent clipped to +-127, Y = s round(X / s): OCP's MX
          if the block size is 32. The largest values may saturate.
        'nvfp4': for E2M1 in blocks of 16, or tiles of 16 along an axis, two scales: g = 2688 / max|X| of the tensor,
          s = A g / 6 rounded to float8_e4m3fn, Y = s / g round(X g / s); zeros if s is 0.
      rounding: as for `round_to_format`; of the values, scales are rounded to nearest.

    Raises:
      ValueError: naming the argument, for a value other than these.

    Example:
      >>> Quantizer('e4m3', block_size=128)
      Quantizer(fmt=FloatFormat(exponent_bits=4, mantissa_bits=3, special_values='finite'), block_size=128,
          scale='absmax', rounding='nearest_even')

    Source: arXiv 2501.02423, section 3; OCP Microscaling Formats v1.0, section 6.3; NVIDIA's NVFP4.
    """

    fmt: FloatFormat | str
    _: dataclasses.KW_ONLY
    block_size: int | str | tuple[int, int] = 32
    scale: str = 'absmax'
    rounding: str = 'nearest_even'

    def __post_init__(self):
        object.__setattr__(self, 'fmt', as_format(self.fmt))
        object.__setattr__(self, 'block_size', _check_block_size(self.block_size))
        if self.scale not in SCALES:
            raise ValueError(f'scale={self.scale!r} is not one of {", ".join(map(repr, SCALES))}')
        if self.rounding not in ROUNDINGS:
            raise ValueError(f'rounding={self.rounding!r} is not one of {", ".join(map(repr, ROUNDINGS))}')
        is_e2m1 = self.fmt.name in ('e2m1', 'float4_e2m1fn')
        if self.scale == 'nvfp4' and not (is_e2m1 and self.block_size in _NVFP4_BLOCK_SIZES):
            raise ValueError(
                f"scale='nvfp4' with fmt {self.fmt} and block_size={self.block_size!r}: it is defined for e2m1"
                f' and block_size={" or ".join(map(str, _NVFP4_BLOCK_SIZES))}'
            )

    def deterministic(self) -> 'Quantizer':
        """The same without randomness: stochastic rounding becomes rounding to nearest even."""
        return dataclasses.replace(self, rounding='nearest_even') if self.rounding == 'stochastic' else self


def fake_quantize(x: jax.Array, quantizer: Quantizer, *, axis: Axis = -1, key: jax.Array | None = None) -> jax.Array:
    """x quantized and dequantized, in its own dtype: what is left of it in the quantizer's format and scales.

    Computed in float32. No infinity and no NaN is made of finite values, zeros stay zeros; infinite and NaN values
    come out as they are, and don't enter the maximum of their block. A block whose largest magnitude is below 2^-123
    (for MX 2^-125, or what a scale of 2^-127 is for; 2^-105 of the whole tensor for NVFP4) is scaled as if it were
    that. Float32 subnormals count as zero where the device flushes them, as CPUs do; so do values some 2^128 times
    smaller than the largest of their block, in formats that wide. The gradient is straight through, dx = dy.

    Args:
      x: float32, bfloat16 or float16, of any shape.
      quantizer: says what shares a scale along `axis`, and what the values are rounded to.
      axis: an axis of x, or several that are read as one, flattened in the order given. For the GEMM operand that x
        is, its contraction axis.
      key: a JAX PRNG key; needed for stochastic rounding, and for nothing else. One key means the same random bits:
        under `jax.vmap`, map it too.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: for a dtype or an axis that x can't have; for tiles along another axis than one of the last two; a key
        missing, or given for nothing.

    Example:
      >>> fake_quantize(jnp.array([[0.1, -0.7, 3.0, 5.0]]), Quantizer('e2m1', block_size=2))
      Array([[ 0.11666667, -0.7       ,  3.3333335 ,  5.        ]], dtype=float32)

    Source: arXiv 2501.02423, section 3.
    """
    check_input(x)
    check_quantizer(quantizer)
    check_rounding(quantizer.rounding, key)
    axes = _check_axis(axis, x.ndim, quantizer.block_size)
    if not x.size:
        return x
    blocks = _Blocks(x.shape, axes, quantizer.block_size)

    def quantize(x, key):
        random_bits = None if key is None else blocks.split(jax.random.bits(key, x.shape, jnp.uint32))
        return blocks.join(_quantize_blocks(blocks.split(x), random_bits, blocks.within, quantizer))

    return straight_through(x, explicit_sharding.like(x, quantize)(x, key))


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
    axes = _check_axis(axis, x.ndim, quantizer.block_size)
    if not x.size:
        return x.astype(jnp.float32)
    blocks = _Blocks(x.shape, axes, quantizer.block_size)

    def of_blocks(x):
        split = blocks.split(x)
        _, inverse, shift = _scale_of(_absmax(split.astype(jnp.float32), blocks.within), quantizer)
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
    check_rounding(quantizer.rounding, None)
    blocks = _Blocks(x.shape, _check_axis(axis, x.ndim, quantizer.block_size), quantizer.block_size)
    wide = blocks.split(x).astype(jnp.float32)
    absmax = _absmax(wide, blocks.within)
    scale, inverse, shift = _scale_of(absmax, quantizer)
    numbers = _round_scaled(wide * scale, None, shift, quantizer)
    divisor = None
    if quantizer.scale == 'nvfp4':
        inverse, divisor = _nvfp4_scales(absmax)
    return Scaled(blocks.join(numbers), jnp.squeeze(inverse, blocks.within), divisor, shift)


def _quantize_blocks(x, random_bits, within: tuple[int, ...], quantizer: Quantizer):
    """Fake quantization of x, whose axes `within` lie within blocks, all others count them."""
    wide = x.astype(jnp.float32)
    scale, inverse, shift = _scale_of(_absmax(wide, within), quantizer)
    rounded = _round_scaled(wide * scale, random_bits, shift, quantizer)
    return round_to_dtype(jnp.where(jnp.isfinite(wide), rounded * inverse, wide), x.dtype)


def _round_scaled(scaled, random_bits, shift: int, quantizer: Quantizer):
    representable = quantizer.fmt.representable.shifted(shift)
    return round_to_representable(scaled, random_bits, representable=representable, rounding=quantizer.rounding)


def _absmax(wide, within: tuple[int, ...]):
    return jnp.max(jnp.where(jnp.isfinite(wide), jnp.abs(wide), 0), axis=within, keepdims=True)


def _scale_of(absmax, quantizer: Quantizer) -> BlockScale:
    if quantizer.scale == 'mx':
        return power_of_two_scale(absmax, quantizer.fmt.max)
    return (_absmax_scale if quantizer.scale == 'absmax' else _nvfp4_scale)(absmax, quantizer.fmt)


# No array is divided by a number: XLA makes that a multiplication by the reciprocal, or doesn't, according to the
# shape. The shift makes formats that differ by a power of two, as E0M7 and E1M6, one and the same.


def _absmax_scale(absmax: jax.Array, fmt: FloatFormat) -> BlockScale:
    shift = 3 - math.frexp(fmt.max)[1]  # the largest number is in [4, 8)
    absmax = jnp.clip(absmax, 2.0**-123, _LARGEST)
    largest = fmt.max * 2.0**shift
    return BlockScale(largest / absmax, absmax * np.float32(1 / largest), shift)


def _nvfp4_scale(absmax: jax.Array, fmt: FloatFormat) -> BlockScale:
    del fmt  # e2m1
    block_scale, divisor = _nvfp4_scales(absmax)
    scale = jnp.where(block_scale > 0, divisor / jnp.where(block_scale > 0, block_scale, 1), 0)
    # A barrier, or XLA multiplies by the reciprocal of what is the same for all blocks, in some shapes.
    divisors = jax.lax.optimization_barrier(jnp.broadcast_to(divisor, block_scale.shape))
    return BlockScale(scale, block_scale / divisors, 0)


def _nvfp4_scales(absmax: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The scale of each block, a number of float8_e4m3fn, and what all of them are divided by."""
    of_tensor = jnp.clip(jnp.max(absmax), 2.0**-105, _LARGEST)
    largest = _NVFP4_SCALE.max
    block_scale = round_to_representable(absmax * (largest / of_tensor), representable=_NVFP4_SCALE.representable)
    return block_scale, 6 * largest / of_tensor


class _Blocks:
    """An array of `shape` cut into blocks: `split` gives each axis that is cut a second one, `within` the blocks."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], block_size: int | str | tuple[int, int]):
        # The merged axes come where the first of them is: as they are if they lie side by side.
        others = [i for i in range(len(shape)) if i not in axes]
        position = sum(i < axes[0] for i in others) if axes else 0
        self.order = (*others[:position], *axes, *others[position:])
        self.transposed = tuple(shape[i] for i in self.order)
        merged = math.prod(shape[i] for i in axes)
        self.merged = (*(shape[i] for i in others[:position]), merged, *(shape[i] for i in others[position:]))
        if block_size == 'tensor':
            sizes = dict(enumerate(self.merged))
        elif isinstance(block_size, tuple):
            other = 2 * len(self.merged) - 3 - position  # the other one of the last two
            sizes = {other: block_size[0], position: block_size[1]}
        else:
            sizes = {position: merged if block_size == 'channel' else block_size}
        sizes = {axis: min(size, self.merged[axis]) for axis, size in sizes.items()}
        self.blocked, within = [], []
        self.padding = [(0, 0)] * len(self.merged)
        for i, length in enumerate(self.merged):
            if i not in sizes:
                self.blocked.append(length)
                continue
            count = -(-length // sizes[i])
            self.padding[i] = (0, count * sizes[i] - length)
            within.append(len(self.blocked) + 1)
            self.blocked += [count, sizes[i]]
        self.within = tuple(within)

    def split(self, x: jax.Array) -> jax.Array:
        x = jnp.transpose(x, self.order).reshape(self.merged)
        x = jnp.pad(x, self.padding) if any(high for _, high in self.padding) else x
        return x.reshape(self.blocked)

    def join(self, blocks: jax.Array) -> jax.Array:
        padded = [length + high for length, (_, high) in zip(self.merged, self.padding)]
        x = blocks.reshape(padded)[tuple(slice(length) for length in self.merged)]
        return jnp.transpose(x.reshape(self.transposed), np.argsort(self.order))


def _check_block_size(block_size: Any) -> int | str | tuple[int, int]:
    is_size = lambda size: not isinstance(size, bool) and hasattr(size, '__index__') and size > 0
    if is_size(block_size):
        return operator.index(block_size)
    if isinstance(block_size, (tuple, list)) and len(block_size) == 2 and all(map(is_size, block_size)):
        return tuple(map(operator.index, block_size))
    if isinstance(block_size, str) and block_size in ('channel', 'tensor'):
        return block_size
    raise ValueError(f"block_size={block_size!r}: allowed are a positive integer, 'channel', 'tensor' and (rows, cols)")


def check_quantizer(quantizer: Any):
    """ValueError unless it is a Quantizer."""
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"quantizer={quantizer!r}: it must be a Quantizer, such as Quantizer('e4m3')")


def _check_axis(axis: Axis, ndim: int, block_size: Any) -> tuple[int, ...]:
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
