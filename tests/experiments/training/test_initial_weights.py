"""Training that starts from another run's weights: those, bit for bit, at its beginning only, and never others."""

import json
import shutil

import jax
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from programs import import_program
from small_checkpoints import GPT2, LLAMA, write_checkpoint
from small_experiments import ONE_DEVICE, on_mesh, small_config
from small_runs import STEPS, assert_same_run, change_steps, records, start, stop_after, stub_steps

from configs import from_run
from experiments import workdirs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.checkpoints.step_directories import load_contents
from experiments.training import initial_weights
from experiments.training.experiment import init_state, make_experiment

import_hf = import_program('import_hf')


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """Workdirs without a step, of a checkpoint each."""
    directory = tmp_path_factory.mktemp('imported')
    with on_mesh(ONE_DEVICE):
        for name, model in (('llama', LLAMA), ('gpt2', GPT2)):
            checkpoint = write_checkpoint(directory / 'checkpoint' / name, model, tokenizer=False)
            import_hf.import_checkpoint(checkpoint, directory / name, tokenizer='bytes', sequence_length=24)
    return directory


@pytest.fixture
def source(imported, tmp_path):
    """One of them that the test may damage."""
    return shutil.copytree(imported / 'llama', tmp_path / 'source')


def config_from(run, argument='method=gaussws', **changes):
    config = from_run.get_config(f'run={run},{argument}')
    config.update({**STEPS, 'batch_size': 8, 'microbatches': 1, **changes})
    config.optimizer.warmup_steps = 1
    return config


def weights_of(workdir, step):
    """What that checkpoint of a run holds."""
    with on_mesh(ONE_DEVICE):
        run = workdirs.open_run(workdir)
        with Checkpointer(workdir / 'checkpoints') as checkpointer:
            state = checkpointer.restore(run.experiment.abstract_state, at_most=step).state
    return jax.tree.map(np.asarray, state.params)


def test_the_state_is_that_of_the_beginning_with_the_other_weights(imported, tmp_path):
    """On a mesh: each device gets its own part of them."""
    with on_mesh((2, 2, 2)):
        experiment = make_experiment(config_from(imported / 'llama'), 257)
        weights = initial_weights.load(experiment, initial_weights.find(experiment, tmp_path))
        state = init_state(experiment, weights)
        fresh = init_state(experiment)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == experiment.shardings
        assert_identical_trees(jax.tree.map(np.asarray, state.params), weights_of(imported / 'llama', 0))
        assert_identical_trees(*(jax.tree.map(np.asarray, s._replace(params=None)) for s in (state, fresh)))
    assert state.transform_state and experiment.vocab_size == 264


@pytest.mark.slow
@pytest.mark.parametrize('name', ['llama', 'gpt2'])
def test_a_run_begins_with_the_imported_weights_and_learns(imported, tmp_path, name):
    """By gaussws, whose bitwidths fall; the workdir opens like any other."""
    first = []

    def keep_first(step, state, batch):
        first.append(jax.tree.map(np.asarray, state.params))
        return step(state, batch)

    with pytest.MonkeyPatch.context() as monkeypatch:
        change_steps(monkeypatch, keep_first)
        start(tmp_path, config_from(imported / name, optimizer={'learning_rate': 3e-3}))
    assert_identical_trees(first[0], weights_of(imported / name, 0))
    losses = [line['train/loss'] for line in records(tmp_path) if 'train/loss' in line]
    assert losses[-1] < losses[0] - 0.1
    bits = [line['bits/mean'] for line in records(tmp_path) if 'bits/mean' in line]
    assert 3 <= bits[-1] < bits[0] == 8


def test_a_run_that_continues_needs_the_other_no_more(source, tmp_path, monkeypatch):
    """And ends with the bits of one that was never stopped; it opens like any other."""
    stub_steps(monkeypatch)
    config = config_from(source)
    start(tmp_path / 'whole', config)

    with pytest.MonkeyPatch.context() as stopped, pytest.raises(SystemExit, match='interrupted'):
        stop_after(stopped, 9)
        start(tmp_path / 'stopped', config)
    shutil.rmtree(source / 'checkpoints')
    start(tmp_path / 'stopped', config)
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')
    with on_mesh(ONE_DEVICE):
        assert workdirs.open_run(tmp_path / 'whole').experiment.config.init_from == str(source)


@pytest.mark.parametrize('changed', [False, True])
def test_going_back_to_the_beginning(source, tmp_path, monkeypatch, changed):
    """A divergence before the first checkpoint: the same weights again; if they are others by now, an error says so."""
    seen, diverged = [], []

    def diverge_once(step, state, batch):
        number = int(state.step)
        if number == 0:
            seen.append(jax.tree.map(np.asarray, state.params))
        state, metrics = step(state, batch)
        if number == 2 and not diverged:
            diverged.append(number)
            if changed:
                manifest = source / 'checkpoints' / '0' / 'manifest.sha256'
                manifest.write_text(''.join(reversed(manifest.read_text().splitlines(keepends=True))))
            metrics = {'train/loss': np.float32('nan')}
        return state, metrics

    stub_steps(monkeypatch)
    change_steps(monkeypatch, diverge_once)
    config = config_from(source)
    config.divergence.max_rollbacks = 1
    if changed:
        with pytest.raises(SystemExit, match='checkpoints/0 is not what it was: another one was saved in its place'):
            start(tmp_path / 'run', config)
    else:
        start(tmp_path / 'run', config)
        assert len(seen) == 2
        for weights in seen:
            assert_identical_trees(weights, weights_of(source, 0))


