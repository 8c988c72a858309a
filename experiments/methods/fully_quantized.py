"""Fully quantized training: operands of the linear layers' GEMMs are rounded, those of the backward pass too."""

from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.method import Method, RoundedWeights
from experiments.methods.settings import (
    DEFAULT_FORMAT,
    describe_recipe,
    kept_layers,
    layer_rules,
    make_quantizer,
    named_recipe,
    with_matmuls,
)
from gaussq_jax import recipes

OF_ONE_FORMAT = ('format', 'block_size', 'scale', 'rounding', 'targets')  # settings that a named recipe has itself


def recipe(config: ConfigDict) -> recipes.Recipe:
    """The one that is named, or the Quantizer of the settings for each of `config.quantization.targets`, 'P2+P4+P6'."""
    settings = config.quantization
    if settings.recipe:
        return named_recipe(config)
    quantizer = make_quantizer(settings)
    try:
        of_targets = recipes.of_targets(quantizer, settings.targets)
    except ValueError as error:
        raise ValueError(f'config.quantization.{error}') from None
    return with_matmuls(config, of_targets.replace(full_precision=kept_layers(config, ())))


def make_transform(config: ConfigDict) -> gq.ParamTransform:
    """The cast of all weights to bfloat16; of a recipe for weights alone, what that makes of them."""
    return recipe(config).transform(layer_rules(config))


def weights(config: ConfigDict) -> RoundedWeights | None:
    """By P2, if the recipe has it, or by what it makes of weights alone."""
    of_config = recipe(config)
    quantizer = of_config.P2 or of_config.weights
    return quantizer and RoundedWeights(quantizer, of_config.full_precision)


FQT = Method(
    name='fqt',
    settings=('recipe', *OF_ONE_FORMAT, 'full_precision', 'start_step', 'end_step', 'arithmetic'),
    make_transform=make_transform,
    describe=describe_recipe,
    weights=weights,
    recipe=recipe,
    idle=lambda config: OF_ONE_FORMAT if config.quantization.recipe else (),
    default_format=DEFAULT_FORMAT,
)
