"""Qwen3's parameters: their names, shapes, number and initial values."""

import jax
import jax.numpy as jnp
import numpy as np
from model_shapes import count, shapes

from gaussq_jax import models

SIZES = dict(vocab_size=50, num_layers=3, hidden_size=16, mlp_size=24, num_heads=4, num_kv_heads=2, head_dim=6)


def test_names_and_shapes():
    """A Llama's, and two norms of heads; its biases are a setting."""
    norms = {f'layers/attention/{name}_norm/scale': (3, 6) for name in ('query', 'key')}
    assert shapes(models.Qwen3(**SIZES)) == shapes(models.Llama(**SIZES)) | norms
    with_biases = {**SIZES, 'attention_bias': True}
    assert shapes(models.Qwen3(**with_biases)) == shapes(models.Llama(**with_biases)) | norms


def test_number_of_parameters_of_qwen3_0_6b():
    sizes = dict(num_layers=28, hidden_size=1024, mlp_size=3072, num_heads=16, num_kv_heads=8, head_dim=128)
    assert count(models.Qwen3(vocab_size=151_936, **sizes, tie_embeddings=True)) == 596_049_920  # as published


def test_norms_start_as_ones():
    params = jax.jit(models.Qwen3(**SIZES).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    for name in ('query_norm', 'key_norm'):
        np.testing.assert_array_equal(params['layers']['attention'][name]['scale'], 1)
