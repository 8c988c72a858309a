"""Branches off a stable learning rate: what they come to is what all steps would have, to the bit, or an error."""

import shutil
import signal

import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from saved_states import flip_bit, largest_file, step_names
from small_runs import (
    assert_same_run,
    change_steps,
    final_state,
    records,
    run_config,
    start,
    stop_after,
    stub_steps,
    without_seconds,
)

from experiments import workdirs
from experiments.checkpoints.contents import CONTENTS
from experiments.checkpoints.step_directories import load_contents

WSD = dict(optimizer__schedule='wsd', optimizer__warmup_steps=2, optimizer__decay_steps=3)


def stem_config(**changes):
    """Twelve steps, of which the last three decay; the checkpoints of steps 4, 8 and 12 stay."""
    return run_config(**{**WSD, 'keep_checkpoints': 1, 'keep_period': 4, **changes})


def branch_config(stem, total_steps, **changes):
    return stem_config(total_steps=total_steps, branch_from=str(stem), **{'keep_period': 0, **changes})


def preempt(step, state, batch):
    """In the seventh."""
    if int(state.step) == 6:
        signal.raise_signal(signal.SIGTERM)
    return step(state, batch)


@pytest.fixture(scope='module')
def whole_stem(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('stem')
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub_steps(monkeypatch)
        start(workdir, stem_config())
    assert step_names(workdir / 'checkpoints') == ['12', '4', '8']
    return workdir


@pytest.fixture
def stem(whole_stem, tmp_path, monkeypatch):
    """A whole run that the test may damage, of stubbed steps, whose state tells which batches it has seen."""
    stub_steps(monkeypatch)
    return shutil.copytree(whole_stem, tmp_path / 'stem')


@pytest.mark.parametrize(
    'way',
    [
        dict(method='bf16', quantization__parts='all', optimizer__name='muon'),
        pytest.param(dict(method='gaussws'), marks=[pytest.mark.slow, pytest.mark.optimized]),
    ],
)
def test_a_branch_is_the_run_that_takes_all_steps(tmp_path, way):
    """Moments, bitwidths and data order with it; N, D and loss are those of the whole run. Its decay is its own."""
    own = dict(optimizer__decay_steps=2, optimizer__final_learning_rate=1e-5, **way)
    start(tmp_path / 'stem', stem_config(**way))
    start(tmp_path / 'branch', branch_config(tmp_path / 'stem', 7, **own))
    start(tmp_path / 'whole', stem_config(total_steps=7, **own))
    assert_identical_trees(final_state(tmp_path / 'branch'), final_state(tmp_path / 'whole'))
    summary = without_seconds(tmp_path / 'branch')
    assert summary == without_seconds(tmp_path / 'whole') and (summary['step'], summary['D']) == (7, 7 * 8 * 24)
    later = [line for line in records(tmp_path / 'whole') if line['step'] > 4]
    assert records(tmp_path / 'branch') == later and later


@pytest.mark.parametrize(('total_steps', 'decay_steps', 'first'), [(12, 5, 4), (12, 4, 8), (20, 5, 8)])
def test_it_goes_on_from_the_last_state_before_both_decays(stem, tmp_path, capsys, total_steps, decay_steps, first):
    """That of the stem begins at step 9."""
    start(tmp_path / 'branch', branch_config(stem, total_steps, optimizer__decay_steps=decay_steps))
    told = f'continuing from step {first}, after a branch off {tmp_path}/stem, {total_steps} steps'
    assert told in capsys.readouterr().out


def test_it_resumes_exactly_and_needs_its_stem_no_more(stem, tmp_path):
    start(tmp_path / 'whole', branch_config(stem, 11))
    for before in (8, 9):  # with its first checkpoint alone, and a step later
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit, match='continues from step 8'):
            stop_after(monkeypatch, before)
            start(tmp_path / 'stopped', branch_config(stem, 11))
        shutil.rmtree(stem, ignore_errors=True)
    start(tmp_path / 'stopped', branch_config(stem, 11))
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')


