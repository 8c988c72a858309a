"""Our models compute what `transformers`' do from the same weights, and say so when they can't.

The stored outputs in tests/data/huggingface_*.npz hold a configuration, weights (float16 numbers), tokens and
the float32 logits that transformers gave on a CPU. To make them again, all or those named, with torch and
transformers installed:

    python tests/gaussq_jax/models/test_from_huggingface.py [NAME ...]
"""

import json
import pathlib
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussq_jax import models

DATA = pathlib.Path(__file__).parents[2] / 'data'

# Sizes that differ, and a rope_theta and epsilon that are not the defaults, so that no mix-up cancels out.
LLAMA = dict(
    model_type='llama',
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={'rope_type': 'default', 'rope_theta': 50.0},
    rms_norm_eps=1e-3,
    tie_word_embeddings=False,
)
GPT2 = dict(
    model_type='gpt2',
    vocab_size=31,
    n_positions=13,
    n_embd=16,
    n_layer=3,
    n_head=4,
    n_inner=24,
    layer_norm_epsilon=1e-3,
    bos_token_id=None,
    eos_token_id=None,
)
# Of three frequencies the first stays, the second is interpolated, the third is divided; there are positions beyond 8.
LLAMA_3 = dict(
    rope_type='llama3',
    rope_theta=50.0,
    factor=8.0,
    low_freq_factor=0.2,
    high_freq_factor=1.2,
    original_max_position_embeddings=8,
)
TIED, NO_WINDOW = {'tie_word_embeddings': True}, {'sliding_window': None}
CONFIGS = {
    'llama_grouped': LLAMA,
    'llama_tied': LLAMA | TIED | {'num_key_value_heads': 4},
    'llama_3': LLAMA | {'head_dim': 6, 'attention_bias': True, 'mlp_bias': True, 'rope_parameters': LLAMA_3},
    'mistral': LLAMA | NO_WINDOW | {'model_type': 'mistral', 'head_dim': 6},
    'qwen2': LLAMA | TIED | {'model_type': 'qwen2'},
    'qwen3': LLAMA | {'model_type': 'qwen3', 'head_dim': 6},
    'gpt2': GPT2,
}


