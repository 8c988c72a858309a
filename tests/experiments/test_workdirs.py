"""Packed files opened again: with these weights as they are, the same tokenizer, and no path of another machine."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_runs import export, learned_run, make_run, save, write_learned
from parameter_trees import assert_identical_trees
from small_experiments import ONE_DEVICE, on_mesh, random_tokens
from small_tokenizers import write_huggingface

import gaussq_jax as gq
from experiments import workdirs
from experiments.data import vocabularies
from experiments.serving import layout_choice
from experiments.training import evaluation
from gaussq_jax.packed import read_packed


@pytest.fixture(scope='module')
def learned():
    return learned_run()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A packed file, whose run is gone."""
    return write_learned(tmp_path_factory.mktemp('packed'))


@pytest.mark.parametrize('sizes', [ONE_DEVICE, pytest.param((1, 4, 2), marks=pytest.mark.slow)])
def test_the_loss_is_that_of_the_weights(file, learned, sizes):
    """On any mesh: evaluated as the run is, with the weights in the file in place of its own, not rounded again."""
    with on_mesh(sizes):
        run = workdirs.open_packed(file)
    layout = read_packed(file).layout
    weights = gq.quantize_params(learned.state.params, layout)
    assert_identical_trees(jax.tree.map(np.asarray, run.state.params), jax.tree.map(np.asarray, weights))
    assert (int(run.state.step), run.experiment.num_blocks, run.tokenizer.fingerprint) == (7, 0, 'bytes')

    tokens = random_tokens(learned.experiment.config)
    logits = jax.jit(learned.experiment.model.apply)({'params': weights}, tokens[:, :-1])
    logits, targets = np.asarray(logits, np.float64), tokens[:, 1:, None]
    losses = np.log(np.sum(np.exp(logits), -1)) - np.take_along_axis(logits, targets, -1)[..., 0]
    batch = {'tokens': tokens, 'mask': np.ones(losses.shape, np.float32)}
    loss = evaluation.make_evaluation(run.experiment)(run.state, [batch])['loss']
    assert loss == pytest.approx(losses.mean(), rel=1e-6 if sizes == ONE_DEVICE else 1e-3)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(without=('config', 'report')), 'was not written by experiments.export: it lacks config, report'),
        (dict(tokenizer='huggingface-0'), "tokenizer='bytes' is bytes, but .* was trained with huggingface-0"),
        (dict(config={}), 'is of another program or of a version before 0.1.0: its config lacks'),
        (dict(more={'method': 'fqt'}), 'its config lacks .*quantization.b_init, .*quantization.targets'),
        (dict(more={'method': 'fqt', 'quantization': {'targets': 'P2'}}), 'its config lacks .*quantization.b_init'),
        (dict(more={'method': 'zzz'}), "file: config.method='zzz': allowed are 'gaussws'"),
        (dict(more={'method': 'fqt'}, targets='P9'), "file: config.quantization.targets='P9': allowed are P1"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, file, learned, changes, message):
    if more := changes.pop('more', None):
        quantization = learned.experiment.config.quantization.to_dict()
        if more == {'method': 'zzz'} or 'targets' in changes:
            more |= {'quantization': quantization | {'targets': changes.pop('targets', 'P2')}}
        changes['config'] = read_packed(file).info['config'] | more
    with pytest.raises(ValueError, match=message):
        workdirs.open_packed(save(file, tmp_path, **changes))


def test_splits_of_other_names_are_kept(tmp_path):
    config = make_run('method=bf16', train_split='train[:1%]', validation_split='train[1%:2%]').experiment.config
    kept = workdirs.packed_config(config, 7)
    assert (kept['train_split'], kept['validation_split']) == ('train[:1%]', 'train[1%:2%]')


def test_a_tokenizer_that_has_moved(tmp_path, file, monkeypatch):
    """It is found where the flag says, if it is the same; or beside the file; never where that says it is."""
    config = read_packed(file).info['config']
    (tmp_path / 'elsewhere').mkdir()
    there = tmp_path / 'elsewhere' / 'words.json'
    write_huggingface(there)
    fingerprint = vocabularies.load_vocabulary(str(there)).fingerprint
    settings = {
        'tokenizer': str(there),
        'special_tokens': {'bos_token_id': '', 'eos_token_id': '', 'add_bos_token': ''},
    }
    moved = save(file, tmp_path, config=config | settings, tokenizer=fingerprint)
    with pytest.raises(ValueError, match=f"{moved} is of the tokenizer '{there.name}', which is not beside it: say by"):
        workdirs.open_packed(moved)
    with on_mesh(ONE_DEVICE), pytest.raises(ValueError, match=f"tokenizer='bytes' is bytes, but {moved} was trained"):
        workdirs.open_packed(moved, tokenizer='bytes')
    for directory in (tmp_path / 'tokenizer', tmp_path):
        directory.mkdir(exist_ok=True)
        shutil.copy(there, directory / there.name)
        with on_mesh(ONE_DEVICE), pytest.raises(ValueError, match='these weights are of another model'):  # of its size
            workdirs.open_packed(moved)
        (directory / there.name).unlink()


def test_weights_of_another_model(tmp_path, file, learned):
    params = learned.state.params | {'final_norm': {'scale': jnp.zeros(3)}}
    gq.save_packed(tmp_path / 'file', params, {}, info=read_packed(file).info)
    with pytest.raises(ValueError, match=f'^{tmp_path}/file: these weights are of another model'):
        workdirs.open_packed(tmp_path / 'file')


def test_a_file_does_not_choose_where_text_is(tmp_path, file):
    config = read_packed(file).info['config'] | {'data_dir': '/stranger/data', 'cache_dir': '/stranger/cache'}
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(save(file, tmp_path, config=config)).experiment.config
        assert (opened.data_dir, opened.cache_dir) == ('', '')
        opened = workdirs.open_packed(tmp_path / 'file', data_dir='ours').experiment.config
    assert (opened.data_dir, opened.cache_dir) == ('ours', '')


def test_matmuls_are_served_as_they_were_trained(tmp_path):
    """Of fqt, which quantizes them where weights are used; of what only changes weights, nothing is kept."""
    run = make_run('method=fqt,format=e2m1,targets=P2+P4')
    kept = workdirs.packed_config(run.experiment.config, 7)
    assert (kept['method'], kept['quantization']['targets']) == ('fqt', 'P2+P4')
    gq.save_packed(
        tmp_path / 'file',
        run.state.params,
        {},
        info=export.describe_run(run, layout_choice.choose(run, layout_choice.Asked('bfloat16'))),
    )
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(tmp_path / 'file').experiment
    assert opened.config.quantization == run.experiment.config.quantization
    assert opened.model.dot_general_cls.keywords == run.experiment.model.dot_general_cls.keywords
    assert 'quantization' not in workdirs.packed_config(make_run('method=qat').experiment.config, 7)
