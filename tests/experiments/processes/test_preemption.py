"""SIGTERM costs no step, whenever it comes, and the process says by its exit code that it wants to be started again."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from compilation import xla_flags
from small_runs import assert_ends_as, change_steps, records, run_config, run_stubbed, start, stub_steps

from experiments.checkpoints import checkpointing
from experiments.checkpoints.manifests import find_damage
from experiments.data import loading
from experiments.processes import exit_codes
from experiments.processes.preemption import Preempted, Preemption
from experiments.training import evaluation

REPOSITORY = pathlib.Path(__file__).parents[3]


def preempt():
    os.kill(os.getpid(), signal.SIGTERM)


def test_before_there_is_anything_to_save():
    """It ends what is going on at once; the clean-up after it is left alone by another one."""
    with pytest.raises(Preempted), Preemption() as preemption:
        assert not preemption.is_requested()
        try:
            preempt()
        finally:
            preempt()
            assert preemption.is_requested()


def test_once_there_is():
    """Whoever saves is never interrupted, however often it comes; he asks when he likes."""
    with Preemption() as preemption:
        preemption.defer()
        assert not preemption.is_requested()
        for _ in range(3):
            preempt()
            assert preemption.is_requested()


def test_afterwards_a_signal_does_what_it_did_before(monkeypatch):
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append('SIGTERM'))
    try:
        with Preemption() as preemption:
            preemption.defer()
            preempt()
        assert received == []
        preempt()
        assert received == ['SIGTERM']
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    """The workdir of a run that was never stopped."""
    return run_stubbed(tmp_path_factory.mktemp('expected'))


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    stub_steps(monkeypatch)


def preempted(workdir, capsys):
    """Starts a run that is preempted; where it says that it will continue."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        start(workdir, run_config())
    assert exit.value.code == exit_codes.PREEMPTED
    (line,) = capsys.readouterr().err.splitlines()
    return re.fullmatch('preempted; the same command continues from (.*)', line)[1]


@pytest.mark.parametrize('at, saved', [(2, 'step 2'), (4, 'step 4'), (6, 'step 6'), (11, 'step 11')])
def test_during_a_step(expected, tmp_path, monkeypatch, capsys, at, saved):
    """An ordinary one, one with a checkpoint of its own, with an evaluation, and the last but one."""

    def change(step, state, batch):
        if int(state.step) + 1 == at:
            preempt()
        return step(state, batch)

    with monkeypatch.context() as context:
        change_steps(context, change)
        assert preempted(tmp_path / 'run', capsys) == saved
    assert find_damage(tmp_path / 'run' / 'checkpoints' / str(at)) is None
    assert_ends_as(tmp_path / 'run', expected)


def test_during_the_first_step_of_a_process(expected, tmp_path, monkeypatch, capsys):
    """That is, while it compiles: there is nothing to save, neither at the beginning of a run nor at a restart."""

    def first_step(step, state, batch):
        preempt()

    def sixth_step(step, state, batch):
        if int(state.step) == 5:
            raise KeyboardInterrupt
        return step(state, batch)

    with monkeypatch.context() as context:
        change_steps(context, first_step)
        assert preempted(tmp_path / 'run', capsys) == 'its beginning'
    with monkeypatch.context() as context, pytest.raises(SystemExit, match='continues from step 4'):
        change_steps(context, sixth_step)
        start(tmp_path / 'run', run_config())
    with monkeypatch.context() as context:
        change_steps(context, first_step)
        assert preempted(tmp_path / 'run', capsys) == 'step 4'
    assert_ends_as(tmp_path / 'run', expected)


def test_while_data_is_loaded(expected, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as context:
        context.setattr(loading, 'load_data', lambda *_: preempt())
        assert preempted(tmp_path / 'run', capsys) == 'its beginning'
    assert not (tmp_path / 'run').exists()


def test_during_an_evaluation_and_again_during_the_save(expected, tmp_path, monkeypatch, capsys):
    """Both are finished, the former with the step after it: the record has it, and the checkpoint is whole."""
    make_validation, finish = evaluation.make_validation, checkpointing.Checkpointer._finish

    def make_preempted_validation(*args):
        validate = make_validation(*args)
        return lambda state: (preempt(), validate(state))[1]

    def preempted_finish(self, step, *args):
        if step == 7:
            preempt()
        finish(self, step, *args)

    with monkeypatch.context() as context:
        context.setattr(evaluation, 'make_validation', make_preempted_validation)
        context.setattr(checkpointing.Checkpointer, '_finish', preempted_finish)
        assert preempted(tmp_path / 'run', capsys) == 'step 7'
    assert [line['step'] for line in records(tmp_path / 'run') if 'validation/loss' in line] == [6]
    assert_ends_as(tmp_path / 'run', expected)


def test_during_the_last_save(expected, tmp_path, monkeypatch, capsys):
    """The run is finished, and ends as one that is."""
    finish = checkpointing.Checkpointer._finish

    def preempted_finish(self, step, *args):
        if step == 12:
            preempt()
        finish(self, step, *args)

    monkeypatch.setattr(checkpointing.Checkpointer, '_finish', preempted_finish)
    assert_ends_as(tmp_path / 'run', expected)
    assert 'done      validation loss' in capsys.readouterr().out


def test_the_program_itself(tmp_path):
    """A process that gets the signal from outside, twice, in the middle of its training."""
    config = ('--config=configs/tiny.py:smoke,parts=down', '--config.total_steps=100000', '--config.log_every=1')
    with subprocess.Popen(
        [sys.executable, '-m', 'experiments.train', *config, f'--workdir={tmp_path}'],
        cwd=REPOSITORY,
        env=os.environ | {'XLA_FLAGS': xla_flags(devices=1)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if re.match('step +3/', line):
                break
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == exit_codes.PREEMPTED, errors
    message = re.fullmatch(r'preempted; the same command continues from step (\d+)', errors.splitlines()[-1])
    steps = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert int(message[1]) == steps[-1] >= 3
    assert find_damage(tmp_path / 'checkpoints' / message[1]) is None
