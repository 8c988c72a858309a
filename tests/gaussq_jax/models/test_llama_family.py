"""What configurations say of windows, and what they have to say, of the families that are built as Llama is."""

import pytest

from gaussq_jax import models

CONFIG = dict(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    rms_norm_eps=1e-3,
)


def test_the_window_of_a_mistral_counts_where_sequences_can_exceed_it():
    config = CONFIG | {'model_type': 'mistral', 'sliding_window': None}
    window = dict(sliding_window=64, max_position_embeddings=64)
    assert models.model_from_huggingface(config | window) == models.model_from_huggingface(config)
    with pytest.raises(ValueError, match='sliding_window=64 must be None, or no less than max_position_embeddings=65'):
        models.model_from_huggingface(config | window | {'max_position_embeddings': 65})
    del config['sliding_window']  # which is then 4096
    with pytest.raises(ValueError, match='sliding_window=4096 must be None'):
        models.model_from_huggingface(config)


@pytest.mark.parametrize('name', ['qwen2', 'qwen3'])
@pytest.mark.parametrize(
    ('fields', 'counts'),
    [
        (dict(max_window_layers=2), True),
        (dict(max_window_layers=0), True),
        (dict(max_window_layers=2, max_position_embeddings=65), True),
        (dict(max_window_layers=2, max_position_embeddings=64), False),
        (dict(max_window_layers=3), False),
        (dict(), False),  # which is 28
        (dict(max_window_layers=2, use_sliding_window=False), False),
        (dict(max_window_layers=2, sliding_window=None), False),
        (dict(max_window_layers=2, layer_types=3 * ['full_attention']), False),
    ],
)
def test_the_window_of_a_qwen_counts_where_a_layer_has_it_and_sequences_can_exceed_it(name, fields, counts):
    """Which layers have it is what transformers says, where that is installed."""
    config = CONFIG | {'model_type': name}
    unwindowed = models.model_from_huggingface(config)
    config |= dict(use_sliding_window=True, sliding_window=64) | fields
    if counts:
        with pytest.raises(ValueError, match=r'^sliding_window=64 must be None, or no less than max_position_embed'):
            models.model_from_huggingface(config)
    else:
        assert models.model_from_huggingface(config) == unwindowed
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    theirs = transformers.AutoConfig.for_model(**config)
    is_exceeded = theirs.max_position_embeddings > (theirs.sliding_window or 2**24)
    assert counts == (is_exceeded and 'sliding_attention' in theirs.layer_types)


@pytest.mark.parametrize('name', ['mistral', 'qwen2', 'qwen3'])
def test_a_number_of_key_and_value_heads_has_to_be_said_where_its_default_is_none_of_ours(name):
    config = CONFIG | {'model_type': name, 'sliding_window': None}
    assert models.model_from_huggingface(config | {'num_key_value_heads': None}).num_kv_heads is None
    del config['num_key_value_heads']
    with pytest.raises(ValueError, match=r'^config lacks the field num_key_value_heads$'):
        models.model_from_huggingface(config)
