"""What Llama 3, Mistral, Qwen2 and Qwen3 have beyond Llama 2: it trains on every mesh, and counts."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from parameter_trees import flatten
from small_experiments import VOCABULARY, make_experiment, random_batch, random_state, small_config

import gaussq_jax as gq
from experiments.training import flops, steps
from gaussq_jax.param_reading import matrix_rules

SIZES = dict(num_layers=2, hidden_size=80, mlp_size=144, num_heads=4, num_kv_heads=2)
MODELS = {
    'llama': dict(head_dim=24, attention_bias=True, mlp_bias=True, rope_factor=8.0, rope_original_length=16),
    'mistral': dict(head_dim=24),
    'qwen2': dict(tie_embeddings=True),
    'qwen3': dict(head_dim=24, attention_bias=True),
}
every_family = pytest.mark.parametrize('family', MODELS)


def config_of(family, **changes):
    config = small_config('smoke,method=bf16', **changes)
    config.model = ConfigDict(dict(family=family, **SIZES, **MODELS[family]))
    return config


@pytest.mark.parametrize(
    'family', ['qwen3', *(pytest.param(name, marks=pytest.mark.slow) for name in list(MODELS)[:3])]
)
def test_a_mesh_changes_no_loss(family):
    """Heads are split, their biases are not; Adam-mini's blocks are heads of head_dim outputs."""
    losses, states = [], []
    for sizes in [(1, 1, 1), (2, 2, 2)]:
        config = config_of(family, optimizer__name='adam_mini', dtype='float32')
        experiment = make_experiment(config, sizes)
        state, train_step, values = random_state(experiment), steps.make_train_step(experiment), []
        for seed in range(3):
            state, metrics = train_step(state, random_batch(experiment, seed))
            values.append(float(metrics['train/loss']))
        losses.append(values)
        states.append(state)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    query = states[1].params['layers']['attention']['query']['kernel']
    head_dim = MODELS[family].get('head_dim', 20)
    assert query.sharding.shard_shape(query.shape) == (2, 40, 4 * head_dim // 2)
    nu = flatten(states[0].opt_state.inner_states['params'].inner_state[1][0].nu['params'])
    assert nu['layers/attention/query/kernel'].shape == (2, 1, 4)
    if family == 'qwen3':
        assert nu['layers/attention/query_norm/scale'].shape == (2, 1)
        assert nu['layers/attention/query/bias'].shape == (2, 96)


@every_family
def test_flops_and_parameters_are_those_of_the_closed_form(family):
    """With the numbers of all heads where Llama 2 has those of the residual stream."""
    config = config_of(family)
    experiment = make_experiment(config)
    width = SIZES['num_heads'] * MODELS[family].get('head_dim', 20)
    assert experiment.num_linear_params == 2 * (80 * width * 2 + 80 * width // 2 * 2 + 3 * 80 * 144)
    of_products = 2 * (experiment.num_linear_params + 80 * VOCABULARY) + 4 * 2 * width * config.sequence_length
    assert flops.model_flops(experiment) == 3 * config.batch_size * config.sequence_length * of_products


@every_family
def test_its_tree_is_read_without_rules_as_the_family_reads_it(family):
    """Biases and the norms of heads among the rest."""
    experiment = make_experiment(config_of(family))
    params = experiment.abstract_state.params
    by_family = matrix_rules(params, experiment.family.rules)
    assert matrix_rules(params, gq.DEFAULT_RULES).keys() == by_family.keys()
    described = [str(gq.describe(params, gq.gaussian_weight_sampling(rules=rules))).splitlines()[-1] for rules in (
        gq.DEFAULT_RULES, experiment.family.rules
    )]  # fmt: skip
    assert described[0] == described[1]


def test_what_a_family_has_not_is_no_field_of_its_configs():
    config = config_of('qwen2')
    config.model.attention_bias = False
    with pytest.raises(
        ValueError, match=r'config\.model\.attention_bias: qwen2 has no such field; it has num_layers, '
    ):
        make_experiment(config)


@pytest.mark.parametrize(
    ('head_dim', 'error'),
    [
        (0, r'config\.model\.head_dim=0 must be an integer of 1 to 16,777,216, or None'),
        (5, 'head_dim=5 must be even and positive'),
    ],
)
def test_sizes_of_heads_that_cannot_be(head_dim, error):
    config = config_of('qwen3')
    config.model.head_dim = head_dim
    with pytest.raises(ValueError, match=error):
        make_experiment(config)
