"""W_hat made one layer at a time inside the scan is the W_hat of the whole tree: seen by the loss, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_weight_sampling import assert_identical

import gaussq_jax as gq
from gaussq_jax import models

KEY = jax.random.key(3)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 17)).astype(np.int32)
SIZES = dict(vocab_size=61, num_layers=3, hidden_size=80, mlp_size=144, num_heads=2)


def make_params(model):
    shapes = jax.eval_shape(model.init, KEY, TOKENS[:, :-1])['params']
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: generator.normal(0.5, 0.2, leaf.shape).astype(np.float32), shapes)


def loss(logits):
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, TOKENS[:, 1:, None], axis=-1))


def whole_tree(transform, model, params, state):
    return loss(model.apply({'params': transform.apply(KEY, params, state)}, TOKENS[:, :-1]))


def layer_by_layer(transform, model, params, state):
    """The stacked layers reach the model as they are; everything else is cast outside."""

    def transform_layer(layer_params, layer):
        return transform.apply(KEY, layer_params, state, path=('layers',), layer=layer)

    outside = {name: leaf for name, leaf in params.items() if name != 'layers'}
    values = {**gq.cast_params().apply(None, outside, {}), 'layers': params['layers']}
    return loss(model.clone(layer_transform=transform_layer).apply({'params': values}, TOKENS[:, :-1]))


@functools.cache
def run(how, remat_policy):
    """Loss and gradients; two kinds of layer are sampled, with few bits, so that the noise matters."""
    model = models.Llama(**SIZES, dtype=jnp.float32, remat_policy=remat_policy)
    rule = gq.MatrixRule('layers/(attention/out|mlp/up)/kernel', batch_axes=(0,), row_axes=(1,), col_axes=(2,))
    transform = gq.gaussian_weight_sampling(rules=(rule, gq.CastOnly('.*')))
    params = make_params(model)
    state = jax.tree.map(jnp.zeros_like, transform.init(params))
    return jax.jit(jax.value_and_grad(functools.partial(how, transform, model), (0, 1)))(params, state)


@pytest.mark.slow  # tests/gaussq_jax/test_layerwise.py holds the same of one transform
@pytest.mark.parametrize('remat_policy', [None, 'full'])
def test_layer_by_layer_is_the_whole_tree(remat_policy):
    expected, expected_gradients = run(whole_tree, None)
    got, gradients = run(layer_by_layer, remat_policy)
    assert_identical(got, expected)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected_gradients)):
        error = np.linalg.norm(leaf - other) / np.linalg.norm(other)
        assert error < 1e-3, jax.tree_util.keystr(path)


def test_the_backward_pass_samples_again():
    """With rematerialised layers, no W_hat of any layer is kept: the residuals have neither its size nor its dtype."""
    transform = gq.gaussian_weight_sampling()

    def residuals(how, remat_policy):
        model = models.Llama(**SIZES, remat_policy=remat_policy)
        params = make_params(model)
        pull_back = lambda *values: jax.vjp(functools.partial(how, transform, model), *values)[1]
        return jax.eval_shape(pull_back, params, transform.init(params))

    shapes = lambda tree: {leaf.shape for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.bfloat16}
    up = (3, 80, 144)
    assert up in shapes(residuals(whole_tree, 'full'))
    assert up in shapes(residuals(layer_by_layer, None))
    assert up not in shapes(residuals(layer_by_layer, 'full'))
