"""A training that diverges goes back and skips batches; stopped or not, it ends with the bits of one without them."""

import math
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from small_experiments import ONE_DEVICE, on_mesh
from small_runs import assert_same_run, change_steps, final_state, read_batches, records, run_config, start, stub_steps

from experiments.data import tokenizers
from experiments.processes import exit_codes
from experiments.training import loop, meshes, steps
from experiments.training.experiment import make_experiment
from experiments.training.metrics import read_metrics

# Intervals of 3, 6 and 4 steps, of 12.
DUE = {
    1: set(),
    3: {'log'},
    4: {'checkpoint'},
    6: {'log', 'evaluation'},
    12: {'log', 'evaluation', 'checkpoint', 'last'},
}


@pytest.mark.parametrize('profile', [False, True])
@pytest.mark.parametrize('preempted', [False, True])
def test_what_follows_a_step(profile, preempted):
    for step, expected in DUE.items():
        due = loop.due_at(step, run_config(), profile=profile, preempted=preempted)
        found = {what for what, is_due in due._asdict().items() if is_due}
        assert found == expected | ({'profile'} if profile else set()) | ({'preempted'} if preempted else set())


def test_the_last_step_is_all_that_is_due():
    """However long the intervals are."""
    config = run_config(total_steps=2, log_every=100, eval_every=100, checkpoint_every=100)
    assert loop.due_at(2, config, profile=False, preempted=False) == (True, True, True, False, False, True)


ROLLBACKS = dict(divergence__max_rollbacks=2)


@pytest.fixture(scope='module')
def batches():
    """The tokens of a run's batches; the first is number 1."""
    return [None, *read_batches(run_config(), 24)]


def poison(monkeypatch, batches, losses):
    """Lets the steps that see these batches, {number: loss}, return this loss and a spoilt state."""

    def change(step, state, batch):
        state, metrics = step(state, batch)
        tokens = np.asarray(batch['tokens'])
        for number, loss in losses.items():
            if np.array_equal(tokens, batches[number]):
                spoilt = jax.tree.map(lambda leaf: leaf * np.nan, state.params)
                return state._replace(params=spoilt), {**metrics, 'train/loss': np.float32(loss)}
        return state, metrics

    change_steps(monkeypatch, change)


def state_after(config, batches, numbers):
    """The state that the training steps alone come to with these batches."""
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(config, tokenizers.load_tokenizer(config.tokenizer).vocab_size)
        step, state = steps.make_train_step(experiment), loop.init_state(experiment)
        for number in numbers:
            state, _ = step(state, meshes.to_devices({'tokens': batches[number]}, experiment.mesh))
    return state


def rollbacks(workdir):
    """Of each rollback: the step it went back to, the step that diverged, and the batches that are skipped."""
    lines = [line for line in read_metrics(workdir / 'metrics.jsonl') if 'rollback/loss' in line]
    return [(line['step'], line['rollback/from_step'], line['rollback/skipped_batches']) for line in lines]


# By checkpoints at 4, 8 and 12: which batches diverge, the rollbacks, and the batches that the final state has seen.
CASES = {
    'nan': ({6: math.nan}, [(4, 6, 2)], [*range(1, 5), *range(7, 15)]),
    'infinity, at a checkpoint': ({8: math.inf}, [(4, 8, 4)], [*range(1, 5), *range(9, 17)]),
    'the first step': ({1: math.nan}, [(0, 1, 1)], [*range(2, 14)]),
    'before the first checkpoint': ({3: math.nan}, [(0, 3, 3)], [*range(4, 16)]),
    'the last step': ({12: math.nan}, [(8, 12, 4)], [*range(1, 9), *range(13, 17)]),
    'two in a row': ({6: math.nan, 8: math.nan}, [(4, 6, 2), (4, 6, 2)], [*range(1, 5), *range(9, 17)]),
    'two times two': (
        {1: math.nan, 2: math.nan, 7: math.nan, 9: math.nan},
        [(0, 1, 1), (0, 1, 1), (4, 5, 1), (4, 6, 2)],
        [*range(3, 7), *range(10, 18)],
    ),
}


@pytest.mark.parametrize('losses, expected, numbers', CASES.values(), ids=CASES.keys())
def test_a_rollback_skips_the_batches_since_the_checkpoint(tmp_path, monkeypatch, batches, losses, expected, numbers):
    """The state has the bits of one that never saw them; the record has a line for each rollback, and no others."""
    stub_steps(monkeypatch)
    config = run_config(**ROLLBACKS)
    with monkeypatch.context() as context:
        poison(context, batches, losses)
        start(tmp_path, config)
    assert rollbacks(tmp_path) == expected
    assert_identical_trees(final_state(tmp_path), state_after(config, batches, numbers))
    assert [line['step'] for line in records(tmp_path) if 'train/loss' in line] == [3, 6, 9, 12]


@pytest.mark.slow
def test_a_rollback_of_a_real_training(tmp_path, monkeypatch, batches):
    """The noise of a step is that of its number, whatever batch it gets."""
    config = run_config(**ROLLBACKS)
    with monkeypatch.context() as context:
        poison(context, batches, {7: math.nan})
        start(tmp_path, config)
    assert rollbacks(tmp_path) == [(4, 7, 3)]
    assert_identical_trees(final_state(tmp_path), state_after(config, batches, [*range(1, 5), *range(8, 16)]))


