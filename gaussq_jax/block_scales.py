"""The scale of each block, from its largest magnitude or its root mean square: float32, powers of two, and NVFP4's."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.blocks import Blocks
from gaussq_jax.formats import FloatFormat
from gaussq_jax.quantizer import Quantizer
from kernels_pallas.random_bits import key_words, random_bits_16
from kernels_pallas.rounding_on_bits import BlockScale, fast_round_to_representable, power_of_two_scale

NVFP4_SCALE = FloatFormat(4, 3, 'fn')
SIX_CODE = 256.0  # of float8_e4m3fn, of the largest block with four over six: 1.5 times as much is a number of it, too
EDEN_LARGEST = 6 * 16 / 17 / 0.93  # what a block's largest magnitude becomes: it is cut to 6
_LARGEST = float(np.finfo(np.float32).max) * (1 - 2.0**-22)  # scaled back and rounded, it is still finite
_FRACTION = (1 << 23) - 1  # all bits of a float32's mantissa


def of_blocks(wide: jax.Array, blocks: Blocks, quantizer: Quantizer, key: jax.Array | None = None) -> BlockScale:
    """How blocks of values are scaled: float32, as `blocks` has split them. The key is for `fit` 'eden' alone."""
    if quantizer.fit == 'eden':
        scale = _eden_scale(wide, blocks, quantizer.fmt, key)
    elif quantizer.scale == 'nvfp4':
        scale = _of_codes(*nvfp4_codes(wide, blocks, quantizer))
    else:
        largest = _absmax(wide, blocks)
        if quantizer.fit == 'rms':
            largest = _clipped(wide, largest, blocks, quantizer.fmt)
        if quantizer.scale == 'mx':
            scale = power_of_two_scale(_to_be_cut(largest, quantizer), quantizer.fmt.max)
        else:
            scale = _absmax_scale(largest, quantizer.fmt)
    if quantizer.prescale == 1:
        return scale
    by, back = np.float32(quantizer.prescale), np.float32(1 / quantizer.prescale)
    # A scale that is no normal number would be flushed to zero, and a larger inverse would make infinities.
    most = np.float32(min(2.0**126, _LARGEST / quantizer.fmt.representable.shifted(scale.shift).largest))
    return scale._replace(
        scale=jnp.maximum(scale.scale * by, 1 / most), inverse=jnp.minimum(scale.inverse * back, most)
    )


def nvfp4_codes(wide: jax.Array, blocks: Blocks, quantizer: Quantizer) -> tuple[jax.Array, jax.Array]:
    """The scale of each block, a number of float8_e4m3fn, and what all of them are divided by."""
    largest, of_tensor = _absmax_and_of_tensor(wide, blocks)
    if quantizer.fit != 'four_over_six':
        return _e4m3(largest * (NVFP4_SCALE.max / of_tensor)), 6 * NVFP4_SCALE.max / of_tensor
    divisor = 6 * SIX_CODE / of_tensor
    six, four = (_e4m3(largest * (code / of_tensor)) for code in (SIX_CODE, 1.5 * SIX_CODE))
    errors = [_squared_error(wide, blocks, code, divisor, quantizer.fmt) for code in (six, four)]
    return jnp.where(errors[1] < errors[0], four, six), divisor


def _eden_scale(wide: jax.Array, blocks: Blocks, fmt: FloatFormat, key: jax.Array | None) -> BlockScale:
    """Values are rounded by one scale, and multiplied by a better one, which is rounded stochastically."""
    largest, of_tensor = _absmax_and_of_tensor(wide, blocks)
    divisor = SIX_CODE * EDEN_LARGEST / of_tensor
    code = _e4m3(largest * (SIX_CODE / of_tensor))
    scale, _, _ = _of_codes(code, divisor)
    scaled = jnp.where(jnp.isfinite(wide), wide, 0) * scale
    rounded = fast_round_to_representable(scaled, representable=fmt.representable)
    square, product = (jnp.sum(scaled * by, axis=blocks.within, keepdims=True) for by in (scaled, rounded))
    corrected = code * jnp.where(product > 0, square / jnp.where(product > 0, product, 1), 1)
    bits = random_bits_16(key_words(key), corrected.shape)
    drawn = fast_round_to_representable(corrected, bits, representable=NVFP4_SCALE.representable, rounding='stochastic')
    most = np.float32(_LARGEST / fmt.max)  # a draw up may be too much
    return BlockScale(scale, jnp.minimum(_of_codes(drawn, divisor).inverse, most), 0)


def _absmax(wide: jax.Array, blocks: Blocks) -> jax.Array:
    """The largest finite magnitude of each block; 0 where there is none."""
    return jnp.max(jnp.where(jnp.isfinite(wide), jnp.abs(wide), 0), axis=blocks.within, keepdims=True)


def _absmax_and_of_tensor(wide: jax.Array, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """The largest magnitude of each block, and of all, that by which a second scale can be divided."""
    largest = _absmax(wide, blocks)
    return largest, jnp.clip(jnp.max(largest, initial=0), 2.0**-105, _LARGEST)


def _clipped(wide: jax.Array, largest: jax.Array, blocks: Blocks, fmt: FloatFormat) -> jax.Array:
    """c RMS of each block's finite values, which are scaled by a power of two first, so that no square overflows."""
    by_two = power_of_two_scale(largest, 2.0)
    is_finite = jnp.isfinite(wide)
    squares = jnp.square(jnp.where(is_finite, wide, 0) * by_two.scale)
    counts = blocks.counts - jnp.sum(~is_finite, axis=blocks.within, keepdims=True, dtype=jnp.float32)
    rms = jnp.sqrt(jnp.sum(squares, axis=blocks.within, keepdims=True) / jnp.maximum(counts, 1)) * by_two.inverse
    return jnp.minimum(np.float32(gaussian_clipping(fmt)) * rms, np.finfo(np.float32).max)


