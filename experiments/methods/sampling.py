"""Weight sampling with learned bitwidths: rounded normal noise (Gaussian weight sampling), or uniform (DiffQ's)."""

import functools
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
    """Bitwidths, format, and the kernel that samples here."""
    quantization = config.quantization
    rounded = f', rounded to {quantization.format}' if quantization.format else ''
    sampled = f', sampled by {select(None, parse_block_size(quantization.block_size))}'
    return f'bitwidths from {quantization.b_init:g} to {quantization.b_target:g}{rounded}{sampled}'


def weights(config: ConfigDict) -> dict[str, Any]:
    """Square blocks with power-of-two scales; without a format, in that of each block's bitwidth."""
    side = config.quantization.block_size
    settings = dict(block_size=f'{side}x{side}', scale='mx', rounding='nearest_even')
    return {**config.quantization.to_dict(), **settings}


_sampling = functools.partial(Method, settings=SETTINGS, describe=describe, weights=weights, learns_bitwidths=True)
GAUSSWS = _sampling(name='gaussws', make_transform=functools.partial(make_transform, gq.gaussian_weight_sampling))
DIFFQ = _sampling(name='diffq', make_transform=functools.partial(make_transform, gq.uniform_weight_sampling))
