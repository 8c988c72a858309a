"""Low-precision training in JAX: Gaussian weight sampling and floating-point quantized training."""

import importlib

from gaussq_jax import recipes
from gaussq_jax.bitwidth_descent import bitwidth_descent
from gaussq_jax.bitwidths import bitwidth_penalty, effective_bitwidths, format_for_bitwidth
from gaussq_jax.block_scaling import fake_quantize
from gaussq_jax.describe import describe
from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.hadamard import Hadamard
from gaussq_jax.layerwise import layerwise
from gaussq_jax.packed import (
    LeafLayout,
    ModelSize,
    formats_within_budget,
    layout_size,
    learned_layout,
    load_packed,
    model_size,
    quantize_params,
    save_packed,
    uniform_layout,
)
from gaussq_jax.param_rules import DEFAULT_RULES, CastOnly, Keep, MatrixRule
from gaussq_jax.param_transforms import (
    ParamTransform,
    cast_params,
    gaussian_weight_sampling,
    quantization_aware,
    uniform_weight_sampling,
)
from gaussq_jax.param_tree import leaf_path, leaves_by_path
from gaussq_jax.quantized_dot_general import quantized_dot_general
from gaussq_jax.quantized_einsum import quantized_einsum
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.rounding import round_to_format
from gaussq_jax.serving import (
    served_layout,
    to_compressed_tensors,
    to_deepseek_fp8,
    to_mlx,
    to_qarray,
    to_quark_mxfp6,
)
from gaussq_jax.weight_sampling import rounded_normal, sample_weights

__all__ = [
    'DEFAULT_RULES',
    'CastOnly',
    'FloatFormat',
    'Hadamard',
    'Keep',
    'LeafLayout',
    'MatrixRule',
    'ModelSize',
    'ParamTransform',
    'Quantizer',
    'bitwidth_descent',
    'bitwidth_penalty',
    'cast_params',
    'describe',
    'effective_bitwidths',
    'fake_quantize',
    'format_for_bitwidth',
    'formats_within_budget',
    'gaussian_weight_sampling',
    'layerwise',
    'layout_size',
    'leaf_path',
    'learned_layout',
    'leaves_by_path',
    'load_packed',
    'model_size',
    'parse_format',
    'quantization_aware',
    'quantize_params',
    'quantized_dot_general',
    'quantized_einsum',
    'recipes',
    'round_to_format',
    'rounded_normal',
    'sample_weights',
    'save_packed',
    'scaling_laws',
    'served_layout',
    'to_compressed_tensors',
    'to_deepseek_fp8',
    'to_mlx',
    'to_qarray',
    'to_quark_mxfp6',
    'uniform_layout',
    'uniform_weight_sampling',
]


def __getattr__(name: str):
    """`scaling_laws`, when it is first asked for: it takes SciPy, which the rest has no use for."""
    if name == 'scaling_laws':
        return importlib.import_module('gaussq_jax.scaling_laws')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
