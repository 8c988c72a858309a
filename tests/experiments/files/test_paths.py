"""Paths of flags and fields: homes are expanded, what is on no file system of this machine is refused by name."""

import os
import pathlib
import re
import signal

import pytest
from programs import import_program, run_program
from small_datasets import load_tokens

from experiments.checkpoints import manifests
from experiments.data import tokenizers, vocabularies
from experiments.files import csv_files, huggingface_folder, json_files, paths
from experiments.laws import stored_laws
from experiments.laws.tables import run_tables
from experiments.training import metrics
from gaussq_jax.packed import read_packed

FLAGS = [  # of each program, those that are looked at first, or beside a workdir that isn't there
    *(('evaluate', flag, {}) for flag in ('WORKDIR', 'WEIGHTS')),
    *(('generate', flag, {}) for flag in ('WORKDIR', 'WEIGHTS')),
    *(('export', flag, dict(WORKDIR='runs/none', FORMAT='learned')) for flag in ('WORKDIR', 'TO_HF', 'OUTPUT')),
    *(('import_hf', flag, dict(CHECKPOINT='none', WORKDIR='none')) for flag in ('WORKDIR', 'CHECKPOINT')),
    *(('cast_down', flag, dict(WORKDIR='none')) for flag in ('WORKDIR', 'OUTPUT')),
    ('compare', 'WORKDIR', {}),
]


def test_homes(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert paths.parse('~/x y', 'it') == pathlib.Path('/home/me/x y')
    assert paths.parse('~root', 'it').is_absolute()
    for text in ('a/~/b', '/a:b', 'a//b', './gs:/x', 'C:x'):
        assert paths.parse(text, 'it') == pathlib.Path(text)
    assert paths.parse(pathlib.Path('~/x'), 'it') == pathlib.Path('/home/me/x')


@pytest.mark.parametrize('text', ['gs://bucket/run', 's3://bucket', 'hf://org/model', 'file:///tmp/x', 'https://x.org'])
def test_schemes(text):
    with pytest.raises(ValueError, match=rf"^--workdir='{text}': \w+:// is not supported"):
        paths.parse(text, '--workdir')


@pytest.mark.parametrize('text', ['', 'a\0b', '~nobody-of-this-name/x'])
def test_what_is_no_path(text):
    with pytest.raises(ValueError, match=r'^--workdir='):
        paths.parse(text, '--workdir')


@pytest.mark.parametrize(('name', 'flag', 'others'), FLAGS)
def test_flags(name, flag, others, tmp_path, monkeypatch):
    """None makes a folder of the scheme's name, or one that is called ~."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        run_program(import_program(name), **others | {flag: 'gs://bucket/x'})
    assert re.match(rf"error: (--)?{flag.lower()}='gs://bucket/x': gs:// is not supported", error.value.code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('field', ['data_dir', 'cache_dir'])
def test_fields(field):
    with pytest.raises(ValueError, match=f"^{field}='s3://bucket': s3:// is not supported"):
        load_tokens('python_stdlib', 'train', tokenizers.load_tokenizer('bytes'), **{field: 's3://bucket'})
    with pytest.raises(ValueError, match=r"^tokenizer='hf://org/model.json': hf:// is not supported"):
        vocabularies.load_vocabulary('hf://org/model.json')


READERS = {
    'a.json': json_files.read,
    'a.csv': lambda path: list(csv_files.read(path)),
    'runs.jsonl': run_tables.read_runs,
    'runs.parquet': run_tables.read_runs,
    'metrics.jsonl': metrics.read_metrics,
    'law.json': stored_laws.read_law,
    'words.json': lambda path: vocabularies.load_vocabulary(str(path)),
    'words.model': lambda path: vocabularies.load_vocabulary(str(path)),
    'model.safetensors.index.json': lambda path: huggingface_folder.read(path.parent),
    'packed.safetensors': read_packed,
}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('kind', ['pipe', 'endless', 'folder'])
def test_what_is_no_file_is_not_waited_for(tmp_path, name, kind):
    """Nor read without end."""
    (tmp_path / 'config.json').write_text('{}')
    path = tmp_path / name
    {'pipe': os.mkfifo, 'endless': lambda path: path.symlink_to('/dev/zero'), 'folder': os.mkdir}[kind](path)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it waits'))
    signal.alarm(20)
    try:
        with pytest.raises((ValueError, IsADirectoryError), match=r'is no file|Is a directory|has neither') as error:
            READERS[name](path)
        assert name in str(error.value)
    finally:
        signal.alarm(0)


def test_a_pipe_is_no_manifest(tmp_path):
    (tmp_path / 'state').write_text('')
    os.mkfifo(tmp_path / 'manifest.sha256')
    assert manifests.find_damage(tmp_path) == 'manifest.sha256 is not a manifest'
