"""Evaluation, and generation, of a packed file: what is told of it, and which text is read."""

import json
import types

import jax
import numpy as np
import pytest
from exported_runs import learned_run, save, write_learned
from parameter_trees import assert_identical_trees
from programs import import_program, run_program

import gaussq_jax as gq
from experiments.data import loading
from experiments.reports import quantization
from experiments.training import evaluation, generation
from gaussq_jax.packed import read_packed

evaluate = import_program('evaluate')
generate = import_program('generate')


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A packed file, whose run is gone."""
    return write_learned(tmp_path_factory.mktemp('packed'))


def test_a_file_does_not_choose_what_text_is_read(tmp_path, file, monkeypatch, capsys):
    """Whoever evaluates it does, unless it is the text that every machine has."""
    monkeypatch.setattr(loading, 'load_data', lambda config, tokenizer: (config.dataset, config.data_dir))
    monkeypatch.setattr(evaluation, 'make_validation', lambda _, data: lambda state: {'data': data})
    config = read_packed(file).info['config'] | {'dataset': 'stranger', 'data_dir': '/stranger'}
    weights = str(save(file, tmp_path, config=config))
    with pytest.raises(SystemExit, match=r"is of a training on 'stranger': say --dataset, and maybe --data_dir"):
        run_program(evaluate, WEIGHTS=weights, EVAL_BATCHES=3)
    run_program(evaluate, WEIGHTS=weights, EVAL_BATCHES=3, DATASET='ours', DATA_DIR='here')
    assert '"ours",\n    "here"' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='--dataset has a meaning only with --weights'):
        run_program(evaluate, WORKDIR='a', DATASET='ours')


def test_evaluation(file, monkeypatch, capsys):
    """What the weights lost, then the metrics as JSON, without any other file."""
    monkeypatch.setattr(loading, 'load_data', lambda config, tokenizer: config.eval_batches)
    monkeypatch.setattr(evaluation, 'make_validation', lambda _, data: lambda state: {'validation/loss': float(data)})
    run_program(evaluate, WEIGHTS=str(file), EVAL_BATCHES=3)
    title, *rest = capsys.readouterr().out.splitlines()
    assert title == "learned.safetensors, step 7: the format of each square block's bitwidth, mx scales"
    packed = read_packed(file)
    rows = quantization.measure_layout(learned_run().state.params, packed.layout)
    table, metrics = rest[: rest.index('{')], json.loads('\n'.join(rest[rest.index('{') :]))
    assert '\n'.join(table) == quantization.table(rows)
    assert metrics == {
        'step': 7,
        'validation/loss': 3.0,
        'bits/mean_stored': packed.size.mean_stored_bits,
        'bytes': packed.size.total_bytes,
    }
    assert list(file.parent.iterdir()) == [file]


def test_damaged_tokens_are_told_in_a_line(file, monkeypatch):
    def damaged(state):
        raise OSError('val.bin holds the token 7')

    monkeypatch.setattr(loading, 'load_data', lambda config, tokenizer: None)
    monkeypatch.setattr(evaluation, 'make_validation', lambda _, data: damaged)
    with pytest.raises(SystemExit, match=r'^error: val.bin holds the token 7$'):
        run_program(evaluate, WEIGHTS=str(file), EVAL_BATCHES=3)


def test_quantization_without_texts(file, tmp_path, capsys):
    copy = tmp_path / 'a.b.safetensors'
    copy.write_bytes(file.read_bytes())
    run_program(evaluate, WEIGHTS=str(copy), QUANTIZATION=True)
    assert capsys.readouterr().out.splitlines()[-1] == f'written to {tmp_path}/a.b.csv and {tmp_path}/a.b.png'
    assert {path.name for path in tmp_path.iterdir()} == {'a.b.safetensors', 'a.b.csv', 'a.b.png'}


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(), "give workdir, a run's directory, or weights, a packed file"),
        (dict(WORKDIR='a', WEIGHTS='b'), "workdir='a', weights='b': give one of them"),
        (dict(WORKDIR='a', TOKENIZER='bytes'), "tokenizer='bytes' has a meaning only with weights"),
        (dict(WEIGHTS='nowhere/file'), 'No such file'),
    ],
)
@pytest.mark.parametrize('program', [evaluate, generate])
def test_command_line_mistakes(program, given, message):
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_program(program, **given)


@pytest.mark.parametrize('name', ['FORMAT', 'BLOCK_SIZE', 'SCALE'])
def test_packed_weights_are_not_quantized_again(file, name):
    with pytest.raises(SystemExit, match=f'--{name.lower()} has no meaning with --weights'):
        run_program(evaluate, WEIGHTS=str(file), QUANTIZATION=True, **{name: '16'})


def test_generation(file, monkeypatch, capsys):
    """With the weights of the file, and none but the tokenizer's tokens."""
    given = {}

    def make_writer(model, weights, **named):
        given.update(named, weights=weights)
        return types.SimpleNamespace(room=lambda prompt: 9, write=lambda *_, **how: iter([{0: 97}, {0: 98}]))

    monkeypatch.setattr(generation, 'TokenWriter', make_writer)
    run_program(generate, WEIGHTS=str(file), PROMPT=['d'], SEED=0, TEMPERATURE=0.8, NUM_TOKENS=2)
    assert capsys.readouterr().out == 'dab\n'
    assert_identical_trees(jax.tree.map(np.asarray, given['weights']), gq.load_packed(file, like=given['weights']))
    assert (given['window'], given['vocab_size']) == (24, 257)
