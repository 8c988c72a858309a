"""The bytes that weights take in a layout, and the bits a weight."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gaussq_jax.bitwidths import format_for_bitwidth
from gaussq_jax.packed import scale_codes
from gaussq_jax.packed.bit_packing import packed_bytes
from gaussq_jax.packed.layout import (
    BFLOAT16,
    Formats,
    Layout,
    LeafLayout,
    check_layout,
    kept_leaves,
    learned_layout,
    storable_leaves,
    stored_indices,
    weights_of_formats,
    weights_of_tiles,
)
from gaussq_jax.param_reading import checked_readings, sampled_shapes
from gaussq_jax.param_rules import DEFAULT_RULES, Rule
from gaussq_jax.param_tree import is_floating


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """What weights take, in bytes, and in bits a weight.

    Attributes:
      payload_bytes: of the codes of all quantized weights, and of all other leaves.
      scale_bytes: of the scales, one a tile, and with NVFP4's scales one a matrix.
      format_bytes: of the names of the tiles' formats, where a leaf has several: one a tile, or one a matrix whose
        tiles have the same.
      mean_bitwidth: mean b_t over the quantized weights, in bits; NaN where there are none, or no bitwidths.
      mean_stored_bits: what a quantized weight takes on average, its share of scales and names included: the number of
        bits that is on the disk. A b_t of 4 is stored in E3M2, 6 bits. NaN where no weight is quantized.
      leaves: the same of each leaf, by path.
    """

    payload_bytes: int
    scale_bytes: int
    format_bytes: int
    mean_bitwidth: float
    mean_stored_bits: float
    leaves: Mapping[str, 'ModelSize'] = dataclasses.field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return self.payload_bytes + self.scale_bytes + self.format_bytes


def model_size(
    params: Any,
    bitwidths: Mapping[str, jax.Array],
    *,
    formats: Formats = format_for_bitwidth,
    block_size: int = 32,
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
) -> ModelSize:
    """What the weights take if each block is stored in its bitwidth's format: `save_packed`'s file less the header.

    Args and Raises: as for `learned_layout`.

    Example:
      >>> size = model_size({'up': {'kernel': jnp.ones((64, 32))}}, {'up/kernel': jnp.array([[4.0], [4.0]])})
      >>> size.payload_bytes, size.scale_bytes, size.mean_bitwidth, size.mean_stored_bits
      (1536, 2, 4.0, 6.0078125)

    Source: arXiv 2505.11170, section 3; DiffQ, arXiv 2104.09987, section 3.4 (model size).
    """
    layout = learned_layout(params, bitwidths, formats=formats, block_size=block_size, rules=rules, unnamed=unnamed)
    size = layout_size(params, layout)
    leaves, total, count = dict(size.leaves), 0.0, 0
    for path, shape in sampled_shapes(checked_readings(params, rules, unnamed=unnamed)).items():
        weights = weights_of_tiles(shape, (block_size, block_size))
        sum_of_bits = float(np.sum(weights * np.asarray(bitwidths[path], np.float64)))
        leaves[path] = dataclasses.replace(leaves[path], mean_bitwidth=_mean(sum_of_bits, math.prod(shape)))
        total, count = total + sum_of_bits, count + math.prod(shape)
    return dataclasses.replace(size, mean_bitwidth=_mean(total, count), leaves=leaves)


def layout_size(params: Any, layout: Layout) -> ModelSize:
    """What the weights take in this layout; without bitwidths, which it doesn't know.

    Raises:
      ValueError: if the layout is not of these params.
    """
    return size_of_leaves(storable_leaves(params), layout)


def size_of_leaves(leaves: Mapping[str, Any], layout: Layout) -> ModelSize:
    """`layout_size` of leaves by path."""
    check_layout(leaves, layout)
    sizes, quantized_bits, quantized = {}, 0, 0
    for path, leaf in leaves.items():
        count = math.prod(leaf.shape)
        if path not in layout:
            is_rounded = is_floating(leaf) and path not in kept_leaves(layout)
            itemsize = BFLOAT16.bits // 8 if is_rounded else leaf.dtype.itemsize
            sizes[path] = ModelSize(count * itemsize, 0, 0, math.nan, math.nan)
            continue
        counts = weights_of_formats(leaf, layout[path])
        payload = sum(
            packed_bytes(int(number), fmt.bits)
            for of_matrix in counts.reshape(-1, len(layout[path].formats))
            for number, fmt in zip(of_matrix, layout[path].formats)
        )
        scales, names = (count(layout[path], layout[path].indices) for count in (scale_bytes, format_bytes))
        bits = 8 * (payload + scales + names)
        sizes[path] = ModelSize(payload, scales, names, math.nan, bits / count)
        quantized_bits, quantized = quantized_bits + bits, quantized + count
    sums = (
        sum(getattr(size, name) for size in sizes.values()) for name in ('payload_bytes', 'scale_bytes', 'format_bytes')
    )
    return ModelSize(*sums, math.nan, _mean(quantized_bits, quantized), sizes)


def scale_bytes(of_leaf: LeafLayout, indices: np.ndarray) -> int:
    """Of the scales of some matrices of a leaf, whose tiles have these formats."""
    of_matrices = scale_codes.DIVISOR_BYTES * math.prod(indices.shape[:-2]) if of_leaf.scale == 'nvfp4' else 0
    return indices.size * scale_codes.BYTES[of_leaf.scale] + of_matrices


def format_bytes(of_leaf: LeafLayout, indices: np.ndarray) -> int:
    """Of the names of their formats."""
    is_one_a_matrix = stored_indices(of_leaf).shape[-2:] == (1, 1)
    return (math.prod(indices.shape[:-2]) if is_one_a_matrix else indices.size) * (len(of_leaf.formats) > 1)


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan
