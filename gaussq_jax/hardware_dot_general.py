"""GEMMs of operands that are cast to FP8, which GPUs with FP8 units run on them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gaussq_jax import explicit_sharding
from gaussq_jax.block_scaling import quantize
from gaussq_jax.formats import parse_format
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.rounding import check_input
from kernels_pallas.rounding_on_bits import round_to_dtype

DimensionNumbers = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]

XLA_FLAG = '--xla_gpu_enable_triton_gemm=false'  # with which XLA leaves FP8 GEMMs to cuBLASLt

_DTYPES = {parse_format(dtype.__name__): dtype for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2)}
_ALLOWED = (
    'allowed are float8_e4m3fn and float8_e5m2, not both operands the latter,'
    " with block_size='channel' or 'tensor', scale='absmax' and no stochastic rounding"
)


def hardware_dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    lhs_quantizer: Quantizer,
    rhs_quantizer: Quantizer,
    dimension_numbers: DimensionNumbers,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """The product of two operands that are quantized along their contracting axes and multiplied in FP8.

        Q = round(X S),  S = fmt.max / A,    Y[i, j] = (sum_k Q_lhs[i, k] Q_rhs[k, j]) / (S_lhs[i] S_rhs[j])

    Q has the dtype of its format and holds the numbers that `fake_quantize` multiplies by 1 / S. The result is that of
    `jax.lax.dot_general` of the fake-quantized operands but for rounding: the simulation rounds both operands to their
    dtype. Here the sum is scaled in float32 and rounded to the result's dtype. A bfloat16 result is rounded twice, for
    its sum leaves the GEMM in bfloat16; sums for float16 and float32 are float32.

    The operands are handed to `jax.lax.dot_general` in bfloat16, which holds each FP8 number. With
    CUDA 12 or newer and `XLA_FLAGS=--xla_gpu_enable_triton_gemm=false` XLA makes it a GEMM of cuBLASLt on the FP8 units
    of an H100 or a B200, as `experiments.benchmark gemms` counts; without that flag its own kernels multiply in
    bfloat16. There, as on all other devices, the result is the same but for the rounding of sums.

    Infinities and NaN are no part of A. They make the results that they enter infinite or NaN; an infinity becomes NaN
    in float8_e4m3fn, which has none. A block of zeros gives zeros. Where the product of two blocks' largest magnitudes
    is below 2^-120, results may be zero.

    Args:
      lhs, rhs: float32, bfloat16 or float16.
      lhs_quantizer, rhs_quantizer: what `check` allows. Several contracting axes are read as one.
      dimension_numbers: as for `jax.lax.dot_general`, batch axes among them.
      precision: as for `jax.lax.dot_general`, but None is `HIGHEST`: the sum is in float32. With `DEFAULT` Hopper's FP8
        units keep some 14 bits of it, which is faster.
      preferred_element_type: as for `jax.lax.dot_general`, a floating dtype.
      out_sharding: as for `jax.lax.dot_general`.

    Returns:
      An array of the shape, dtype and sharding that `jax.lax.dot_general` gives. It has no derivatives;
      `quantized_dot_general` has.

    Raises:
      ValueError: for quantizers that `check` refuses; for operands of other dtypes; where it is differentiated.

    Example:
      >>> rows = Quantizer('float8_e4m3fn', block_size='channel')
      >>> x, w = jnp.array([[448.0, 2.1]]), jnp.array([[1.0], [7.0]])
      >>> hardware_dot_general(x, w, rows, rows, (((1,), (0,)), ((), ())))
      Array([[462.]], dtype=float32)

    Source: OCP 8-bit Floating Point Specification; NVIDIA's cuBLAS documentation, cublasLtMatmul; arXiv 2412.19437,
    section 3.5.2 (the 14 bits).
    """
    check(lhs_quantizer, rhs_quantizer)
    check_input(lhs, 'lhs')
    check_input(rhs, 'rhs')
    dot_general = functools.partial(jax.lax.dot_general, dimension_numbers=dimension_numbers)
    like_product = functools.partial(
        dot_general, preferred_element_type=preferred_element_type, out_sharding=out_sharding
    )
    out = jax.eval_shape(like_product, lhs, rhs)
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f'preferred_element_type={preferred_element_type!r}: allowed are floating dtypes and None')
    if not (lhs.size and rhs.size):
        return like_product(lhs, rhs)
    sum_dtype = out.dtype if out.dtype == jnp.bfloat16 else jnp.float32
    highest = jax.lax.Precision.HIGHEST

    def multiply(lhs, rhs):
        (lhs, lhs_scales, lhs_shift), (rhs, rhs_scales, rhs_shift) = (
            _cast(x, quantizer, axes)
            for x, quantizer, axes in zip((lhs, rhs), (lhs_quantizer, rhs_quantizer), dimension_numbers[0])
        )
        sums = dot_general(
            lhs, rhs, precision=highest if precision is None else precision, preferred_element_type=sum_dtype
        )
        scales = dot_general(lhs_scales, rhs_scales, precision=highest)  # the contracted axes are of one element
        return round_to_dtype(sums.astype(jnp.float32) * 2.0 ** (lhs_shift + rhs_shift) * scales, out.dtype)

    product = jax.custom_jvp(explicit_sharding.like(out, multiply))
    product.defjvp(_refuse_derivatives)
    return product(lhs, rhs)


def check(lhs: Quantizer | None, rhs: Quantizer | None, names: tuple[str, str] = ('lhs', 'rhs')) -> None:
    """Whether FP8 units multiply operands that are quantized like that.

    Args:
      lhs, rhs: the Quantizers of both operands, None for one that is not quantized.
      names: what errors call the operands.

    Raises:
      ValueError: if not, with the reason and what is allowed.

    Example:
      >>> check(Quantizer('float8_e4m3fn', block_size='channel'), Quantizer('float8_e5m2', block_size='tensor'))
    """
    for name, quantizer in zip(names, (lhs, rhs)):
        if reason := _reason_against(quantizer):
            told = quantizer.summary if isinstance(quantizer, Quantizer) else quantizer
            raise ValueError(f"arithmetic='hardware' with {name}={told}: {reason}; {_ALLOWED}")
    if _DTYPES[lhs.fmt] == _DTYPES[rhs.fmt] == jnp.float8_e5m2:
        raise ValueError(f"arithmetic='hardware' with both operands {lhs.fmt}: cuBLASLt has no such GEMM; {_ALLOWED}")


def _reason_against(quantizer: Quantizer | None) -> str | None:
    if not isinstance(quantizer, Quantizer):
        return 'FP8 units multiply two quantized operands'
    if quantizer.fmt not in _DTYPES:
        return f'fmt={quantizer.fmt} is not a dtype of FP8 units'
    if quantizer.block_size not in ('channel', 'tensor'):
        return (
            f'block_size={quantizer.block_size!r} gives scales within the contracted axis, which cannot leave the sum'
        )
    if quantizer.rounding == 'stochastic':
        return "rounding='stochastic' takes random bits, of which a cast to FP8 has none"
    plain = Quantizer(quantizer.fmt, block_size=quantizer.block_size, rounding=quantizer.rounding)
    return None if quantizer == plain else f'only {plain.summary} is possible of it'


def _cast(x: jax.Array, quantizer: Quantizer, contracted: Sequence[int]) -> tuple[jax.Array, jax.Array, int]:
    """FP8 numbers in bfloat16, the inverse scales times 2^shift, one contracted element each, and shift."""
    numbers, scales, _, shift = quantize(x, quantizer, axis=contracted)
    numbers = jnp.where(jnp.isfinite(x), numbers * 2.0**-shift, x.astype(jnp.float32))
    kept = [1 if axis in contracted else size for axis, size in enumerate(x.shape)]
    scales = scales.reshape(kept if quantizer.block_size == 'channel' else [1] * x.ndim)
    return numbers.astype(_DTYPES[quantizer.fmt]).astype(jnp.bfloat16), jnp.broadcast_to(scales, kept), shift


def _refuse_derivatives(primals, tangents):
    raise ValueError('hardware_dot_general has no derivatives; those of quantized_dot_general are GEMMs of their own')
