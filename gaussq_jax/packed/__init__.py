"""Trained weights -> a packed low-bit file, and back, bit for bit.

    layout = gq.learned_layout(params, pqt.bitwidths(state))   # each block in the format that its bitwidth asks for
    weights = gq.quantize_params(params, layout)               # what the model will be served with: evaluate these
    gq.save_packed('model.safetensors', params, layout)
    weights = gq.load_packed('model.safetensors')              # the same weights

docs/packed_format.md tells what is in a file.
"""

from gaussq_jax.packed.bit_budget import budget_below, formats_within_budget
from gaussq_jax.packed.bit_packing import packed_bytes
from gaussq_jax.packed.checked_file import header_bytes, save_tensors
from gaussq_jax.packed.export import Packed, load_packed, read_packed, save_packed
from gaussq_jax.packed.layout import (
    Formats,
    Layout,
    LeafLayout,
    learned_layout,
    uniform_layout,
    value_per_weight,
    weights_of_formats,
)
from gaussq_jax.packed.quantized_weights import QuantizedMatrix, quantize_params, quantized_matrices
from gaussq_jax.packed.size import ModelSize, format_bytes, layout_size, model_size, scale_bytes

__all__ = [
    'Formats',
    'Layout',
    'LeafLayout',
    'ModelSize',
    'Packed',
    'QuantizedMatrix',
    'budget_below',
    'format_bytes',
    'formats_within_budget',
    'header_bytes',
    'layout_size',
    'learned_layout',
    'load_packed',
    'model_size',
    'packed_bytes',
    'quantize_params',
    'quantized_matrices',
    'read_packed',
    'save_packed',
    'save_tensors',
    'scale_bytes',
    'uniform_layout',
    'value_per_weight',
    'weights_of_formats',
]
