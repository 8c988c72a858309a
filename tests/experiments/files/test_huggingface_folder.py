"""A folder is what transformers loads, whole or not there; what is read is told apart from damage, file by file."""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from small_checkpoints import GPT2, LLAMA, LLAMA_3, MISTRAL, QWEN2, QWEN3, change_json, random_params, write_checkpoint

from experiments.files import huggingface_folder
from gaussq_jax import models

MODELS = {'llama': LLAMA, 'tied': LLAMA.clone(tie_embeddings=True), 'gpt2': GPT2}
MODELS |= {'llama_3': LLAMA_3, 'mistral': MISTRAL, 'qwen2': QWEN2, 'qwen3': QWEN3}
INDEX = 'model.safetensors.index.json'


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(huggingface_folder, 'SHARD_BYTES', 10_000)


def rounded(params):
    return jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), params)


def header(path):
    """The header of a safetensors file, read by hand."""
    contents = path.read_bytes()
    (length,) = struct.unpack('<Q', contents[:8])
    return json.loads(contents[8 : 8 + length])


@pytest.mark.parametrize('name', MODELS)
def test_a_folder_holds_the_weights_rounded_to_bfloat16(tmp_path, name):
    model, params = MODELS[name], random_params(MODELS[name])
    files = huggingface_folder.write(tmp_path / 'written', model, params)
    assert [file.name for file in files] == ['config.json', 'model.safetensors']
    tensors, config = huggingface_folder.read(tmp_path / 'written')
    assert config['torch_dtype'] == 'bfloat16'
    again, params_again = models.from_huggingface(tensors, config)
    said = {field: getattr(model, field) for field in models.family_of(model).settings}
    assert all(value in (None, getattr(again, field)) for field, value in said.items())
    assert_identical_trees(params_again, rounded(params))
    described = header(files[1])
    assert described.pop('__metadata__') == {'format': 'pt'}
    assert {entry['dtype'] for entry in described.values()} == {'BF16'}


def test_large_weights_are_several_files_with_an_index(tmp_path, small_shards):
    params = random_params(LLAMA)
    files = [file.name for file in huggingface_folder.write(tmp_path / 'written', LLAMA, params)]
    shards = [file for file in files if file.startswith('model-')]
    assert shards == [f'model-{i:05}-of-{len(shards):05}.safetensors' for i in range(1, len(shards) + 1)]
    assert len(shards) > 2 and set(files) == {'config.json', INDEX, *shards}
    index = json.loads((tmp_path / 'written' / INDEX).read_text())
    assert index['metadata']['total_size'] == 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    for shard in shards:
        names = header(tmp_path / 'written' / shard).keys() - {'__metadata__'}
        assert names == {name for name, file in index['weight_map'].items() if file == shard}
        assert len(names) == 1 or (tmp_path / 'written' / shard).stat().st_size < 10_000 + 2_000
    assert_identical_trees(models.from_huggingface(*huggingface_folder.read(tmp_path / 'written'))[1], rounded(params))


def test_tokenizer_files_and_what_our_models_lack_are_carried(tmp_path):
    source = write_checkpoint(tmp_path / 'source')
    (source / 'unrelated.txt').write_text('stays')
    huggingface_folder.write(tmp_path / 'written', LLAMA, random_params(LLAMA), source)
    config = json.loads((tmp_path / 'written' / 'config.json').read_text())
    assert config['max_position_embeddings'] == 40 and config['eos_token_id'] == [258, 7]
    assert config['bos_token_id'] is None and 'pad_token_id' not in config
    files = {path.name for path in (tmp_path / 'written').iterdir()}
    assert files == {'config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'}
    assert (tmp_path / 'written/tokenizer.json').read_bytes() == (source / 'tokenizer.json').read_bytes()
    # Of another family, only the files.
    huggingface_folder.write(tmp_path / 'gpt2', GPT2, random_params(GPT2), source)
    config = json.loads((tmp_path / 'gpt2' / 'config.json').read_text())
    assert config['eos_token_id'] is None and 'max_position_embeddings' not in config


def test_a_boolean_is_no_integer_that_is_carried():
    fields = {'model_type': 'llama', 'max_position_embeddings': True, 'bos_token_id': True, 'eos_token_id': [1, 2]}
    assert huggingface_folder.kept_fields(fields) == {'eos_token_id': [1, 2]}


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError('no space')])
def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path, monkeypatch, small_shards, error):
    save_tensors, count = huggingface_folder.save_tensors, iter(range(9))

    def save_two_files(*arguments, **options):
        if next(count) == 2:
            raise error
        save_tensors(*arguments, **options)

    monkeypatch.setattr(huggingface_folder, 'save_tensors', save_two_files)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        huggingface_folder.write(tmp_path / 'written', LLAMA, random_params(LLAMA))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='is there already'):
        huggingface_folder.write(tmp_path, LLAMA, random_params(LLAMA))
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