@pytest.mark.parametrize('losses', [{6: math.nan, 8: math.nan, 9: math.nan}, {2: math.nan, 3: math.nan, 4: math.nan}])
def test_no_more_rollbacks_in_a_row_than_allowed(tmp_path, monkeypatch, batches, losses):
    """Then the run ends as one without any; started again, it comes to the same end."""
    stub_steps(monkeypatch)
    poison(monkeypatch, batches, losses)
    last = 4 if 6 in losses else 0
    newest = 'step 4' if last else 'its beginning'
    reason = f'train/loss is nan at step {last + 1}'
    for _ in range(2):
        with pytest.raises(SystemExit) as error:
            start(tmp_path, run_config(**ROLLBACKS))
        assert error.value.code == f'error: {reason}; the newest checkpoint is of {newest}'
        assert (tmp_path / 'diverged.txt').read_text() == f'{reason}\n'
        assert [step for step, *_ in rollbacks(tmp_path)] == [last, last]


def test_a_checkpoint_to_go_back_to_that_is_gone(tmp_path, monkeypatch, batches):
    """One line says so; no state of another step stands in for it."""
    stub_steps(monkeypatch)
    poison(monkeypatch, batches, {6: math.nan})

    def change(step, state, batch):
        if int(state.step) == 5:
            while not (saved := tmp_path / 'checkpoints' / '4').exists():
                time.sleep(0.01)
            shutil.rmtree(saved)
        return step(state, batch)

    change_steps(monkeypatch, change)
    with pytest.raises(SystemExit) as error:
        start(tmp_path, run_config(**ROLLBACKS))
    assert error.value.code == 'error: the checkpoint of step 4 to go back to is not there any more'


SPIKES = dict(divergence__spike_sigmas=6.0, divergence__spike_window=6)


def test_a_spike_is_rolled_back_to(tmp_path, monkeypatch, batches):
    """Judged by the losses since before the checkpoint: a run that is stopped there knows them, too."""
    stub_steps(monkeypatch)
    config = run_config(**ROLLBACKS, **SPIKES)
    numbers = [*range(1, 9), *range(11, 15)]
    with monkeypatch.context() as context:
        poison(context, batches, {10: 4.0})
        start(tmp_path / 'whole', config)
        kill(context, before=10)
        with pytest.raises(SystemExit, match='continues from step 8'):
            start(tmp_path / 'killed', config)
        context.undo()
        stub_steps(context)
        poison(context, batches, {10: 4.0})
        start(tmp_path / 'killed', config)
    stub_steps(monkeypatch)
    for workdir in (tmp_path / 'whole', tmp_path / 'killed'):
        assert rollbacks(workdir) == [(8, 10, 2)]
        assert_identical_trees(final_state(workdir), state_after(config, batches, numbers))


def kill(monkeypatch, before, error=KeyboardInterrupt):
    """Ends the process just before it dispatches its n-th step."""
    dispatched = 0

    def change(step, state, batch):
        nonlocal dispatched
        dispatched += 1
        if dispatched == before:
            raise error
        return step(state, batch)

    change_steps(monkeypatch, change)


DIVERGING = {2: math.nan, 8: math.nan, 9: math.nan, 15: 4.0}


@pytest.fixture(scope='module')
def never_stopped(tmp_path_factory, batches):
    """The workdir of a run that diverges as often as it may, and is never stopped."""
    workdir = tmp_path_factory.mktemp('never_stopped')
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub_steps(monkeypatch)
        poison(monkeypatch, batches, DIVERGING)
        start(workdir, run_config(**ROLLBACKS, **SPIKES))
    assert rollbacks(workdir) == [(0, 2, 2), (4, 6, 2), (4, 5, 1), (8, 10, 2)]
    return workdir


@pytest.fixture
def diverging(monkeypatch, batches):
    stub_steps(monkeypatch)
    poison(monkeypatch, batches, DIVERGING)


@pytest.mark.parametrize('kills', [(3, 8, 6), (7, 7, 3), (10, 5, 1)])
def test_a_run_killed_around_its_rollbacks(never_stopped, diverging, tmp_path, monkeypatch, kills):
    """Each number is a kill, so many steps after a start. The run ends with the same bits."""
    for number in kills:
        with monkeypatch.context() as context:
            kill(context, before=number)
            with pytest.raises(SystemExit, match='interrupted'):
                start(tmp_path / 'killed', run_config(**ROLLBACKS, **SPIKES))
    start(tmp_path / 'killed', run_config(**ROLLBACKS, **SPIKES))
    assert_same_run(tmp_path / 'killed', never_stopped)


@pytest.mark.parametrize('steps, keep', [pytest.param(2, 1, marks=pytest.mark.slow), (3, 3)])
def test_a_run_preempted_every_few_steps(never_stopped, diverging, tmp_path, monkeypatch, steps, keep):
    """What is saved at a preemption is nothing to roll back to: the bits don't depend on when that was."""
    dispatched = 0

    def change(step, state, batch):
        nonlocal dispatched
        dispatched += 1
        if dispatched % steps == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch)

    change_steps(monkeypatch, change)
    config = run_config(**ROLLBACKS, **SPIKES, keep_checkpoints=keep)
    preemptions = 0
    while not (tmp_path / 'run' / 'summary.json').exists():
        try:
            start(tmp_path / 'run', config)
        except SystemExit as exit:
            assert exit.code == exit_codes.PREEMPTED
            preemptions += 1
        assert len(list((tmp_path / 'run' / 'checkpoints').iterdir())) <= keep + 1
    assert preemptions >= 12 // steps - 1
    assert_same_run(tmp_path / 'run', never_stopped)
