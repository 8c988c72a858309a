"""Settings that methods share: their defaults, and what they mean."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.quantization_schedule import describe_steps
from gaussq_jax import models, recipes
from gaussq_jax.models.family import PARTS
from gaussq_jax.quantized_dot_general import ARITHMETICS

# How bitwidths are learned: fields of `config.quantization`. A field that its optimizer has no use for is 0.
BITWIDTHS = {
    'price': dict(
        b_init=8.0,
        b_target=3.0,
        optimizer='descent',  # gq.bitwidth_descent
        start=0.7,
        price=0.04,
        fall=0.15,
        learning_rate=0.0,
        weight_decay=0.0,
        penalty=0.0,
    ),
    'decay': dict(  # of arXiv 2505.11170
        b_init=6.0,
        b_target=4.0,
        optimizer='adamw',
        start=0.0,
        price=0.0,
        fall=0.0,
        learning_rate=1e-3,
        weight_decay=1.0,
        penalty=0.0,
    ),
}
WAYS = {way['optimizer']: name for name, way in BITWIDTHS.items()}  # by optimizer
OF_BITWIDTHS = (*BITWIDTHS['price'],)
SHARED = dict(  # default, or the allowed words, the first of them the default
    b_init=BITWIDTHS['price']['b_init'],
    b_target=BITWIDTHS['price']['b_target'],
    parts=('all', *PARTS),
    format='',
    block_size='32',
    scale=('absmax', 'mx', 'nvfp4'),
    rounding=('nearest_even', 'nearest_away', 'toward_zero', 'stochastic'),
    targets='P2+P4+P6',
    recipe='',
    full_precision='',
    start_step=0,
    end_step=0,
    arithmetic=ARITHMETICS,
)
DEFAULTS = {name: value[0] if isinstance(value, tuple) else value for name, value in SHARED.items()}
DEFAULT_FORMAT = 'e4m3'  # of what always rounds to one, if none is named


def layer_rules(config: ConfigDict) -> tuple[gq.MatrixRule | gq.CastOnly, ...]:
    """The rules for which leaves are quantized: the linear layers that `config.quantization.parts` names."""
    parts, family = config.quantization.parts, models.find_family(config.model.family)
    regex = {'all': '.*', **family.parts}.get(parts)
    if regex is None and parts in PARTS:
        allowed = ', '.join(['all', *family.parts])
        raise ValueError(f'config.quantization.parts={parts!r}: the parts of {family.name} are {allowed}')
    kernels = f'{family.layers}/{regex}/kernel' if regex else parts
    return (gq.MatrixRule(kernels, batch_axes=(0,), row_axes=(1,), col_axes=(2,)), gq.CastOnly('.*'))


def make_quantizer(settings: Mapping[str, Any]) -> gq.Quantizer:
    """The Quantizer that fields of `config.quantization` describe: format, block_size, scale and rounding.

    Raises:
      ValueError: for a format, block size, scale or rounding that isn't there.
    """
    return gq.Quantizer(
        settings['format'] or DEFAULT_FORMAT,
        block_size=parse_block_size(settings['block_size']),
        scale=settings['scale'],
        rounding=settings['rounding'],
    )


def named_recipe(config: ConfigDict) -> recipes.Recipe:
    """The recipe that `config.quantization.recipe` names, with the layers kept that its `full_precision` says.

    Raises:
      ValueError: for a name, or a rule, that isn't there.
    """
    try:
        recipe = recipes.find(config.quantization.recipe)
    except ValueError as error:
        raise ValueError(f'config.quantization.{error}') from None
    return with_matmuls(config, recipe.replace(full_precision=kept_layers(config, recipe.full_precision)))


def with_matmuls(config: ConfigDict, recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe by `config.quantization.arithmetic`; ValueError where its operands can't have that."""
    try:
        return recipe.replace(arithmetic=config.quantization.arithmetic)
    except ValueError as error:
        raise ValueError(f'config.quantization.{error}') from None


def kept_layers(config: ConfigDict, default: tuple[recipes.KeptLayers, ...]) -> tuple[recipes.KeptLayers, ...]:
    """The rules of `config.quantization.full_precision`; '' is the default, and 'none' is none."""
    text = config.quantization.full_precision
    try:
        return {'': default, 'none': ()}[text] if text in ('', 'none') else recipes.parse_kept_layers(text)
    except ValueError as error:
        raise ValueError(f'config.quantization.full_precision={text!r}: {error}') from None


def describe_recipe(config: ConfigDict) -> str:
    """What is quantized, and when, in a few words."""
    settings = config.quantization
    what = settings.recipe and f'recipe {settings.recipe}: {named_recipe(config).about}'
    return ', '.join(filter(None, (what or describe_quantizer(settings.targets, config), describe_steps(config))))


def describe_quantizer(what: str, config: ConfigDict) -> str:
    """What is quantized, and to what."""
    return f'{what} quantized to {make_quantizer(config.quantization).summary}'


def parse_block_size(text: str) -> int | str | tuple[int, ...]:
    """What `block_size_text` writes: '32' -> 32, '32x16' -> (32, 16); other text as it is."""
    sizes = text.split('x')
    if not all(size.isdecimal() for size in sizes):
        return text
    return int(text) if len(sizes) == 1 else tuple(map(int, sizes))
