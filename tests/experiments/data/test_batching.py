"""Batches: every sequence once an epoch, in an order that only the seed decides, on any number of processes."""

import json
import threading
from fractions import Fraction

import grain
import numpy as np
import pytest

from experiments.data.batching import READ_OPTIONS, train_iterator, validation_batches
from experiments.data.rows import TextRows
from experiments.data.token_data import in_memory


def rows_of(tokens, sequence_length=8):
    return TextRows(in_memory(tokens), sequence_length)


def take(iterator, count: int) -> np.ndarray:
    return np.stack([next(iterator)['tokens'] for _ in range(count)])


def iterator_of(num_sequences=37, *, global_batch_size=4, sequence_length=8, seed=0, **options):
    rows = rows_of(np.arange(num_sequences * sequence_length + 1, dtype=np.uint16), sequence_length)
    return train_iterator(rows, global_batch_size=global_batch_size, seed=seed, **options)


def version_0_1(num_sequences, global_batch_size=4, sequence_length=8, seed=0, rows=slice(None)):
    """The batches that Grain alone makes, as in earlier versions."""
    tokens = np.arange(num_sequences * sequence_length + 1, dtype=np.uint16)
    sequences = np.lib.stride_tricks.sliding_window_view(tokens, sequence_length + 1)[::sequence_length]
    shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    dataset = grain.MapDataset.range(len(sequences)).shuffle(shuffle_seed).repeat()
    dataset = dataset.batch(global_batch_size, drop_remainder=True)
    dataset = dataset.map(lambda indices: {'tokens': sequences[indices[rows]].astype(np.int32)})
    return iter(dataset.to_iter_dataset(READ_OPTIONS))


@pytest.mark.parametrize('seed', [0, 3, 2**40 + 1])
@pytest.mark.parametrize(('num_sequences', 'global_batch_size'), [(1, 4), (2, 1), (37, 4), (64, 100), (1000, 8)])
def test_batches_are_those_of_earlier_versions(num_sequences, global_batch_size, seed):
    before = version_0_1(num_sequences, global_batch_size, seed=seed)
    now = iterator_of(num_sequences, global_batch_size=global_batch_size, seed=seed)
    np.testing.assert_array_equal(take(now, 30), take(before, 30))
    assert now.get_state() == before.get_state()


def test_state_of_an_earlier_version_is_taken():
    before = version_0_1(37)
    take(before, 11)
    state = json.loads(json.dumps(before.get_state()))
    now = iterator_of()
    now.set_state(state)
    np.testing.assert_array_equal(take(now, 20), take(before, 20))


def test_only_this_processes_rows_are_read(monkeypatch):
    asked = []
    read = TextRows.read
    monkeypatch.setattr(TextRows, 'read', lambda self, indices: asked.append(len(indices)) or read(self, indices))
    take(iterator_of(global_batch_size=8, process_index=1, process_count=4), 3)
    assert set(asked) == {2}


def test_rows_are_the_sequences():
    batches = take(iterator_of(), 20)
    assert batches.shape == (20, 4, 9)
    assert batches.dtype == np.int32
    assert np.all(batches[..., 0] % 8 == 0)
    assert np.all(batches == batches[..., :1] + np.arange(9))


@pytest.mark.parametrize('num_sequences', [1, 2, 37, 64, 1000])
def test_each_epoch_is_another_permutation(num_sequences):
    epochs = (take(iterator_of(num_sequences, global_batch_size=1), 3 * num_sequences)[:, 0, 0] // 8).reshape(3, -1)
    for epoch in epochs:
        assert sorted(epoch) == list(range(num_sequences))
    if num_sequences > 2:
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert list(epochs[0]) != list(range(num_sequences))


def test_shuffle_is_global():
    # Not within a window: where a sequence comes says nothing about which it is.
    order = take(iterator_of(8000, global_batch_size=1), 8000)[:, 0, 0] // 8
    assert abs(np.corrcoef(order, np.arange(8000))[0, 1]) < 0.05
    assert np.median(np.abs(np.diff(order))) > 1000


def test_batches_go_on_over_the_end_of_an_epoch():
    ones = take(iterator_of(global_batch_size=1), 120).reshape(30, 4, 9)
    np.testing.assert_array_equal(take(iterator_of(global_batch_size=4), 30), ones)


def test_tokens_that_fill_no_sequence_are_left_out():
    tokens = np.arange(8 * 5 + 8)
    batches = train_iterator(rows_of(tokens), global_batch_size=5, seed=0)
    assert sorted(next(batches)['tokens'][:, 0]) == [0, 8, 16, 24, 32]


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_batch_does_not_depend_on_the_number_of_processes(process_count):
    parts = [
        take(iterator_of(global_batch_size=8, process_index=i, process_count=process_count), 12)
        for i in range(process_count)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), take(iterator_of(global_batch_size=8), 12))


