"""Quantization-aware training: the weights are rounded to a format, straight through."""

from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.method import Method, RoundedWeights
from experiments.methods.quantization_schedule import describe_steps
from experiments.methods.settings import (
    DEFAULT_FORMAT,
    describe_quantizer,
    kept_layers,
    layer_rules,
    make_quantizer,
)
from gaussq_jax import recipes


def recipe(config: ConfigDict) -> recipes.Recipe:
    """The weights alone, by the Quantizer of the settings."""
    return recipes.qat(make_quantizer(config.quantization)).replace(full_precision=kept_layers(config, ()))


def make_transform(config: ConfigDict) -> gq.ParamTransform:
    """`gq.quantization_aware`, as the recipe has it."""
    return recipe(config).transform(layer_rules(config))


def weights(config: ConfigDict) -> RoundedWeights:
    """By the Quantizer of the settings, but for the layers that they keep."""
    of_config = recipe(config)
    return RoundedWeights(of_config.weights, of_config.full_precision)


def describe(config: ConfigDict) -> str:
    """What the weights are quantized to, and from when on."""
    return ', '.join(filter(None, (describe_quantizer('weights', config), describe_steps(config))))


QAT = Method(
    name='qat',
    settings=('parts', 'format', 'block_size', 'scale', 'rounding', 'full_precision', 'start_step'),
    make_transform=make_transform,
    describe=describe,
    weights=weights,
    recipe=recipe,
    default_format=DEFAULT_FORMAT,
)
