"""Runs of the training program in this process: twelve steps of a small model."""

import json
import os
import re

import jax
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from programs import import_program, run_program
from small_experiments import ONE_DEVICE, on_mesh, small_config

from experiments import workdirs
from experiments.data import batching, loading, tokenizers
from experiments.training import evaluation, loop, steps
from experiments.training.metrics import read_metrics

train = import_program('train')

MEASURED = re.compile('tokens_per_second|mfu|(step_)?seconds|device_memory')  # in names of metrics
STEPS = dict(total_steps=12, log_every=3, eval_every=6, eval_batches=1, checkpoint_every=4)


def run_config(**changes):
    """Twelve steps, three checkpoints, one kind of layer sampled."""
    return small_config(**{**STEPS, 'quantization__parts': 'down', 'name': 'small', **changes})


def start(workdir, config, sizes=ONE_DEVICE, profile=None):
    """What `python -m experiments.train` does, after its flags are read."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'])  # which it changes
        run_program(train, sizes=sizes, CONFIG=config, WORKDIR=str(workdir), PROFILE=profile)


def final_state(workdir, sizes=ONE_DEVICE):
    with on_mesh(sizes):
        return jax.tree.map(np.asarray, workdirs.open_run(workdir).state)


def records(workdir):
    """The lines of metrics.jsonl, without what the clock says."""
    lines = read_metrics(workdir / 'metrics.jsonl')
    return [{name: value for name, value in line.items() if not MEASURED.match(name)} for line in lines]


def without_seconds(workdir):
    summary = json.loads((workdir / 'summary.json').read_text())
    return {name: value for name, value in summary.items() if not MEASURED.match(name)}


def assert_same_run(workdir, expected):
    """All that a run leaves is that of another, to the bit, but for what the clock says."""
    assert_identical_trees(final_state(workdir), final_state(expected))
    assert str(records(workdir)) == str(records(expected))  # NaN is not itself
    assert without_seconds(workdir) == without_seconds(expected)


def assert_ends_as(workdir, expected):
    """The same command again brings a run to the end that one had which was never stopped."""
    start(workdir, run_config())
    assert_same_run(workdir, expected)


def run_stubbed(workdir):
    """A whole run of stubbed steps, never stopped; its workdir."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stub_steps(monkeypatch)
        start(workdir, run_config())
    return workdir


def read_batches(config, count):
    """The tokens of the first batches of a run, in order."""
    data = loading.load_data(config, tokenizers.load_tokenizer(config.tokenizer))
    batches = batching.train_iterator(
        *loading.train_rows(data, config), global_batch_size=config.batch_size, seed=config.seed
    )
    tokens = [next(batches)['tokens'].copy() for _ in range(count)]
    batches.close()
    return tokens


def change_steps(monkeypatch, change):
    """Lets `change(step, state, batch)` stand for each training step, where `step(state, batch)` is the real one."""
    make_train_step = steps.make_train_step

    def make_changed_step(experiment):
        step = make_train_step(experiment)
        return lambda state, batch, *teacher: change(lambda s, b: step(s, b, *teacher), state, batch)

    monkeypatch.setattr(steps, 'make_train_step', make_changed_step)


def stop_after(monkeypatch, taken):
    """Lets each run be interrupted when it has taken so many steps."""

    def stop(step, state, batch):
        if int(state.step) == taken:
            raise KeyboardInterrupt
        return step(state, batch)

    change_steps(monkeypatch, stop)


def stub_steps(monkeypatch):
    """Steps that take no time, and whose state tells by its bits which batches it has seen, in which order."""

    @jax.jit
    def step(state, batch, teacher_weights=None):
        mean = batch['tokens'].astype(np.float32).mean() / 257
        params = jax.tree.map(lambda leaf: 0.75 * leaf + mean, state.params)
        return state._replace(step=state.step + 1, params=params), {'train/loss': 3 + mean}

    def init_state(experiment, params=None):
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), experiment.abstract_state)
        state = jax.device_put(zeros, experiment.shardings)
        return state if params is None else state._replace(params=params)

    validation = {'validation/loss': 3.0, 'validation/bits_per_byte': 4.0, 'validation/loss_with_noise': 3.0}
    validation['bits/mean'] = 4.0
    monkeypatch.setattr(steps, 'make_train_step', lambda _: step)
    monkeypatch.setattr(loop, 'init_state', init_state)
    monkeypatch.setattr(evaluation, 'make_validation', lambda *_: lambda state: validation)
