"""Low-precision training in JAX: Gaussian weight sampling and floating-point quantized training."""

from gaussq_jax.bitwidths import bitwidth_penalty, effective_bitwidths, format_for_bitwidth
from gaussq_jax.block_scaling import Quantizer, fake_quantize
from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.param_rules import DEFAULT_RULES, CastOnly, MatrixRule
from gaussq_jax.param_transforms import (
    ParamTransform,
    cast_params,
    gaussian_weight_sampling,
    quantization_aware,
    uniform_weight_sampling,
)
from gaussq_jax.quantized_dot_general import quantized_dot_general
from gaussq_jax.rounding import round_to_format
from gaussq_jax.weight_sampling import rounded_normal, sample_weights

__all__ = [
    'DEFAULT_RULES',
    'CastOnly',
    'FloatFormat',
    'MatrixRule',
    'ParamTransform',
    'Quantizer',
    'bitwidth_penalty',
    'cast_params',
    'effective_bitwidths',
    'fake_quantize',
    'format_for_bitwidth',
    'gaussian_weight_sampling',
    'parse_format',
    'quantization_aware',
    'quantized_dot_general',
    'round_to_format',
    'rounded_normal',
    'sample_weights',
    'uniform_weight_sampling',
]
