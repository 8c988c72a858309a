"""Simulated casts: numbers rounded to those of a low-bit format, and kept in their own dtype."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax import explicit_sharding
from gaussq_jax.formats import FloatFormat, parse_format
from kernels_pallas.float_rounding import round_to_representable
from kernels_pallas.random_bits import key_words, random_bits_16
from kernels_pallas.rounding_on_bits import ROUNDINGS

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def round_to_format(
    x: jax.Array,
    fmt: FloatFormat | str,
    *,
    rounding: str = 'nearest_even',
    key: jax.Array | None = None,
    saturate: bool = True,
    implementation: str | None = None,
) -> jax.Array:
    """x rounded to the numbers of a format: a simulated cast, exact to the bit on every device.

    The format's subnormals are kept, also those that are float32 subnormals; so is the sign of a zero; NaN stays NaN.
    The gradient is straight through, dx = dy, also where x saturates.

    Args:
      x: float32, bfloat16 or float16, of any shape.
      fmt: a FloatFormat, or a name for `parse_format`.
      rounding: which neighbour is taken.
        'nearest_even': the nearest, of two equally near the one of even code, as IEEE and ml_dtypes do.
        'nearest_away': the nearest, of two equally near the larger magnitude, as QPyTorch does.
        'toward_zero': the smaller magnitude.
        'stochastic': the larger magnitude with the probability f = (|x| - lower) / (upper - lower), by 16 random bits
          r: if f > (r + 1/2) / 2^16. Numbers of the format stay, and the mean of the result is x within 2^-17 of
          the step.
      key: a JAX PRNG key; needed for stochastic rounding, and for nothing else. The bits of a value are a function of
        the key, the value's index in x, and x's shape: the same on any mesh.
      saturate: whether magnitudes beyond the format's largest number, infinity too, become that number (the largest
        that x's dtype holds, too). Otherwise what is rounded beyond it becomes infinity if the format has that, NaN
        if it has NaN only, as with ml_dtypes; a format that has neither saturates all the same.
      implementation: None or 'xla': fused with what is before and after it, where that can be. Or a kernel of its own
        for float32, 'triton' or 'mosaic' on NVIDIA GPUs, or 'triton_interpret' or 'mosaic_interpret', which emulate
        those. The result is the same.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: for a dtype, format, rounding or implementation other than these; a key missing, or given for nothing;
        an implementation that can't run here.

    Example:
      >>> round_to_format(jnp.array([0.3, 1.25, -2.4, 100.0]), 'e2m1')
      Array([ 0.5,  1. , -2. ,  6. ], dtype=float32)

    Source: IEEE 754; OCP 8-bit Floating Point Specification, section 5; arXiv 2501.02423, section 3.
    """
    fmt = as_format(fmt)
    check_input(x)
    check_rounding(rounding, key)
    representable = fmt.representable._replace(largest=_largest_in(x.dtype, fmt))
    overflow = None
    if not saturate and fmt.special_values == 'ieee':
        overflow = math.inf
    elif not saturate and fmt == FloatFormat(4, 3, 'fn'):
        overflow = math.nan  # the one object: another NaN would count as new, and compile anew

    def round_(x, key):
        rounded = round_to_representable(
            x.astype(jnp.float32),
            None if key is None else random_bits_16(key_words(key), x.shape),
            representable=representable,
            overflow=overflow,
            rounding=rounding,
            implementation=implementation,
        )
        return rounded.astype(x.dtype)

    return straight_through(x, explicit_sharding.like(x, round_)(x, key))


def as_format(fmt: FloatFormat | str) -> FloatFormat:
    """`fmt` itself, or the format of that name; ValueError for what is neither."""
    return fmt if isinstance(fmt, FloatFormat) else parse_format(fmt)


def check_input(x: jax.Array, name: str = 'x'):
    """ValueError unless x is an array of a dtype that float32 holds."""
    if getattr(x, 'dtype', None) not in DTYPES:
        raise ValueError(
            f'{name} is {getattr(x, "dtype", type(x).__name__)}; allowed are float32, bfloat16 and float16'
        )


def check_rounding(rounding: str, key: jax.Array | None):
    """ValueError unless the rounding is known and there is a key if, and only if, it is stochastic."""
    if rounding not in ROUNDINGS:
        raise ValueError(f'rounding={rounding!r} is not one of {", ".join(map(repr, ROUNDINGS))}')
    if (rounding == 'stochastic') != (key is not None):
        needs = 'needs a key, such as key=jax.random.key(0)' if key is None else 'takes no key; only stochastic does'
        raise ValueError(f'rounding={rounding!r} {needs}')


@jax.custom_jvp
def straight_through(x: jax.Array, y: jax.Array) -> jax.Array:
    """y, with the derivatives of x; both of one shape and dtype."""
    del x
    return y


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return straight_through(*primals), tangents[0]


@functools.cache
def _largest_in(dtype: Any, fmt: FloatFormat) -> float:
    """The largest number that the dtype and the format share."""
    info = jnp.finfo(dtype)
    if fmt.max >= float(info.max):
        values = fmt.values()
        return float(values[values <= float(info.max)][-1])
    largest = np.float32(fmt.max).view(np.uint32) >> (23 - info.nmant) << (23 - info.nmant)
    return float(largest.astype(np.uint32).view(np.float32))