def test_seeds():
    def first(seed):
        return take(iterator_of(100, global_batch_size=100, seed=seed), 2)

    np.testing.assert_array_equal(first(7), first(7))
    batches = [first(seed) for seed in (0, 1, 2, 2**32, 2**40 + 1)]
    # No two epochs of any two seeds agree: seed s's second epoch isn't seed s + 1's first.
    assert len({epoch.tobytes() for batch in batches for epoch in batch}) == 10


@pytest.mark.parametrize('stop', [0, 1, 9, 10, 25])
def test_restart_from_a_state_gives_the_next_batch(stop):
    uninterrupted = take(iterator_of(), 40)
    stopped = iterator_of()
    for _ in range(stop):
        next(stopped)
    state = json.loads(json.dumps(stopped.get_state()))
    restarted = iterator_of()
    next(restarted)
    restarted.set_state(state)
    np.testing.assert_array_equal(take(restarted, 40 - stop), uninterrupted[stop:])
    assert restarted.get_state() == stopped.get_state() | {'next_index': 40}


def test_any_step_can_be_reached_at_once():
    iterator = iterator_of()
    grain.experimental.set_next_index(iterator, 25)
    np.testing.assert_array_equal(take(iterator, 5), take(iterator_of(), 30)[25:])


def test_close_ends_the_thread():
    before = threading.enumerate()  # those of runs that ended early are among them
    iterator = iterator_of()
    next(iterator)
    threads = [thread for thread in threading.enumerate() if 'grain' in thread.name and thread not in before]
    assert threads
    iterator.close()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'global_batch_size': 0}, 'global_batch_size=0; allowed: positive multiples of process_count=1'),
        ({'global_batch_size': 6, 'process_count': 4}, 'global_batch_size=6; .* multiples of process_count=4'),
        ({'process_index': 2, 'process_count': 2}, 'process_index=2; allowed: 0 to 1'),
        ({'process_index': -1}, 'process_index=-1; allowed: 0 to 0'),
        ({'sequence_length': 0}, 'sequence_length=0; allowed: 1 to 99'),
        ({'sequence_length': 100}, 'sequence_length=100; allowed: 1 to 99'),
        ({'seed': -1}, 'seed=-1; allowed: non-negative'),
        ({'max_batches': 0}, 'max_batches=0; allowed: None or a positive integer'),
    ],
)
def test_wrong_sizes(options, message):
    options = {'global_batch_size': 4, **options}
    sequence_length, tokens = options.pop('sequence_length', 8), np.arange(100)
    if 'max_batches' not in options:
        with pytest.raises(ValueError, match=message):
            train_iterator(rows_of(tokens, sequence_length), **{'seed': 0, **options})
    if 'seed' not in options:
        with pytest.raises(ValueError, match=message):
            validation_batches(rows_of(tokens, sequence_length), **options)


# Validation batches


