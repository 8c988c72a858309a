"""The weights of a layout: as the model multiplies with them, and in the parts that are stored."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.block_scaling import Scaled, fake_quantize, quantize
from gaussq_jax.packed.layout import (
    BFLOAT16,
    Layout,
    LeafLayout,
    check_layout,
    kept_leaves,
    storable_leaves,
    value_per_weight,
)
from gaussq_jax.param_tree import is_floating, map_leaves
from kernels_pallas.rounding_on_bits import round_to_dtype


class QuantizedMatrix(NamedTuple):
    """A matrix (m, n) in the parts that are stored, NumPy arrays.

        W_hat = numbers * scales, or numbers * (scales / divisor)

    of which product and quotient are rounded to float32, and the product then to the leaf's dtype.

    Attributes:
      numbers: float32 (m, n), each a number of its tile's format.
      scales: float64, one a tile: a power of two from 2^-127 to 2^127; any number, of 24 bits; or with a divisor a
        number of float8_e4m3fn.
      indices: uint8, of the same shape, which of the layout's formats each tile has.
      divisor: a float32 number; None but with NVFP4's scales.
    """

    numbers: np.ndarray
    scales: np.ndarray
    indices: np.ndarray
    divisor: np.float32 | None

    @property
    def factors(self) -> np.ndarray:
        """What the numbers of each tile are multiplied by: float64, or with a divisor float32."""
        return self.scales if self.divisor is None else self.scales.astype(np.float32) / self.divisor


def quantize_params(params: Any, layout: Layout) -> Any:
    """The weights that a packed file of this layout holds: what to evaluate before saving, and what will be served.

        W_hat = s round(W / s)    by tiles of the layout, in each tile's format, with the layout's kind of scale s

    Args:
      params: pytree of weights, float32 or bfloat16.
      layout: as `uniform_layout` or `learned_layout` made it from these params.

    Returns:
      A tree like params, on the same devices: bfloat16, but for leaves with a format of more than 7 mantissa bits,
      which are float32. Floating leaves that are not in the layout are rounded to bfloat16; those of `layout.kept`, and
      leaves that aren't floating, are untouched.
      Call it outside of `jax.jit` where a mesh has explicit axes.

    Raises:
      ValueError: if the layout is not of these params; for infinite and NaN weights, but under `jax.jit`.

    Example:
      >>> params = {'up': {'kernel': jnp.array([[6.0], [2.2], [0.8]])}}
      >>> quantize_params(params, gq.uniform_layout(params, 'float4_e2m1fn'))['up']['kernel'].ravel()
      Array([6, 2, 1], dtype=bfloat16)

    Source: OCP Microscaling Formats v1.0, section 6.3.
    """
    check_layout(storable_leaves(params), layout)

    def quantize_leaf(path, leaf):
        if path not in layout:
            return leaf if path in kept_leaves(layout) else rounded(leaf)
        of_leaf = layout[path]
        matrices = [values for values, _ in _each(path, leaf, of_leaf, _quantize)]
        quantized = of_leaf.rule.from_matrices(jnp.stack(matrices), leaf.shape)
        return jax.device_put(quantized, leaf.sharding) if _is_concrete(leaf) and leaf.committed else quantized

    return map_leaves(quantize_leaf, params)


def quantized_matrices(path: str, leaf: Any, of_leaf: LeafLayout) -> Iterator[QuantizedMatrix]:
    """The matrices of a leaf, in C order of its batch axes; what is multiplied is what `quantize_params` gives.

    Raises:
      ValueError: for infinite and NaN weights.

    Example:
      >>> params = {'up': {'kernel': jnp.array([[6.0], [2.2], [0.8]])}}
      >>> layout = gq.uniform_layout(params, 'float4_e2m1fn')
      >>> matrix = next(quantized_matrices('up/kernel', params['up']['kernel'], layout['up/kernel']))
      >>> matrix.numbers.ravel(), matrix.scales
      (array([6., 2., 1.], dtype=float32), array([[1.]]))
    """
    for parts, indices in _each(path, leaf, of_leaf, _split):
        numbers, scales, shifts, divisor = parts
        numbers, divisor = np.asarray(numbers), None if divisor is None else np.asarray(divisor)[()]
        is_uniform = len(of_leaf.formats) == 1
        factors = np.ldexp(np.float32(1), -np.asarray(shifts))
        factors = factors[0, 0] if is_uniform else value_per_weight(factors, of_leaf.tile, numbers.shape)
        yield QuantizedMatrix(numbers * factors, np.ldexp(np.asarray(scales, np.float64), shifts), indices, divisor)


def rounded(leaf: Any) -> Any:
    """A floating leaf in bfloat16; another as it is."""
    return _round(leaf, jnp.bfloat16) if is_floating(leaf) else leaf


def each_matrix(stack: np.ndarray) -> np.ndarray:
    """(batch.., rows, columns) -> (matrices, rows, columns)."""
    return stack.reshape(math.prod(stack.shape[:-2]), *stack.shape[-2:])


_round = jax.jit(round_to_dtype, static_argnums=1)  # in one go, without a float32 array in between


def _each(path, leaf, of_leaf: LeafLayout, function) -> Iterator[tuple[Any, np.ndarray]]:
    """function's result for each matrix of a leaf, and the formats of its tiles."""
    # One at a time is taken from the host, wherever the parts of the leaf lie: no sharding of it is of account.
    leaf = np.asarray(leaf) if _is_concrete(leaf) else leaf
    matrices = each_matrix(of_leaf.rule.to_matrices(leaf))
    for i, indices in enumerate(each_matrix(of_leaf.indices)):
        result, is_finite = function(matrices[i], indices, of_leaf.quantizers, of_leaf.dtype)
        if not isinstance(is_finite, jax.core.Tracer) and not is_finite:
            raise ValueError(f'{path!r} has infinite or NaN weights, for which a packed format has no codes')
        yield result, indices


