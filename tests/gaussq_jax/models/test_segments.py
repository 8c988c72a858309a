"""Several documents in one row, told from each other by segment_ids: each has the logits that it has alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gelu_family import GELU

from gaussq_jax import models
from gaussq_jax.models import key_value_cache, layers

SIZES = dict(vocab_size=61, num_layers=2, hidden_size=32, num_heads=4, mlp_size=48, dtype=jnp.float32)
MODELS = {
    'llama': models.Llama(**SIZES, num_kv_heads=2),
    'mistral': models.Mistral(**SIZES, remat_policy='full', scan_unroll=2),
    'qwen2': models.Qwen2(**SIZES, tie_embeddings=True),
    'qwen3': models.Qwen3(
        **SIZES, head_dim=6, layer_transform=lambda params, _: jax.tree.map(lambda w: w * 0.5, params)
    ),
    'gpt2': models.GPT2(**SIZES, max_length=16),
}
SEGMENTS = jnp.array([[1] * 5 + [2] * 7 + [3] + [0] * 3, [1] * 16])


def random_model(name):
    model = MODELS[name]
    tokens = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 0, SIZES['vocab_size'])
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
    generator = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype('f'), shapes), tokens


@pytest.mark.parametrize('name', MODELS)
def test_a_document_has_the_logits_that_it_has_alone(name):
    model, weights, tokens = random_model(name)
    apply = jax.jit(lambda tokens, segments=None: model.apply({'params': weights}, tokens, segment_ids=segments))
    packed = apply(tokens, SEGMENTS)
    assert np.isfinite(packed).all()
    for row, begin, end in [(0, 0, 5), (0, 5, 12), (0, 12, 13), (1, 0, 16)]:
        alone = jnp.pad(tokens[row : row + 1, begin:end], ((0, 0), (0, 16 - end + begin)))  # one shape, compiled once
        np.testing.assert_allclose(packed[row, begin:end], apply(alone)[0, : end - begin], rtol=2e-5, atol=2e-5)
    assert np.abs(packed[0, 5:12] - apply(tokens)[0, 5:12]).max() > 0.05


def test_no_gradient_crosses_the_edge_of_a_document():
    """What the embedding's gradient is of: the tokens of the document whose logits are summed, and no others."""
    model, weights, tokens = random_model('llama')

    @jax.jit
    @jax.grad
    def gradient(weights):
        return jnp.square(model.apply({'params': weights}, tokens, segment_ids=SEGMENTS)[0, 5:12]).sum()

    seen = np.flatnonzero(np.abs(gradient(weights)['embed']['embedding']).max(axis=1))
    assert set(seen) == set(np.asarray(tokens[0, 5:12]).tolist())


@pytest.mark.parametrize('name', ['llama', 'gpt2'])
def test_one_segment_is_as_none(name):
    model, weights, tokens = random_model(name)
    apply = lambda segments: model.apply({'params': weights}, tokens, segment_ids=segments)
    np.testing.assert_allclose(apply(jnp.ones_like(tokens)), apply(None), rtol=1e-5, atol=1e-5)


def test_positions_begin_anew_with_each_segment():
    segments = jnp.array([[0, 0, 3, 3, 3, 1], [2, 2, 2, 2, 2, 2]])
    assert layers.positions_in_segments(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]


def test_a_cache_has_no_segments():
    model, weights, tokens = random_model('llama')
    _, cache = key_value_cache.read_prompts(model, weights, tokens, 20)
    with pytest.raises(ValueError, match='positions and segment_ids are both given'):
        variables = {'params': weights, key_value_cache.KEPT: cache}
        model.apply(variables, tokens[:, :1], jnp.full((2, 1), 16), segment_ids=jnp.ones((2, 1), jnp.int32))


def test_a_family_says_whether_it_takes_segments():
    assert all(family.takes_segments for family in models.FAMILIES.values()) and not GELU.takes_segments