@pytest.mark.parametrize('process_count', [1, 2, 4])
@pytest.mark.parametrize('num_tokens', [9, 33, 65, 100, 8 * 37 + 1])
def test_validation_covers_every_sequence_once(num_tokens, process_count):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    parts = [
        list(validation_batches(rows_of(tokens), global_batch_size=4, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    assert len({len(part) for part in parts}) == 1
    batches = [
        {key: np.concatenate([batch[key] for batch in step]) for key in ('tokens', 'mask')} for step in zip(*parts)
    ]
    assert {(b['tokens'].shape, b['mask'].shape) for b in batches} == {((4, 9), (4, 8))}
    assert {(b['tokens'].dtype, b['mask'].dtype) for b in batches} == {(np.dtype(np.int32), np.dtype(np.float32))}
    rows, mask = (np.concatenate([batch[key] for batch in batches]) for key in ('tokens', 'mask'))
    num_sequences = (num_tokens - 1) // 8
    assert len(rows) == -(-num_sequences // 4) * 4
    assert np.all(mask[:num_sequences] == 1)
    assert np.all(mask[num_sequences:] == 0)
    assert np.all(rows[num_sequences:] == 0)
    # In order, and every token but the first predicted once.
    np.testing.assert_array_equal(rows[:num_sequences, 1:].ravel(), np.arange(1, num_sequences * 8 + 1))
    np.testing.assert_array_equal(rows[:num_sequences, 0], np.arange(num_sequences) * 8)


def test_validation_is_the_same_at_each_pass():
    batches = validation_batches(rows_of(np.arange(100)), global_batch_size=4)
    first, second = ([batch['tokens'] for batch in batches] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ('max_batches', 'first_tokens'),
    [
        (1, [0, 24, 48, 72]),  # of the twelve sequences, every third
        (2, [0, 8, 24, 32, 48, 56, 72, 80]),  # eight of the twelve
        (3, range(0, 96, 8)),
        (100, range(0, 96, 8)),
        (None, range(0, 96, 8)),
    ],
)
def test_max_batches_spreads_evenly_over_the_split(max_batches, first_tokens):
    batches = validation_batches(rows_of(np.arange(100)), global_batch_size=4, max_batches=max_batches)
    rows = np.concatenate([batch['tokens'] for batch in batches])
    np.testing.assert_array_equal(rows[:, 0], first_tokens)


class Masked:
    """Rows with all that rows can have: the first token says which they are."""

    def __len__(self):
        return 6

    def read(self, indices):
        tokens = np.repeat(indices[:, None], 9, axis=1).astype(np.int32)
        return {'tokens': tokens, 'mask': tokens[:, 1:] % 2 + np.float32(0), 'segments': tokens[:, 1:] + 1}


def test_rows_keep_their_masks_and_segments():
    batch = next(train_iterator(Masked(), global_batch_size=6, seed=0))
    np.testing.assert_array_equal(batch['mask'], batch['tokens'][:, 1:] % 2)
    np.testing.assert_array_equal(batch['segments'], batch['tokens'][:, 1:] + 1)
    _, last = validation_batches(Masked(), global_batch_size=4)
    np.testing.assert_array_equal(last['mask'][:, 0], [0, 1, 0, 0])
    np.testing.assert_array_equal(last['segments'][:, 0], [5, 6, 0, 0])


# Mixtures

WEIGHTS = {'a': Fraction(7, 10), 'b': Fraction(3, 10)}


def mixture_of(seed=0, names='ab', sizes=(37, 11), **options):
    """Tokens of b are 1000 and more."""
    rows = {
        name: rows_of(1000 * place + np.arange(8 * size + 1, dtype=np.uint16))
        for place, (name, size) in enumerate(zip(names, sizes))
    }
    weights = dict(zip(names, WEIGHTS.values()))
    return train_iterator(rows, weights, **{'global_batch_size': 8, 'seed': seed, **options})


def test_sources_have_their_weights_and_epochs():
    """Each is seen whole before any of its sequences is seen again, each time in another order."""
    firsts = take(mixture_of(global_batch_size=10), 40)[..., 0]
    np.testing.assert_array_equal(np.sum(firsts >= 1000, axis=1), 3)
    for of_source, size in ((firsts[firsts < 1000] // 8, 37), ((firsts[firsts >= 1000] - 1000) // 8, 11)):
        epochs = of_source[: len(of_source) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(size), (len(epochs), 1)))
        assert len({epoch.tobytes() for epoch in epochs}) == len(epochs) > 5


def test_a_mixture_of_one_is_that_one():
    rows = rows_of(np.arange(37 * 8 + 1, dtype=np.uint16))
    alone = train_iterator({'web': rows}, {'web': Fraction(1)}, global_batch_size=4, seed=0)
    np.testing.assert_array_equal(take(alone, 20), take(iterator_of(), 20))


def test_orders_of_sources_depend_on_their_names_and_the_seed():
    first, second = (take(mixture_of(names=names, sizes=(37, 37)), 20)[..., 0] for names in ('ab', 'ac'))
    np.testing.assert_array_equal(first[first < 1000], second[second < 1000])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, take(mixture_of(seed=1, sizes=(37, 37)), 20)[..., 0])
    of_both = first[first >= 1000] - 1000, first[first < 1000]
    assert not np.array_equal(of_both[0][:37], of_both[1][:37])


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_a_mixture_goes_on_with_another_number_of_processes(process_count):
    whole = take(mixture_of(), 30)
    stopped = mixture_of(process_index=1, process_count=2)
    take(stopped, 13)
    state = json.loads(json.dumps(stopped.get_state()))
    parts = []
    for index in range(process_count):
        part = mixture_of(process_index=index, process_count=process_count)
        part.set_state(state)
        parts.append(take(part, 17))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[13:])


def test_weights_of_other_sources():
    rows = rows_of(np.arange(100))
    with pytest.raises(ValueError, match=r"weights are of \['a', 'b'\]; allowed: of the sources, \['a'\]"):
        train_iterator({'a': rows}, WEIGHTS, global_batch_size=4, seed=0)
