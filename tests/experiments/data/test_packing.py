"""Rows of whole documents: each document is there once, whole, with its mask; the packing is best fit decreasing."""

import numpy as np
import pytest

from experiments.data.packing import PackedRows, best_fit_decreasing
from experiments.data.token_data import TokenData


def make_chats(lengths, *, seed=0, shards=1, learned=None):
    """Documents of random tokens, of which each learns its last third; one's shards may end within a document."""
    generator = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.uint32)
    tokens = generator.integers(1, 60_000, lengths.sum()).astype(np.uint16)
    masks = [np.arange(n) >= n - (n + 2) // 3 for n in lengths.astype(int)] if learned is None else learned
    mask = np.concatenate(masks).astype(np.uint8)
    split = lambda array: tuple(np.array_split(array, shards))
    data = TokenData(split(tokens), 1, len(lengths), '', 0, masks=split(mask), document_lengths=lengths)
    ends = np.cumsum(lengths)[:-1]
    return data, np.split(tokens, ends), np.split(mask, ends)


def slow_best_fit_decreasing(lengths, capacity):
    """One document at a time, all rows looked at."""
    rooms, rows = [], np.empty(len(lengths), int)
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= lengths[document]]
        if not fitting:
            rooms.append(capacity)
            fitting = [(capacity, len(rooms) - 1)]
        _, row = min(fitting)
        rooms[row] -= lengths[document]
        rows[document] = row
    return rows, rooms


@pytest.mark.parametrize('seed', range(12))
def test_the_packing_is_best_fit_decreasing(seed):
    """As many rows as one that places one document after the other, with the same room left."""
    generator = np.random.default_rng(seed)
    capacity = int(generator.integers(1, 60))
    lengths = generator.integers(1, capacity + 1, generator.integers(1, 300))
    rows = best_fit_decreasing(lengths, capacity)
    used = np.bincount(rows, weights=lengths)
    _, rooms = slow_best_fit_decreasing(lengths, capacity)
    assert used.max() <= capacity and used.min() > 0
    assert sorted(capacity - used) == sorted(rooms)


@pytest.mark.parametrize('shards', [1, 5])
def test_every_document_is_in_a_row_once_and_whole(shards):
    lengths = np.random.default_rng(1).integers(2, 33, 200)
    data, tokens, masks = make_chats(lengths, shards=shards)
    rows = PackedRows(data, 32)
    batch = rows.read(np.arange(len(rows)))
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        'tokens': ((len(rows), 33), 'int32'),
        'mask': ((len(rows), 32), 'float32'),
        'segments': ((len(rows), 32), 'int32'),
    }
    found = []
    for row, mask, segments in zip(*batch.values()):
        padded = np.append(segments, segments[-1] if row[-1] else 0)  # a last token of its own would teach nothing
        assert not mask[np.flatnonzero(np.diff(padded))].any() and not mask[segments == 0].any()
        for number in range(1, padded.max() + 1):
            (at,) = np.nonzero(padded == number)
            found.append((tuple(row[at]), tuple(mask[at[:-1]])))
    assert sorted(found) == sorted((tuple(t), tuple(m[1:].astype(float))) for t, m in zip(tokens, masks))
    assert rows.num_documents == 200 and rows.fullness == lengths.sum() / batch['tokens'].size


def test_long_documents_are_cut_and_those_with_nothing_to_learn_left_out():
    learned = [[0, 1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1], [1, 0, 0], [0, 1]]
    data, tokens, _ = make_chats([7, 6, 3, 2], learned=learned)
    rows = PackedRows(data, 4)
    assert (rows.num_documents, rows.num_cut, rows.num_left_out, len(rows)) == (2, 1, 2, 2)
    batch = rows.read(np.array([1, 0]))
    np.testing.assert_array_equal(batch['tokens'], [[*tokens[3], 0, 0, 0], tokens[0][:5]])
    np.testing.assert_array_equal(batch['mask'], [[1, 0, 0, 0], [1, 0, 0, 0]])
    assert rows.describe() == (
        '2 documents in 2 rows of 5 tokens, 70.0% full; 1 longer documents are cut;'
        ' 2 with nothing to learn there are left out'
    )


def test_many_documents_are_packed_at_once():
    """A hundred thousand take no longer than their sorting: as many steps as lengths, not as documents."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 1, 100_000).astype(int) + 2, 2049)
    rows = best_fit_decreasing(lengths, 2049)
    used = np.bincount(rows, weights=lengths)
    assert used.max() <= 2049 and used.sum() / (len(used) * 2049) > 0.999


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'masks': None}, 'no chats'),
        ({'document_lengths': np.array([3, 3])}, '5 tokens, but documents of 6'),
        (
            {'masks': (np.array([1, 0, 0, 1, 0]),), 'source': 'chats, validation'},
            r'^chats, validation: none of 2 documents .* = 9: give a larger --config.sequence_length$',
        ),
    ],
)
def test_what_cannot_be_packed_is_one_line(change, message):
    fields = {'masks': (np.ones(5, np.uint8),), 'document_lengths': np.array([3, 2]), **change}
    with pytest.raises(ValueError, match=message):
        PackedRows(TokenData((np.arange(5),), 1, 2, '', 0, **fields), 8)
    with pytest.raises(ValueError, match='sequence_length=0'):
        PackedRows(make_chats([3])[0], 0)
