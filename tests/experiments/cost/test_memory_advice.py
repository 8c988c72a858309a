"""What would make a step fit: settings that can be had, and numbers that hold."""

import dataclasses

import pytest
from small_experiments import VOCABULARY, small_config

from experiments.cost import memory_advice, step_costs
from experiments.training.experiment import make_experiment


def small_experiment(**changes):
    config = small_config('smoke,method=gaussws', **({'batch_size': 64, 'microbatches': 4} | changes))
    return make_experiment(config, VOCABULARY)


def memory_of(experiment, rest):
    return dataclasses.replace(step_costs.known_memory(experiment), rest=rest)


def test_each_change_says_what_it_leaves():
    experiment = small_experiment()
    memory = memory_of(experiment, rest=10_000_000)
    advice = {str(advice): advice.total for advice in memory_advice.single_changes(experiment, memory)}
    assert advice.pop('--config.microbatches=8') == memory.total - 5_000_000
    assert (
        advice.pop('--config.mesh.data=1 --config.mesh.fsdp=8')
        == memory_of(small_experiment(mesh__data=1, mesh__fsdp=8), 10_000_000).total
    )
    full = small_experiment(remat_policy='full').config
    inputs = full.model.num_layers * 2 * full.sequence_length * full.model.hidden_size * 4  # 2 sequences, float32
    assert advice.pop('--config.remat_policy=full') == memory.total - 5_000_000 + inputs
    assert '--config.resample_weights=True --config.remat_policy=full' in advice
    assert all(total < memory.total for total in advice.values())


def test_what_does_not_help_or_cannot_be_is_not_advised():
    experiment = small_experiment(
        batch_size=8, microbatches=1, remat_policy='full', resample_weights=True, mesh__data=1, mesh__fsdp=8
    )
    advice = memory_advice.single_changes(experiment, memory_of(experiment, rest=0))
    assert all({*one.settings} <= {'optimizer.state_dtype', 'optimizer.name'} for one in advice)


@pytest.mark.parametrize('optimism, resamples', [(1.0, [False]), (1.005, [False, True])])
def test_changes_are_combined_until_a_compilation_fits(optimism, resamples):
    """Half a microbatch would do, if it took half as much; if that takes more, W_hat isn't kept, either."""
    experiment = small_experiment(remat_policy='full', mesh__data=1, mesh__fsdp=8)
    memory = memory_of(experiment, rest=8_000_000)
    asked = []

    def measure(changed):
        asked.append(changed.config)
        return memory_of(changed, rest=int(optimism * 4_000_000))

    limit = memory.total - 3_990_000
    advice = memory_advice.combined_changes(experiment, memory, limit, measure)
    assert advice.total <= limit
    assert [config.microbatches for config in asked] == [8] * len(asked)
    assert [config.resample_weights for config in asked] == resamples
    assert advice.settings['microbatches'] == 8 and ('resample_weights' in advice.settings) == resamples[-1]


def test_nothing_fits_into_nothing():
    experiment = small_experiment()
    memory = memory_of(experiment, rest=1000)
    assert memory_advice.combined_changes(experiment, memory, 0, pytest.fail) is None
    assert memory_advice.more_devices(experiment, memory, 0) is None


def test_more_devices_share_the_weights_and_keep_their_sequences():
    experiment = small_experiment(mesh__data=1, mesh__fsdp=8)  # 8 devices with 2 of 64 sequences at a time
    memory = memory_of(experiment, rest=1_000_000)
    advice = memory_advice.more_devices(experiment, memory, memory.total - 1000)
    assert str(advice) == '--devices=16 --config.mesh.data=1 --config.mesh.fsdp=16 --config.microbatches=2'
    assert 1_000_000 < advice.total < memory.total
