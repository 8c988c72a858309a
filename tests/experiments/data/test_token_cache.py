"""From text to tokens: every document, in order, tokenised once, and never from a damaged file."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from small_datasets import DOCUMENTS, TinyText, byte_tokens

from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes


def test_tokens_of_version_0_1_are_read(load):
    """Their counts lack those of unusual documents, and their SHA-256 is of the same."""
    data = load()
    (file,) = pathlib.Path(data.tokens.filename).parent.glob('*.json')
    contents = json.loads(file.read_text())
    assert contents.pop('num_empty') == DOCUMENTS['train'].count('') and contents.pop('num_invalid') == 0
    assert contents.pop('unusual_sha256')
    file.write_text(json.dumps(contents))
    again = load()
    assert again.sha256 == data.sha256 and again.num_empty is None


@pytest.mark.parametrize(
    'change', [{'num_empty': 7}, {'num_empty': '0'}, {'unusual_sha256': None}, {'num_invalid': None}]
)
def test_counts_that_were_changed_are_counted_anew(load, change):
    data = load()
    (file,) = pathlib.Path(data.tokens.filename).parent.glob('*.json')
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | change))
    assert load().num_empty == data.num_empty and json.loads(file.read_text()) == written


class CountingBytes(Bytes):
    """Bytes, and how many documents were tokenised."""

    count = 0

    def encode(self, text):
        self.count += 1
        return super().encode(text)


class WideBytes(Bytes):
    """More ids than uint16 holds."""

    vocab_size = 70_000
    eos = end_by_name = 69_999
    fingerprint = 'wide'

    def encode(self, text):
        return super().encode(text) + 65_500


@pytest.mark.parametrize('split', ['train', 'test'])
def test_tokens_are_the_documents_in_order(load, split):
    data = load(split)
    assert isinstance(data.tokens, np.memmap)
    assert data.tokens.dtype == np.uint16
    assert data.tokens.tolist() == byte_tokens(DOCUMENTS[split])
    assert data.num_tokens == len(data.tokens)
    assert data.num_documents == len(DOCUMENTS[split])
    assert data.num_bytes == sum(len(text.encode()) for text in DOCUMENTS[split])
    assert data.bytes_per_token == data.num_bytes / len(data.tokens)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.num_bytes = 0


def test_large_vocabulary_is_uint32(load):
    data = load('test', Tokenizer(WideBytes()))
    assert data.tokens.dtype == np.uint32
    assert data.tokens.tolist() == [t + 65_500 if t < 256 else 69_999 for t in byte_tokens(DOCUMENTS['test'])]


def test_split_slices(load):
    assert load('train[:10]').tokens.tolist() == byte_tokens(DOCUMENTS['train'][:10])
    assert load('train[10:]').tokens.tolist() == byte_tokens(DOCUMENTS['train'][10:])


def test_tokenised_once(load):
    counting = CountingBytes()
    tokenizer = Tokenizer(counting)
    first, second = load('train', tokenizer), load('train', tokenizer)
    assert counting.count == 300
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert (first.num_bytes, first.num_documents) == (second.num_bytes, second.num_documents)


def test_another_dataset_of_the_same_name_has_its_own_tokens(load, tmp_path, monkeypatch):
    tokens = load('test').tokens
    monkeypatch.setitem(DOCUMENTS, 'test', ['other'])
    TinyText(data_dir=tmp_path / 'other', file_format='array_record').download_and_prepare()
    assert load('test', data_dir=tmp_path / 'other').tokens.tolist() == byte_tokens(['other']) != tokens.tolist()


def truncate(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    tokens.write_bytes(tokens.read_bytes()[:-2])


def flip_a_bit(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    contents = bytearray(tokens.read_bytes())
    contents[len(contents) // 2] ^= 1
    tokens.write_bytes(contents)


def lose_tokens(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    tokens.unlink()


def lose_metadata(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    metadata.unlink()


def garble_metadata(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    metadata.write_bytes(b'\xff\x00')


def replace_metadata(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    metadata.write_text('[]')


def change_a_count(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    contents = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**contents, 'num_bytes': contents['num_bytes'] + 1}))


@pytest.mark.parametrize(
    'damage',
    [truncate, flip_a_bit, lose_tokens, lose_metadata, garble_metadata, replace_metadata, change_a_count],
)
def test_damaged_cache_is_written_anew(load, tmp_path, damage):
    load()
    (tokens,), (metadata,) = ((tmp_path / 'cache').rglob(f'train*.{kind}') for kind in ('tokens', 'json'))
    damage(tokens, metadata)
    counting = CountingBytes()
    tokenizer = Tokenizer(counting)
    data = load('train', tokenizer)
    assert counting.count == 300
    assert data.tokens.tolist() == byte_tokens(DOCUMENTS['train'])
    assert data.num_bytes == sum(len(text.encode()) for text in DOCUMENTS['train'])


def test_interrupted_tokenisation_leaves_nothing(load, tmp_path):
    class Interrupted(CountingBytes):
        def encode(self, text):
            if self.count == 100:
                raise KeyboardInterrupt
            return super().encode(text)

    with pytest.raises(KeyboardInterrupt):
        load('train', Tokenizer(Interrupted()))
    assert [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == []
    assert load().tokens.tolist() == byte_tokens(DOCUMENTS['train'])


def test_files_are_whole_before_they_have_their_names(load, tmp_path):
    # What a process finds that is killed, or looks, at any moment: no tokens by their name before they are complete.
    class Watching(CountingBytes):
        def encode(self, text):
            assert not list((tmp_path / 'cache').rglob('*.tokens'))
            return super().encode(text)

    load('train', Tokenizer(Watching()))
    assert len(list((tmp_path / 'cache').rglob('*.tokens'))) == 1
