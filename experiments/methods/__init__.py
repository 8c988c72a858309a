"""Methods of low-precision training: what `config.method` names, and what its settings make of a model."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.methods.bf16 import BF16
from experiments.methods.fully_quantized import FQT
from experiments.methods.method import Method
from experiments.methods.quantization_aware import QAT
from experiments.methods.sampling import DIFFQ, GAUSSWS
from experiments.methods.settings import BITWIDTHS, SHARED, WAYS
from gaussq_jax import models

SPAN_TOKENS = 'scales of activations span tokens: a text depends on the texts beside it, and on their padding'
METHODS = {method.name: method for method in (GAUSSWS, DIFFQ, QAT, FQT, BF16)}


def register(method: Method) -> Method:
    """Adds a method: from then on its name is one of `config.method`.

    Raises:
      ValueError: another method has the name, or one of its own settings that of a shared one.
    """
    if clash := sorted(method.own_settings.keys() & SHARED.keys()):
        raise ValueError(f'{method.name}: {clash[0]} is a setting that methods share, and not its own')
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f'a method {method.name!r} is there already')
    return method


def find(name: str) -> Method:
    """The method of this name; ValueError with those there are."""
    if name not in METHODS:
        raise ValueError(f'config.method={name!r}: allowed are {", ".join(map(repr, METHODS))}')
    return METHODS[name]


def check_settings(config: ConfigDict):
    """Raises ValueError for a method that isn't there, and for a setting that would do nothing with this one."""
    method = find(config.method)
    if lacking := sorted(method.own_settings.keys() - config.quantization.keys()):
        raise ValueError(
            f'config.quantization lacks {", ".join(lacking)}, of method={config.method}: choose it where the config is'
            f' made, as --config=configs/tiny.py:method={config.method}'
        )
    for name, default in method.own_settings.items():
        value, kind = config.quantization[name], type(default)
        if type(value) not in ((kind, int) if kind is float else (kind,)):
            raise ValueError(f'config.quantization.{name}={value!r} must be of the type {kind.__name__}')
    unused = unused_settings(config.method)
    for name, default in unused.items():
        defaults = [default, *(way[name] for way in BITWIDTHS.values() if name in way)]
        if (value := config.quantization[name]) not in defaults:
            uses = ', '.join((*method.settings, *method.own_settings)) or 'none of the settings'
            raise ValueError(
                f'config.quantization.{name}={value!r} would do nothing with method={config.method}, which uses {uses};'
                f' leave it at {default!r}'
            )


def with_method(config: ConfigDict, name: str) -> ConfigDict:
    """The same config with another method; settings that this one has no use for are at their defaults."""
    config = config.copy_and_resolve_references()
    before, after = find(config.method), find(name)
    config.method = name
    for setting in before.own_settings.keys() - after.own_settings.keys():
        del config.quantization[setting]
    own = {setting: config.quantization.get(setting, default) for setting, default in after.own_settings.items()}
    way = BITWIDTHS[WAYS[config.quantization.optimizer]]
    unused = {setting: way.get(setting, default) for setting, default in unused_settings(name).items()}
    config.quantization.update({**own, **unused})
    return config


def unused_settings(name: str) -> dict[str, Any]:
    """The shared settings that the method has no use for, and their defaults."""
    used = find(name).settings
    defaults = {name: value[0] if isinstance(value, tuple) else value for name, value in SHARED.items()}
    return {name: value for name, value in defaults.items() if name not in used}


def make_dot_general_cls(config: ConfigDict, *, training: bool, sums_gradients: bool = False) -> Callable | None:
    """What makes the matmul of the linear layers; None outside of training where it is the usual one.

    In training steps, stochastic rounding takes its keys from the rng stream 'quantization'; outside, it is to
    nearest. `sums_gradients` where several devices have each a part of dW, which `config.gradient_reduction` is for.

    Raises:
      ValueError: for settings that the method can't have.
    """
    settings = {}
    if training:  # as X^T dY: in JAX's order XLA:CPU copies dY transposed, see benchmarks/step_changes_cpu.json
        sum_dtype = config.gradient_reduction if sums_gradients else config.dtype
        settings['weight_gradient_dtype'] = np.promote_types(jnp.dtype(config.dtype), jnp.dtype(sum_dtype))
    for target, quantizer in find(config.method).operands(config).items():
        settings[target] = quantizer if training else quantizer.deterministic()
    return functools.partial(models.QuantizedDotGeneral, **settings) if settings else None


def quantizes_matmuls(config: ConfigDict) -> bool:
    """Whether the method rounds operands of the matmuls, which weights of it then need where they are served too."""
    return bool(find(config.method).operands(config))


def scales_span_tokens(config: ConfigDict) -> bool:
    """Whether tokens share the scales of activations: then logits depend on all that is computed at a time.

    They do with a block size of 'tensor', with tiles of several rows, and with NVFP4, which has a scale of the tensor.
    """
    quantizer = find(config.method).operands(config).get('P1')
    if quantizer is None:
        return False
    size = quantizer.block_size
    return size == 'tensor' or quantizer.scale == 'nvfp4' or (isinstance(size, tuple) and size[0] > 1)
