"""Rounding on the bit patterns of float32, in plain `jax.numpy`: the reference for casts, and what all kernels do.

No arithmetic on the values takes place, so that nothing can be folded, fused or flushed: float32 subnormals
are numbers like others, whatever the device does with them. Kernels and fake quantization take a quicker way to the
same bits where there is one, `fast_round_to_representable`.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROUNDINGS = ('nearest_even', 'nearest_away', 'toward_zero', 'stochastic')

_MAGNITUDE = np.uint32(0x7FFFFFFF)  # all bits of a float32 but its sign
_INFINITY = np.uint32(0x7F800000)
_QUICK_LIMIT = 2.0**100  # of `_round_to_nearest`


class Representable(NamedTuple):
    """The numbers that a low-bit format has: +-k 2^(e - M), e >= `min_exponent`, k < 2^(M + 1), at most `largest`.

    Attributes:
      mantissa_bits: M, 0 to 10.
      min_exponent: exponent of the smallest normal number.
      largest: the largest number, one of them.

    Example:
      >>> Representable(mantissa_bits=2, min_exponent=-2, largest=28.0).shifted(-3)  # E3M2, as OCP has it
      Representable(mantissa_bits=2, min_exponent=-5, largest=3.5)
    """

    mantissa_bits: int
    min_exponent: int
    largest: float

    def shifted(self, shift: int) -> 'Representable':
        """The same numbers times 2^shift."""
        return Representable(self.mantissa_bits, self.min_exponent + shift, self.largest * 2.0**shift)


class BlockScale(NamedTuple):
    """How blocks are scaled: X * scale is rounded to the format's numbers times 2^shift, and multiplied by `inverse`.

    Attributes:
      scale, inverse: float32, one a block.
      shift: an integer that keeps both of them normal float32 numbers for blocks of (almost) any magnitude.
    """

    scale: jax.Array
    inverse: jax.Array
    shift: int


@functools.partial(jax.jit, static_argnames=('representable', 'overflow', 'rounding'))
def round_to_representable(
    x: jax.Array,
    random_bits: jax.Array | None = None,
    *,
    representable: Representable,
    overflow: float | None = None,
    rounding: str = 'nearest_even',
) -> jax.Array:
    """x rounded to the numbers of a format.

    Args:
      x: float32 of any shape.
      random_bits: for stochastic rounding, uint32 or uint16 of x's shape: |x| goes up if the fraction of the step that
        it lies above the number below is greater than random_bits / 2^32, or (random_bits + 1/2) / 2^16: numbers
        that are representable stay, and the mean is x within 2^-17 of the step.
      representable: these numbers.
      overflow: what infinity becomes, and a magnitude that is rounded beyond `largest` (toward zero, that one is
        `largest` anyway); None for `largest`. NaN stays NaN.
      rounding: of ROUNDINGS.

    Returns:
      float32 of x's shape, with the signs of x.

    Example:
      >>> round_to_representable(jnp.float32([0.3, -100.0]), representable=Representable(1, 0, 6.0))
      Array([ 0.5, -6. ], dtype=float32)
    """
    largest = representable.largest
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = bits & _MAGNITUDE
    rounded = _round_magnitude(magnitude, random_bits, representable, rounding)
    infinity = largest if overflow is None else overflow
    beyond = largest if rounding == 'toward_zero' else infinity
    rounded = jnp.where(rounded > _bits_of(largest), _bits_of(beyond), rounded)
    rounded = jnp.where(magnitude == _INFINITY, _bits_of(infinity), rounded)
    rounded = jnp.where(magnitude > _INFINITY, magnitude, rounded)
    return jax.lax.bitcast_convert_type((bits ^ magnitude) | rounded, jnp.float32)


@functools.partial(jax.jit, static_argnames=('representable', 'overflow', 'rounding'))
def fast_round_to_representable(
    x: jax.Array,
    random_bits: jax.Array | None = None,
    *,
    representable: Representable,
    overflow: float | None = None,
    rounding: str = 'nearest_even',
) -> jax.Array:
    """`round_to_representable`, with the same bits, by arithmetic on the values where that will do."""
    mantissa_bits, min_exponent, largest = representable
    is_nearest = rounding == 'nearest_even' and mantissa_bits
    is_stochastic = rounding == 'stochastic' and random_bits.dtype == jnp.uint16
    # A device may flush x below 2^-126: then none goes up.
    least_up = 2.0 ** (min_exponent - mantissa_bits - (1 if is_nearest else 17))
    if not (is_nearest or is_stochastic) or least_up < 2.0**-126 or largest >= _QUICK_LIMIT:
        return round_to_representable(x, random_bits, representable=representable, overflow=overflow, rounding=rounding)
    limit = largest if overflow is None else _QUICK_LIMIT
    limited = representable._replace(largest=limit)
    rounded = _round_to_nearest(x, limited) if is_nearest else _round_stochastically(x, random_bits, limited)
    if overflow is not None:
        sign = jax.lax.bitcast_convert_type(x, jnp.uint32) & ~_MAGNITUDE
        beyond = jax.lax.bitcast_convert_type(sign | _bits_of(overflow), jnp.float32)
        rounded = jnp.where(jnp.abs(rounded) > largest, beyond, rounded)
    return jnp.where(x != x, x, rounded)  # NaN with all its bits


def power_of_two_scale(absmax: jax.Array, largest: float) -> BlockScale:
    """The scale of OCP's MX formats for blocks of these largest magnitudes.

    MX divides a block by s = 2^(floor(log2 absmax) - floor(log2 largest)), with the exponent of s clipped to +-127, so
    that its largest magnitude falls into the format's top binade. The scale is 2^shift / s. It and its inverse
    are normal float32 numbers: blocks below 2^-125, in the less usual formats with floor(log2 largest) < 2, are scaled
    as if they were that.

    Args:
      absmax: float32 of any shape, finite.
      largest: the largest number of the format.
    """
    shift = 2 - math.frexp(largest)[1]  # the largest number times 2^shift is in [2, 4)
    exponent = (jax.lax.bitcast_convert_type(absmax, jnp.int32) >> 23) - 127
    exponent = jnp.maximum(exponent - 1, max(-127 - shift, -126))
    power_of_two = lambda n: jax.lax.bitcast_convert_type((n + 127) << 23, jnp.float32)
    return BlockScale(power_of_two(-exponent), power_of_two(exponent), shift)


def round_to_dtype(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x rounded to nearest even in `dtype`; in bfloat16, also where XLA fuses it with its consumer.

    XLA may elide the pair of conversions float32 -> bfloat16 -> float32; it keeps a `reduce_precision`. In float16
    that would cut subnormals, and the conversion stands alone.
    """
    if dtype == jnp.bfloat16 and x.dtype != jnp.bfloat16:
        wide = x.astype(np.promote_types(x.dtype, np.float32))  # of float16 reduce_precision would cut subnormals
        x = jax.lax.reduce_precision(wide, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def _round_to_nearest(x: jax.Array, representable: Representable) -> jax.Array:
    """`round_to_representable` to nearest even and saturating, in few instructions, for most formats.

    |x| + c rounds |x| to the step that it needs, where c is 2^23 such steps; the same c is then taken away.

    Args:
      x: float32 of any shape; NaN stays NaN.
      representable: M is at least 1, for two neighbours of M = 0 may both be even numbers of steps; `min_exponent`
        counts as -126 if it is less; `largest` is less than 2^100.
    """
    mantissa_bits, min_exponent, largest = representable
    magnitude = jnp.abs(x)
    magnitude = jnp.where(magnitude > largest, jnp.float32(largest), magnitude)  # backends' minima differ about NaN
    exponent = jax.lax.bitcast_convert_type(magnitude, jnp.int32) & jnp.int32(0x7F800000)
    exponent = jnp.maximum(exponent, max(min_exponent + 127, 1) << 23)
    bits_of_c = exponent + jnp.int32((23 - mantissa_bits) << 23)
    c = jax.lax.bitcast_convert_type(bits_of_c, jnp.float32)
    # The maximum is the sum, but XLA would take (x + c) - c for x.
    bits_of_sum = jnp.maximum(jax.lax.bitcast_convert_type(magnitude + c, jnp.int32), bits_of_c)
    rounded = jax.lax.bitcast_convert_type(bits_of_sum, jnp.float32) - c
    return _with_sign_of(x, rounded)


def _round_stochastically(x: jax.Array, random_bits: jax.Array, representable: Representable) -> jax.Array:
    """`round_to_representable`, stochastic and saturating, in few instructions, for most formats: |x| in its steps.

    Args:
      x: float32 of any shape; of NaN comes anything.
      random_bits: uint16.
      representable: as for `_round_to_nearest`, but that M may be 0.
    """
    mantissa_bits, min_exponent, largest = representable
    magnitude = jnp.minimum(jnp.abs(x), jnp.float32(largest))
    exponent = jax.lax.bitcast_convert_type(magnitude, jnp.int32) & jnp.int32(0x7F800000)
    bits_of_step = jnp.maximum(exponent, max(min_exponent + 127, 1) << 23) - jnp.int32(mantissa_bits << 23)
    inverse = jax.lax.bitcast_convert_type(jnp.int32(254 << 23) - bits_of_step, jnp.float32)
    steps = magnitude * inverse
    below = steps.astype(jnp.int32).astype(jnp.float32)
    threshold = (random_bits.astype(jnp.int32).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-16)
    rounded = below + jnp.where(steps - below > threshold, jnp.float32(1), jnp.float32(0))
    return _with_sign_of(x, rounded * jax.lax.bitcast_convert_type(bits_of_step, jnp.float32))


def _with_sign_of(x: jax.Array, magnitude: jax.Array) -> jax.Array:
    sign = jax.lax.bitcast_convert_type(x, jnp.uint32) & ~_MAGNITUDE
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(magnitude, jnp.uint32) | sign, jnp.float32)


