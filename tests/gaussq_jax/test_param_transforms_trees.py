"""ParamTransforms on other people's parameter trees: linen, NNX, Equinox, Haiku."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
from flax import nnx
from flax.core import freeze
from numpy_weight_sampling import assert_identical, random_weights
from parameter_trees import assert_identical_trees, flatten, leaf_key_data

import gaussq_jax as gq

KEY = jax.random.key(3)


def test_linen_frozen_and_partitioned_trees_have_the_bits_of_a_plain_dict():
    """A box's or a variable's trailing 'value' is no part of the path."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ('fsdp', 'tensor'))
            return nn.Dense(33)(nn.relu(nn.Dense(70, kernel_init=init)(x)))

    model, x = Model(), jnp.ones((2, 40))
    boxed = jax.jit(model.init)(jax.random.key(0), x)['params']
    plain = nn.meta.unbox(boxed)
    transform = gq.gaussian_weight_sampling()
    state = transform.init(plain)
    assert state.keys() == {'Dense_0/kernel', 'Dense_1/kernel'}
    assert transform.init(boxed).keys() == transform.init(freeze(plain)).keys() == state.keys()
    apply = jax.jit(transform.apply)
    expected = apply(KEY, plain, state)
    assert_identical_trees(nn.meta.unbox(apply(KEY, boxed, state)), expected)
    assert_identical_trees(apply(KEY, freeze(plain), state), freeze(expected))
    assert jax.eval_shape(model.apply, {'params': expected}, x).shape == (2, 33)


def test_an_nnx_model_runs_with_sampled_weights():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(40, 70, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(70, 33, rngs=rngs)])

        def __call__(self, x):
            return self.layers[0](nnx.relu(self.up(x)))

    model = Model(nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    transform = gq.gaussian_weight_sampling()
    state = transform.init(params)
    assert state.keys() == {'up/kernel', 'layers/0/kernel'}
    applied = jax.jit(transform.apply)(KEY, params, state)
    words = leaf_key_data(KEY, 'up/kernel')
    kernel = np.asarray(model.up.kernel[...])
    assert_identical(flatten(applied)['up/kernel'], oracle.sample_weights(words, kernel, np.full((2, 3), 6.0)))
    assert nnx.merge(graph, applied)(jnp.ones((2, 40), jnp.bfloat16)).shape == (2, 33)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """A module in the manner of Equinox: a pytree of attributes, weights as (out, in)."""

    weight: jax.Array
    bias: jax.Array


def test_equinox_and_haiku_trees_with_their_own_rules():
    weight, bias = jnp.asarray(random_weights((50, 40))), jnp.zeros(50)
    bitwidths = np.full((2, 2), 6.0)

    equinox = {'layers': [Linear(weight, bias), Linear(weight, bias)]}
    transform = gq.gaussian_weight_sampling(rules=(gq.MatrixRule(r'layers/\d+/weight', (), (1,), (0,)),))
    state = transform.init(equinox)
    assert state.keys() == {'layers/0/weight', 'layers/1/weight'}
    applied = jax.jit(transform.apply)(KEY, equinox, state)
    for i, layer in enumerate(applied['layers']):
        words = leaf_key_data(KEY, f'layers/{i}/weight')
        assert_identical(layer.weight, oracle.sample_weights(words, weight.T, bitwidths).T)
        assert layer.bias.dtype == jnp.bfloat16

    haiku = {'mlp/~/linear_0': {'w': weight.T, 'b': bias}}
    transform = gq.gaussian_weight_sampling(rules=(gq.MatrixRule('.*/w', (), (0,), (1,)),))
    applied = jax.jit(transform.apply)(KEY, haiku, transform.init(haiku))
    words = leaf_key_data(KEY, 'mlp/~/linear_0/w')
    assert_identical(applied['mlp/~/linear_0']['w'], oracle.sample_weights(words, weight.T, bitwidths))
