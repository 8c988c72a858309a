"""The optimizer of weights, and of bitwidths beside them, from the config."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.training import bitwidth_optimizers
from experiments.training.adam_mini import scale_by_adam_mini
from experiments.training.low_precision_state import low_precision_state
from gaussq_jax import models
from gaussq_jax.param_tree import map_leaves

NAMES = ('adamw', 'adam_mini')
STATE_DTYPES = ('float32', 'bfloat16')
NO_WEIGHT_DECAY = ('scale', 'bias')  # last names of the leaves of norms, and biases


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Of the weights: linear warm-up from 0, then a cosine to the final learning rate."""
    optimizer = config.optimizer
    return in_default_modes(
        optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=optimizer.learning_rate,
            warmup_steps=optimizer.warmup_steps,
            decay_steps=config.total_steps,
            end_value=optimizer.final_learning_rate,
        )
    )


def make_optimizer(config: ConfigDict, transform: gq.ParamTransform) -> optax.GradientTransformation:
    """The optimizer of the tree {'params': weights, 'bitwidths': b_i}.

    Weights have AdamW. They are clipped by their global norm, which the bitwidths don't enter; weight decay leaves
    norms and biases alone, by name. Adam-mini can take Adam's place, and the moments can be kept in bfloat16, rounded
    stochastically. Bitwidths have an optimizer of their own, in float32 (`bitwidth_optimizers`).

    Raises:
      ValueError: for an unknown optimizer or dtype of its state, a warm-up that isn't shorter than the training,
        learning rates that rise, and settings out of their range; naming the field.
    """
    optimizer = config.optimizer
    for name, allowed in (('name', NAMES), ('state_dtype', STATE_DTYPES)):
        if optimizer[name] not in allowed:
            raise ValueError(
                f'config.optimizer.{name}={optimizer[name]!r}: allowed are {", ".join(map(repr, allowed))}'
            )
    for name in ('clip_norm', 'eps'):
        if not optimizer[name] > 0:
            raise ValueError(f'config.optimizer.{name}={optimizer[name]} must be positive (inf clips nothing)')
    for name in ('b1', 'b2'):
        if not 0 <= optimizer[name] < 1:
            raise ValueError(f'config.optimizer.{name}={optimizer[name]} must be at least 0 and less than 1')
    if not optimizer.weight_decay >= 0:
        raise ValueError(f'config.optimizer.weight_decay={optimizer.weight_decay} must not be negative')
    if not 0 <= optimizer.warmup_steps < config.total_steps:
        raise ValueError(
            f'config.optimizer.warmup_steps={optimizer.warmup_steps} must be at least 0 and less than'
            f' config.total_steps={config.total_steps}'
        )
    if not 0 < optimizer.learning_rate >= optimizer.final_learning_rate >= 0:
        raise ValueError(
            f'config.optimizer.learning_rate={optimizer.learning_rate} must be positive, and final_learning_rate='
            f'{optimizer.final_learning_rate} between 0 and that'
        )
    moments = dict(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)
    if optimizer.name == 'adam_mini':
        family = models.find_family(config.model.family)
        scale = scale_by_adam_mini(**moments, family=family, head_size=family.head_size(config.model))
    else:
        scale = optax.scale_by_adam(**moments)
    decay = optax.add_decayed_weights(optimizer.weight_decay, has_weight_decay)
    weights = optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.chain(scale, decay, optax.scale_by_learning_rate(learning_rate_schedule(config))),
    )
    if optimizer.state_dtype == 'bfloat16':
        weights = low_precision_state(weights, config.seed)
    parts = optax.partition(
        {'params': weights, 'bitwidths': bitwidth_optimizers.make(config, transform)},
        param_labels=lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, tree),
    )
    return optax.GradientTransformationExtraArgs(*map(in_default_modes, parts))


def in_default_modes(function: Callable) -> Callable:
    """The function of optax's, whatever the user's modes of JAX.

    Optax raises decay rates to integer counts, and divides those by numbers of steps: in float64 where 64-bit numbers
    are enabled, and an error where JAX promotes no dtypes.
    """

    @functools.wraps(function)
    def with_modes(*arguments, **named):
        with jax.enable_x64(False), jax.numpy_dtype_promotion('standard'):
            return function(*arguments, **named)

    return with_modes


def has_weight_decay(params: Any) -> Any:
    """A tree like `params`: whether the leaf decays, by the last name of its path."""
    return map_leaves(lambda path, _: path.rpartition('/')[2] not in NO_WEIGHT_DECAY, params)
