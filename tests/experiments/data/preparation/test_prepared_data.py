"""The folders of the cache: prepared once, found again, and prepared anew where they are damaged."""

import json
import os
import pathlib
import threading
import time

import numpy as np
import pytest
from small_datasets import DOCUMENTS, TinyText, byte_tokens

from experiments.data.preparation import manifest, preparing
from experiments.data.preparation.encoding import Settings
from experiments.data.preparation.prepared_data import prepared_data
from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes


class CountingBytes(Bytes):
    """Bytes, and how many documents were tokenised."""

    count = 0

    def encode(self, text):
        self.count += 1
        return super().encode(text)


def tokens(folder, split='train'):
    return np.fromfile(folder / f'{split}-00000.tokens', '<u2').tolist()


@pytest.fixture
def text(tmp_path):
    """Prepares texts in a file of lines; what is given to it is asked for otherwise."""

    def prepare(tokenizer=None, anew=False, **settings):
        settings = {'dataset': str(path), 'held_out': 0.3, **settings}
        cache = tmp_path / 'cache'
        return prepared_data(Settings(**settings), tokenizer or Tokenizer(Bytes()), cache_dir=cache, anew=anew)

    path = tmp_path / 'texts.jsonl'
    path.write_text(''.join(json.dumps({'text': f'text {i}', 'body': f'body {i}'}) + '\n' for i in range(50)))
    prepare.path = path
    return prepare


def test_tokenised_once(text):
    counting = CountingBytes()
    first, second = text(Tokenizer(counting)), text(Tokenizer(counting))
    assert first == second and counting.count == 50
    assert first.parent.name == 'tokens' and first.name.split('-')[-2].endswith('texts.jsonl')


def test_what_is_asked_for_otherwise_has_a_folder_of_its_own(text):
    folders = {text(), text(text_feature='body'), text(held_out=0.4), text(invalid_text='skip')}
    os.utime(text.path, ns=(1, 1))
    folders.add(text())
    text.path.write_text(text.path.read_text() + '{"text": "more"}\n')
    folders.add(text())
    assert len(folders) == 6


def truncate(folder):
    path = folder / 'train-00000.tokens'
    path.write_bytes(path.read_bytes()[:-2])


def lose_tokens(folder):
    (folder / 'train-00000.tokens').unlink()


def lose_the_manifest(folder):
    (folder / 'manifest.json').unlink()


def garble_the_manifest(folder):
    (folder / 'manifest.json').write_bytes(b'\xff\x00')


def replace_the_manifest(folder):
    (folder / 'manifest.json').write_text('[]')


def change_a_count(folder):
    contents = json.loads((folder / 'manifest.json').read_text())
    contents['splits']['train']['num_bytes'] += 1
    (folder / 'manifest.json').write_text(json.dumps(contents))


@pytest.mark.parametrize(
    'damage', [truncate, lose_tokens, lose_the_manifest, garble_the_manifest, replace_the_manifest, change_a_count]
)
def test_a_damaged_folder_is_written_anew(text, damage):
    before = manifest.read_manifest(text())
    counting = CountingBytes()
    damage(text())
    assert manifest.read_manifest(text(Tokenizer(counting))) == before
    assert counting.count == 50


def test_a_folder_is_written_anew_if_asked_for(text):
    """As where a shard is found to be another than its SHA-256 says."""
    folder = text()
    before = tokens(folder)
    path = folder / 'train-00000.tokens'
    path.write_bytes(bytes(path.stat().st_size))
    assert tokens(text()) != before, 'sizes alone tell nothing'
    assert tokens(text(anew=True)) == before


def test_an_interruption_is_gone_on_from(text, monkeypatch):
    class Interrupted(CountingBytes):
        def encode(self, text):
            if self.count == 30:
                raise KeyboardInterrupt
            return super().encode(text)

    monkeypatch.setattr(preparing, 'SHARD_BYTES', 1)
    with pytest.raises(KeyboardInterrupt):
        text(Tokenizer(Interrupted()))
    assert manifest.read_manifest(text()).is_complete


def test_a_process_waits_for_another(text, capsys):
    """Which is preparing the same folder."""
    folder = text()
    (folder / 'manifest.json').unlink()
    with preparing._locked(folder, waits=False):
        waiting = threading.Thread(target=text)
        waiting.start()
        while 'waiting for another process' not in (said := capsys.readouterr().out):
            time.sleep(0.01)
        assert f'process {os.getpid()} on' in said and not (folder / 'manifest.json').exists()
    waiting.join()
    assert manifest.read_manifest(folder).is_complete


def test_another_dataset_of_the_same_name_has_its_own_tokens(tmp_path, monkeypatch):
    def prepare(data_dir):
        settings = Settings('tiny_text/plain', 'document', validation_split='test', data_dir=data_dir)
        return prepared_data(settings, Tokenizer(Bytes()), cache_dir=tmp_path / 'cache')

    TinyText(data_dir=tmp_path / 'a', file_format='array_record').download_and_prepare()
    folder = prepare(tmp_path / 'a')
    assert tokens(folder) == byte_tokens(DOCUMENTS['train']) and tokens(folder, 'validation') == byte_tokens(
        DOCUMENTS['test']
    )
    (tmp_path / 'a').rename(tmp_path / 'b')
    assert prepare(tmp_path / 'b') == folder, 'the same files elsewhere'
    monkeypatch.setitem(DOCUMENTS, 'test', ['other'])
    TinyText(data_dir=tmp_path / 'c', file_format='array_record').download_and_prepare()
    assert tokens(prepare(tmp_path / 'c'), 'validation') == byte_tokens(['other'])


def test_the_environment_says_where(tmp_path, monkeypatch, text):
    monkeypatch.setenv('GAUSSQ_CACHE', str(tmp_path / 'elsewhere'))
    folder = prepared_data(Settings(str(text.path), held_out=0.3), Tokenizer(Bytes()))
    assert pathlib.Path(tmp_path / 'elsewhere' / 'tokens') == folder.parent
