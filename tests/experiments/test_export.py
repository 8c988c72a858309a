"""Packed files of runs: what is printed and written, how they are opened again, and that it is what was trained."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from programs import import_program, run_program
from small_experiments import ONE_DEVICE, on_mesh, random_state, random_tokens, small_config
from small_tokenizers import write_huggingface

import gaussq_jax as gq
from configs import stored as stored_configs
from experiments import workdirs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.data import loading, tokenizers, vocabularies
from experiments.files import huggingface_folder
from experiments.reports import quantization
from experiments.training import evaluation
from experiments.training.experiment import make_experiment
from gaussq_jax.packed import header_bytes, read_packed

export = import_program('export')
evaluate = import_program('evaluate')
generate = import_program('generate')

DOWN = 'layers/mlp/down/kernel'


def make_run(argument, **changes):
    """A run in the middle of a training, one kind of its layers quantized."""
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(small_config(f'smoke,{argument}', **changes), 257)
    return workdirs.Run(experiment, tokenizers.load_tokenizer('bytes'), random_state(experiment))


@pytest.fixture(scope='module')
def learned():
    """Bitwidths from 2 to 5."""
    return make_run('method=gaussws,parts=down', quantization__b_target=2.5, quantization__b_init=4.5)


@pytest.fixture(scope='module')
def plain():
    return make_run('method=bf16')


def run_export(monkeypatch, run, workdir, **given):
    """The same of export, of this run; its directory has no checkpoint."""
    monkeypatch.setattr(workdirs, 'open_run', lambda _: run)
    run_program(export, WORKDIR=str(workdir), **{'FORMAT': 'learned', **given})


def weights_of(run):
    return jax.jit(lambda state: run.experiment.transform.apply(None, state.params, state.transform_state))(run.state)


# --- what is written --------------------------------------------------------------------------------


def test_learned_bitwidths(tmp_path, monkeypatch, capsys, learned):
    """The file holds the fake-quantized weights and takes what model_size says; the table says what is on the disk."""
    run_export(monkeypatch, learned, tmp_path)
    title, names, *lines, written = capsys.readouterr().out.splitlines()
    (file,) = tmp_path.iterdir()
    params, bitwidths = learned.state.params, learned.experiment.transform.bitwidths(learned.state.transform_state)
    rules = learned.experiment.transform.rules
    layout = gq.learned_layout(params, bitwidths, rules=rules)
    assert_identical_trees(
        jax.tree.map(np.asarray, gq.quantize_params(params, layout)), gq.load_packed(file, like=params)
    )

    size = gq.model_size(params, bitwidths, rules=rules)
    assert file.name == 'learned.safetensors'
    assert file.stat().st_size == size.total_bytes + header_bytes(file)
    assert title == f"{tmp_path.name}, step 7: the format of each square block's bitwidth, mx scales"
    assert names.split() == ['leaf', 'weights', 'bitwidth', 'stored', 'bits', 'bytes', 'formats']
    cells = {line.split()[0]: line.split() for line in lines}
    assert set(cells) == {*size.leaves, 'quantized', 'all'}
    assert cells['embed/embedding'] == ['embed/embedding', '20,560', '16.000', '41,120', 'bfloat16']
    numbers = [f'{size.mean_bitwidth:.3f}', f'{size.mean_stored_bits:.3f}', f'{size.leaves[DOWN].total_bytes:,}']
    assert cells['quantized'][1:5] == cells[DOWN][1:5] == ['23,040', *numbers]
    names = [fmt.name for fmt in layout[DOWN].formats]
    assert cells[DOWN][5::3] == names and len(names) > 2
    assert cells['all'][-1] == f'{size.total_bytes:,}'
    assert (
        sum(
            int(line[-2 if line[-1] == 'bfloat16' else 4].replace(',', ''))
            for name, line in cells.items()
            if '/' in name
        )
        == size.total_bytes
    )
    assert written.startswith(
        f'written to {file}: {file.stat().st_size:,} bytes, {size.total_bytes:,} as promised and a header of'
    )


@pytest.mark.parametrize(
    ('given', 'name', 'title'),
    [
        (dict(FORMAT='float6_e3m2fn'), 'float6_e3m2fn', 'float6_e3m2fn, mx scales, block size 32'),
        (dict(FORMAT='e2m1', BLOCK_SIZE=16), 'e2m1-16', 'e2m1, mx scales, block size 16'),
        (dict(FORMAT='bfloat16'), 'bfloat16', 'bfloat16, nothing quantized'),
        (
            dict(FORMAT='learned', BUDGET=6.5),
            'learned-6.5',
            "the format of each square block's bitwidth, mx scales, at most 6.5 bits a weight",
        ),
    ],
)
def test_other_formats(tmp_path, monkeypatch, capsys, learned, given, name, title):
    run_export(monkeypatch, learned, tmp_path, **given)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f'{tmp_path.name}, step 7: {title}'
    packed = read_packed(tmp_path / f'{name}.safetensors')
    bits = packed.size.mean_stored_bits
    assert {'e2m1-16': bits == 4.5, 'float6_e3m2fn': bits == 6 + 8 * 5 / 144}.get(name, True)  # 144 rows: a ragged tile
    if name.startswith('learned'):
        assert 4.1 < bits <= 6.5
    assert set(packed.layout) == ({DOWN} if name != 'bfloat16' else set())
    assert math.isnan(bits) == (name == 'bfloat16')


def test_the_same_again_is_the_same_file(tmp_path, monkeypatch, learned):
    """A function of the weights and the flags; a file that is there is replaced, whatever it is."""
    file = tmp_path / 'weights'
    contents = []
    for _ in range(2):
        run_export(monkeypatch, learned, tmp_path, OUTPUT=str(file))
        contents.append(file.read_bytes())
        file.write_bytes(b'something else')
    assert contents[0] == contents[1] and list(tmp_path.iterdir()) == [file]


def test_a_quantization_aware_run_is_served_as_it_was_trained(tmp_path, monkeypatch):
    """Weights trained with MX scales in a format are, in that format, those of the model that was evaluated."""
    run = make_run('method=qat,format=float4_e2m1fn,scale=mx,parts=down')
    run_export(monkeypatch, run, tmp_path, FORMAT='float4_e2m1fn', OUTPUT=str(tmp_path / 'file'))
    assert_identical_trees(workdirs.open_packed(tmp_path / 'file').state.params, weights_of(run))


def test_weights_for_transformers(tmp_path, monkeypatch, capsys, learned):
    """The weights of the file, with the files next to the tokenizer's."""
    written = []
    monkeypatch.setattr(
        export.huggingface_folder, 'write', lambda *arguments, **named: written.append((arguments, named))
    )
    run_export(monkeypatch, learned, tmp_path, TO_HF=str(tmp_path / 'hf'))
    (((directory, model, weights, tokenizer_directory), named),) = written
    assert (directory, model, tokenizer_directory) == (tmp_path / 'hf', learned.experiment.model, None)
    ids = {'bos_token_id': 256, 'eos_token_id': 256, 'pad_token_id': None}
    longest = {'max_position_embeddings': learned.experiment.config.sequence_length}
    assert named == {'said': {'config.json': ids | longest}}
    assert_identical_trees(
        jax.tree.map(np.asarray, weights), gq.load_packed(tmp_path / 'learned.safetensors', like=weights)
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith(f'written to {tmp_path}/hf: the same weights')


@pytest.mark.parametrize(
    ('tokenizer', 'imported', 'expected'),
    [
        ('tokenizer.json', False, {'tokenizer.json': 'own', 'vocab.json': 'own'}),
        ('mine.json', False, {'tokenizer.json': 'mine'}),
        ('tokenizer.json', True, {'tokenizer.json': 'imported'}),
        ('bytes', True, {'tokenizer.json': 'imported'}),
    ],
)
def test_transformers_get_the_tokenizer_of_the_run(tmp_path, monkeypatch, learned, tokenizer, imported, expected):
    """What lies beside a tokenizer of another name may be another's; an imported run has a copy of all."""
    (tmp_path / 'elsewhere').mkdir()
    for name, text in {'tokenizer.json': 'own', 'vocab.json': 'own', 'mine.json': 'mine'}.items():
        (tmp_path / 'elsewhere' / name).write_text(text)
    if imported:
        (tmp_path / 'tokenizer').mkdir()
        (tmp_path / 'tokenizer' / 'tokenizer.json').write_text('imported')
    carried = {}

    def write(directory, model, weights, tokenizer_directory, **_):
        for name in huggingface_folder.TOKENIZER_FILES:
            if (tokenizer_directory / name).is_file():
                carried[name] = (tokenizer_directory / name).read_text()

    monkeypatch.setattr(export.huggingface_folder, 'write', write)
    config = learned.experiment.config.copy_and_resolve_references()
    config.tokenizer = tokenizer if tokenizer == 'bytes' else str(tmp_path / 'elsewhere' / tokenizer)
    run = learned._replace(experiment=dataclasses.replace(learned.experiment, config=config))
    export.write_huggingface(run, tmp_path, None, tmp_path / 'hf')
    assert carried == expected


@pytest.mark.parametrize(
    ('method', 'given', 'message'),
    [
        ('bf16', dict(), 'the method of this run is bf16, which learns no bitwidths; give a format for all weights'),
        ('bf16', dict(FORMAT='e3m2', BUDGET=5.0), '--budget=5 has a meaning only with --format=learned, not e3m2'),
        ('gaussws', dict(BUDGET=2.0), 'a budget of 2 bits a weight is below 4.0'),
        ('gaussws', dict(BUDGET=math.nan), 'a budget of nan bits'),
        ('gaussws', dict(FORMAT='learnt'), "--format 'learnt' is unknown; known are .*, or learned"),
        ('gaussws', dict(BLOCK_SIZE=16), '--block_size=16 has no meaning with --format=learned, whose blocks'),
        ('bf16', dict(FORMAT='bfloat16', BLOCK_SIZE=16), '--block_size=16 has no meaning with --format=bfloat16'),
        ('gaussws', dict(FORMAT='e3m2', BLOCK_SIZE=0), 'block_size=0'),
        ('gaussws', dict(OUTPUT='missing/file'), '--output=missing/file: there is no folder missing'),
        ('gaussws', dict(OUTPUT='.'), '--output=. is a folder'),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, capsys, learned, plain, method, given, message):
    """One line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_export(monkeypatch, {'bf16': plain, 'gaussws': learned}[method], tmp_path, **given)
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())


# --- how it is opened again -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def file(tmp_path_factory, learned):
    """A packed file, whose run is gone."""
    directory = tmp_path_factory.mktemp('packed')
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_export(monkeypatch, learned, directory)
    return directory / 'learned.safetensors'


def save(file, learned, tmp_path, without=(), **changes):
    """The same run's weights with other information."""
    info = {name: value for name, value in (read_packed(file).info | changes).items() if name not in without}
    gq.save_packed(tmp_path / 'file', learned.state.params, {}, info=info)
    return tmp_path / 'file'


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
    ],
)
def test_files_that_cannot_be_opened(tmp_path, file, learned, changes, message):
    with pytest.raises(ValueError, match=message):
        workdirs.open_packed(save(file, learned, tmp_path, **changes))


