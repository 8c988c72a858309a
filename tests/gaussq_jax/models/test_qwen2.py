"""Qwen2's parameters: their names, shapes, number and initial values."""

import jax
import jax.numpy as jnp
import numpy as np
from model_shapes import count, shapes

from gaussq_jax import models

SIZES = dict(vocab_size=50, num_layers=3, hidden_size=16, mlp_size=24, num_heads=4, num_kv_heads=2)


def test_names_and_shapes():
    """A Llama's, and three biases."""
    biases = {'query': (3, 16), 'key': (3, 8), 'value': (3, 8)}
    expected = {f'layers/attention/{name}/bias': shape for name, shape in biases.items()}
    assert shapes(models.Qwen2(**SIZES)) == shapes(models.Llama(**SIZES)) | expected


def test_number_of_parameters_of_qwen2_5_half_a_billion():
    sizes = dict(num_layers=24, hidden_size=896, mlp_size=4864, num_heads=14, num_kv_heads=2, tie_embeddings=True)
    assert count(models.Qwen2(vocab_size=151_936, **sizes)) == 494_032_768  # as published, Qwen/Qwen2.5-0.5B


def test_biases_start_as_zeros():
    params = jax.jit(models.Qwen2(**SIZES).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    for name in ('query', 'key', 'value'):
        np.testing.assert_array_equal(params['layers']['attention'][name]['bias'], 0)


def test_its_biases_are_no_setting():
    settings = models.find_family('qwen2').settings
    assert 'attention_bias' not in settings and settings['head_dim'] == int | None
