"""The shuffle is Grain's, to the number, so that runs of every version go on with the batches that they had."""

import grain
import numpy as np
import pytest

from experiments.data.shuffling import shuffled


def of_grain(positions, size, seed):
    dataset = grain.MapDataset.range(size).shuffle(seed).repeat()
    return np.array([dataset[int(position)] for position in positions])


def test_every_size_to_300():
    """Some positions of each, by the function that Grain's shuffle is made of."""
    for size in range(1, 301):
        places = np.unique([0, size // 3, size - 1])
        expected = [grain.experimental.index_shuffle(int(i), max_index=size - 1, seed=5, rounds=4) for i in places]
        np.testing.assert_array_equal(shuffled(places, size, 5), expected)


@pytest.mark.parametrize('seed', [0, 1, 2**32 - 1])
def test_small_sizes(seed):
    """All positions of two epochs; with the last seed, the second has seed 0."""
    for size in (1, 2, 3, 7, 64, 299):
        positions = np.arange(2 * size + 1)
        np.testing.assert_array_equal(shuffled(positions, size, seed), of_grain(positions, size, seed))


@pytest.mark.parametrize(
    'size', [2**16 - 1, 2**16, 2**16 + 1, 2**17 + 1, 2**18 + 1, 10**6, 146_484_375, 2**31, 2**32 - 1, 2**32, 2**34]
)
def test_large_sizes(size):
    """Those around a power of two, where the cipher's words become longer, and those of 300 billion tokens."""
    generator = np.random.default_rng(size)
    positions = np.concatenate([generator.integers(0, 5 * size, 50), np.arange(size - 3, size + 3), [0]])
    if size < 2**32:
        np.testing.assert_array_equal(shuffled(positions, size, 7), of_grain(positions, size, 7))
    else:  # Grain takes no more
        assert np.all((shuffled(positions, size, 7) >= 0) & (shuffled(positions, size, 7) < size))


def test_each_epoch_is_a_permutation():
    epochs = shuffled(np.arange(3 * 70_000), 70_000, 5).reshape(3, -1)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(70_000), (3, 1)))
    assert len({epoch.tobytes() for epoch in epochs}) == 3