def huggingface_logits(config, seed, batch, length):
    """(full config, NumPy state dict, tokens, logits) of a transformers model; all its parameters are random."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager').eval()
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if parameter.ndim == 1 and name.endswith('weight') else 0.0
            values = center + generator.standard_normal(parameter.shape) / model.config.hidden_size**0.5
            parameter.copy_(torch.tensor(values.astype(np.float16)))
        tokens = generator.integers(config.vocab_size, size=(batch, length))
        logits = model(torch.tensor(tokens)).logits.numpy()
    state_dict = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return config.to_dict(), state_dict, tokens, logits


def read_stored(name):
    with np.load(DATA / f'huggingface_{name}.npz') as file:
        stored = dict(file)
    config = json.loads(str(stored.pop('config')))
    tokens, logits = stored.pop('tokens'), stored.pop('logits')
    return config, stored, tokens, logits


def write_stored(names):
    for name in names or CONFIGS:
        config = CONFIGS[name]
        config, state_dict, tokens, logits = huggingface_logits(config, seed=0, batch=2, length=13)
        state_dict = {name: tensor.astype(np.float16) for name, tensor in state_dict.items()}
        path = DATA / f'huggingface_{name}.npz'
        np.savez_compressed(path, config=json.dumps(config), tokens=tokens, logits=logits, **state_dict)
        print(path, path.stat().st_size, 'bytes')


def our_logits(state_dict, config, tokens):
    model, params = models.from_huggingface(state_dict, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}
    return model.clone(dtype=jnp.float32).apply({'params': params}, tokens)


def assert_equal_within_rounding(actual, expected):
    # Float32 sums in another order, three layers deep: up to 1e-6 of the largest logit was seen.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_equal_the_stored_ones_of_transformers(name):
    config, state_dict, tokens, logits = read_stored(name)
    assert_equal_within_rounding(our_logits(state_dict, config, tokens), logits)


LARGER = {'hidden_size': 48, 'intermediate_size': 80, 'num_attention_heads': 8, 'rope_parameters': None}
LARGER_GPT2 = {'n_embd': 48, 'n_inner': None, 'n_positions': 40, 'n_head': 6}


@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        *((name, LARGER_GPT2 if name == 'gpt2' else LARGER) for name in CONFIGS),
        ('llama_3', TIED),
        ('llama_3', {'attention_bias': False}),
        ('llama_3', {'mlp_bias': False, 'rope_parameters': LLAMA_3 | {'original_max_position_embeddings': 32}}),
        ('mistral', TIED | {'rope_parameters': LLAMA_3}),
        ('mistral', {'sliding_window': 37, 'max_position_embeddings': 37}),
        ('qwen2', {'tie_word_embeddings': False, 'rope_parameters': LLAMA_3}),
        ('qwen2', {'head_dim': 6}),
        ('qwen3', TIED | {'attention_bias': True, 'rope_parameters': LLAMA_3}),
        ('qwen3', {'hidden_size': 18}),
    ],
)
def test_logits_equal_those_of_transformers_now(name, changes):
    pytest.importorskip('torch', reason='torch is not installed; the stored logits are still compared')
    pytest.importorskip('transformers', reason='transformers is not installed; the stored logits are still compared')
    config, state_dict, tokens, logits = huggingface_logits(CONFIGS[name] | changes, seed=1, batch=3, length=37)
    assert_equal_within_rounding(our_logits(state_dict, config, tokens), logits)


def test_torch_tensors_of_bfloat16_are_taken_as_they_are():
    torch = pytest.importorskip('torch', reason='torch is not installed')
    config, state_dict, _, _ = read_stored('llama_grouped')
    tensors = {name: torch.tensor(array).bfloat16() for name, array in state_dict.items()}
    arrays = {name: jnp.asarray(array, jnp.bfloat16) for name, array in state_dict.items()}
    _, from_torch = models.from_huggingface(tensors, config)
    _, from_jax = models.from_huggingface(arrays, config)
    jax.tree.map(np.testing.assert_array_equal, from_torch, from_jax)


@pytest.mark.parametrize('name', ['llama_tied', 'gpt2'])
def test_prefix_tied_head_and_derived_buffers_are_optional(name):
    config, state_dict, tokens, logits = read_stored(name)
    bare = {
        key.removeprefix('model.').removeprefix('transformer.'): tensor
        for key, tensor in state_dict.items()
        if key != 'lm_head.weight'
    }
    if name == 'gpt2':
        bare |= {'h.0.attn.bias': np.ones((1, 1, 13, 13), bool), 'h.0.attn.masked_bias': np.float32(-1e4)}
    else:
        bare |= {'layers.0.self_attn.rotary_emb.inv_freq': np.ones(2, np.float32)}
    assert_equal_within_rounding(our_logits(bare, config, tokens), logits)


def test_parameters_share_no_memory_with_the_state_dict():
    config, state_dict, _, _ = read_stored('llama_grouped')
    state_dict = {name: array.astype(np.float32) for name, array in state_dict.items()}
    _, params = models.from_huggingface(state_dict, config)
    for leaf in jax.tree.leaves(params):
        assert not any(np.shares_memory(leaf, array) for array in state_dict.values())


def test_rope_theta_of_configurations_before_and_after_transformers_5():
    config, state_dict, _, _ = read_stored('llama_grouped')
    theirs = config.pop('rope_parameters')
    assert theirs['rope_theta'] == 50.0
    old = config | {'rope_theta': 50.0, 'rope_scaling': None}
    assert models.from_huggingface(state_dict, old)[0].rope_theta == 50.0
    assert models.from_huggingface(state_dict, config)[0].rope_theta == 10000.0
    assert models.from_huggingface(state_dict, old | {'rope_parameters': theirs})[0].rope_theta == 50.0


def test_scaling_of_configurations_before_and_after_transformers_5():
    config, _, _, _ = read_stored('llama_3')
    new = models.model_from_huggingface(config)
    assert new.rope_scaling == (8.0, 0.2, 1.2, 8) and new.rope_theta == 50.0
    scaling = {name: value for name, value in config.pop('rope_parameters').items() if name != 'rope_theta'}
    old = config | {'rope_theta': 50.0, 'rope_scaling': scaling}
    assert models.model_from_huggingface(old) == new
    assert models.model_from_huggingface(old | {'rope_parameters': LLAMA_3}) == new
    with pytest.raises(ValueError, match=r'^rope_scaling=.* and rope_parameters=.* differ$'):
        models.model_from_huggingface(old | {'rope_parameters': LLAMA_3 | {'factor': 4.0}})


@pytest.mark.parametrize(
    ('name', 'field', 'value'),
    [
        ('llama_grouped', 'model_type', 'mamba'),
        ('llama_grouped', 'hidden_act', 'gelu'),
        ('llama_grouped', 'head_dim', 5),
        ('llama_grouped', 'partial_rotary_factor', 0.5),
        ('llama_grouped', 'rope_scaling', {'type': 'linear', 'factor': 2.0}),
        ('llama_grouped', 'rope_scaling', {'full_attention': {'rope_type': 'default'}}),
        *(('llama_grouped', 'rope_parameters', {'rope_type': kind}) for kind in ('dynamic', 'yarn', 'longrope', ['x'])),
        ('llama_3', 'original_max_position_embeddings', 9),
        ('mistral', 'sliding_window', 4096),
        ('mistral', 'layer_types', ['full_attention', 'sliding_attention', 'full_attention']),
        ('mistral', 'layer_types', 2 * ['full_attention']),
        ('llama_grouped', 'max_position_embeddings', 0),
        ('llama_grouped', 'max_position_embeddings', -5),
        ('llama_grouped', 'max_position_embeddings', True),
        ('qwen2', 'use_sliding_window', 1),
        ('qwen2', 'layer_types', 3 * ['sliding_attention']),
        ('gpt2', 'activation_function', 'gelu'),
        ('gpt2', 'scale_attn_weights', False),
        ('gpt2', 'scale_attn_by_inverse_layer_idx', True),
        ('gpt2', 'add_cross_attention', True),
        ('gpt2', 'tie_word_embeddings', False),
    ],
)
def test_configuration_that_would_change_the_logits_is_refused_by_name(name, field, value):
    config, state_dict, _, _ = read_stored(name)
    with pytest.raises(ValueError, match=f'^{field}='):
        models.from_huggingface(state_dict, config | {field: value})


@pytest.mark.parametrize(
    ('change', 'error'),
    [
        ({'factor': ...}, r'config lacks the field rope_parameters\.factor'),
        ({'low_freq_factor': 'one'}, r"rope_parameters\.low_freq_factor='one' must be a positive number"),
        (
            {'high_freq_factor': 0.2},
            r'rope_low_freq_factor=0\.2 must be positive and less than rope_high_freq_factor=0\.2$',
        ),
        (
            {'original_max_position_embeddings': 8.5},
            r'rope_parameters\.original_max_position_embeddings=8\.5 must be an',
        ),
        ({'partial_rotary_factor': 0.5}, r'rope_parameters\.partial_rotary_factor=0\.5 must be None or 1'),
        ({'rope_type': 'yarn'}, r"^rope_parameters=.*: its rope_type must be default or llama3, not 'yarn'"),
    ],
)
def test_a_scaling_that_cannot_be_followed_is_refused_by_name(change, error):
    config, _, _, _ = read_stored('llama_3')
    rope = {name: value for name, value in (config['rope_parameters'] | change).items() if value is not ...}
    with pytest.raises(ValueError, match=error):
        models.model_from_huggingface(config | {'rope_parameters': rope})


ANY_VALUES = (None, True, 3, -1, 0, 0.5, 10**400, np.inf, np.nan, '', 'x', [], [1], ['full_attention'], {}, {'a': {}})


@pytest.mark.parametrize('name', CONFIGS)
def test_a_field_of_any_kind_is_read_or_refused_in_one_line(name):
    """In the object of rotary parameters, too."""
    config, _, _, _ = read_stored(name)
    fields = [*config, 'rope_scaling', 'rope_theta', 'partial_rotary_factor', 'sliding_window', 'layer_types']
    changed = [config | {field: value} for field in fields for value in ANY_VALUES]
    rope = config.get('rope_parameters', {})
    changed += [config | {'rope_parameters': rope | {field: value}} for field in rope for value in ANY_VALUES]
    for fields in changed:
        try:
            model = models.model_from_huggingface(fields)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 400
        else:
            assert isinstance(model, models.find_family(config['model_type']).module)


@pytest.mark.parametrize('name', CONFIGS)
def test_configuration_without_a_size_is_refused_by_name(name):
    config, state_dict, _, _ = read_stored(name)
    del config['vocab_size']
    with pytest.raises(ValueError, match='vocab_size'):
        models.from_huggingface(state_dict, config)


def test_tensors_that_do_not_fit_are_named():
    config, state_dict, _, _ = read_stored('llama_grouped')
    name = 'model.layers.1.mlp.up_proj.weight'

    def changed(**tensors):
        return models.from_huggingface(state_dict | tensors, config)

    with pytest.raises(ValueError, match=r'missing layers\.1\.mlp\.up_proj\.weight; unexpected none'):
        models.from_huggingface({key: value for key, value in state_dict.items() if key != name}, config)
    with pytest.raises(ValueError, match=r'missing none; unexpected layers\.1\.self_attn\.q_proj\.bias'):
        changed(**{'model.layers.1.self_attn.q_proj.bias': np.zeros(16, np.float32)})
    with pytest.raises(ValueError, match=r'layers\.1\.mlp\.up_proj\.weight: shape \(16, 24\)'):
        changed(**{name: state_dict[name].T})
    with pytest.raises(ValueError, match=r'layers\.1\.mlp\.up_proj\.weight: dtype int8'):
        changed(**{name: state_dict[name].astype(np.int8)})
    with pytest.raises(ValueError, match=r'missing layers\.3\..*, and 1 more'):
        models.from_huggingface(state_dict, config | {'num_hidden_layers': 4})


def test_a_tensor_by_two_names_is_refused():
    """Which of them counts would be anyone's guess."""
    config, state_dict, _, _ = read_stored('llama_grouped')
    with pytest.raises(ValueError, match=r'state_dict: model\.norm\.weight and norm\.weight are the same tensor'):
        models.from_huggingface(state_dict | {'norm.weight': state_dict['model.norm.weight'] + 1}, config)


