"""Batches are timed beside plain copies of the same tokens."""

import numpy as np
import pytest

from experiments.benchmarks import data_times


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data_times, 'BATCH_SIZE', 4)
    monkeypatch.setattr(data_times, 'LENGTH', 16)


def test_ways(tmp_path, small):
    for name in 'ab':
        np.arange(3000, dtype='<u2').tofile(tmp_path / f'{name}.tokens')
    ((results, text),) = data_times.benchmark(str(tmp_path), 3)
    assert results['bytes'] == 12_000
    for cache in ('cold', 'warm'):
        ways = results['caches'][cache]
        assert list(ways) == ['a plain copy', 'rows', 'batches'] and ways['a plain copy']['ratio'] == 1
        assert all(f'{name}, {cache}' in text for name in ways)


def test_the_plain_copy_copies_the_sequences(tmp_path, small):
    data = data_times.in_memory(np.arange(600, dtype=np.uint16))
    indices = np.array([3, 0, 30])
    copied = data_times._plain_copy(data)(indices)
    np.testing.assert_array_equal(copied, data_times.TextRows(data, 16).read(indices)['tokens'])


def test_no_tokens(tmp_path):
    with pytest.raises(ValueError, match='has no files'):
        next(data_times.benchmark(str(tmp_path), 1))
