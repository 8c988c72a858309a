"""Weight sampling with learned bitwidths: rounded normal noise (Gaussian weight sampling), or uniform (DiffQ's)."""

import functools
import math
from collections.abc import Callable

from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.method import Method, RoundedWeights
from experiments.methods.quantization_schedule import describe_steps
from experiments.methods.settings import layer_rules, named_recipe, parse_block_size
from gaussq_jax import recipes
from kernels_pallas.weight_sampling import select

OF_RECIPES = ('full_precision', 'start_step', 'end_step')
SETTINGS = ('b_init', 'b_target', 'parts', 'format', 'block_size', 'recipe', *OF_RECIPES)


def make_transform(sample: Callable[..., gq.ParamTransform], config: ConfigDict) -> gq.ParamTransform:
    """The transform of the settings, by one of the library's two functions."""
    quantization = config.quantization
    return sample(
        quantization.b_init,
        quantization.b_target,
        rules=layer_rules(config),
        block_size=parse_block_size(quantization.block_size),
        fmt=quantization.format or None,
    )


def describe(config: ConfigDict) -> str:
    """Bitwidths and how they are learned, format, and the kernel that samples here."""
    quantization = config.quantization
    rounded = f', rounded to {quantization.format}' if quantization.format else ''
    sampled = f', sampled by {select(None, parse_block_size(quantization.block_size))}'
    described = f'{_describe_bitwidths(config)}{rounded}{sampled}'
    if not quantization.recipe:
        return described
    under = f'activations and gradients of the recipe {quantization.recipe}'
    return '; '.join([described, ', '.join(filter(None, (under, describe_steps(config))))])


def _describe_bitwidths(config: ConfigDict) -> str:
    quantization = config.quantization
    if quantization.b_init == quantization.b_target:
        return f'bitwidths of {quantization.b_init:g}'
    span = f'bitwidths from {quantization.b_init:g} down to {quantization.b_target:g}'
    if quantization.start:
        span += f', from step {math.floor(quantization.start * config.total_steps) + 1} on'
    if quantization.optimizer == 'descent':
        return f'{span}, where a stored bit a weight has a price of {quantization.price:g} nats'
    pulls = {'weight decay': quantization.weight_decay, 'penalty': quantization.penalty}
    pulled = ' and '.join(f'{what} of {value:g}' for what, value in pulls.items() if value)
    return f'{span}, pulled by {pulled}' if pulled else f'{span}, not pulled down'


def recipe(config: ConfigDict) -> recipes.Recipe | None:
    """What `config.quantization.recipe` does to activations and gradients: the weights are sampled in its place."""
    name = config.quantization.recipe
    if not name:
        return None
    under = named_recipe(config).without_weights()
    if under is None:
        raise ValueError(
            f'config.quantization.recipe={name!r} would do nothing with method={config.method}, which samples the'
            ' weights: it rounds no activations and no gradients'
        )
    return under


def weights(config: ConfigDict) -> RoundedWeights | None:
    """In square blocks with power-of-two scales; None without a format, where that is of each block's bitwidth."""
    settings = config.quantization
    if not settings.format:
        return None
    side = parse_block_size(settings.block_size)
    return RoundedWeights(gq.Quantizer(settings.format, block_size=(side, side), scale='mx'))


_sampling = functools.partial(
    Method,
    settings=SETTINGS,
    describe=describe,
    weights=weights,
    recipe=recipe,
    idle=lambda config: () if config.quantization.recipe else OF_RECIPES,
    learns_bitwidths=True,
)
GAUSSWS = _sampling(name='gaussws', make_transform=functools.partial(make_transform, gq.gaussian_weight_sampling))
DIFFQ = _sampling(name='diffq', make_transform=functools.partial(make_transform, gq.uniform_weight_sampling))