def test_a_tokenizer_that_has_moved(tmp_path, file, learned, monkeypatch):
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
    moved = save(file, learned, tmp_path, config=config | settings, tokenizer=fingerprint)
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


def test_files_that_are_handed_on_tell_no_path(tmp_path, monkeypatch, capsys, learned):
    """Of the machine: a tokenizer has a name there, and data none."""
    config = learned.experiment.config.copy_and_resolve_references()
    places = {name: f'{tmp_path}/secret/{name}' for name in ('data_dir', 'cache_dir', 'init_from')}
    config.update({'tokenizer': f'{tmp_path}/secret/words.json', **places})
    experiment = dataclasses.replace(learned.experiment, config=config)
    run_export(monkeypatch, learned._replace(experiment=experiment), tmp_path)
    assert read_packed(tmp_path / 'learned.safetensors').info['config']['tokenizer'] == 'words.json'
    assert str(tmp_path).encode() not in (tmp_path / 'learned.safetensors').read_bytes()
    told = f'its tokenizer is not beside it, and has to be named: --tokenizer={tmp_path}/secret/words.json'
    assert told in capsys.readouterr().out


def test_weights_of_another_model(tmp_path, file, learned):
    params = learned.state.params | {'final_norm': {'scale': jnp.zeros(3)}}
    gq.save_packed(tmp_path / 'file', params, {}, info=read_packed(file).info)
    with pytest.raises(ValueError, match=f'^{tmp_path}/file: these weights are of another model'):
        workdirs.open_packed(tmp_path / 'file')


