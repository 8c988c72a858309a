"""Quantization-aware training: the weights are rounded to a format, straight through."""

from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.method import Method
from experiments.methods.settings import DEFAULT_FORMAT, describe_quantizer, layer_rules, make_quantizer


def make_transform(config: ConfigDict) -> gq.ParamTransform:
    """`gq.quantization_aware` by the Quantizer of the settings."""
    return gq.quantization_aware(make_quantizer(config.quantization), rules=layer_rules(config))


QAT = Method(
    name='qat',
    settings=('parts', 'format', 'block_size', 'scale', 'rounding'),
    make_transform=make_transform,
    describe=lambda config: describe_quantizer('weights', config),
    weights=lambda config: config.quantization.to_dict(),
    default_format=DEFAULT_FORMAT,
)
