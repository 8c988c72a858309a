"""Sequences are those of the tokens in one piece, however these are cut into shards."""

import numpy as np
import pytest

from experiments.data.rows import TextRows
from experiments.data.token_data import in_memory

TOKENS = np.random.default_rng(0).integers(0, 60_000, 1000).astype(np.uint16)


@pytest.mark.parametrize('cuts', [[], [500], [1, 2, 3, 999], range(10, 1000, 7), [100, 100, 101]])
@pytest.mark.parametrize('sequence_length', [1, 8, 33, 999])
def test_shards(cuts, sequence_length):
    """Sequences that begin in one shard and end in another, or three later; shards of nothing."""
    rows = TextRows(in_memory(TOKENS, shards=tuple(np.split(TOKENS, cuts))), sequence_length)
    assert len(rows) == 999 // sequence_length
    indices = np.random.default_rng(1).permutation(len(rows))
    found = rows.read(indices)
    assert set(found) == {'tokens'} and found['tokens'].dtype == np.int32
    expected = [TOKENS[i * sequence_length : (i + 1) * sequence_length + 1] for i in indices]
    np.testing.assert_array_equal(found['tokens'], expected)


@pytest.mark.parametrize('dtype', ['<u2', '<u4', '<i4'])
def test_types_of_tokens(dtype):
    rows = TextRows(in_memory(TOKENS.astype(dtype)), 9)
    np.testing.assert_array_equal(rows.read(np.array([5]))['tokens'], [TOKENS[45:55].astype(np.int32)])


def test_segments_begin_where_documents_do():
    tokens = np.array([9, 1, 2, 9, 3, 9, 9, 4, 5, 6, 7, 8, 9], np.uint16)
    rows = TextRows(in_memory(tokens, document_start=9), 6, segmented=True)
    found = rows.read(np.array([0, 1]))
    np.testing.assert_array_equal(found['segments'], [[1, 1, 1, 2, 2, 3], [1] * 6])
    assert found['segments'].dtype == np.int32
    np.testing.assert_array_equal(found['tokens'], [tokens[:7], tokens[6:]])


@pytest.mark.parametrize('wrong', [257, 60_000, 2**31, 2**32 - 1])
def test_tokens_that_the_vocabulary_lacks(wrong):
    """Of files that others wrote: in the batch that has one, not in those before."""
    tokens = np.arange(100, dtype=np.uint32)
    tokens[50] = wrong
    rows = TextRows(in_memory(tokens, num_ids=257, source='train.bin'), 10)
    rows.read(np.array([0, 1, 7]))
    with pytest.raises(OSError, match=f'train.bin holds the token {wrong}; the vocabulary has 0 to 256'):
        rows.read(np.array([0, 4]))