def test_values_that_float32_does_not_have_are_refused():
    """Those that are not finite to begin with stay what they are."""
    config, state_dict, _, _ = read_stored('llama_grouped')
    norm = state_dict['model.norm.weight'].astype(np.float64)
    norm[0] = 1e300
    with pytest.raises(ValueError, match=r'norm\.weight: some of its values, of float64, are infinite in float32'):
        models.from_huggingface(state_dict | {'model.norm.weight': norm}, config)
    norm[:2] = np.inf, np.nan
    _, params = models.from_huggingface(state_dict | {'model.norm.weight': norm}, config)
    assert np.sum(~np.isfinite(params['final_norm']['scale'])) == 2


@pytest.mark.parametrize('model_type', [None, ['llama'], {}, 3])
def test_a_model_type_that_is_no_text_is_refused(model_type):
    with pytest.raises(ValueError, match=r'model_type=.* must be one of llama, gpt2'):
        models.from_huggingface({}, {'model_type': model_type})


def test_untied_head_of_a_tied_configuration_is_refused():
    config, state_dict, _, _ = read_stored('gpt2')
    state_dict['lm_head.weight'] = state_dict['transformer.wte.weight'] + np.float16(1)
    with pytest.raises(ValueError, match=r'lm_head\.weight'):
        models.from_huggingface(state_dict, config)


