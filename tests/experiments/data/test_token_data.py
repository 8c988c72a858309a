"""Prepared folders: opened as they were written, or refused in a line."""

import dataclasses
import os
import resource

import numpy as np
import pytest
from token_folders import write_prepared

from experiments.data import special_tokens
from experiments.data.preparation.manifest import read_manifest, write_manifest
from experiments.data.token_data import open_prepared
from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes

SHARDS = [np.arange(200), np.arange(50, 250), np.arange(9)]
CHATS = [(np.arange(10), np.arange(10) % 2, [4, 6]), (np.arange(5), [0, 1, 1, 0, 1], [5])]


def opened(folder, split='train', tokenizer=None):
    return open_prepared(folder, split, tokenizer or Tokenizer(Bytes()), folder.parent / 'cache')


@pytest.mark.parametrize('dtype', ['uint16', 'uint32'])
def test_text(tmp_path, dtype):
    data = opened(write_prepared(tmp_path / 'out', dtype, train=SHARDS, validation=SHARDS[:1]))
    assert [shard.dtype for shard in data.shards] == 3 * [np.dtype(dtype)]
    assert all(isinstance(shard, np.memmap) for shard in data.shards)
    np.testing.assert_array_equal(np.concatenate(data.shards), np.concatenate(SHARDS))
    assert (data.num_tokens, data.num_bytes, data.num_documents) == (409, 3 * 409, 3)
    assert (data.document_start, data.bytes_per_token, data.masks) == (256, 3.0, None)


def test_chats(tmp_path):
    data = opened(write_prepared(tmp_path / 'out', train=CHATS, validation=CHATS))
    np.testing.assert_array_equal(np.concatenate(data.masks), np.concatenate([CHATS[0][1], CHATS[1][1]]))
    assert data.document_lengths.tolist() == [4, 6, 5]
    assert data.num_learned == 8 and data.bytes_per_token == 45 / 8


def test_what_identifies_a_split_does_not_depend_on_its_shards(tmp_path):
    whole = opened(write_prepared(tmp_path / 'whole', train=[np.arange(200)], validation=SHARDS))
    parts = opened(write_prepared(tmp_path / 'parts', train=np.split(np.arange(200), [7, 90]), validation=SHARDS))
    other = opened(write_prepared(tmp_path / 'other', train=[np.arange(1, 201)], validation=SHARDS))
    assert whole.sha256 != parts.sha256  # of other counts of documents
    assert len({whole.sha256, parts.sha256, other.sha256}) == 3


def test_another_tokenizer(tmp_path):
    folder = write_prepared(tmp_path / 'out', train=SHARDS, validation=SHARDS)
    framed = Tokenizer(Bytes(), special_tokens.resolve(Bytes(), {**special_tokens.ASK, 'eos_token_id': '10'})[0])
    with pytest.raises(ValueError, match=r"prepared with documents that begin and end with 'of version 0.1'.* '-10'"):
        opened(folder, tokenizer=framed)
    other = Tokenizer(Bytes())
    other.fingerprint = 'other'
    with pytest.raises(ValueError, match=r"prepared with the tokenizer 'bytes.*; the config's is 'other'"):
        opened(folder, tokenizer=other)


def test_no_such_split(tmp_path):
    folder = write_prepared(tmp_path / 'out', train=SHARDS, validation=[])
    with pytest.raises(ValueError, match=r"out has no tokens of the split 'validation'; it has train"):
        opened(folder, 'validation')


def test_damaged_shards(tmp_path):
    folder = write_prepared(tmp_path / 'out', train=SHARDS, validation=SHARDS)
    shard = folder / 'train-00001.tokens'
    contents = bytearray(shard.read_bytes())
    shard.write_bytes(contents[:-2])
    with pytest.raises(ValueError, match=r'train-00001.tokens has 398 bytes'):
        opened(folder)
    contents[7] ^= 1
    shard.write_bytes(contents)
    with pytest.raises(OSError, match=r'train-00001.tokens is damaged: its SHA-256 is'):
        opened(folder)
    opened(folder, 'validation')


def test_more_shards_than_files_may_be_open(tmp_path):
    folder = write_prepared(tmp_path / 'out', train=[np.arange(9)] * 60, validation=SHARDS)
    before, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 30, before[1]))
    try:
        assert opened(folder).num_tokens == 540
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_held_out_documents(tmp_path):
    """Splits of one pass over the sources are by a hash; those of two are of the sources."""
    folder = write_prepared(tmp_path / 'out', train=SHARDS[:1], validation=SHARDS[:1])
    manifest = dataclasses.replace(read_manifest(folder), made_of={'held_out': 0.25})
    write_manifest(folder, manifest)
    assert opened(folder).held_out == 0.25
    shards = tuple(dataclasses.replace(shard, ends=(1, 0, 0)) for shard in manifest.splits['validation'].shards)
    validation = dataclasses.replace(manifest.splits['validation'], shards=shards)
    write_manifest(folder, dataclasses.replace(manifest, splits={**manifest.splits, 'validation': validation}))
    assert opened(folder).held_out is None
