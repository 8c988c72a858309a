"""Batches: every sequence once an epoch, in an order that only the seed decides, on any number of processes."""

import json
import threading

import grain
import numpy as np
import pytest

from experiments.data.batching import train_iterator, validation_batches


def take(iterator, count: int) -> np.ndarray:
    return np.stack([next(iterator)['tokens'] for _ in range(count)])


def iterator_of(num_sequences=37, *, global_batch_size=4, sequence_length=8, seed=0, **options):
    tokens = np.arange(num_sequences * sequence_length + 1, dtype=np.uint16)
    return train_iterator(
        tokens, global_batch_size=global_batch_size, sequence_length=sequence_length, seed=seed, **options
    )


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
    batches = train_iterator(tokens, global_batch_size=5, sequence_length=8, seed=0)
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
    iterator = iterator_of()
    next(iterator)
    threads = [thread for thread in threading.enumerate() if 'grain' in thread.name]
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
    options = {'global_batch_size': 4, 'sequence_length': 8, **options}
    tokens = np.arange(100)
    if 'max_batches' not in options:
        with pytest.raises(ValueError, match=message):
            train_iterator(tokens, **{'seed': 0, **options})
    if 'seed' not in options:
        with pytest.raises(ValueError, match=message):
            validation_batches(tokens, **options)


# Validation batches


@pytest.mark.parametrize('process_count', [1, 2, 4])
@pytest.mark.parametrize('num_tokens', [9, 33, 65, 100, 8 * 37 + 1])
def test_validation_covers_every_sequence_once(num_tokens, process_count):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    parts = [
        list(
            validation_batches(
                tokens, global_batch_size=4, sequence_length=8, process_index=i, process_count=process_count
            )
        )
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
    batches = validation_batches(np.arange(100), global_batch_size=4, sequence_length=8)
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
    batches = validation_batches(np.arange(100), global_batch_size=4, sequence_length=8, max_batches=max_batches)
    rows = np.concatenate([batch['tokens'] for batch in batches])
    np.testing.assert_array_equal(rows[:, 0], first_tokens)