@functools.partial(jax.jit, static_argnums=(2, 3))
def _quantize(weights, indices, quantizers, dtype):
    wide = weights.astype(jnp.float32)
    values = jnp.zeros_like(wide)
    for i, quantizer in enumerate(quantizers):
        here = value_per_weight(indices == i, quantizer.block_size, wide.shape)
        values = jnp.where(here, fake_quantize(wide, quantizer), values)
    return round_to_dtype(values, dtype), jnp.all(jnp.isfinite(wide))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _split(weights, indices, quantizers, dtype):
    del dtype
    wide = weights.astype(jnp.float32)
    numbers, scales = jnp.zeros_like(wide), jnp.zeros(indices.shape, jnp.float32)
    shifts, divisor = jnp.zeros(indices.shape, jnp.int32), None
    for i, quantizer in enumerate(quantizers):
        part, here, tile = quantize(wide, quantizer), indices == i, quantizer.block_size
        if quantizer.fmt == BFLOAT16:  # the numbers are the weights
            weights = part.numbers * value_per_weight(part.scales, tile, wide.shape)
            part = Scaled(weights, jnp.ones_like(part.scales), None, 0)
        if part.divisor is not None:
            divisor = jnp.where(jnp.any(here), part.divisor, 1)
        factors = part.scales if part.divisor is None else part.scales / part.divisor
        is_zero = part.numbers * value_per_weight(factors, tile, wide.shape) == 0  # where the device flushes subnormals
        of_format = jnp.where(is_zero, jnp.copysign(np.float32(0), part.numbers), part.numbers)
        numbers = jnp.where(value_per_weight(here, tile, wide.shape), of_format, numbers)
        scales, shifts = jnp.where(here, part.scales, scales), jnp.where(here, np.int32(part.shift), shifts)
    return (numbers, scales, shifts, divisor), jnp.all(jnp.isfinite(wide))


def _is_concrete(leaf) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
