"""What a config means: model, transform, optimizer and shardings; the train state, and the steps that change it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments import methods
from experiments.data import chats
from experiments.files import json_files
from experiments.methods import quantization_schedule
from experiments.training import meshes, optimizers, quantized_layers
from experiments.training.divergence import DivergenceDetector
from gaussq_jax import models
from gaussq_jax.param_reading import matrix_rules
from gaussq_jax.param_tree import is_floating

SEEDS = 2**32
LARGEST = 2**24  # size of a model


def _is_size(value: Any) -> bool:
    return json_files.is_a(value, int) and 1 <= value <= LARGEST


def _is_positive(value: Any) -> bool:
    return json_files.is_a(value, float) and 0 < value < math.inf


KINDS = {  # of a model's settings by their types: what they must be
    int: (f'an integer of 1 to {LARGEST:,}', _is_size),
    int | None: (f'an integer of 1 to {LARGEST:,}, or None', lambda value: value is None or _is_size(value)),
    float: ('a positive number', _is_positive),
    float | None: ('a positive number, or None', lambda value: value is None or _is_positive(value)),
    bool: ('True or False', lambda value: json_files.is_a(value, bool)),
}
UNCHANGED = gq.ParamTransform(
    init=lambda params: {}, apply=lambda key, params, state, **_: params, bitwidths=lambda state: {}
)


class TrainState(NamedTuple):
    """All that a training step changes."""

    step: jax.Array  # int32, steps taken
    params: Any  # float32 master weights
    transform_state: dict[str, jax.Array]  # leaf path -> b_i; {} where nothing is learned
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config means, with nothing allocated yet."""

    config: ConfigDict
    vocab_size: int  # of the model
    mesh: Mesh
    model: Any  # as it is outside of training steps
    transform: gq.ParamTransform
    optimizer: optax.GradientTransformation
    init: Callable[[], TrainState]  # the state before the first step
    abstract_state: TrainState  # shapes, dtypes and shardings
    teacher: Any = None  # a distillation.Teacher, if there is one

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    @property
    def family(self) -> models.ModelFamily:
        return models.find_family(self.config.model.family)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.params))

    @property
    def num_linear_params(self) -> int:
        """N of the scaling laws: the weights of the linear layers, without embeddings, head and norms."""
        params = self.abstract_state.params
        matrices = matrix_rules(params, self.family.rules)
        return sum(leaf.size for path, leaf in gq.leaves_by_path(params).items() if path in matrices)

    @property
    def num_tokens(self) -> int:
        """D of the scaling laws: the tokens that the whole training sees."""
        return self.config.total_steps * self.config.batch_size * self.config.sequence_length

    def at_step(self, step: int) -> 'Experiment':
        """The same, with model and transform as they are evaluated after so many steps: quantized, or not."""
        now = quantization_schedule.when(self.config, step)
        transform = methods.transform_now(self.config, self.transform, now)
        return dataclasses.replace(self, model=methods.model_now(self.config, self.model, now), transform=transform)

    @property
    def num_blocks(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.transform_state))


def make_experiment(config: ConfigDict, vocab_size: int) -> Experiment:
    """Builds everything that a config describes, and refuses what can't be.

    Args:
      vocab_size: of the tokenizer; the model's is this, or `config.vocab_size`.

    Raises:
      ValueError: naming the field of the config and what is allowed.
    """
    _check_config(config)
    if config.vocab_size and config.vocab_size < vocab_size:
        raise ValueError(
            f'config.vocab_size={config.vocab_size} must be at least {vocab_size}, the tokens that there are; or 0,'
            ' which is just that'
        )
    vocab_size = config.vocab_size or vocab_size
    mesh = meshes.make_mesh(config.mesh)
    shards = meshes.num_batch_shards(mesh)
    if config.batch_size % (config.microbatches * shards):
        raise ValueError(
            f'config.batch_size={config.batch_size} must be a multiple of config.microbatches={config.microbatches}'
            f' times the {shards} shard(s) of the batch that config.mesh makes'
        )
    model = make_model(config, vocab_size, mesh)
    transform = methods.find(config.method).make_transform(config)
    optimizer = optimizers.make_optimizer(config, transform)
    init = functools.partial(_init_state, config, model.clone(dot_general_cls=None), transform, optimizer)
    shapes = jax.eval_shape(init)
    quantized_layers.check(config, transform, shapes.params)
    shardings = meshes.state_shardings(mesh, shapes, models.find_family(config.model.family))
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return Experiment(config, vocab_size, mesh, model, transform, optimizer, init, abstract_state)


def make_model(config: ConfigDict, vocab_size: int, mesh: Mesh, *, training: bool = False) -> Any:
    """The flax module of `config.model`; `training` if it is for training steps (see `make_dot_general_cls`)."""
    fields = config.model.to_dict()
    family = models.find_family(fields.pop('family'))
    _check_model(family, fields)
    return family.module(
        vocab_size=vocab_size,
        dtype=jnp.dtype(config.dtype),
        dot_general_cls=methods.make_dot_general_cls(
            config, training=training, sums_gradients=training and meshes.num_batch_shards(mesh) > 1
        ),
        remat_policy=config.remat_policy or None,
        scan_unroll=config.scan_unroll,
        constrain=meshes.constrain_activations(mesh),
        **fields,
    )