@pytest.mark.parametrize(('first', 'bad'), [(8, 2), (7, 1)])
def test_it_rolls_back_to_where_it_branched_off(stem, tmp_path, monkeypatch, first, bad):
    """Which may be what its stem saved when it was preempted, and would not go back to itself."""
    if first == 7:
        stem = tmp_path / 'preempted'
        with pytest.MonkeyPatch.context() as preempted, pytest.raises(SystemExit):
            change_steps(preempted, preempt)
            start(stem, stem_config())
        assert step_names(stem / 'checkpoints') == ['4', '7']
    seen = []

    def diverge_once(step, state, batch):
        seen.append(int(state.step))
        state, metrics = step(state, batch)
        return state, metrics | ({'train/loss': np.float32('nan')} if len(seen) == bad else {})

    change_steps(monkeypatch, diverge_once)
    start(tmp_path / 'branch', branch_config(stem, 11, divergence__max_rollbacks=1))
    assert seen.count(first) == 2 and min(seen) == first and max(seen) == 10


def test_a_damaged_checkpoint_is_passed_over(stem, tmp_path, capsys):
    flip_bit(largest_file(stem / 'checkpoints' / '8'))
    with pytest.warns(UserWarning, match='skipping the damaged'):
        start(tmp_path / 'branch', branch_config(stem, 11))
    assert 'continuing from step 4, after' in capsys.readouterr().out


def test_its_stem_may_end_in_a_damaged_checkpoint(stem, tmp_path, capsys):
    (stem / 'checkpoints' / '12' / CONTENTS).unlink()
    with pytest.warns(UserWarning, match='skipping the damaged'):
        start(tmp_path / 'branch', branch_config(stem, 11))
    assert 'continuing from step 8, after' in capsys.readouterr().out


def test_its_teacher_is_its_stems(stem, tmp_path):
    """Whatever that run has become since."""
    newest = (stem / 'checkpoints' / '12').rename(tmp_path / '12')
    start(tmp_path / 'taught', stem_config(teacher=str(stem)))
    newest.rename(stem / 'checkpoints' / '12')
    start(tmp_path / 'branch', branch_config(tmp_path / 'taught', 11, teacher=str(stem)))
    of = lambda run: load_contents(tmp_path / run / 'checkpoints')['config']['teacher_weights']
    assert of('branch') == of('taught') and of('branch')['step'] == 8


def test_its_initial_weights_are_its_stems(stem, tmp_path, monkeypatch):
    """Whatever that run, of which they were, has become since."""
    start(tmp_path / 'tuned', stem_config(init_from=str(stem)))
    shutil.rmtree(stem / 'checkpoints' / '12')
    start(tmp_path / 'branch', branch_config(tmp_path / 'tuned', 11, init_from=str(stem)))
    of = lambda run: load_contents(tmp_path / run / 'checkpoints')['config']['initial_weights']
    assert of('branch') == of('tuned') and of('branch')['step'] == 12


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(seed=1), r'a branch may have another total_steps, .* differ, too:\n.*seed: stored 0, present 1'),
        (dict(optimizer__learning_rate=1e-3), 'optimizer.learning_rate: stored 0.0006, present 0.001'),
        (dict(optimizer__name='muon'), "optimizer.name: stored 'adamw', present 'muon'"),
        (dict(total_steps=6), 'checkpoints of the steps 4, 8, 12, and the decay here begins at step 3; one of that'),
        (dict(keep_period=6), 'config.keep_period=6 must be 0, or a multiple of config.checkpoint_every=4'),
        (dict(branch_from='nowhere'), r"config.branch_from='nowhere': \S*nowhere/checkpoints holds no checkpoint"),
        (dict(optimizer__schedule='cosine', optimizer__decay_steps=0), "takes config.optimizer.schedule='wsd'"),
    ],
)
def test_what_cannot_be_a_branch_is_one_error(stem, tmp_path, changes, message):
    with pytest.raises(SystemExit, match=f'(?s)^error: .*{message}'):
        start(tmp_path / 'branch', stem_config(**{'total_steps': 11, 'branch_from': str(stem), **changes}))
    assert not (tmp_path / 'branch' / 'checkpoints').exists()


def test_a_branch_opens_without_its_stem(stem, tmp_path):
    start(tmp_path / 'branch', branch_config(stem, 11))
    shutil.rmtree(stem)
    assert int(workdirs.open_run(tmp_path / 'branch').state.step) == 11
