"""Methods of low-precision training: what `config.method` names, and what its settings make of a model."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.bf16 import BF16
from experiments.methods.fully_quantized import FQT
from experiments.methods.method import Method, RoundedWeights
from experiments.methods.quantization_aware import QAT
from experiments.methods.quantization_schedule import Now, check_steps, quantizes_forward
from experiments.methods.sampling import DIFFQ, GAUSSWS
from experiments.methods.settings import BITWIDTHS, DEFAULTS, SHARED, WAYS
from gaussq_jax import models, recipes

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
    for name, default in {**DEFAULTS, **method.own_settings}.items():
        value, kind = config.quantization[name], type(default)
        if type(value) not in {float: (float, int), str: (str, type(None))}.get(kind, (kind,)):
            raise ValueError(f'config.quantization.{name}={value!r} must be of the type {kind.__name__}')
    idle = method.idle(config)
    used = [name for name in (*method.settings, *method.own_settings) if name not in idle]
    for name, default in {**unused_settings(config.method), **{name: DEFAULTS[name] for name in idle}}.items():
        defaults = [default, *(way[name] for way in BITWIDTHS.values() if name in way)]
        if (value := config.quantization[name]) not in defaults:
            beside = f' and recipe={config.quantization.recipe!r}' if name in idle else ''
            raise ValueError(
                f'config.quantization.{name}={value!r} would do nothing with method={config.method}{beside}, which uses'
                f' {", ".join(used) or "none of the settings"}; leave it at {default!r}'
            )
    check_steps(config)
    method.recipe(config)


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
    config.quantization.update({setting: DEFAULTS[setting] for setting in after.idle(config)})
    return config


def unused_settings(name: str) -> dict[str, Any]:
    """The shared settings that the method has no use for, and their defaults."""
    used = find(name).settings
    return {name: value for name, value in DEFAULTS.items() if name not in used}


def model_now(config: ConfigDict, model: Any, now: Now) -> Any:
    """The model as it multiplies when its method quantizes, or doesn't, as `quantization_schedule.when` says."""
    if now is True or not quantizes_matmuls(config):
        return model
    return model.clone(dot_general_cls=functools.partial(model.dot_general_cls, when=now))


def transform_now(config: ConfigDict, transform: gq.ParamTransform, now: Now) -> gq.ParamTransform:
    """The transform of the weights; of one that quantizes them, when it doesn't, their cast."""
    if now is True or transform.matrices != 'quantized':
        return transform
    return _if(now, transform, BF16.make_transform(config))


def _if(flag: Any, transform: gq.ParamTransform, other: gq.ParamTransform) -> gq.ParamTransform:
    """A transform without state, or another one, by a flag that may be traced."""
    if isinstance(flag, bool):
        return transform if flag else other

    def apply(key, params, state, **where):
        either = (of.apply for of in (transform, other))
        return jax.lax.cond(flag, *(functools.partial(of, key, state=state, **where) for of in either), params)

    resolve = transform.resolve
    return transform._replace(apply=apply, resolve=resolve and (lambda params: _if(flag, resolve(params), other)))


def make_dot_general_cls(config: ConfigDict, *, training: bool, sums_gradients: bool = False) -> Callable | None:
    """What makes the matmul of the linear layers; None outside of training where it is the usual one.

    In training steps, stochastic rounding takes its keys from the rng stream 'quantization'; outside, it is to
    nearest. `sums_gradients` where several devices have each a part of dW, which `config.gradient_reduction` is for.

    Raises:
      ValueError: for settings that the method can't have.
    """
    settings, recipe = {}, matmul_recipe(config)
    if training:  # as X^T dY: in JAX's order XLA:CPU copies dY transposed, see benchmarks/step_changes_cpu.json
        sum_dtype = config.gradient_reduction if sums_gradients else config.dtype
        settings['weight_gradient_dtype'] = np.promote_types(jnp.dtype(config.dtype), jnp.dtype(sum_dtype))
    if recipe is not None:
        settings['recipe'] = recipe if training else recipe.deterministic()
    return functools.partial(models.QuantizedDotGeneral, **settings) if settings else None


def rounded_weights(config: ConfigDict, step: int) -> RoundedWeights | None:
    """How weights are rounded in the forward pass after so many steps; None as of `Method.weights`."""
    return find(config.method).weights(config) if quantizes_forward(config, step) else None


def model_of_rounded_weights(config: ConfigDict, model: Any) -> Any:
    """The model for weights that are rounded already, which it multiplies as they are; activations as of its method."""
    recipe = matmul_recipe(config)
    if recipe is None:
        return model
    others = recipe.deterministic().without_weights()
    return model.clone(dot_general_cls=functools.partial(model.dot_general_cls, recipe=others))


def matmul_recipe(config: ConfigDict) -> recipes.Recipe | None:
    """What the method rounds of the matmuls' operands; None where that is nothing."""
    recipe = find(config.method).recipe(config)
    return recipe if recipe is not None and recipe.operands else None


def quantizes_matmuls(config: ConfigDict, step: int | None = None) -> bool:
    """Whether the method rounds operands of the matmuls, which weights of it then need where they are served too.

    With a step, whether it does in the forward pass after so many steps.
    """
    return matmul_recipe(config) is not None and (step is None or quantizes_forward(config, step))


def scales_span_tokens(config: ConfigDict, now: Now = True) -> bool:
    """Whether tokens share the scales of activations: then logits depend on all that is computed at a time.

    They do with a block size of 'tensor', with tiles of several rows, and with NVFP4, which has a scale of the tensor.
    """
    recipe = matmul_recipe(config)
    is_on = now[0] if isinstance(now, tuple) else now
    if recipe is None or recipe.P1 is None or not is_on:
        return False
    quantizer = recipe.P1
    size = quantizer.block_size
    return size == 'tensor' or quantizer.scale == 'nvfp4' or (isinstance(size, tuple) and size[0] > 1)