def test_a_file_does_not_choose_where_text_is(tmp_path, file, learned):
    config = read_packed(file).info['config'] | {'data_dir': '/stranger/data', 'cache_dir': '/stranger/cache'}
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(save(file, learned, tmp_path, config=config)).experiment.config
        assert (opened.data_dir, opened.cache_dir) == ('', '')
        opened = workdirs.open_packed(tmp_path / 'file', data_dir='ours').experiment.config
    assert (opened.data_dir, opened.cache_dir) == ('ours', '')


# --- the programs that read it ----------------------------------------------------------------------


def test_a_file_does_not_choose_what_text_is_read(tmp_path, file, learned, monkeypatch, capsys):
    """Whoever evaluates it does, unless it is the text that every machine has."""
    monkeypatch.setattr(loading, 'load_data', lambda config, tokenizer: (config.dataset, config.data_dir))
    monkeypatch.setattr(evaluation, 'make_validation', lambda _, data: lambda state: {'data': data})
    config = read_packed(file).info['config'] | {'dataset': 'stranger', 'data_dir': '/stranger'}
    weights = str(save(file, learned, tmp_path, config=config))
    with pytest.raises(SystemExit, match=r"is of a training on 'stranger': say --dataset, and maybe --data_dir"):
        run_program(evaluate, WEIGHTS=weights, EVAL_BATCHES=3)
    run_program(evaluate, WEIGHTS=weights, EVAL_BATCHES=3, DATASET='ours', DATA_DIR='here')
    assert '"ours",\n    "here"' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='--dataset has a meaning only with --weights'):
        run_program(evaluate, WORKDIR='a', DATASET='ours')


