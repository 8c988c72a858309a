"""A stuck training ends itself and shows where it was stuck; what takes long for good reasons is left alone."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from small_experiments import ONE_DEVICE, on_mesh
from small_runs import change_steps, run_config, start, stub_steps

from experiments.checkpoints import checkpointing
from experiments.data import loading, tokenizers
from experiments.processes import exit_codes, watchdog
from experiments.processes.watchdog import Watchdog
from experiments.training import evaluation
from experiments.training.experiment import make_experiment


def run(program):
    """A process that has a Watchdog and `time`."""
    source = 'import time\nfrom experiments.processes.watchdog import Watchdog\n' + program
    return subprocess.Popen(
        [sys.executable, '-c', source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


HANG = """
def wait_for_a_collective():
    time.sleep(60)

with Watchdog(0.5) as watchdog:
    watchdog.beat()
    wait_for_a_collective()
"""
STOPPED = """
with Watchdog(1.0) as watchdog:
    for _ in range(30):
        time.sleep(0.05)
        watchdog.beat()
        print('.', flush=True)
print('done')
"""


def test_a_silent_process_ends_itself():
    """With the place where it hung, one line that says what to do, and its own exit code."""
    process = run(HANG)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (exit_codes.STALLED, '')
    assert 'in wait_for_a_collective' in errors
    assert errors.splitlines()[-1] == (
        'error: stalled: no step was finished within 0.5 seconds (config.stall_timeout); above is where each thread'
        ' was. The same command continues from the newest checkpoint'
    )


def test_time_in_which_the_process_is_stopped_does_not_count():
    """As by SIGSTOP, or by a laptop's lid: it was not given the chance to go on."""
    process = run(STOPPED)
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.8)
    process.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, '') and output.endswith('done\n')


@pytest.fixture
def exits(monkeypatch):
    """The statuses with which the watchdog would have ended this process; an event says when it has."""
    statuses, happened = [], threading.Event()

    def exit(status):
        statuses.append(status)
        happened.set()

    monkeypatch.setattr(watchdog.os, '_exit', exit)
    return statuses, happened


def test_no_heartbeat_is_needed_outside_of_it_or_without_a_timeout(exits):
    with Watchdog(0.05):
        pass
    with Watchdog(0):
        time.sleep(0.2)
    assert exits[0] == []


def test_a_pause_may_take_as_long_as_it_needs(exits):
    with Watchdog(0.2) as dog:
        with dog.paused(), dog.paused():
            time.sleep(0.5)
        slow = dog.unwatched_first(lambda seconds, result: time.sleep(seconds) or result)
        assert slow(0.5, result=3) == 3
        assert exits[0] == []
        assert slow(0.5, result=4) == 4
    assert exits[0] == [exit_codes.STALLED]


@pytest.mark.parametrize('timeout', [-1.0, float('nan'), float('inf')])
def test_what_is_not_allowed(timeout):
    with pytest.raises(ValueError, match=r'config.stall_timeout=.*: allowed are seconds, or 0 for no limit'):
        Watchdog(timeout)


def test_a_step_that_hangs(exits, tmp_path, monkeypatch):
    """In the training program, after some steps that didn't."""
    stub_steps(monkeypatch)

    def change(step, state, batch):
        if int(state.step) == 6:
            assert exits[1].wait(30)
            raise KeyboardInterrupt  # as if the process had ended
        return step(state, batch)

    change_steps(monkeypatch, change)
    with pytest.raises(SystemExit, match='continues from step 4'):
        start(tmp_path, run_config(stall_timeout=0.4))
    assert exits[0] == [exit_codes.STALLED]


def test_each_batch_of_an_evaluation_is_a_heartbeat(monkeypatch):
    """Of both evaluations, without and with noise."""
    config = run_config(eval_batches=3)
    tokenizer = tokenizers.load_tokenizer(config.tokenizer)
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(config, tokenizer.vocab_size)
    evaluate = lambda state, batches, noise=False: {'loss': len(list(batches))}
    monkeypatch.setattr(evaluation, 'make_evaluation', lambda _: evaluate)
    beats = []
    validate = evaluation.make_validation(experiment, loading.load_data(config, tokenizer), lambda: beats.append(None))
    assert beats == []
    assert validate(None)['validation/loss_with_noise'] == 3 and len(beats) == 6


def test_compilation_evaluation_and_saves_are_no_stalls(exits, tmp_path, monkeypatch):
    """Each takes longer than the timeout here: the first step and evaluation, and every save."""
    timeout = 0.5
    stub_steps(monkeypatch)

    def change(step, state, batch):
        time.sleep(2 * timeout * (int(state.step) == 0))
        return step(state, batch)

    change_steps(monkeypatch, change)
    make_validation, save = evaluation.make_validation, checkpointing.Checkpointer.save

    def make_slow_validation(experiment, data, at_batch):
        validate, seconds = make_validation(experiment, data, at_batch), [timeout]

        def slow_validate(state):
            for _ in range(2):  # batches
                time.sleep(seconds[-1])
                at_batch()
            seconds.append(0.6 * timeout)
            return validate(state)

        return slow_validate

    def slow_save(self, *args, **kwargs):
        time.sleep(2 * timeout)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(evaluation, 'make_validation', make_slow_validation)
    monkeypatch.setattr(checkpointing.Checkpointer, 'save', slow_save)
    start(tmp_path, run_config(stall_timeout=timeout, checkpoint_every=6))
    assert exits[0] == []
