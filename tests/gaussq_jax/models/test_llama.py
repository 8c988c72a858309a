"""Llama's parameters: their names, shapes, number and initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_shapes import count, shapes

from gaussq_jax import models


def test_names_and_shapes():
    """Rules, shardings, checkpoints and weight decay masks go by these names."""
    sizes = dict(vocab_size=50, num_layers=3, hidden_size=16, mlp_size=24, num_heads=4, num_kv_heads=2)
    expected = {
        'embed/embedding': (50, 16),
        'layers/attention_norm/scale': (3, 16),
        'layers/attention/query/kernel': (3, 16, 16),
        'layers/attention/key/kernel': (3, 16, 8),
        'layers/attention/value/kernel': (3, 16, 8),
        'layers/attention/out/kernel': (3, 16, 16),
        'layers/mlp_norm/scale': (3, 16),
        'layers/mlp/gate/kernel': (3, 16, 24),
        'layers/mlp/up/kernel': (3, 16, 24),
        'layers/mlp/down/kernel': (3, 24, 16),
        'final_norm/scale': (16,),
        'lm_head/kernel': (16, 50),
    }
    assert shapes(models.Llama(**sizes)) == expected
    del expected['lm_head/kernel']
    assert shapes(models.Llama(**sizes, tie_embeddings=True)) == expected


def test_names_and_shapes_of_what_later_ones_have():
    """Heads of any size, and biases."""
    sizes = dict(vocab_size=50, num_layers=3, hidden_size=10, mlp_size=24, num_heads=4, num_kv_heads=2, head_dim=6)
    without = shapes(models.Llama(**sizes))
    assert {path: without[f'layers/attention/{path}/kernel'] for path in ('query', 'key', 'value', 'out')} == {
        'query': (3, 10, 24),
        'key': (3, 10, 12),
        'value': (3, 10, 12),
        'out': (3, 24, 10),
    }
    attention = {'query': (3, 24), 'key': (3, 12), 'value': (3, 12), 'out': (3, 10)}
    mlp = {'gate': (3, 24), 'up': (3, 24), 'down': (3, 10)}
    of_attention = {f'layers/attention/{name}/bias': shape for name, shape in attention.items()}
    of_mlp = {f'layers/mlp/{name}/bias': shape for name, shape in mlp.items()}
    assert shapes(models.Llama(**sizes, attention_bias=True)) == without | of_attention
    assert shapes(models.Llama(**sizes, mlp_bias=True)) == without | of_mlp


def test_number_of_parameters_of_llama_134m():
    model = models.Llama(vocab_size=32000, num_layers=12, hidden_size=768, mlp_size=2048, num_heads=12)
    layer = 4 * 768**2 + 3 * 768 * 2048 + 2 * 768
    assert count(model) == 2 * 32000 * 768 + 12 * layer + 768 == 134105856


def test_number_of_parameters_of_llama_2_7b():
    model = models.Llama(vocab_size=32000, num_layers=32, hidden_size=4096, mlp_size=11008, num_heads=32)
    assert count(model) == 6738415616  # as published: https://huggingface.co/meta-llama/Llama-2-7b-hf


def test_number_of_parameters_of_llama_3_1_8b():
    sizes = dict(num_layers=32, hidden_size=4096, mlp_size=14336, num_heads=32, num_kv_heads=8, rope_factor=8.0)
    assert count(models.Llama(vocab_size=128_256, **sizes)) == 8_030_261_248  # as published, meta-llama/Llama-3.1-8B


def test_initial_values():
    """normal(0, 0.02), a fresh draw for each layer; scales are ones."""
    model = models.Llama(vocab_size=300, num_layers=2, hidden_size=64, mlp_size=128, num_heads=2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    for path, leaf in jax.tree.leaves_with_path(params):
        if path[-1].key == 'scale':
            np.testing.assert_array_equal(leaf, 1)
        else:
            assert abs(np.mean(leaf)) < 0.02 * 5 / leaf.size**0.5
            assert abs(np.std(leaf) / 0.02 - 1) < 5 / (2 * leaf.size) ** 0.5
    query = params['layers']['attention']['query']['kernel']
    assert abs(np.corrcoef(query[0].ravel(), query[1].ravel())[0, 1]) < 5 / query[0].size ** 0.5


def test_head_sizes_that_do_not_fit_are_refused():
    sizes = dict(vocab_size=50, num_layers=1, hidden_size=12, mlp_size=24)
    with pytest.raises(ValueError, match='num_kv_heads=3 must divide num_heads=2'):
        models.Llama(**sizes, num_heads=2, num_kv_heads=3)
    with pytest.raises(ValueError, match='hidden_size=12 / num_heads=4 must be even'):
        models.Llama(**sizes, num_heads=4)
    for head_dim in (5, 0, -2):
        with pytest.raises(ValueError, match=f'head_dim={head_dim} must be even and positive'):
            models.Llama(**sizes, num_heads=4, head_dim=head_dim)
    with pytest.raises(ValueError, match='num_heads=0 must'):
        models.Llama(**sizes, num_heads=0, head_dim=4)


@pytest.mark.parametrize(
    ('fields', 'error'),
    [
        (dict(rope_low_freq_factor=4.0), 'rope_low_freq_factor=4.0 must be positive and less than rope_high_freq_fac'),
        (dict(rope_low_freq_factor=0.0), 'rope_low_freq_factor=0.0 must be positive'),
        (dict(rope_factor=0.0), 'rope_factor=0.0 and rope_original_length=8192 must be positive'),
        (dict(rope_original_length=0), 'rope_factor=8.0 and rope_original_length=0 must be positive'),
    ],
)
def test_scalings_that_cannot_be_are_refused(fields, error):
    sizes = dict(vocab_size=50, num_layers=1, hidden_size=16, mlp_size=24, num_heads=2)
    with pytest.raises(ValueError, match=error):
        models.Llama(**{**sizes, 'rope_factor': 8.0, **fields})
