"""Gaussian weight sampling of one matrix: W_hat = round(W + R * step), and its gradients."""

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax import explicit_sharding
from gaussq_jax.formats import FloatFormat
from gaussq_jax.rounding import as_format
from kernels_pallas import weight_sampling as kernels
from kernels_pallas.philox import Words2
from kernels_pallas.random_bits import KEY_IMPLEMENTATIONS, key_words
from kernels_pallas.rounding_on_bits import Representable

Origin = tuple[Any, Any, Any]

_BITWIDTH_STEPS = 1024  # bitwidths act as multiples of 1 / 1024
_FRACTIONAL_POWERS = np.exp2(np.arange(_BITWIDTH_STEPS) / _BITWIDTH_STEPS).astype(np.float32)


def rounded_normal(key: jax.Array, shape: tuple[int, ...], *, origin: Origin = (0, 0, 0)) -> jax.Array:
    """The noise R = round(N(0, 1) / 2): exactly what `sample_weights` adds, in units of the block's step.

    P(R = 0) = .68271, P(R = +-1) = .15730 each, P(R = +-2) = .00134 each: the rounded normal's probabilities, cut
    to multiples of 2^-16. R depends on the key and on the weight's place in its leaf, nothing else.

    Args:
      key: a JAX PRNG key.
      shape: (..., m, n).
      origin: (leading index, row, column) of the first entry in its leaf; integers, may be traced.

    Returns:
      int8 array of `shape`, values in {-2, .., 2}.

    Raises:
      ValueError: for a shape of less than two axes.
      TypeError: for a key that is no PRNG key of a known implementation.

    Example:
      >>> whole = rounded_normal(jax.random.key(0), (64, 8))
      >>> bool((whole[32:] == rounded_normal(jax.random.key(0), (32, 8), origin=(0, 32, 0))).all())
      True

    Source: arXiv 2505.11170, section 3.2.
    """
    if len(shape) < 2:
        raise ValueError(f'shape={shape} has {len(shape)} axes; at least two, rows and columns, are needed')
    r = kernels.draw(_key_words(key), _check_origin(origin, 1), tuple(shape), noise='rounded_normal')
    return r.astype(jnp.int8)