def test_which_weights_they_were_identifies_a_run(imported, source, tmp_path, monkeypatch):
    stub_steps(monkeypatch)
    start(tmp_path / 'run', config_from(source, name='run'))
    stored = load_contents(tmp_path / 'run' / 'checkpoints')['config']['initial_weights']
    assert stored['step'] == 0 and len(stored['sha256']) == 64
    for other, message in ((str(imported / 'llama'), 'init_from: stored'), ('', "init_from: stored .* present ''")):
        with pytest.raises(SystemExit, match=message):
            start(tmp_path / 'run', config_from(source, name='run', init_from=other, total_steps=20))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model__rope_theta=51.0), r'is of another model: model\.rope_theta is 50\.0 there, 51\.0 here'),
        (dict(model__num_heads=2, model__num_kv_heads=1), r'model\.num_heads is 4 there, 2 here'),
        (dict(model__mlp_size=64), r'up/kernel is float32\[2, 32, 48\] there, float32\[2, 32, 64\] here'),
        (dict(model__tie_embeddings=True), r'lm_head/kernel is float32\[32, 264\] there, absent here'),
        (dict(vocab_size=0), r'embed/embedding is float32\[264, 32\] there, float32\[257, 32\] here'),
    ],
)
def test_weights_of_another_model_are_refused(imported, tmp_path, changes, message):
    config = config_from(imported / 'llama')
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in changes.items()})
    with on_mesh(ONE_DEVICE), pytest.raises(ValueError, match=message):
        initial_weights.find(make_experiment(config, 257), tmp_path)


def test_what_no_weights_can_come_from(imported, tmp_path):
    with on_mesh(ONE_DEVICE):
        llama = make_experiment(small_config(init_from=str(imported / 'gpt2')), 257)
        with pytest.raises(ValueError, match=r'model\.family is gpt2 there, llama here'):
            initial_weights.find(llama, tmp_path)
        nowhere = make_experiment(small_config(init_from=str(tmp_path / 'nowhere')), 257)
        with pytest.raises(ValueError, match='nowhere/checkpoints holds no checkpoint'):
            initial_weights.find(nowhere, tmp_path)
        assert initial_weights.find(make_experiment(small_config(), 257), tmp_path) is None


def test_a_field_that_is_left_at_its_default_is_the_same_model(imported, tmp_path):
    """A config written by hand says less of the model than an imported one."""
    config = config_from(imported / 'gpt2')
    del config.model.norm_epsilon
    with on_mesh(ONE_DEVICE), pytest.raises(ValueError, match=r'model\.norm_epsilon is 0\.001 there, 1e-05 here'):
        initial_weights.find(make_experiment(config, 257), tmp_path)
    config = config_from(imported / 'llama')
    del config.model.tie_embeddings
    with on_mesh(ONE_DEVICE):
        assert initial_weights.find(make_experiment(config, 257), tmp_path)['step'] == 0


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with on_mesh(ONE_DEVICE):
        assert make_experiment(small_config(vocab_size=300), 257).vocab_size == 300
        with pytest.raises(ValueError, match=r'config\.vocab_size=256 must be at least 257'):
            make_experiment(small_config(vocab_size=256), 257)


def test_the_config_is_that_of_the_run(imported):
    config = from_run.get_config(f'run={imported / "llama"},method=qat,format=e2m1')
    run = json.loads((imported / 'llama' / 'config.json').read_text())
    for name in ('model', 'tokenizer', 'vocab_size', 'sequence_length', 'dataset', 'dtype'):
        assert config.to_dict()[name] == run[name]
    assert (config.name, config.method, config.init_from) == ('llama-qat', 'qat', str(imported / 'llama'))


@pytest.mark.parametrize(
    ('contents', 'argument', 'message'),
    [
        (None, 'run={}', 'no config.json of a run can be read there'),
        ('{', 'run={}', 'no config.json of a run can be read there'),
        ('3', 'run={}', 'no config.json of a run can be read there'),
        ('{"model": {}}', 'run={}', 'config.json lacks dataset, .*, sequence_length'),
        (None, 'method=bf16', 'config argument run is missing'),
        (None, 'run={},smoke', "'smoke' is unknown"),
    ],
)
def test_a_config_of_no_run_is_refused(tmp_path, contents, argument, message):
    if contents:
        (tmp_path / 'config.json').write_text(contents)
    with pytest.raises(ValueError, match=message):
        from_run.get_config(argument.format(tmp_path))
