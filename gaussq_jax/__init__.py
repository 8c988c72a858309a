"""Low-precision training in JAX: Gaussian weight sampling and floating-point quantized training."""

from gaussq_jax.bitwidths import bitwidth_penalty, effective_bitwidths
from gaussq_jax.param_rules import DEFAULT_RULES, CastOnly, MatrixRule
from gaussq_jax.param_transforms import (
    ParamTransform,
    cast_params,
    gaussian_weight_sampling,
    uniform_weight_sampling,
)
from gaussq_jax.weight_sampling import rounded_normal, sample_weights

__all__ = [
    'DEFAULT_RULES',
    'CastOnly',
    'MatrixRule',
    'ParamTransform',
    'bitwidth_penalty',
    'cast_params',
    'effective_bitwidths',
    'gaussian_weight_sampling',
    'rounded_normal',
    'sample_weights',
    'uniform_weight_sampling',
]
