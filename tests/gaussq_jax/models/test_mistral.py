"""Mistral's parameters: their names and number."""

import pytest
from model_shapes import count, shapes

from gaussq_jax import models

SIZES = dict(vocab_size=50, num_layers=3, hidden_size=16, mlp_size=24, num_heads=4, num_kv_heads=2, head_dim=6)


def test_names_and_shapes_are_those_of_a_llama():
    assert shapes(models.Mistral(**SIZES)) == shapes(models.Llama(**SIZES))


def test_number_of_parameters_of_mistral_nemo():
    sizes = dict(num_layers=40, hidden_size=5120, mlp_size=14336, num_heads=32, num_kv_heads=8, head_dim=128)
    assert count(models.Mistral(vocab_size=131072, **sizes)) == 12_247_782_400  # as published, Mistral-Nemo-Base-2407


@pytest.mark.parametrize('bias', ['attention_bias', 'mlp_bias'])
def test_there_are_no_biases(bias):
    assert bias not in models.find_family('mistral').settings
    with pytest.raises(TypeError, match=bias):
        models.Mistral(**SIZES, **{bias: True})
