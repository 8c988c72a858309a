"""A Hugging Face checkpoint becomes a run that the programs open, whole or not at all."""

import json

import jax
import low_bit_checkpoints
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from parameter_trees import assert_identical_trees
from programs import import_program, run_program
from small_checkpoints import (
    GPT2,
    LLAMA,
    LLAMA_3,
    MISTRAL,
    QWEN2,
    QWEN3,
    change_json,
    random_params,
    write_checkpoint,
    write_tokenizer,
)
from small_experiments import ONE_DEVICE, on_mesh

from experiments import workdirs
from experiments.checkpoints import checkpointing
from experiments.files import huggingface_folder

import_hf = import_program('import_hf')
MODELS = {'llama': LLAMA, 'llama_3': LLAMA_3, 'mistral': MISTRAL, 'qwen2': QWEN2, 'qwen3': QWEN3, 'gpt2': GPT2}


def import_checkpoint(checkpoint, workdir, **arguments):
    with on_mesh(ONE_DEVICE):
        return import_hf.import_checkpoint(checkpoint, workdir, **arguments)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp('checkpoints')
    return {name: write_checkpoint(directory / name, model) for name, model in MODELS.items()}


@pytest.mark.parametrize('name', MODELS)
def test_the_run_is_opened_with_the_weights_of_the_checkpoint(checkpoints, tmp_path, name):
    """With its model, its tokenizer, and its vocabulary, of which the tokenizer has not all; and back into a folder."""
    model, length, workdir = MODELS[name], 24 if name == 'gpt2' else 40, tmp_path / 'imported'
    import_checkpoint(checkpoints[name], workdir)
    assert {path.name for path in workdir.iterdir()} == {'config.json', 'checkpoints', 'tokenizer'}
    with on_mesh(ONE_DEVICE):
        run = workdirs.open_run(workdir)
    rounded = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), random_params(model))
    assert_identical_trees(jax.tree.map(np.asarray, run.state.params), rounded)
    assert int(run.state.step) == 0 and run.state.transform_state == {}
    config = run.experiment.config
    assert type(run.experiment.model) is type(model)
    assert (config.name, config.method, config.sequence_length) == ('imported', 'bf16', length)
    assert json.loads((workdir / 'config.json').read_text())['model'] == config.model.to_dict()
    assert config.tokenizer == str(workdir / 'tokenizer' / 'tokenizer.json') and run.tokenizer.vocab_size == 259
    assert run.experiment.vocab_size == 264
    assert run.tokenizer.decode(run.tokenizer.encode('def naïve')) == 'def naïve'

    huggingface_folder.write(tmp_path / 'again', run.experiment.model, run.state.params, workdir / 'tokenizer')
    for path in checkpoints[name].iterdir():
        again = (tmp_path / 'again' / path.name).read_bytes()
        if path.name == 'config.json':
            theirs = json.loads(path.read_text())
            ours = json.loads(again)
            longest = {'max_position_embeddings'} if name == 'gpt2' else set()  # which GPT-2 calls n_positions
            assert {key for key in theirs if ours.get(key) != theirs[key]} == longest
        else:
            assert again == path.read_bytes()


def test_what_the_arguments_set(checkpoints, tmp_path):
    """Another tokenizer is copied alone; the length is what it is told to be."""
    write_tokenizer(tmp_path / 'other.json')
    with on_mesh(ONE_DEVICE), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(import_hf.Checkpointer, 'save', lambda *_: True)
        file = dict(tokenizer=str(tmp_path / 'other.json'), sequence_length=16)
        config = import_hf.import_checkpoint(checkpoints['llama'], tmp_path / 'file', **file)[0].config
        of_bytes = import_hf.import_checkpoint(checkpoints['llama'], tmp_path / 'bytes', tokenizer='bytes')[0].config
    assert config.sequence_length == 16
    assert config.tokenizer == str(tmp_path / 'file' / 'tokenizer' / 'tokenizer.json')
    assert {path.name for path in (tmp_path / 'file' / 'tokenizer').iterdir()} == {'tokenizer.json', 'config.json'}
    assert of_bytes.tokenizer == 'bytes' and of_bytes.vocab_size == 264
    assert {path.name for path in (tmp_path / 'bytes' / 'tokenizer').iterdir()} == {'config.json'}


def without_tokenizer(directory):
    (directory / 'tokenizer.json').unlink()


def set_fields(**fields):
    return lambda directory: change_json(directory / 'config.json', **fields)


