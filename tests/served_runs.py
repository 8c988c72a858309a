"""Runs to serve: models of seconds with grouped heads, their weights of the sizes that training leaves."""

import types

import jax
import jax.numpy as jnp
from small_checkpoints import random_params

from experiments.data import tokenizers
from experiments.workdirs import Run
from gaussq_jax import models

SIZES = dict(num_layers=2, hidden_size=64, mlp_size=96, num_heads=4, num_kv_heads=2, rope_theta=50.0)


def llama(vocab_size=264, module=models.Llama, **changes):
    return module(vocab_size=vocab_size, dtype=jnp.float32, **SIZES | changes)


def params_of(model):
    """Scales of norms about 1, all else about 0."""
    shift = lambda path, leaf: leaf + 1 if path[-1].key == 'scale' else leaf
    return jax.tree.map_with_path(shift, random_params(model))


def run_of(model, tokenizer=None):
    """What writing it for another program needs of a run."""
    config = types.SimpleNamespace(name='small', sequence_length=128)
    experiment = types.SimpleNamespace(model=model, config=config)
    return Run(experiment, tokenizer or tokenizers.load_tokenizer('bytes'), None)
