"""Quantized matmuls in both models: in the linear layers and nowhere else, with random bits of their own each."""

import collections
import functools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq
from gaussq_jax import models
from gaussq_jax.recipes import recipe

NUM_LAYERS = 3
SIZES = dict(vocab_size=32, num_layers=NUM_LAYERS, hidden_size=16, num_heads=4, dtype=jnp.float32)
MODELS = {
    'llama': functools.partial(models.Llama, **SIZES, mlp_size=24, num_kv_heads=2),
    'gpt2': functools.partial(models.GPT2, **SIZES, mlp_size=24, max_length=8),
}
# (rows, columns) of the linear layers of one layer.
KERNELS = {
    'llama': [(16, 16), (16, 8), (16, 8), (16, 16), (16, 24), (16, 24), (24, 16)],
    'gpt2': [(16, 16), (16, 16), (16, 16), (16, 16), (16, 24), (24, 16)],
}
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 8)).astype(np.int32)
both_models = pytest.mark.parametrize('name', MODELS)


@functools.cache
def random_params(name):
    params = jax.eval_shape(MODELS[name]().init, jax.random.key(0), TOKENS)['params']
    generator = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0.2, 0.3, leaf.shape), leaf.dtype), params)


@functools.partial(jax.jit, static_argnames=('name', 'dot_general', 'dot_general_cls', 'remat_policy'))
def logits(name, params, seed=None, **options):
    rngs = None if seed is None else {'quantization': jax.random.key(seed)}
    return MODELS[name](**options).apply({'params': params}, TOKENS, rngs=rngs)


def stochastic(*targets):
    quantizer = gq.Quantizer('e2m1', block_size=16, rounding='stochastic')
    return functools.partial(models.QuantizedDotGeneral, **dict.fromkeys(targets, quantizer))


@both_models
@pytest.mark.parametrize('how', ['dot_general', 'dot_general_cls'])
def test_the_linear_layers_are_multiplied_by_it_and_nothing_else(name, how):
    """Neither attention products nor the head nor embeddings: seen by the right operands that reach it."""
    seen = []

    def dot_general(lhs, rhs, *arguments, **options):
        seen.append(rhs.shape)
        return jax.lax.dot_general(lhs, rhs, *arguments, **options)

    given = dot_general if how == 'dot_general' else lambda: dot_general
    jax.eval_shape(lambda params: logits(name, params, **{how: given}), random_params(name))
    assert collections.Counter(seen) == collections.Counter(KERNELS[name])  # traced once for all layers


@both_models
def test_both_at_once_are_refused(name):
    matmul = jax.lax.dot_general
    with pytest.raises(ValueError, match='dot_general and dot_general_cls are both given'):
        MODELS[name](dot_general=matmul, dot_general_cls=lambda: matmul).init(jax.random.key(0), TOKENS)


@both_models
def test_quantized_weights_are_those_of_quantization_aware_training(name):
    """P2 alone, in the forward pass, is `quantization_aware` on the parameters: two ways to one result."""
    quantizer, params = gq.Quantizer('e2m1', block_size='channel'), random_params(name)
    by_matmul = logits(name, params, dot_general=gq.quantized_dot_general(P2=quantizer))
    weights = gq.quantization_aware(quantizer, dtype=jnp.float32).apply(None, params, {})
    by_params = logits(name, weights)
    np.testing.assert_allclose(by_matmul, by_params, rtol=0, atol=1e-5 * np.abs(by_params).max())
    assert np.abs(by_matmul - logits(name, params)).max() > 0.01 * np.abs(by_params).max()
    by_class = logits(name, params, dot_general_cls=functools.partial(models.QuantizedDotGeneral, P2=quantizer))
    np.testing.assert_array_equal(by_class, by_matmul)


@pytest.mark.parametrize(('name', 'remat_policy'), [('llama', None), ('llama', 'full'), ('gpt2', 'full')])
def test_every_layer_and_every_linear_layer_draws_its_own_bits(name, remat_policy):
    """As many keys as there are matrices, forward; and the same again when the backward pass runs the layers again."""
    keys = []

    def spy(**_):
        def dot_general(lhs, rhs, *arguments, key, when, **options):
            jax.debug.callback(lambda words: keys.append(tuple(words.tolist())), jax.random.key_data(key))
            return jax.lax.dot_general(lhs, rhs, *arguments, **options)

        return dot_general

    def loss(params):
        return jnp.sum(logits(name, params, seed=7, dot_general_cls=stochastic('P1'), remat_policy=remat_policy) ** 2)

    with unittest.mock.patch.object(recipe, 'quantized_dot_general', spy):
        jax.block_until_ready(jax.jit(jax.grad(loss))(random_params(name)))
    jax.effects_barrier()
    number = NUM_LAYERS * len(KERNELS[name])
    assert len(set(keys)) == number
    assert len(keys) == number if remat_policy is None else len(keys) > number


def test_random_bits_follow_from_the_stream_alone():
    cls = stochastic('P1', 'P2')
    first, again, other = (logits('llama', random_params('llama'), seed, dot_general_cls=cls) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(np.any(np.asarray(first != other), axis=-1))


def test_without_a_stream_it_is_an_error_that_names_it():
    with pytest.raises(Exception, match='quantization'):
        logits('llama', random_params('llama'), dot_general_cls=stochastic('P1'))
