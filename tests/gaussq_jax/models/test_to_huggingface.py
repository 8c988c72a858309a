"""Parameters go back to the tensors that they came from, with the names and the configuration of transformers."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_trees import assert_identical_trees

from gaussq_jax import models

DATA = pathlib.Path(__file__).parents[2] / 'data'
ARCHITECTURES = {
    'llama_grouped': 'LlamaForCausalLM',
    'llama_tied': 'LlamaForCausalLM',
    'llama_3': 'LlamaForCausalLM',
    'mistral': 'MistralForCausalLM',
    'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
    'gpt2': 'GPT2LMHeadModel',
}


def random_params(model, dtype=np.float32):
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(dtype), shapes)


def read_stored(name):
    """Configuration and tensors of a transformers model, which test_from_huggingface.py wrote."""
    with np.load(DATA / f'huggingface_{name}.npz') as file:
        stored = {key: array for key, array in file.items() if key not in ('tokens', 'logits')}
    return json.loads(str(stored.pop('config'))), stored


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_every_tensor_comes_back_as_it_was(name):
    config, stored = read_stored(name)
    model, params = models.from_huggingface(stored, config)
    tensors, written = models.to_huggingface(model, params)
    if written['tie_word_embeddings']:  # save_pretrained leaves the head out, too
        del stored['lm_head.weight']
    assert tensors.keys() == stored.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, stored[key])
    again, params_again = models.from_huggingface(tensors, json.loads(json.dumps(written)))
    assert again == model
    assert_identical_trees(params_again, params)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_the_configuration_is_that_of_transformers(name):
    """Every field that it has in common with theirs says the same: no default of theirs stands in for another value."""
    config, stored = read_stored(name)
    _, written = models.to_huggingface(*models.from_huggingface(stored, config))
    theirs = {'rope_theta': 50.0, **config, 'bos_token_id': None, 'eos_token_id': None}
    if name == 'llama_3':  # as it was before transformers 5
        theirs['rope_scaling'] = {key: value for key, value in theirs['rope_parameters'].items() if key != 'rope_theta'}
    if name == 'qwen2':  # which transformers has of Qwen2, too, but not in its configuration
        theirs['head_dim'] = 4
    assert {key for key in written if written[key] != theirs[key]} == {'architectures'}
    assert written['architectures'] == [ARCHITECTURES[name]]


def test_leaves_keep_their_dtype_and_may_be_of_jax():
    model = models.Llama(vocab_size=11, num_layers=2, hidden_size=8, mlp_size=12, num_heads=2)
    params = jax.tree.map(jnp.asarray, random_params(model, jnp.bfloat16))
    tensors, config = models.to_huggingface(model, params)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(jnp.bfloat16)}
    assert config['num_key_value_heads'] == 2 and config['head_dim'] == 4
    up = tensors['model.layers.1.mlp.up_proj.weight']
    np.testing.assert_array_equal(up, np.asarray(params['layers']['mlp']['up']['kernel'][1]).T)


def test_gpt2_without_a_width_has_the_usual_one():
    model = models.GPT2(vocab_size=11, max_length=6, num_layers=1, hidden_size=8, num_heads=2)
    _, config = models.to_huggingface(model, random_params(model))
    assert config['n_inner'] == 32 and config['n_positions'] == 6


def test_what_is_no_model_of_these_is_refused():
    model = models.Llama(vocab_size=11, num_layers=2, hidden_size=8, mlp_size=12, num_heads=2)
    params = random_params(model)
    with pytest.raises(ValueError, match='model=int must be one of Llama, GPT2, Mistral, Qwen2, Qwen3'):
        models.to_huggingface(3, params)
    for other in (model.clone(mlp_size=16), model.clone(num_layers=3), model.clone(tie_embeddings=True)):
        with pytest.raises(ValueError, match='params are of another model'):
            models.to_huggingface(other, params)


def test_a_llama_that_transformers_has_not_is_refused():
    model = models.Llama(vocab_size=11, num_layers=1, hidden_size=10, mlp_size=12, num_heads=4, head_dim=4)
    with pytest.raises(ValueError, match='num_heads=4 must divide hidden_size=10: transformers has no other Llama'):
        models.to_huggingface(model, random_params(model))


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('hidden_size', '64'),
        ('tie_word_embeddings', 'yes'),
        ('attention_bias', 1),
        ('num_hidden_layers', 0),
        ('num_key_value_heads', 1.5),
        ('rms_norm_eps', 'small'),
        ('rms_norm_eps', 0),
        ('rope_parameters', [1]),
        ('rope_parameters', {'rope_theta': None}),
    ],
)
def test_fields_that_no_model_can_have_are_refused_by_name(field, value):
    config, stored = read_stored('llama_grouped')
    with pytest.raises(ValueError, match='rope_theta=None' if value == {'rope_theta': None} else f'^{field}='):
        models.from_huggingface(stored, config | {field: value})


def test_query_key_and_value_that_are_not_thirds_are_refused():
    config, stored = read_stored('gpt2')
    name = 'transformer.h.1.attn.c_attn.weight'
    for size in (47, 49, 51):
        with pytest.raises(ValueError, match=r'h\.1\.attn\.c_attn\.weight: shape'):
            models.from_huggingface(stored | {name: np.zeros((16, size), np.float32)}, config)