@pytest.mark.parametrize(
    ('change', 'arguments', 'message'),
    [
        (
            set_fields(model_type='qwen3_moe'),
            {},
            "model_type='qwen3_moe' must be one of llama, gpt2, mistral, qwen2, qw",
        ),
        (
            set_fields(rope_scaling={'type': 'yarn'}),
            {},
            'config.json: rope_scaling=.*must be default or llama3',
        ),
        (set_fields(rms_norm_eps=...), {}, 'config lacks the field rms_norm_eps'),
        (set_fields(vocab_size=200), {}, r'vocab_size=200 in .*config\.json is less than the 259 ids of the tokenizer'),
        (set_fields(num_hidden_layers=3), {}, r'state_dict: missing layers\.2'),
        (without_tokenizer, {}, 'neither tokenizer.json nor tokenizer.model: say by --tokenizer=FILE'),
        (set_fields(), {'tokenizer': 'gpt2'}, "tokenizer='gpt2' is unknown"),
        (set_fields(), {'tokenizer': 'nowhere.json'}, "tokenizer='nowhere.json' can't be read"),
        (
            set_fields(model_type='qwen2', use_sliding_window=True, sliding_window=64, max_window_layers=0),
            {'sequence_length': 65},
            '--sequence_length=65: the checkpoint has sliding_window=64, the most that is allowed',
        ),
        (
            set_fields(model_type='mistral', sliding_window=64),
            {'sequence_length': 65},
            '--sequence_length=65: the checkpoint has sliding_window=64, the most that is allowed',
        ),
    ],
)
def test_what_is_refused_leaves_nothing(checkpoints, tmp_path, change, arguments, message):
    copy = tmp_path / 'checkpoint'
    copy.mkdir()
    for path in checkpoints['llama'].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    change(copy)
    with pytest.raises(ValueError, match=message):
        import_checkpoint(copy, tmp_path / 'runs' / 'imported', **arguments)
    assert not (tmp_path / 'runs').exists() or list((tmp_path / 'runs').iterdir()) == []


def test_a_workdir_in_use_is_left_alone(checkpoints, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='is there already'):
        import_checkpoint(checkpoints['llama'], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_an_interrupted_import_leaves_nothing(checkpoints, tmp_path, monkeypatch):
    """Even when all but the last file of the checkpoint is written."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpointing, 'write_manifest', interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(checkpoints['llama'], tmp_path / 'imported')
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_counted_and_said(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / 'theirs')
    file = checkpoint / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    tensors['model.norm.weight'][:3] = [np.nan, np.inf, -np.inf]
    safetensors.numpy.save_file(tensors, file, {'format': 'pt'})
    arguments = dict(CHECKPOINT=str(checkpoint), WORKDIR=str(tmp_path / 'run'), TOKENIZER=None, SEQUENCE_LENGTH=None)
    run_program(import_hf, **arguments, BOS='', EOS='', ADD_BOS='')
    assert 'NOT FINITE 3 values of final_norm/scale\n' in capsys.readouterr().out


def test_tensors_of_eight_bits_are_refused_by_name(tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'theirs')
    file = checkpoint / 'model.safetensors'
    contents = bytearray(file.read_bytes())
    length = int.from_bytes(contents[:8], 'little')
    header = json.loads(contents[8 : 8 + length])
    name = 'model.norm.weight'
    header[name]['dtype'] = 'F8_E4M3'
    header[name]['shape'] = [2 * n for n in header[name]['shape']]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, 'little') + text + bytes(contents[8 + length :]))
    with pytest.raises(ValueError, match=r"the tensor model\.norm\.weight can't be read"):
        import_checkpoint(checkpoint, tmp_path / 'run')


def test_low_bits_are_imported_as_what_they_stand_for(tmp_path, capsys):
    """Not rounded to bfloat16; the run is trained on and exported as others, and its folder says nothing of them."""
    numbers = low_bit_checkpoints.write(tmp_path / 'theirs', 'mixed')
    arguments = dict(CHECKPOINT=str(tmp_path / 'theirs'), WORKDIR=str(tmp_path / 'run'), TOKENIZER=None)
    run_program(import_hf, **arguments, SEQUENCE_LENGTH=None, BOS='', EOS='', ADD_BOS='')
    assert (
        'weights   matrices of compressed-tensors: 8 of FP8 by output channel, 6 of NVFP4, 2 of bfloat16; dequantized'
        ' in float32\n          activations were quantized when it was served; here they are not\n'
    ) in capsys.readouterr().out
    with on_mesh(ONE_DEVICE):
        run = workdirs.open_run(tmp_path / 'run')
    kernel = np.asarray(run.state.params['layers']['mlp']['down']['kernel'])
    for layer in range(2):
        np.testing.assert_array_equal(kernel[layer].T, numbers[f'model.layers.{layer}.mlp.down_proj.weight'])
    huggingface_folder.write(tmp_path / 'again', run.experiment.model, run.state.params, tmp_path / 'run/tokenizer')
    tensors, config = huggingface_folder.read(tmp_path / 'again')
    assert 'quantization_config' not in config and config['eos_token_id'] == [258, 7]
    for name, expected in numbers.items():
        np.testing.assert_array_equal(tensors[name], expected.astype(ml_dtypes.bfloat16))


def test_few_bits_that_are_not_read_are_refused(tmp_path):
    low_bit_checkpoints.write(tmp_path / 'theirs', quant_method='awq')
    with pytest.raises(ValueError, match=r"config\.json: quantization_config\.quant_method='awq' must be"):
        import_checkpoint(tmp_path / 'theirs', tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
