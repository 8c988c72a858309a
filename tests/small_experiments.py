"""Experiments of the tests: a model of seconds whose matrices no mesh divides into whole blocks of 32."""

import unittest.mock

import jax
import numpy as np

from configs import tiny
from experiments import optimizers, partitioning, training

VOCABULARY = 61
ONE_DEVICE = (1, 1, 1)


def small_config(argument='', **changes):
    """The smoke config of tiny with 2 layers of 80; `changes` are fields, a group's with two underscores."""
    config = tiny.get_config(f'smoke,{argument}' if argument else 'smoke')
    config.model.hidden_size, config.model.mlp_size, config.sequence_length = 80, 144, 24
    for name, value in changes.items():
        *groups, field = name.split('__')
        node = config
        for group in groups:
            node = node[group]
        node[field] = value
    return config


def make_experiment(config, sizes=ONE_DEVICE, vocab_size=VOCABULARY):
    """The experiment on the first devices, as many as this mesh has."""
    with on_mesh(sizes):
        return training.make_experiment(config, vocab_size)


def on_mesh(sizes):
    """A context in which every experiment is made on a mesh of the first devices, whatever its config says."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.sharding.Mesh(np.asarray(devices).reshape(sizes), partitioning.AXES)
    return unittest.mock.patch.object(partitioning, 'make_mesh', lambda _: mesh)


def random_batch(config, seed=0, vocab_size=VOCABULARY):
    """Tokens of one step, on the host."""
    shape = (config.batch_size, config.sequence_length + 1)
    return {'tokens': np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32)}


def gradients(experiment, state):
    """The gradients of the first step, after clipping, read from Adam's first moment m = (1 - b1) gradient."""
    tree = {'params': state.params, 'bitwidths': state.bitwidths}
    first_moments = {
        label: optimizers_state(state.opt_state.inner_states[label], 'mu')[label] for label in tree
    }
    return jax.tree.map(lambda m: np.asarray(m) / (1 - experiment.config.optimizer.b1), first_moments)
