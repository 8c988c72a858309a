"""A run is opened by its own copy of its tokenizer, wherever both have gone since."""

import json
import shutil

import pytest
from small_checkpoints import write_tokenizer
from small_experiments import ONE_DEVICE, on_mesh
from small_runs import assert_same_run, run_config, start, stub_steps
from small_tokenizers import write_huggingface

from configs import from_run
from experiments import workdirs
from experiments.data import tokenizer_files
from experiments.data.vocabularies import load_vocabulary


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    stub_steps(monkeypatch)


@pytest.mark.parametrize('name', ['words.json', 'tokenizer.json'])
def test_a_run_is_self_contained(tmp_path, name):
    """Opened, gone on with and built upon after its tokenizer's file has gone and it has moved itself."""
    (tmp_path / 'model').mkdir()
    file = write_huggingface(tmp_path / 'model' / name)
    (tmp_path / 'model' / 'merges.txt').write_text('beside it')
    config = run_config(tokenizer=str(file))
    start(tmp_path / 'whole', config.copy_and_resolve_references())
    start(tmp_path / 'run', config.copy_and_resolve_references())
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
    (tmp_path / 'run' / 'summary.json').unlink()
    shutil.rmtree(tmp_path / 'model')
    (tmp_path / 'run').rename(tmp_path / 'moved')

    start(tmp_path / 'moved', config)
    assert_same_run(tmp_path / 'moved', tmp_path / 'whole')
    assert json.loads((tmp_path / 'moved' / 'config.json').read_text())['tokenizer'] == str(file)  # as the command says
    with on_mesh(ONE_DEVICE):
        assert workdirs.open_run(tmp_path / 'moved').tokenizer.fingerprint.startswith('huggingface-')
    on = from_run.get_config(f'run={tmp_path / "moved"}')
    assert on.tokenizer == str(tmp_path / 'moved' / 'tokenizer' / name)
    assert (tmp_path / 'moved' / 'tokenizer' / 'merges.txt').exists() == (name == 'tokenizer.json')


def test_another_tokenizer_takes_the_place_of_one(tmp_path):
    """Of a training that was started here before, and left no checkpoint; nothing of it is mixed in."""
    for folder, write in (('first', write_huggingface), ('second', write_tokenizer)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / 'tokenizer.json')
    (tmp_path / 'first' / 'tokenizer_config.json').write_text('{}')
    (tmp_path / 'run').mkdir()
    for folder in ('first', 'second'):
        tokenizer_files.keep(str(tmp_path / folder / 'tokenizer.json'), tmp_path / 'run')
    (kept,) = (tmp_path / 'run' / 'tokenizer').iterdir()
    assert load_vocabulary(str(kept)).vocab_size == 259
    tokenizer_files.keep(str(kept), tmp_path / 'run')  # its own
    (tmp_path / 'link').mkdir()
    (tmp_path / 'link' / 'tokenizer.json').symlink_to(kept)
    tokenizer_files.keep(str(tmp_path / 'link' / 'tokenizer.json'), tmp_path / 'run')  # and a link to it
    assert kept.exists() and tokenizer_files.copy_of('tokenizer.json', tmp_path / 'run')


def test_bytes_need_no_file(tmp_path):
    tokenizer_files.keep('bytes', tmp_path)
    assert list(tmp_path.iterdir()) == [] and tokenizer_files.keep_if_missing('bytes', tmp_path) == []


def test_links(tmp_path):
    """Of the file that is named, to what it leads; of others, not out of the folder; never a link in the run."""
    (tmp_path / 'store').mkdir()
    (tmp_path / 'model').mkdir()
    (tmp_path / 'run').mkdir()
    write_tokenizer(tmp_path / 'store' / 'v1.json')
    (tmp_path / 'model' / 'tokenizer.json').symlink_to('../store/v1.json')
    (tmp_path / 'model' / 'merges.txt').symlink_to('../store/v1.json')
    (tmp_path / 'model' / 'generation_config.json').symlink_to('gone')
    remarks = tokenizer_files.keep(str(tmp_path / 'model' / 'tokenizer.json'), tmp_path / 'run')
    assert [remark.split(': ')[0] for remark in remarks] == [f'not kept in {tmp_path}/run/tokenizer'] * 2
    (kept,) = (tmp_path / 'run' / 'tokenizer').iterdir()
    assert not kept.is_symlink() and load_vocabulary(str(kept)).vocab_size == 259

    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'tokenizer').symlink_to('../store')
    with pytest.raises(ValueError, match='other/tokenizer is a link, which is not followed'):
        tokenizer_files.keep(str(tmp_path / 'model' / 'tokenizer.json'), tmp_path / 'other')
    (remark,) = tokenizer_files.keep_if_missing(str(tmp_path / 'model' / 'tokenizer.json'), tmp_path / 'other')
    assert 'is a link' in remark and [path.name for path in (tmp_path / 'store').iterdir()] == ['v1.json']


def test_a_packed_file_of_a_run_without_a_copy(tmp_path):
    """As version 0.1 left them: the run's config says where its tokenizer is."""
    file = write_huggingface(tmp_path / 'words.json')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text(json.dumps({'tokenizer': str(file)}))
    assert tokenizer_files.of_run('words.json', tmp_path / 'run') == str(file)
    assert tokenizer_files.of_run('other.json', tmp_path / 'run') is None
    assert tokenizer_files.of_run('words.json', tmp_path) is None
