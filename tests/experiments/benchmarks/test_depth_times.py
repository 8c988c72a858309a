"""Deeper models are no larger programs, and the benchmark compiles those that it says it does."""

import jax
import jax.numpy as jnp
import pytest
from small_experiments import VOCABULARY, small_config

from experiments.benchmarks import depth_times
from experiments.cost import step_costs
from experiments.training.experiment import make_experiment

RESAMPLED = {'remat_policy': 'full', 'resample_weights': True, 'microbatches': 2}


@pytest.mark.parametrize(
    ('method', 'changes'),
    [
        ('gaussws', RESAMPLED),
        pytest.param('fqt', {}, marks=pytest.mark.slow),
        pytest.param('gaussws', {}, marks=pytest.mark.slow),
        pytest.param('fqt', RESAMPLED, marks=pytest.mark.slow),
    ],
)
def test_the_program_to_compile_has_as_many_operations_whatever_the_depth(method, changes):
    def operations(layers):
        config = small_config(f'smoke,method={method}', model__num_layers=layers, batch_size=16, **changes)
        traced = step_costs.trace(make_experiment(config, VOCABULARY))
        return traced.lower().as_text().count('\n')

    assert operations(24) == operations(4)


def test_each_depth_is_compiled_anew_in_each_turn(monkeypatch):
    compiled = []

    def trace(experiment):
        compiled.append(experiment.config.model.num_layers)
        return jax.jit(lambda x: x + 1).trace(jnp.zeros(()))

    monkeypatch.setattr(step_costs, 'trace', trace)
    config = small_config()
    results = depth_times.time_depths(config, turns=3, vocab_size=VOCABULARY)
    assert compiled.count(4) == compiled.count(24) == 3 + 2  # two turns warm up
    assert list(results['depths']) == ['4', '24'] and results['config'] == config.name and results['turns'] == 3
    assert results['depths']['4']['ratio'] == 1 and results['depths']['24']['seconds'] > 0
    assert config.model.num_layers == 2