def test_evaluation(file, monkeypatch, capsys, learned):
    """What the weights lost, then the metrics as JSON, without any other file."""
    monkeypatch.setattr(loading, 'load_data', lambda config, tokenizer: config.eval_batches)
    monkeypatch.setattr(evaluation, 'make_validation', lambda _, data: lambda state: {'validation/loss': float(data)})
    run_program(evaluate, WEIGHTS=str(file), EVAL_BATCHES=3)
    title, *rest = capsys.readouterr().out.splitlines()
    assert title == "learned.safetensors, step 7: the format of each square block's bitwidth, mx scales"
    packed = read_packed(file)
    rows = quantization.measure_layout(learned.state.params, packed.layout)
    table, metrics = rest[: rest.index('{')], json.loads('\n'.join(rest[rest.index('{') :]))
    assert '\n'.join(table) == quantization.table(rows)
    assert metrics == {
        'step': 7,
        'validation/loss': 3.0,
        'bits/mean_stored': packed.size.mean_stored_bits,
        'bytes': packed.size.total_bytes,
    }
    assert list(file.parent.iterdir()) == [file]


def test_quantization_without_texts(file, tmp_path, capsys):
    copy = tmp_path / 'a.b.safetensors'
    copy.write_bytes(file.read_bytes())
    run_program(evaluate, WEIGHTS=str(copy), QUANTIZATION=True)
    assert capsys.readouterr().out.splitlines()[-1] == f'written to {tmp_path}/a.b.csv and {tmp_path}/a.b.png'
    assert {path.name for path in tmp_path.iterdir()} == {'a.b.safetensors', 'a.b.csv', 'a.b.png'}


def test_generation(file, monkeypatch, capsys):
    """With the weights of the file, and none but the tokenizer's tokens."""
    given = {}
    monkeypatch.setattr(
        generate,
        'generate',
        lambda model, weights, prompt, **named: given.update(named, weights=weights) or np.array([97, 98]),
    )
    run_program(generate, WEIGHTS=str(file), PROMPT='d', SEED=0, TEMPERATURE=0.8, NUM_TOKENS=2)
    assert capsys.readouterr().out == 'dab\n'
    assert_identical_trees(jax.tree.map(np.asarray, given['weights']), gq.load_packed(file, like=given['weights']))
    assert (given['window'], given['vocab_size']) == (24, 257)


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


def test_from_a_workdir(tmp_path, learned, capsys):
    """What a checkpoint holds, is exported."""
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
        checkpointer.save(7, learned.state, {}, {**learned.experiment.config.to_dict(), 'corpus': 'text'})
    run_program(export, WORKDIR=str(tmp_path), FORMAT='e3m2')
    with on_mesh(ONE_DEVICE):
        run = workdirs.open_packed(tmp_path / 'e3m2.safetensors')
    assert int(run.state.step) == 7
    config = learned.experiment.config.to_dict()
    kept = {name: config[name] for name in (*workdirs.SERVED, *workdirs.EVALUATED)}
    assert run.packed.info['config'] == {**kept, 'config_version': stored_configs.VERSION}
    assert {name: run.experiment.config.to_dict()[name] for name in kept} == kept


def test_matmuls_are_served_as_they_were_trained(tmp_path):
    """Of fqt, which quantizes them where weights are used; of what only changes weights, nothing is kept."""
    run = make_run('method=fqt,format=e2m1,targets=P2+P4')
    kept = workdirs.packed_config(run.experiment.config)
    assert (kept['method'], kept['quantization']['targets']) == ('fqt', 'P2+P4')
    gq.save_packed(tmp_path / 'file', run.state.params, {}, info=export.describe_run(run, {}, 'bfloat16', None))
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(tmp_path / 'file').experiment
    assert opened.config.quantization == run.experiment.config.quantization
    assert opened.model.dot_general_cls.keywords == run.experiment.model.dot_general_cls.keywords
    assert 'quantization' not in workdirs.packed_config(make_run('method=qat').experiment.config)