def sample_weights(
    key: jax.Array,
    w: jax.Array,
    bitwidths: jax.Array,
    *,
    origin: Origin = (0, 0, 0),
    block_size: int = 32,
    noise: str = 'rounded_normal',
    fmt: FloatFormat | str | None = None,
    dtype: Any = jnp.bfloat16,
    implementation: str | None = None,
) -> jax.Array:
    """Weights with pseudo-quantization noise: W_hat = round(W + R * step), step = max |W| * 2^(1 - b_t) by block.

    R is redrawn for each key and never stored. The gradients are dW = dW_hat (straight through) and
    db_t = -ln 2 * step * sum(dW_hat * R) over the block; the maximum counts as a constant. What the backward pass
    keeps is one step a block.

    Defined for every input: an all-zero block stays zero; the maximum is taken over the finite weights, and an
    infinite or NaN weight comes out as it is; a step below 2^-126 (2^-109 for uniform noise) is 0, and none exceeds
    2^125. Derivatives are of first order, in reverse mode.

    One key and one origin mean one noise: under `jax.vmap`, map the key, or the origin's leading index, too.

    Args:
      key: a JAX PRNG key, typed or not, of the implementations threefry2x32, rbg and unsafe_rbg.
      w: (..., m, n), float32 or bfloat16: matrices of one leaf, blocked over the last two axes.
      bitwidths: b_t (..., ceil(m / block_size), ceil(n / block_size)), float, in bits; acts rounded to
        a multiple of 2^-10 (gradient straight through). Edge blocks are smaller than the others.
      origin: (leading index, row, column) of w[0, .., 0] in its whole leaf; may be traced; row and column
        multiples of the block size. A slice with its origin gets the noise that it has in the whole. The leading
        index counts the matrices of the leaf, row-major.
      block_size: side of the square blocks; the paper's is 32.
      noise: 'rounded_normal', or 'uniform' for R ~ U(-1/2, 1/2) as in DiffQ, whose step acts rounded to
        eight significant bits.
      fmt: a low-bit format, or its name, that the sum W + R * step is rounded to, to nearest even and saturating: each
        block scaled by the power of two that puts its max |W| into the format's top binade, as in MX formats.
        Noise survives in formats as wide as `format_for_bitwidth(b_t)`.
      dtype: of W_hat, bfloat16 or float32, of as many mantissa bits as `fmt` at least.
      implementation: None, the best for the device: on NVIDIA GPUs the kernel 'triton' (compute capability 8.0 and up)
        or, where JAX has it no more, 'mosaic' (9.0 and up), both for blocks of 32; elsewhere 'xla', the reference. With
        '_interpret' behind it, a kernel runs anywhere, slowly. All give the same bits.

    Returns:
      W_hat (..., m, n) in `dtype`.

    Raises:
      ValueError: naming the argument, for a shape, dtype, origin, noise, block size or implementation
        other than these, and for an implementation that can't run here.
      TypeError: for a key that is no PRNG key of a known implementation.

    Example:
      >>> w = jax.random.normal(jax.random.key(0), (64, 96))
      >>> w_hat = sample_weights(jax.random.key(1), w, jnp.full((2, 3), 6.0))
      >>> w_hat.dtype, w_hat.shape
      (dtype(bfloat16), (64, 96))

    Source: arXiv 2505.11170, section 3, equations 3 to 5.
    """
    block_size = check_block_size(block_size)
    bitwidths = jnp.asarray(bitwidths)
    if noise not in kernels.NOISES:
        raise ValueError(f'noise={noise!r} is not one of {", ".join(map(repr, kernels.NOISES))}')
    if w.ndim < 2 or w.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f'w is {w.dtype}{list(w.shape)}; allowed are float32 and bfloat16 of two or more axes')
    blocks = shape_in_blocks(w.shape, block_size)
    if bitwidths.shape != blocks:
        raise ValueError(
            f'bitwidths has shape {bitwidths.shape}; w of shape {w.shape} in blocks of {block_size} needs {blocks}'
        )
    if not jnp.issubdtype(bitwidths.dtype, jnp.floating):
        raise ValueError(f'bitwidths is {bitwidths.dtype}; it must be floating, bitwidths are real numbers')
    dtype = check_dtype(dtype)
    representable = None if fmt is None else check_format(fmt, dtype).representable
    settings = _Settings(block_size, noise, representable, dtype, w.dtype, bitwidths.dtype, implementation)
    kernels.select(implementation, block_size)
    sample = explicit_sharding.like(w, functools.partial(_sample, settings))
    return sample(_key_words(key), _check_origin(origin, block_size), w, bitwidths)


