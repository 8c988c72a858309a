"""Fully quantized training: operands of the linear layers' GEMMs are rounded, those of the backward pass too."""

from typing import Any

from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.bf16 import BF16
from experiments.methods.method import Method
from experiments.methods.settings import DEFAULT_FORMAT, describe_quantizer, make_quantizer
from gaussq_jax.quantized_dot_general import TARGETS


def operands(config: ConfigDict) -> dict[str, gq.Quantizer]:
    """The Quantizer of the settings for each of `config.quantization.targets`, as 'P2+P4+P6'."""
    targets = config.quantization.targets.split('+')
    if len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        allowed = ', '.join(TARGETS)
        raise ValueError(f'config.quantization.targets={"+".join(targets)!r}: allowed are {allowed}, joined by +')
    return dict.fromkeys(targets, make_quantizer(config.quantization))


def weights(config: ConfigDict) -> dict[str, Any] | None:
    """The settings, if the weights of the forward pass are among the targets."""
    return config.quantization.to_dict() if 'P2' in config.quantization.targets.split('+') else None


FQT = Method(
    name='fqt',
    settings=('format', 'block_size', 'scale', 'rounding', 'targets'),
    make_transform=BF16.make_transform,
    describe=lambda config: describe_quantizer(config.quantization.targets, config),
    weights=weights,
    operands=operands,
    default_format=DEFAULT_FORMAT,
)