@functools.cache
def gaussian_clipping(fmt: FloatFormat) -> float:
    """The c for which E[(Z - c/max round(Z max/c))^2] is least, Z of the standard normal distribution.

    Example:
      >>> round(gaussian_clipping(FloatFormat(2, 1)), 4)
      2.9225

    Source: arXiv 2505.14669, section 4.3, of E2M1, as QuEST, arXiv 2502.05003, of integers.
    """
    values = fmt.values() / fmt.max
    edges = (values[1:] + values[:-1]) / 2
    phi = lambda t: math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    t_phi = lambda t: 0.0 if t == math.inf else t * phi(t)

    def error(c):
        # E[(Z - v)^2; a < Z < b] = (1 + v^2) P - 2 v (phi(a) - phi(b)) + a phi(a) - b phi(b), twice by symmetry.
        total = 0.0
        bounds = [0.0, *(c * edges), math.inf]
        for v, a, b in zip(c * values, bounds, bounds[1:]):
            p = (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
            total += (1 + v * v) * p + t_phi(a) - t_phi(b) - 2 * v * (phi(a) - phi(b))
        return total

    return _least(error)


def _least(function) -> float:
    """Where a function is least: the best of a grid, and then by sections of the golden ratio around it."""
    grid = np.geomspace(0.25, 16, 200)
    best = int(np.argmin([function(c) for c in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return float((low + high) / 2)


def _to_be_cut(largest: jax.Array, quantizer: Quantizer) -> jax.Array:
    """Magnitudes whose powers of two below are what `scale_rounding` makes of these, exactly, by their bits."""
    emax = math.frexp(quantizer.fmt.max)[1] - 1
    largest_fraction = int(np.float32(quantizer.fmt.max).view(np.uint32)) & _FRACTION
    half_way = quantizer.fmt.max / math.sqrt(2)  # no float32: the first one that is nearer to fmt.max is what counts
    first_nearer = int(np.float32(half_way).view(np.uint32)) + (float(np.float32(half_way)) < half_way)
    added = {
        'floor': 0,
        'even': 1 << (22 - quantizer.fmt.mantissa_bits),
        'ceil': _FRACTION,
        'rceil': _FRACTION - largest_fraction,
        'nearest': (127 + emax << 23) - first_nearer,
    }[quantizer.scale_rounding]
    if not added:
        return largest
    largest_finite = int(np.finfo(np.float32).max.view(np.uint32))
    bits = jax.lax.bitcast_convert_type(largest, jnp.int32)
    return jax.lax.bitcast_convert_type(jnp.clip(bits, -added, largest_finite - added) + added, jnp.float32)


# No array is divided by a number: XLA makes that a multiplication by the reciprocal, or doesn't, according to the
# shape. The shift makes formats that differ by a power of two, as E0M7 and E1M6, one and the same.


def _absmax_scale(largest: jax.Array, fmt: FloatFormat) -> BlockScale:
    shift = 3 - math.frexp(fmt.max)[1]  # the largest number is in [4, 8)
    largest = jnp.clip(largest, 2.0**-123, _LARGEST)
    top = fmt.max * 2.0**shift
    return BlockScale(top / largest, largest * np.float32(1 / top), shift)


def _of_codes(code: jax.Array, divisor: jax.Array) -> BlockScale:
    scale = jnp.where(code > 0, divisor / jnp.where(code > 0, code, 1), 0)
    # A barrier, or XLA multiplies by the reciprocal of what is the same for all blocks, in some shapes.
    divisors = jax.lax.optimization_barrier(jnp.broadcast_to(divisor, code.shape))
    return BlockScale(scale, code / divisors, 0)


def _e4m3(x: jax.Array) -> jax.Array:
    return fast_round_to_representable(x, representable=NVFP4_SCALE.representable)


def _squared_error(wide: jax.Array, blocks: Blocks, code: jax.Array, divisor: jax.Array, fmt: FloatFormat) -> jax.Array:
    """Of each block, rounded to nearest, times divisor^2: so no square overflows."""
    rounded = fast_round_to_representable(wide * _of_codes(code, divisor).scale, representable=fmt.representable)
    error = jnp.where(jnp.isfinite(wide), rounded * code - wide * divisor, 0)
    return jnp.sum(jnp.square(error), axis=blocks.within, keepdims=True)
