"""What a model computes beside a cache is what it computes of the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gelu_family import Gelu
from jax_modes import assert_same_bits

from gaussq_jax import Quantizer, models, quantized_dot_general
from gaussq_jax.models import key_value_cache

LENGTH = 16
SIZES = dict(vocab_size=32, num_layers=3, hidden_size=16, num_heads=4, mlp_size=24)
MODELS = {
    'grouped': lambda **options: models.Llama(**SIZES | {'num_kv_heads': 2} | options),
    'tied': lambda **options: models.Llama(**SIZES | {'tie_embeddings': True} | options),
    'gpt2': lambda **options: models.GPT2(**SIZES | {'max_length': LENGTH} | options),
    'llama3': lambda **options: models.Llama(**SIZES, rope_factor=8.0, rope_original_length=4, **options),
    'mistral': lambda **options: models.Mistral(**SIZES, **options),
    'qwen2': lambda **options: models.Qwen2(**SIZES, **options),
    'qwen3': lambda **options: models.Qwen3(**SIZES, head_dim=6, **options),
}
TOKENS = jax.random.randint(jax.random.key(1), (3, LENGTH), 0, SIZES['vocab_size'])
STARTS = np.array([2, 7, 4])  # how much of each sequence is read at once


def random_params(model):
    """Parameters large enough for every layer to matter; scales and biases random too."""
    generator = np.random.default_rng(2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    assert set(shapes) == {'params'}, 'a cache is no part of what is initialized'
    draw = lambda leaf: jnp.asarray(generator.normal(0.1, 0.3, leaf.shape), leaf.dtype)
    return jax.tree.map(draw, shapes['params'])


def logits_by_cache(model, params):
    """After each token, read one by one from each sequence's start on, and the last cache."""
    read = jax.jit(lambda params, tokens: key_value_cache.read_prompts(model, params, tokens, LENGTH))
    read_next = jax.jit(lambda params, *of: key_value_cache.read_next(model, params, *of), donate_argnums=1)
    padded = np.where(np.arange(8) < STARTS[:, None], TOKENS[:, :8], 31)
    of_prompts, cache = read(params, padded)
    logits = np.full((*TOKENS.shape, SIZES['vocab_size']), np.nan, np.float32)
    for row, start in enumerate(STARTS):
        logits[row, :start] = of_prompts[row, :start]
    rows = np.arange(len(STARTS))
    for step in range(LENGTH - STARTS.min()):
        at = np.minimum(STARTS + step, LENGTH - 1)
        of_tokens, cache = read_next(params, cache, TOKENS[rows, at][:, None], at[:, None].astype(np.int32))
        logits[rows, at] = of_tokens[:, 0]
    return logits, cache


def scaled_by_layer(params, index):
    return jax.tree.map(lambda leaf: leaf * (1 + index.astype(leaf.dtype) / 4), params)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        *((name, {}) for name in MODELS),
        ('grouped', dict(layer_transform=scaled_by_layer, remat_policy='full')),
        ('gpt2', dict(scan_unroll=3)),
        ('grouped', dict(dot_general=quantized_dot_general(P1=Quantizer('float8_e4m3fn', block_size='channel')))),
    ],
)
def test_logits_in_float32(name, options):
    """After sequences of several lengths, padded, and after each token more."""
    model = MODELS[name](dtype=jnp.float32, **options)
    params = random_params(model)
    expected = jax.jit(lambda params: model.apply({'params': params}, TOKENS))(params)
    actual, cache = logits_by_cache(model, params)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    kv_heads, head_dim = 2 if name == 'grouped' else 4, 6 if name == 'qwen3' else 4
    assert {leaf.shape for leaf in jax.tree.leaves(cache)} == {(3, 3, LENGTH, kv_heads, head_dim)}


@pytest.mark.parametrize('name', MODELS)
def test_logits_in_bfloat16(name):
    model = MODELS[name](dtype=jnp.bfloat16)
    params = random_params(model)
    expected = jax.jit(lambda params: model.apply({'params': params}, TOKENS))(params)
    actual, cache = logits_by_cache(model, params)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.03 * np.abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('name', ['grouped', 'gpt2'])
def test_the_logits_of_prompts_are_those_without_a_cache(name):
    """To the bit."""
    model = MODELS[name](dtype=jnp.float32)
    params = random_params(model)
    whole = jax.jit(lambda params: model.apply({'params': params}, TOKENS))(params)
    read = jax.jit(lambda params: key_value_cache.read_prompts(model, params, TOKENS, LENGTH)[0])(params)
    assert_same_bits(read, whole)


def test_several_tokens_at_once():
    model = MODELS['grouped'](dtype=jnp.float32)
    params = random_params(model)
    expected = model.apply({'params': params}, TOKENS)
    _, cache = key_value_cache.read_prompts(model, params, TOKENS[:, :5], LENGTH)
    positions = jnp.tile(jnp.arange(5, 9, dtype=jnp.int32)[None], (3, 1))
    actual, _ = key_value_cache.read_next(model, params, cache, TOKENS[:, 5:9], positions)
    np.testing.assert_allclose(actual, expected[:, 5:9], rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_cache_and_positions_go_together():
    model = MODELS['grouped']()
    params = random_params(model)
    _, cache = key_value_cache.read_prompts(model, params, TOKENS, LENGTH)
    with pytest.raises(ValueError, match='give both or neither'):
        model.apply({'params': params}, TOKENS, jnp.zeros(TOKENS.shape, jnp.int32))
    with pytest.raises(ValueError, match='give both or neither'):
        model.apply({'params': params, key_value_cache.KEPT: cache}, TOKENS)
    with pytest.raises(ValueError, match='length=15 must be at least 16'):
        key_value_cache.read_prompts(model, params, TOKENS, LENGTH - 1)


def test_models_that_keep_none():
    """They are told from those that do."""
    assert key_value_cache.keeps_cache(MODELS['gpt2']()) and key_value_cache.keeps_cache(MODELS['tied']())
    assert not key_value_cache.keeps_cache(Gelu(vocab_size=4, num_layers=1, hidden_size=4, wide_size=4))
    assert not key_value_cache.keeps_cache(object())
