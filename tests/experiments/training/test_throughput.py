"""What a training says about its speed: by a clock of the tests, which stands still but where a test lets it go on."""

import types

import jax
import numpy as np
import pytest
from small_experiments import make_experiment, small_config

from experiments.devices import device_specs
from experiments.training import throughput
from experiments.training.throughput import StepClock


class Time:
    """Seconds, from an arbitrary moment on."""

    def __init__(self):
        self.seconds = 12345.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def time():
    return Time()


def make_clock(time, peak_flops=None):
    """Of a training with 512 tokens and 3,000 FLOPs a step."""
    return StepClock(tokens_per_step=512, flops_per_step=3000.0, peak_flops=peak_flops, now=time)


def take_steps(clock, time, *seconds):
    for step in seconds:
        time.seconds += step
        clock.step_done()


def wait(clock, time, what, seconds):
    with clock.waiting_for(what):
        time.seconds += seconds


def test_speed_and_step_times(time):
    """By the definitions, with numbers that binary fractions hold: eleven steps of which one took long."""
    clock = make_clock(time, peak_flops=6000.0)
    take_steps(clock, time, 1.0)
    clock.metrics()
    take_steps(clock, time, *10 * [0.25], 3.0)
    metrics = clock.metrics()
    assert metrics == {
        'tokens_per_second': 11 * 512 / 5.5,
        'mfu': 11 * 3000 / (5.5 * 6000),
        'step_seconds/p50': 0.25,
        'step_seconds/p90': 0.25,
        'step_seconds/max': 3.0,
        'seconds/data': 0.0,
        'seconds/checkpoint': 0.0,
        'seconds/total': 5.5,
    }
    assert all(type(value) is float for value in metrics.values())


def test_each_log_speaks_of_the_time_since_the_last_one(time):
    clock = make_clock(time)
    take_steps(clock, time, 1.0, 1.0)
    wait(clock, time, 'data', 8.0)
    take_steps(clock, time, 1.0)
    clock.metrics()
    take_steps(clock, time, 2.0, 2.0)
    metrics = clock.metrics()
    assert metrics['step_seconds/max'] == 2.0 and metrics['tokens_per_second'] == 256
    assert metrics['seconds/data'] == 0.0 and metrics['seconds/total'] == 4.0


def test_the_first_step_is_not_counted(time):
    """It compiles. Where it is the only one, there is no speed to tell."""
    clock = make_clock(time, peak_flops=6000.0)
    take_steps(clock, time, 100.0)
    assert clock.metrics() == {'seconds/data': 0.0, 'seconds/checkpoint': 0.0, 'seconds/total': 100.0}
    take_steps(clock, time, 0.5)
    assert clock.metrics()['step_seconds/max'] == 0.5


def test_what_lies_between_steps_does_not_slow_them_but_is_told(time):
    clock = make_clock(time)
    take_steps(clock, time, 1.0, 0.5, 0.5)
    wait(clock, time, 'evaluation', 30.0)
    wait(clock, time, 'checkpoint', 7.0)
    take_steps(clock, time, 0.5)
    wait(clock, time, 'checkpoint', 3.0)
    take_steps(clock, time, 0.5)
    metrics = clock.metrics()
    assert metrics['tokens_per_second'] == 1024 and metrics['step_seconds/max'] == 0.5
    assert (metrics['seconds/checkpoint'], metrics['seconds/evaluation']) == (10.0, 30.0)
    assert metrics['seconds/total'] == 43.0


def test_waits_for_data_are_part_of_the_steps(time):
    """The tokens that come late are tokens a second that are missing."""
    clock = make_clock(time)
    take_steps(clock, time, 1.0)
    for _ in range(4):
        wait(clock, time, 'data', 0.75)
        take_steps(clock, time, 0.25)
    metrics = clock.metrics()
    assert metrics['tokens_per_second'] == 512 and metrics['seconds/data'] == 3.0 and metrics['step_seconds/p50'] == 1.0


def test_a_wait_for_data_while_the_devices_work_loses_nothing(time):
    clock = make_clock(time)
    with clock.waiting_for('data', is_lost=lambda: time.seconds > 12346.0):
        time.seconds += 1.0
    with clock.waiting_for('data', is_lost=lambda: time.seconds > 12346.0):
        time.seconds += 0.5
    assert clock.metrics()['seconds/data'] == 0.5


def test_steps_that_ended_in_a_divergence_are_not_counted(time):
    """The one that diverged, and the one dispatched after it: their time is that of no step."""
    clock = make_clock(time)
    take_steps(clock, time, 1.0, 0.5)
    time.seconds += 1.0
    wait(clock, time, 'checkpoint', 20.0)
    take_steps(clock, time, 0.5)
    assert clock.metrics()['step_seconds/max'] == 0.5


def test_a_wait_that_fails_is_told_too(time):
    clock = make_clock(time)
    with pytest.raises(OSError), clock.waiting_for('checkpoint'):
        time.seconds += 2.0
        raise OSError
    assert clock.metrics()['seconds/checkpoint'] == 2.0


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 1)])
def test_the_clock_of_an_experiment(sizes, time, monkeypatch):
    """MFU counts 6 FLOPs for a weight and a token, and attention's; the peak is that of all devices."""
    experiment = make_experiment(small_config(), sizes)
    config = experiment.config
    monkeypatch.setattr(throughput, 'StepClock', lambda *args: StepClock(*args, now=time))
    on_cpu = throughput.make_clock(experiment)
    monkeypatch.setattr(device_specs, 'find', lambda kind: device_specs.DeviceSpec('fast', 1e12, 1e9, 'this test'))
    on_fast = throughput.make_clock(experiment)
    for clock in (on_cpu, on_fast):
        clock.step_done()
    time.seconds += 0.125
    for clock in (on_cpu, on_fast):
        clock.step_done()
    tokens = config.batch_size * config.sequence_length
    head = experiment.vocab_size * config.model.hidden_size
    attention = 4 * config.model.num_layers * config.model.hidden_size * config.sequence_length
    flops = 3 * tokens * (2 * (experiment.num_linear_params + head) + attention)
    assert 'mfu' not in on_cpu.metrics()
    metrics = on_fast.metrics()
    assert metrics['tokens_per_second'] == tokens / 0.125
    assert metrics['mfu'] == pytest.approx(flops / (0.125 * np.prod(sizes) * 1e12), rel=1e-12)


def test_peak_memory_is_that_of_the_fullest_device():
    """CPUs tell nothing; a device may tell other numbers only."""
    device = lambda stats: types.SimpleNamespace(memory_stats=lambda: stats)
    mesh = lambda *stats: types.SimpleNamespace(local_devices=list(map(device, stats)))
    full, fuller = ({'peak_bytes_in_use': peak, 'bytes_in_use': 1} for peak in (5, 7))
    assert throughput.memory_metrics(mesh(full, fuller, full)) == {'device_memory/peak_bytes': 7}
    assert throughput.memory_metrics(mesh(None, {'bytes_in_use': 3})) == {}
    assert throughput.memory_metrics(jax.make_mesh((8,), ('data',))) == {}
