"""Which steps have diverged: what isn't finite, and what lies too far above the losses before; nothing else."""

import json
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.training.divergence import Diverged, DivergenceDetector


def make_detector(spike_sigmas=0.0, spike_window=4, max_rollbacks=2):
    fields = dict(max_rollbacks=max_rollbacks, spike_sigmas=spike_sigmas, spike_window=spike_window)
    return DivergenceDetector(ConfigDict(fields))


def diverged_steps(detector, losses):
    """The steps, counted from 0, that diverge, where the training goes on as if they had been skipped."""
    steps = []
    for step, loss in enumerate(losses):
        try:
            detector.check(step, {'train/loss': np.float32(loss)})
        except Diverged as diverged:
            steps.append(diverged.step)
    return steps


@pytest.mark.parametrize('name', ['train/loss', 'train/gradient_norm', 'bits/gradient_norm'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(name, value):
    metrics = {'train/loss': 2.5, 'train/gradient_norm': 1.0, 'learning_rate': math.nan, name: value}
    with pytest.raises(Diverged, match=f'^{name} is {value} at step 7$') as error:
        make_detector().check(7, metrics)
    assert error.value.step == 7
    np.testing.assert_equal(error.value.loss, metrics['train/loss'])
    assert isinstance(error.value, FloatingPointError)


def test_without_sigmas_any_finite_loss_is_fine():
    detector = make_detector()
    assert diverged_steps(detector, [1, 1, 1, 1, 1e30, 1]) == []
    assert detector.get_state()['losses'] == []


def test_a_spike_is_more_than_so_many_deviations_above_the_mean():
    """1, 3, 1, 3 have mean 2 and standard deviation 1: 5 is no spike of three sigmas, the next number is one."""
    above = np.nextafter(np.float32(5), np.float32(6))
    for losses, expected in [([1, 3, 1, 3, 5], []), ([1, 3, 1, 3, above], [4]), ([1, 3, 1, 3, -100], [])]:
        assert diverged_steps(make_detector(3.0), losses) == expected
    with pytest.raises(Diverged) as error:
        detector = make_detector(3.0)
        assert diverged_steps(detector, [1, 3, 1, 3]) == []
        detector.check(4, {'train/loss': 6})
    assert str(error.value) == (
        'train/loss is 6, more than 3 sigmas above 2, the mean of the 4 losses before (sigma 1) at step 4'
    )


def test_a_window_has_to_be_full():
    """So many steps at the beginning of a training are never spikes, but still may not be infinite."""
    assert diverged_steps(make_detector(3.0, 4), [1, 1, 1, 1e30]) == []
    assert diverged_steps(make_detector(3.0, 4), [1, 1, 1, math.nan, 1e30]) == [3]


def test_against_numpy():
    """The decision by float64 sums of NumPy, over a falling loss with spikes in it."""
    generator = np.random.default_rng(0)
    losses = 2 + 3 * np.exp(-np.arange(400) / 40) + 0.05 * generator.standard_normal(400)
    losses[generator.choice(400, 30, replace=False)] += generator.uniform(0, 0.6, 30)
    losses = losses.astype(np.float32)
    kept, expected = [], []
    for step, loss in enumerate(losses):
        window = np.array(kept[-32:], np.float64)
        if len(window) == 32 and loss > window.mean() + 4 * window.std():
            expected.append(step)
        else:
            kept.append(loss)
    assert 5 < len(expected) < 30
    assert diverged_steps(make_detector(4.0, 32), losses) == expected


def test_a_spike_does_not_raise_the_bar():
    """A loss that has diverged isn't one of those that the next is measured by."""
    assert diverged_steps(make_detector(3.0), [1, 3, 1, 3, 50, 5.5, 40, 1]) == [4, 5, 6]


def test_its_state_is_all_that_it_decides_by():
    """Stored as JSON and read by another detector after each step, it decides as if it had not been."""
    losses = 2 + np.random.default_rng(1).standard_normal(60).astype(np.float32) ** 3
    whole = diverged_steps(make_detector(2.5, 8), losses)
    assert 3 < len(whole) < 20
    steps, state = [], make_detector(2.5, 8).get_state()
    for step, loss in enumerate(losses):
        detector = make_detector(2.5, 8)
        detector.set_state(json.loads(json.dumps(state)))
        steps += [step] * len(diverged_steps(detector, [loss]))
        state = detector.get_state()
    assert steps == whole


def test_rollbacks_are_counted_until_the_next_checkpoint():
    detector = make_detector(3.0, max_rollbacks=2)
    diverged_steps(detector, [1, 2])
    detector.reach_checkpoint(2)
    state = detector.get_state()
    diverged_steps(detector, [3, 4, 5])
    for count in (1, 2):
        assert detector.may_roll_back
        detector.roll_back(state)
        assert detector.get_state() == {**state, 'rollbacks': count}
    assert not detector.may_roll_back
    detector.reach_checkpoint(8)
    assert detector.may_roll_back and detector.checkpoint == 8
    detector.roll_back(None)
    assert detector.get_state() == {'losses': [], 'checkpoint': None, 'rollbacks': 1}
    assert not make_detector(max_rollbacks=0).may_roll_back


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(max_rollbacks=-1), 'config.divergence.max_rollbacks=-1: allowed are 0 and more'),
        (dict(spike_sigmas=-2.0), 'config.divergence.spike_sigmas=-2: allowed are positive numbers, or 0 for none'),
        (dict(spike_sigmas=math.nan), 'config.divergence.spike_sigmas=nan: allowed are'),
        (dict(spike_window=1), 'config.divergence.spike_window=1: allowed are 2 and more steps'),
    ],
)
def test_what_is_not_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        make_detector(**fields)