WHOLE, SHARDED = 'whole', 'sharded'


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """One in one file, one in several."""
    directory = tmp_path_factory.mktemp('checkpoints')
    write_checkpoint(directory / WHOLE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(huggingface_folder, 'SHARD_BYTES', 10_000)
        write_checkpoint(directory / SHARDED)
    return directory


def remove(name):
    return lambda directory: next(directory.glob(name)).unlink()


def halve(name):
    def change(directory):
        path = next(directory.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def write(name, contents):
    return lambda directory: (directory / name).write_bytes(contents)


def as_pickle(directory):
    (directory / 'model.safetensors').rename(directory / 'pytorch_model.bin')


def map_norm_to(file):
    def change(directory):
        weight_map = json.loads((directory / INDEX).read_text())['weight_map']
        change_json(directory / INDEX, weight_map={**weight_map, 'model.norm.weight': file})

    return change


@pytest.mark.parametrize(
    ('kind', 'change', 'message'),
    [
        (WHOLE, remove('config.json'), r"config\.json can't be read: No such file"),
        (WHOLE, write('config.json', b'{'), r'config\.json is no JSON'),
        (WHOLE, write('config.json', b'\xff'), r'config\.json is no JSON'),
        (WHOLE, write('config.json', b'[]'), r'config\.json must hold a JSON object'),
        (WHOLE, remove('model.safetensors'), 'has neither model.safetensors nor model.safetensors.index.json'),
        (WHOLE, as_pickle, r'pytorch_model\.bin only, a pickle'),
        (WHOLE, halve('model.safetensors'), r'model\.safetensors is no whole safetensors file'),
        (WHOLE, write('model.safetensors', b''), r'model\.safetensors is no whole safetensors file'),
        (WHOLE, write('model.safetensors', b'\x80\x04K\x01.' * 9), r'model\.safetensors is no whole safetensors file'),
        (SHARDED, remove('model-00002-*'), r'model-00002-of-\d+\.safetensors is missing'),
        (SHARDED, halve('model-00002-*'), r'model-00002-of-\d+\.safetensors is no whole safetensors file'),
        (SHARDED, write(INDEX, b'{}'), r'index\.json has no weight_map'),
        (SHARDED, map_norm_to('../whole/model.safetensors'), r'index\.json has no weight_map'),
        (SHARDED, map_norm_to('..'), 'is no file'),
        (SHARDED, map_norm_to(3), r'index\.json has no weight_map'),
    ],
)
def test_damage_is_named(checkpoints, tmp_path, kind, change, message):
    copy = tmp_path / kind
    copy.mkdir()
    for path in (checkpoints / kind).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    huggingface_folder.read(copy)
    change(copy)
    with pytest.raises(ValueError, match=message):
        huggingface_folder.read(copy)


def test_a_tensor_in_another_file_than_the_index_says_is_named(checkpoints, tmp_path):
    copy = tmp_path / 'copy'
    copy.mkdir()
    for path in (checkpoints / SHARDED).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    first = sorted(path.name for path in copy.glob('model-00001-*'))[0]
    map_norm_to(first)(copy)
    with pytest.raises(ValueError, match=rf'{first} lacks the tensor model\.norm\.weight'):
        huggingface_folder.read(copy)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match='nowhere is no folder'):
        huggingface_folder.read(tmp_path / 'nowhere')


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_transformers_has_the_logits_of_the_rounded_weights(tmp_path, name, small_shards):
    """Its own model of random weights -> ours -> a folder -> its logits, to the bit those of its rounded weights."""
    torch = pytest.importorskip('torch', reason='torch is not installed; the weights are still compared')
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    _, config = models.to_huggingface(MODELS[name], random_params(MODELS[name]))
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / 'theirs', max_shard_size='20kB')
    model, params = models.from_huggingface(*huggingface_folder.read(tmp_path / 'theirs'))
    huggingface_folder.write(tmp_path / 'ours', model, params)
    load = lambda name, dtype: transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=dtype).eval()
    theirs, ours = load('theirs', torch.bfloat16), load('ours', 'auto')  # rotary angles stay float32, unlike in a cast
    assert ours.dtype == torch.bfloat16
    tokens = torch.randint(0, 264, (3, 20))
    with torch.no_grad():
        for _ in ('bfloat16', 'float32'):
            assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
            theirs, ours = theirs.float(), ours.float()


@pytest.mark.parametrize('name', ['tokenizer.json', 'chat_template.jinja'])
def test_links_out_of_a_folder_are_not_followed(tmp_path, name):
    """To another file of the folder they are, and in the hub's cache to its blobs; else a secret would be published."""
    source = write_checkpoint(tmp_path / 'source')
    (source / name).unlink(missing_ok=True)
    (tmp_path / 'secret').write_text('{}')
    (source / name).symlink_to(tmp_path / 'secret')
    with pytest.raises(ValueError, match=rf'{name} is a link to .*secret, out of its folder'):
        huggingface_folder.write(tmp_path / 'written', LLAMA, random_params(LLAMA), source)
    assert not (tmp_path / 'written').exists()
    (source / name).unlink()
    (source / 'file').write_text('within')
    (source / name).symlink_to('file')
    huggingface_folder.write(tmp_path / 'written', LLAMA, random_params(LLAMA), source)
    assert (tmp_path / 'written' / name).read_text() == 'within' and not (tmp_path / 'written' / name).is_symlink()

    snapshot, blobs = tmp_path / 'models--a--b' / 'snapshots' / '0123', tmp_path / 'models--a--b' / 'blobs'
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    blobs.mkdir()
    (blobs / 'abcd').write_text('blob')
    (snapshot / name).unlink()
    (snapshot / name).symlink_to('../../blobs/abcd')
    huggingface_folder.write(tmp_path / 'of_the_hub', LLAMA, random_params(LLAMA), snapshot)
    assert (tmp_path / 'of_the_hub' / name).read_text() == 'blob'