@pytest.mark.parametrize(
    ('fields', 'error'),
    [
        (dict(num_hidden_layers=10**6), 'the config has 1,000,000 layers, and state_dict'),
        (dict(num_hidden_layers=10**12), 'num_hidden_layers=1000000000000 must be an integer of 1 to 16,777,216'),
        (dict(intermediate_size=2**24), 'does not fit layers/mlp/'),
        (dict(vocab_size=2**24), r'does not fit embed/embedding \(16777216,'),
        (dict(rope_theta=10**400), 'rope_theta=1000.* must be a positive number'),
        (dict(rms_norm_eps=np.inf), 'rms_norm_eps=inf must be a positive number'),
        (dict(rms_norm_eps=True), 'rms_norm_eps=True must be a positive number'),
        (dict(num_key_value_heads=True), 'num_key_value_heads=True must be an integer'),
    ],
)
def test_what_a_config_says_is_compared_with_the_tensors_before_anything_is_made(fields, error):
    """Some bytes that would be gigabytes, or hours."""
    config, state_dict, _, _ = read_stored('llama_grouped')
    config = {name: value for name, value in config.items() if name not in ('rope_scaling', 'rope_parameters')}
    tracemalloc.start()
    with pytest.raises(ValueError, match=error):
        models.from_huggingface(state_dict, config | fields)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e8


if __name__ == '__main__':
    write_stored(sys.argv[1:])
