"""What a config's method means: the transform of the weights, and the matmul of the linear layers."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import gaussq_jax as gq
from configs import common
from gaussq_jax import models
from gaussq_jax.quantized_dot_general import TARGETS
from kernels_pallas.weight_sampling import select

SAMPLING = {'gaussws': gq.gaussian_weight_sampling, 'diffq': gq.uniform_weight_sampling}
PARTS = {
    'all': '.*',
    'qkv': 'attention/(query|key|value)',
    'out': 'attention/out',
    'up': 'mlp/(gate|up)',
    'down': 'mlp/down',
}
QUANTIZING = ('qat', 'fqt')
DEFAULT_FORMAT = 'e4m3'  # of these, if none is named


def check_settings(config: ConfigDict):
    """Raises ValueError for a method that isn't there, and for a setting that would do nothing with this one."""
    if config.method not in common.METHODS:
        allowed = ', '.join(map(repr, common.METHODS))
        raise ValueError(f'config.method={config.method!r}: allowed are {allowed}')
    for name, default in unused_settings(config.method).items():
        if (value := config.quantization[name]) != default:
            uses = ', '.join(common.SETTINGS[config.method]) or 'none of the settings'
            raise ValueError(
                f'config.quantization.{name}={value!r} would do nothing with method={config.method}, which uses {uses};'
                f' leave it at {default!r}'
            )


def with_method(config: ConfigDict, method: str) -> ConfigDict:
    """The same config with another method; settings that this one has no use for are at their defaults."""
    config = config.copy_and_resolve_references()
    config.method = method
    config.quantization.update(unused_settings(method))
    return config


def unused_settings(method: str) -> dict[str, Any]:
    """The settings of `config.quantization` that the method has no use for, and their defaults."""
    used = ('method', 'smoke', *common.SETTINGS[method])
    defaults = common.parse('', **common.ARGUMENTS)
    return {name: value for name, value in defaults.items() if name not in used}


def make_transform(config: ConfigDict) -> gq.ParamTransform:
    """The ParamTransform of `config.method`, for the linear layers that `config.quantization.parts` names.

    Raises:
      ValueError: for settings that the method can't have.
    """
    if config.method in ('bf16', 'fqt'):
        return gq.cast_params(jnp.bfloat16, rules=matrix_rules(config))
    if config.method == 'qat':
        return gq.quantization_aware(make_quantizer(config), rules=matrix_rules(config))
    quantization = config.quantization
    return SAMPLING[config.method](
        quantization.b_init,
        quantization.b_target,
        rules=matrix_rules(config),
        block_size=parse_block_size(quantization.block_size),
        fmt=quantization.format or None,
    )


def matrix_rules(config: ConfigDict) -> tuple[gq.MatrixRule | gq.CastOnly, ...]:
    """The rules for which leaves are quantized: the linear layers that `config.quantization.parts` names."""
    parts = config.quantization.parts
    regex = f'layers/{PARTS[parts]}/kernel' if parts in PARTS else parts
    return (gq.MatrixRule(regex, batch_axes=(0,), row_axes=(1,), col_axes=(2,)), gq.CastOnly('.*'))


def make_dot_general_cls(config: ConfigDict, *, training: bool, sums_gradients: bool = False) -> Callable | None:
    """What makes the matmul of the linear layers; None outside of training where it is the usual one.

    In training steps, stochastic rounding takes its keys from the rng stream 'quantization'; outside, it is to
    nearest. `sums_gradients` where several devices have each a part of dW, which `config.gradient_reduction` is for.

    Raises:
      ValueError: for settings that fqt can't have.
    """
    settings = {}
    if training:  # as X^T dY: in JAX's order XLA:CPU copies dY transposed, see benchmarks/step_changes_cpu.json
        sum_dtype = config.gradient_reduction if sums_gradients else config.dtype
        settings['weight_gradient_dtype'] = np.promote_types(jnp.dtype(config.dtype), jnp.dtype(sum_dtype))
    if config.method == 'fqt':
        targets = config.quantization.targets.split('+')
        if len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
            allowed = ', '.join(TARGETS)
            raise ValueError(f'config.quantization.targets={"+".join(targets)!r}: allowed are {allowed}, joined by +')
        quantizer = make_quantizer(config)
        settings |= dict.fromkeys(targets, quantizer if training else quantizer.deterministic())
    return functools.partial(models.QuantizedDotGeneral, **settings) if settings else None


def describe(config: ConfigDict) -> str:
    """The settings that the method uses, in a few words."""
    if config.method == 'bf16':
        return 'weights rounded to bfloat16'
    quantization = config.quantization
    if config.method in SAMPLING:
        rounded = f', rounded to {quantization.format}' if quantization.format else ''
        sampled = f', sampled by {select(None, parse_block_size(quantization.block_size))}'
        return f'bitwidths from {quantization.b_init:g} to {quantization.b_target:g}{rounded}{sampled}'
    quantizer = make_quantizer(config)
    what = {'qat': 'weights', 'fqt': quantization.targets}[config.method]
    return (
        f'{what} quantized to {quantizer.fmt}, {quantizer.scale} scales, block size {quantization.block_size},'
        f' {quantizer.rounding}'
    )


def make_quantizer(config: ConfigDict) -> gq.Quantizer:
    """The Quantizer that `config.quantization` describes.

    Raises:
      ValueError: for a format, block size, scale or rounding that isn't there.
    """
    quantization = config.quantization
    return gq.Quantizer(
        quantization.format or DEFAULT_FORMAT,
        block_size=parse_block_size(quantization.block_size),
        scale=quantization.scale,
        rounding=quantization.rounding,
    )


def parse_block_size(text: str) -> int | str | tuple[int, ...]:
    """'32' -> 32, '32x16' -> (32, 16); other text stays as it is, for others to understand or to refuse."""
    sizes = text.split('x')
    if not all(size.isdecimal() for size in sizes):
        return text
    return int(text) if len(sizes) == 1 else tuple(map(int, sizes))
