"""GPT-2's parameters: their names, shapes, number and initial values; its limit on the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussq_jax import models


def shapes(model):
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    leaves = jax.tree.leaves_with_path(params)
    return {'/'.join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def test_names_and_shapes():
    """Rules, shardings, checkpoints and weight decay masks go by these names."""
    model = models.GPT2(vocab_size=50, max_length=10, num_layers=3, hidden_size=16, num_heads=4)
    expected = {
        'embed/embedding': (50, 16),
        'position_embed/embedding': (10, 16),
        'layers/attention_norm/scale': (3, 16),
        'layers/attention_norm/bias': (3, 16),
        'layers/mlp_norm/scale': (3, 16),
        'layers/mlp_norm/bias': (3, 16),
        'layers/mlp/up/kernel': (3, 16, 64),
        'layers/mlp/up/bias': (3, 64),
        'layers/mlp/down/kernel': (3, 64, 16),
        'layers/mlp/down/bias': (3, 16),
        'final_norm/scale': (16,),
        'final_norm/bias': (16,),
    }
    for name in ('query', 'key', 'value', 'out'):
        expected[f'layers/attention/{name}/kernel'] = (3, 16, 16)
        expected[f'layers/attention/{name}/bias'] = (3, 16)
    assert shapes(model) == expected


def test_number_of_parameters_of_gpt2_124m():
    model = models.GPT2(vocab_size=50257, max_length=1024, num_layers=12, hidden_size=768, num_heads=12)
    assert sum(int(np.prod(shape)) for shape in shapes(model).values()) == 124439808


def test_initial_values():
    """normal(0, 0.02), for what adds to the residual stream / sqrt(2 num_layers); zero biases, unit scales."""
    model = models.GPT2(vocab_size=300, max_length=64, num_layers=8, hidden_size=64, num_heads=2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[-1] in ('scale', 'bias'):
            np.testing.assert_array_equal(leaf, 1 if names[-1] == 'scale' else 0)
        else:
            standard_deviation = 0.02 / 4 if names[-2] in ('out', 'down') else 0.02
            assert abs(np.std(leaf) / standard_deviation - 1) < 5 / (2 * leaf.size) ** 0.5


def test_sequence_longer_than_the_positions_is_refused():
    model = models.GPT2(vocab_size=50, max_length=4, num_layers=1, hidden_size=16, num_heads=2)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    with pytest.raises(ValueError, match='length 5 exceed max_length=4'):
        model.apply({'params': params}, jnp.zeros((1, 5), jnp.int32))