def init_state(experiment: Experiment, params: Any = None) -> TrainState:
    """The state before the first step, created where it lives; with these weights, if given, which live there."""
    if params is None:
        return jax.jit(experiment.init, out_shardings=experiment.shardings)()
    without_params = jax.jit(
        lambda: experiment.init()._replace(params=None), out_shardings=experiment.shardings._replace(params=None)
    )
    return without_params()._replace(params=params)


def with_fixed_weights(
    experiment: Experiment, weights: Any, step: int = 0, *, are_rounded: bool = False
) -> tuple[Experiment, TrainState]:
    """The experiment with these weights for its model, as they are: nothing is sampled, rounded or learned any more.

    Only matmuls go on to quantize their operands, if the method does that; weights among them, unless `are_rounded`.

    Args:
      experiment: of the model.
      weights: a tree like its params, of any floating dtypes.
      step: what is told of their age.
      are_rounded: whether they have low-bit numbers already, of which P2 might make others.
    """
    shapes = jax.tree.map(lambda leaf: leaf.shape, experiment.abstract_state.params)
    if jax.tree.map(jnp.shape, weights) != shapes:
        raise ValueError('these weights are of another model: the shapes or the names of their leaves differ')
    if wrong := [path for path, leaf in gq.leaves_by_path(weights).items() if not is_floating(leaf)]:
        raise ValueError(f'these weights are of no model: {wrong[0]} is {gq.leaves_by_path(weights)[wrong[0]].dtype}')
    state = TrainState(jnp.int32(step), jax.device_put(weights, experiment.shardings.params), {}, ())
    abstract_state = TrainState(*(jax.tree.map(jax.typeof, part) for part in state))
    experiment = dataclasses.replace(experiment.at_step(step), transform=UNCHANGED, abstract_state=abstract_state)
    if are_rounded:
        model = methods.model_of_rounded_weights(experiment.config, experiment.model)
        experiment = dataclasses.replace(experiment, model=model)
    return experiment, state


def _init_state(config, model, transform, optimizer) -> TrainState:
    tokens = jnp.zeros((1, config.sequence_length), jnp.int32)
    params = model.init(jax.random.key(config.seed), tokens)['params']
    bitwidths = transform.init(params)
    opt_state = optimizer.init({'params': params, 'bitwidths': bitwidths})
    return TrainState(jnp.zeros((), jnp.int32), params, bitwidths, opt_state)


def _check_model(family: models.ModelFamily, fields: dict[str, Any]):
    for name, value in fields.items():
        if name not in family.settings:
            raise ValueError(
                f'config.model.{name}: {family.name} has no such field; it has {", ".join(family.settings)}'
            )
        what, is_allowed = KINDS[family.settings[name]]
        if not is_allowed(value):
            raise ValueError(f'config.model.{name}={value!r} must be {what}')
    if lacking := sorted(family.required - fields.keys()):
        raise ValueError(f'config.model lacks {", ".join(lacking)}')


def check_sees_documents(config: ConfigDict, family: models.ModelFamily):
    """ValueError if the rows of a config have several documents, which a model of the family can't keep apart."""
    if config.text_feature in chats.FEATURES or config.packing == 'segmented':
        check_takes_segments(family)


def check_takes_segments(family: models.ModelFamily):
    """ValueError for a family whose model sees beyond a document of a row."""
    if not family.takes_segments:
        raise ValueError(
            f'config.model.family={family.name!r}: its model takes no segment_ids, without which the documents of a row'
            ' see each other; text needs none without config.packing=segmented'
        )


def _check_config(config: ConfigDict):
    methods.check_settings(config)
    dtypes = ('bfloat16', 'float32')
    choices = {'model.family': models.FAMILIES, 'dtype': dtypes, 'gradient_reduction': dtypes}
    for name, allowed in choices.items():
        value = functools.reduce(getattr, name.split('.'), config)
        if value not in allowed:
            raise ValueError(f'config.{name}={value!r}: allowed are {", ".join(map(repr, allowed))}')
    if config.gradient_reduction == 'bfloat16' != config.dtype:
        raise ValueError(f"config.gradient_reduction='bfloat16' takes config.dtype='bfloat16', not {config.dtype!r}")
    if config.resample_weights and config.remat_policy in ('', 'everything_saveable'):
        raise ValueError(
            f'config.resample_weights=True with config.remat_policy={config.remat_policy!r} would keep all weights for'
            " the backward pass; 'full' is what saves most"
        )
    check_sees_documents(config, models.find_family(config.model.family))
    DivergenceDetector(config.divergence)  # which refuses what it can't be
    if not 0 <= config.seed < SEEDS:
        raise ValueError(f'config.seed={config.seed} must be of 0 to {SEEDS - 1}: JAX takes a seed by its last 32 bits')
    positive = ('batch_size', 'microbatches', 'sequence_length', 'total_steps')
    positive += ('log_every', 'eval_every', 'checkpoint_every', 'keep_checkpoints')
    for name in positive:
        if config[name] < 1:
            raise ValueError(f'config.{name}={config[name]} must be at least 1')
    if config.keep_period < 0 or config.keep_period % config.checkpoint_every:
        raise ValueError(
            f'config.keep_period={config.keep_period} must be 0, or a multiple of config.checkpoint_every='
            f'{config.checkpoint_every}, the steps that are saved'
        )
