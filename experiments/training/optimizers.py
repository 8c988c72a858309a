"""The optimizer of weights, and of bitwidths beside them, from the config."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.training import bitwidth_optimizers
from experiments.training.adam_mini import scale_by_adam_mini
from experiments.training.low_precision_state import low_precision_state
from experiments.training.muon import scale_by_muon
from gaussq_jax import models
from gaussq_jax.param_tree import map_leaves

NAMES = ('adamw', 'adam_mini', 'muon')
SCHEDULES = ('cosine', 'wsd')
STATE_DTYPES = ('float32', 'bfloat16')
NO_WEIGHT_DECAY = ('scale', 'bias')  # last names of the leaves of norms, and biases


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Of the weights: linear warm-up from 0, then a cosine to the final learning rate, or 'wsd'.

    The latter (warm-up, stable, decay) stays at the peak, and falls in the last `decay_steps` alone,

        final + (peak - final) (1 - sqrt(share of the decay that is over))

    Source: Hu et al., MiniCPM (arXiv 2404.06395), section 4; the shape and its length: Hägele et al., Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations (arXiv 2405.18392), section 3.
    """
    optimizer = config.optimizer
    peak, final = optimizer.learning_rate, optimizer.final_learning_rate
    if optimizer.schedule == 'cosine':
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=peak,
            warmup_steps=optimizer.warmup_steps,
            decay_steps=config.total_steps,
            end_value=final,
        )
        return in_default_modes(schedule)
    start = decay_start(config)

    def decay(count):
        share = jnp.clip(count / (config.total_steps - start), 0, 1)
        return final + (peak - final) * (1 - jnp.sqrt(share))

    warmup = optax.linear_schedule(0.0, peak, optimizer.warmup_steps)
    parts = [warmup, optax.constant_schedule(peak), decay]
    return in_default_modes(optax.join_schedules(parts, [optimizer.warmup_steps, start]))


def decay_start(config: ConfigDict) -> int:
    """How many steps come before the decay of 'wsd': what is learned in them doesn't depend on `total_steps`."""
    return config.total_steps - (config.optimizer.decay_steps or -(-config.total_steps // 5))


def make_optimizer(config: ConfigDict, transform: gq.ParamTransform) -> optax.GradientTransformation:
    """The optimizer of the tree {'params': weights, 'bitwidths': b_i}.

    Weights have AdamW. They are clipped by their global norm, which the bitwidths don't enter; weight decay leaves
    norms and biases alone, by name. Adam-mini can take Adam's place, and so can Muon for the linear layers' matrices;
    the moments can be kept in bfloat16, rounded stochastically. Bitwidths have an optimizer of their own, in float32
    (`bitwidth_optimizers`).

    Raises:
      ValueError: for an unknown optimizer, schedule or dtype of its state, a warm-up or a decay that doesn't fit into
        the training, learning rates that rise, settings out of their range, and a branch of a run whose beginning
        depends on its length; naming the field.
    """
    optimizer = config.optimizer
    for name, allowed in (('name', NAMES), ('schedule', SCHEDULES), ('state_dtype', STATE_DTYPES)):
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
    _check_decay(config)
    check_branch(config)
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
    if optimizer.name == 'muon':
        scale = scale_by_muon(scale, family=models.find_family(config.model.family))
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


def check_branch(config: ConfigDict):
    """ValueError for `config.branch_from` of a run whose steps before the decay depend on how many there are in all."""
    if not config.branch_from:
        return
    optimizer = config.optimizer
    if optimizer.schedule != 'wsd':
        raise ValueError(
            f"config.branch_from={config.branch_from!r} takes config.optimizer.schedule='wsd', not"
            f' {optimizer.schedule!r}, all of whose learning rates depend on total_steps'
        )
    if bitwidth_optimizers.depends_on_total_steps(config):
        raise ValueError(
            f'config.branch_from={config.branch_from!r}: when the bitwidths of config.method={config.method!r} fall is'
            ' a share of total_steps; allowed are constant ones (b_init = b_target), and the config argument'
            ' bitwidths=decay with quantization.start=0'
        )


def _check_decay(config: ConfigDict):
    optimizer = config.optimizer
    if optimizer.schedule == 'cosine':
        if optimizer.decay_steps:
            raise ValueError(
                f"config.optimizer.decay_steps={optimizer.decay_steps} would do nothing with schedule='cosine', which"
                " always falls; it is of 'wsd'"
            )
        return
    if optimizer.decay_steps < 0:
        raise ValueError(
            f'config.optimizer.decay_steps={optimizer.decay_steps} must be at least 1; or 0, a fifth of the steps'
        )
    if (start := decay_start(config)) < optimizer.warmup_steps:
        raise ValueError(
            f'config.optimizer.decay_steps={optimizer.decay_steps}: the decay takes {config.total_steps - start} steps,'
            f' which with warmup_steps={optimizer.warmup_steps} must be at most config.total_steps={config.total_steps}'
        )


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
