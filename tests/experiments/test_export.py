"""Packed files of runs: what is printed and written, and that it is what was trained."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from exported_runs import export, learned_run, make_run, run_export
from parameter_trees import assert_identical_trees
from programs import run_program
from small_experiments import ONE_DEVICE, on_mesh

import gaussq_jax as gq
from configs import stored as stored_configs
from experiments import workdirs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.files import huggingface_folder
from experiments.serving import folders
from experiments.serving.targets import TRANSFORMERS
from gaussq_jax import models
from gaussq_jax.packed import header_bytes, read_packed

DOWN = 'layers/mlp/down/kernel'


@pytest.fixture(scope='module')
def learned():
    return learned_run()


@pytest.fixture(scope='module')
def plain():
    return make_run('method=bf16')


def weights_of(run):
    return jax.jit(lambda state: run.experiment.transform.apply(None, state.params, state.transform_state))(run.state)


def test_learned_bitwidths(tmp_path, monkeypatch, capsys, learned):
    """The file holds the fake-quantized weights and takes what model_size says; the table says what is on the disk."""
    run_export(monkeypatch, learned, tmp_path)
    title, names, *lines, written = capsys.readouterr().out.splitlines()
    lines, reasons = lines[:-4], lines[-4:]
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
    assert [line.split(',')[0] for line in reasons] == names and all(
        ' % of the weights, with ' in line for line in reasons
    )
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
        (dict(FORMAT='float6_e3m2fn'), 'float6_e3m2fn', 'float6_e3m2fn by 32, mx'),
        (dict(FORMAT='e2m1', BLOCK_SIZE='16'), 'e2m1-16', 'e2m1 by 16, mx'),
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
        huggingface_folder, 'write_files', lambda *arguments, **named: written.append((arguments, named))
    )
    run_export(monkeypatch, learned, tmp_path, TO_HF=str(tmp_path / 'hf'))
    (((_, tensors, config, tokenizer_directory), named),) = written
    _, weights = models.from_huggingface(tensors, config)
    assert tokenizer_directory is None and (tmp_path / 'hf').is_dir()
    ids = {'bos_token_id': 256, 'eos_token_id': 256, 'pad_token_id': None}
    longest = {'max_position_embeddings': learned.experiment.config.sequence_length}
    assert named == {'said': {'config.json': ids | longest}}
    of_file = gq.load_packed(tmp_path / 'learned.safetensors', like=weights)
    assert_identical_trees(weights, jax.tree.map(lambda leaf: leaf.astype(np.float32), of_file))
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

    def write(directory, tensors, config, tokenizer_directory, **_):
        for name in huggingface_folder.TOKENIZER_FILES:
            if (tokenizer_directory / name).is_file():
                carried[name] = (tokenizer_directory / name).read_text()

    monkeypatch.setattr(huggingface_folder, 'write_files', write)
    config = learned.experiment.config.copy_and_resolve_references()
    config.tokenizer = tokenizer if tokenizer == 'bytes' else str(tmp_path / 'elsewhere' / tokenizer)
    run = learned._replace(experiment=dataclasses.replace(learned.experiment, config=config))
    folders.write(run, tmp_path, tmp_path / 'hf', TRANSFORMERS, run.state.params, {})
    assert carried == expected


@pytest.mark.parametrize(
    ('method', 'given', 'message'),
    [
        (
            'bf16',
            dict(FORMAT='learned'),
            'the method of this run is bf16, which learns no bitwidths; give a format for all weights',
        ),
        ('bf16', dict(FORMAT='e3m2', BUDGET=5.0), '--budget=5 has no meaning with --format=e3m2, which is that of all'),
        ('gaussws', dict(BUDGET=2.0), 'a budget of 2 bits a weight is below 4.0'),
        ('gaussws', dict(BUDGET=math.nan), 'a budget of nan bits'),
        ('gaussws', dict(FORMAT='learnt'), "--format 'learnt' is unknown; known are .*, or learned"),
        ('gaussws', dict(BLOCK_SIZE='16'), '--block_size=16 has no meaning with --format=learned, whose blocks'),
        ('gaussws', dict(SCALE='nvfp4'), '--scale=nvfp4 has no meaning with --format=learned, whose blocks'),
        ('bf16', dict(FORMAT='bfloat16', BLOCK_SIZE='16'), '--block_size=16 has no meaning with --format=bfloat16'),
        ('gaussws', dict(FORMAT='e3m2', BLOCK_SIZE='0'), 'block_size=0'),
        ('gaussws', dict(OUTPUT='missing/file'), 'missing/file can not be written: there is no folder missing'),
        ('gaussws', dict(OUTPUT='.'), '. is a folder; --output takes the name of a file'),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, capsys, learned, plain, method, given, message):
    """One line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_export(monkeypatch, {'bf16': plain, 'gaussws': learned}[method], tmp_path, **given)
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())


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
