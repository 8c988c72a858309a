"""A run is opened by its own copy of its tokenizer, wherever both have gone since."""

import shutil

import pytest
from small_checkpoints import write_tokenizer
from small_experiments import ONE_DEVICE, on_mesh
from small_runs import assert_same_run, run_config, start, stub_steps
from small_tokenizers import write_huggingface

from configs import from_run
from experiments import runs, tokenizer_files
from experiments.tokenizers import load_vocabulary


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
    with on_mesh(ONE_DEVICE):
        assert runs.open_run(tmp_path / 'moved').tokenizer.fingerprint.startswith('huggingface-')
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
    assert kept.exists() and tokenizer_files.is_kept('tokenizer.json', tmp_path / 'run')


def test_bytes_need_no_file(tmp_path):
    tokenizer_files.keep('bytes', tmp_path)
    assert list(tmp_path.iterdir()) == [] and tokenizer_files.is_kept('bytes', tmp_path)
