"""Experiments of the tests: a model of seconds, whose matrices no mesh divides into whole blocks of 32."""

import contextlib
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import tiny
from experiments.training import experiment as training
from experiments.training import meshes, optimizers

VOCABULARY = 61
ONE_DEVICE = (1, 1, 1)


def small_config(argument='smoke', **changes):
    """The smoke config of tiny with layers of 80; `changes` are fields, a group's name before two underscores."""
    config = tiny.get_config(argument)
    config.model.hidden_size, config.model.mlp_size, config.sequence_length = 80, 144, 24
    config.optimizer.learning_rate, config.optimizer.final_learning_rate = 6e-4, 6e-5
    bitwidths = dict(
        optimizer='adamw', start=0.0, price=0.0, fall=0.0, learning_rate=2e-2, weight_decay=0.1, penalty=0.0
    )
    config.quantization.update(bitwidths)  # which move from the first step on
    if 'b_init' not in argument and config.method in ('gaussws', 'diffq'):
        config.quantization.update(b_init=6.0, b_target=4.0)
    for name, value in changes.items():
        *groups, field = name.split('__')
        node = config
        for group in groups:
            node = node[group]
        node[field] = value
    return config


def make_experiment(config, sizes=ONE_DEVICE, optimizer=None):
    """The experiment on as many devices as this mesh has; with another optimizer, if given."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(sizes))
        if optimizer:
            stack.enter_context(unittest.mock.patch.object(optimizers, 'make_optimizer', lambda *_: optimizer))
        return training.make_experiment(config, VOCABULARY)


def on_mesh(sizes):
    """A context in which every experiment is made on a mesh of the first devices, whatever its config says."""
    devices = np.asarray(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    mesh = jax.sharding.Mesh(devices, meshes.AXES)
    return unittest.mock.patch.object(meshes, 'make_mesh', lambda _: mesh)


def keep_gradients():
    """An optimizer that changes nothing; its state is the last gradients, {'params': …, 'bitwidths': …}."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    return optax.GradientTransformation(zeros, lambda gradients, state, values=None: (zeros(gradients), gradients))


def random_state(experiment, step=7):
    """A state in the middle of a training, where it lives: weights that make the noise matter, uneven bitwidths."""
    generator = np.random.default_rng(0)

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if name == 'step':
            return np.int32(step)
        if name.startswith('transform_state'):
            return generator.uniform(0.0, 1.5, shape.shape).astype(np.float32)
        if name.startswith('params'):
            return generator.normal(1.0 if name.endswith('scale') else 0.0, 0.15, shape.shape).astype(np.float32)
        return np.zeros(shape.shape, shape.dtype)

    state = jax.tree_util.tree_map_with_path(leaf, experiment.abstract_state)
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state))


def random_tokens(config, seed=0):
    """The tokens of one step, on the host."""
    shape = (config.batch_size, config.sequence_length + 1)
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype(np.int32)


def random_batch(experiment, seed=0):
    """The batch of one step, where it lives."""
    return meshes.to_devices({'tokens': random_tokens(experiment.config, seed)}, experiment.mesh)