def shape_in_blocks(shape: tuple[int, ...], block_size: int) -> tuple[int, ...]:
    """The shape of one number a block, (..., ceil(m / B), ceil(n / B)), for weights (..., m, n)."""
    return (*shape[:-2], *(-(-size // block_size) for size in shape[-2:]))


def check_dtype(dtype: Any) -> np.dtype:
    """`dtype` as a NumPy dtype if weights can be rounded to it; ValueError otherwise."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f'dtype={jnp.dtype(dtype).name}: allowed are bfloat16 and float32')
    return jnp.dtype(dtype)


def check_format(fmt: FloatFormat | str, dtype: Any) -> FloatFormat:
    """`fmt` as a FloatFormat if weights can be rounded to it and kept in `dtype`; ValueError otherwise."""
    fmt, mantissa_bits = as_format(fmt), jnp.finfo(dtype).nmant
    if fmt.mantissa_bits > mantissa_bits:
        raise ValueError(
            f'fmt={fmt} has {fmt.mantissa_bits} mantissa bits, more than the {mantissa_bits} of'
            f' dtype={jnp.dtype(dtype).name}, which it would be kept in'
        )
    return fmt


def check_block_size(block_size: int) -> int:
    """`block_size` as an int; ValueError if it is no positive integer."""
    if isinstance(block_size, bool) or not hasattr(block_size, '__index__') or block_size < 1:
        raise ValueError(f'block_size={block_size!r}: it must be a positive integer, the side of a square block')
    return operator.index(block_size)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is fixed at trace time."""

    block_size: int
    noise: str
    representable: Representable | None
    dtype: np.dtype
    weight_dtype: np.dtype
    bitwidth_dtype: np.dtype
    implementation: str | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sample(settings: _Settings, key: Words2, origin: Origin, w: jax.Array, bitwidths: jax.Array) -> jax.Array:
    return _sample_forward(settings, key, origin, w, bitwidths)[0]


def _sample_forward(settings: _Settings, key: Words2, origin: Origin, w: jax.Array, bitwidths: jax.Array):
    w_hat, step = kernels.forward(
        key,
        origin,
        w,
        _power_of_two(1 - _round_bitwidths(bitwidths)),
        block_size=settings.block_size,
        noise=settings.noise,
        dtype=settings.dtype,
        representable=settings.representable,
        implementation=settings.implementation,
    )
    return w_hat, (key, origin, step)


def _sample_backward(settings: _Settings, residuals, dw_hat: jax.Array):
    key, origin, step = residuals
    sums = kernels.backward(
        key,
        origin,
        dw_hat,
        block_size=settings.block_size,
        noise=settings.noise,
        implementation=settings.implementation,
    )
    db = jnp.float32(-math.log(2)) * (step * sums)
    return None, None, dw_hat.astype(settings.weight_dtype), db.astype(settings.bitwidth_dtype)


_sample.defvjp(_sample_forward, _sample_backward)


def _round_bitwidths(bitwidths: jax.Array) -> jax.Array:
    return jnp.round(bitwidths.astype(jnp.float32) * _BITWIDTH_STEPS) / _BITWIDTH_STEPS


def _power_of_two(x: jax.Array) -> jax.Array:
    """2^x in float32, x a multiple of 1 / 1024, clipped to a normal result; NaN stays NaN.

    By table and exponent bits, since `exp2` differs between backends and JAX versions.
    """
    steps = (jnp.clip(x, -126, 127) * _BITWIDTH_STEPS).astype(jnp.int32)
    whole, fraction = steps // _BITWIDTH_STEPS, steps % _BITWIDTH_STEPS
    mantissa = jax.lax.bitcast_convert_type(jnp.asarray(_FRACTIONAL_POWERS)[fraction], jnp.int32)
    power = jax.lax.bitcast_convert_type(mantissa + (whole << 23), jnp.float32)
    return jnp.where(jnp.isnan(x), jnp.nan, power)


def _key_words(key: jax.Array) -> Words2:
    """`key_words`, but of no foreign implementation, whose bits may be anything."""
    if jnp.issubdtype(getattr(key, 'dtype', None), jax.dtypes.prng_key):
        implementation = jax.random.key_impl(key)
        if implementation not in KEY_IMPLEMENTATIONS:
            allowed = ', '.join(KEY_IMPLEMENTATIONS)
            raise TypeError(f'key is of the implementation {implementation!r}; allowed are {allowed}')
    return key_words(key)


def _check_origin(origin: Origin, block_size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    if len(origin) != 3:
        raise ValueError(f'origin={origin} must be (leading index, row, column)')
    for name, value, multiple in zip(('leading index', 'row', 'column'), origin, (1, block_size, block_size)):
        if isinstance(value, jax.core.Tracer):
            continue
        if not 0 <= operator.index(value) < 2**32 or operator.index(value) % multiple:
            raise ValueError(f'origin={origin}: the {name} must be a multiple of {multiple} from 0 to 2^32 - 1')
    traced_or_known = (value if isinstance(value, jax.core.Tracer) else np.uint32(value) for value in origin)
    return tuple(jnp.asarray(value).astype(jnp.uint32) for value in traced_or_known)
