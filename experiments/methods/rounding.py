"""Methods that round: weights to bfloat16 (the baseline), weights to a format, or the operands of the matmuls."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.method import Method
from experiments.methods.settings import DEFAULT_FORMAT, layer_rules, make_quantizer
from gaussq_jax.quantized_dot_general import TARGETS


def to_bfloat16(config: ConfigDict) -> gq.ParamTransform:
    """The cast of all weights to bfloat16."""
    return gq.cast_params(jnp.bfloat16, rules=layer_rules(config))


def to_format(config: ConfigDict) -> gq.ParamTransform:
    """`gq.quantization_aware` by the Quantizer of the settings: straight through."""
    return gq.quantization_aware(make_quantizer(config.quantization), rules=layer_rules(config))


def operands(config: ConfigDict) -> dict[str, gq.Quantizer]:
    """The Quantizer of the settings for each of `config.quantization.targets`, as 'P2+P4+P6'."""
    targets = config.quantization.targets.split('+')
    if len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        allowed = ', '.join(TARGETS)
        raise ValueError(f'config.quantization.targets={"+".join(targets)!r}: allowed are {allowed}, joined by +')
    return dict.fromkeys(targets, make_quantizer(config.quantization))


def weights_among_operands(config: ConfigDict) -> dict[str, Any] | None:
    """The settings, if the weights of the forward pass are among the targets."""
    return config.quantization.to_dict() if 'P2' in config.quantization.targets.split('+') else None


def describe(what: str, config: ConfigDict) -> str:
    """What is quantized, and to what."""
    quantizer = make_quantizer(config.quantization)
    return (
        f'{what} quantized to {quantizer.fmt}, {quantizer.scale} scales, block size {config.quantization.block_size},'
        f' {quantizer.rounding}'
    )


BF16 = Method(
    name='bf16',
    settings=(),
    make_transform=to_bfloat16,
    describe=lambda config: 'weights rounded to bfloat16',
    weights=lambda config: None,
)
QAT = Method(  # quantization-aware training
    name='qat',
    settings=('parts', 'format', 'block_size', 'scale', 'rounding'),
    make_transform=to_format,
    describe=lambda config: describe('weights', config),
    weights=lambda config: config.quantization.to_dict(),
    default_format=DEFAULT_FORMAT,
)
FQT = Method(  # fully quantized training: operands of the linear layers' GEMMs, those of the backward pass too
    name='fqt',
    settings=('format', 'block_size', 'scale', 'rounding', 'targets'),
    make_transform=to_bfloat16,
    describe=lambda config: describe(config.quantization.targets, config),
    weights=weights_among_operands,
    operands=operands,
    default_format=DEFAULT_FORMAT,
)