def _round_magnitude(magnitude, random_bits, representable, rounding):
    """Bit patterns of numbers >= 0 -> those of their neighbours that are representable, or lie beyond the largest."""
    mantissa_bits, min_exponent, _ = representable
    exponent = jnp.maximum(magnitude >> 23, 1).astype(jnp.int32)  # the code of float32, as in `first_normal`
    significand = magnitude - ((exponent - 1) << 23).astype(jnp.uint32)  # its leading bit, 23, is set unless subnormal
    first_normal = min_exponent + 127
    # So many low bits of the significand lie below the step: more, the further x lies below the normal numbers.
    below_step = 23 - mantissa_bits + jnp.maximum(first_normal - exponent, 0)
    within_step = below_step > 23  # x is less than the first step, of which the code is
    first_step = np.uint32(max(first_normal - mantissa_bits, 0) << 23)
    shift = jnp.minimum(below_step, 23).astype(jnp.uint32)

    # How far x lies above the number below, in units of 2^-32 steps; and whether the code of that is odd.
    far_below = jnp.clip(below_step - 24, 0, 31).astype(jnp.uint32)
    fraction = jnp.where(within_step, ((significand << 7) >> far_below) << 1, significand << (32 - shift))
    if mantissa_bits:
        code = significand >> shift
    else:
        code = (exponent - first_normal + 1).astype(jnp.uint32) * (significand >> 23)
    odd = jnp.where(within_step, 0, code & 1)
    half = np.uint32(1 << 31)
    up = {
        'nearest_even': lambda: fraction > half - odd,
        'nearest_away': lambda: fraction >= half,
        'toward_zero': lambda: jnp.zeros_like(within_step),
        'stochastic': lambda: fraction > _threshold(random_bits),
    }[rounding]().astype(jnp.uint32)
    return jnp.where(within_step, up * first_step, ((magnitude >> shift) + up) << shift)


def _threshold(random_bits):
    """In units of 2^-32."""
    if random_bits.dtype != jnp.uint16:
        return random_bits
    return random_bits.astype(jnp.uint32) << 16 | np.uint32(1 << 15)


def _bits_of(value: float) -> np.uint32:
    return np.float32(value).view(np.uint32)
