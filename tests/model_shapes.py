"""The parameters of a model, before any are made."""

import math

import jax
import jax.numpy as jnp


def shapes(model):
    """{path: shape}."""
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    leaves = jax.tree.leaves_with_path(params)
    return {'/'.join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def count(model):
    """How many numbers they are."""
    return sum(map(math.prod, shapes(model).values()))
