"""Weight sampling with learned bitwidths: rounded normal noise (Gaussian weight sampling), or uniform (DiffQ's)."""

import functools
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.method import Method
from experiments.methods.settings import layer_rules, parse_block_size
from kernels_pallas.weight_sampling import select

SETTINGS = ('b_init', 'b_target', 'parts', 'format', 'block_size')


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
    return f'{_describe_bitwidths(config)}{rounded}{sampled}'


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


def weights(config: ConfigDict) -> dict[str, Any]:
    """Square blocks with power-of-two scales; without a format, in that of each block's bitwidth."""
    side = config.quantization.block_size
    settings = dict(block_size=f'{side}x{side}', scale='mx', rounding='nearest_even')
    return {**config.quantization.to_dict(), **settings}


_sampling = functools.partial(Method, settings=SETTINGS, describe=describe, weights=weights, learns_bitwidths=True)
GAUSSWS = _sampling(name='gaussws', make_transform=functools.partial(make_transform, gq.gaussian_weight_sampling))
DIFFQ = _sampling(name='diffq', make_transform=functools.partial(make_transform, gq.uniform_weight_sampling))
