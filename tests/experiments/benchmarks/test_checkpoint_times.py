"""The benchmark of checkpoints saves and restores the same in both ways, and says what it read."""

import sys

import jax
import pytest
from small_experiments import ONE_DEVICE, VOCABULARY, on_mesh, small_config

from experiments.benchmarks import checkpoint_times
from experiments.benchmarks.checkpoint_times import benchmark


def test_both_ways_are_timed(monkeypatch):
    monkeypatch.setattr(checkpoint_times, 'UPDATES', 2)
    with on_mesh(ONE_DEVICE):
        [(results, text)] = benchmark(small_config(), turns=1, vocab_size=VOCABULARY)
    ways = {'Orbax', 'ours'}
    assert {what: set(times) for what, times in results['times'].items()} == {
        'save returns': ways,
        'save, updates': ways | {'no save'},
        'save, whole': ways,
        'restore': ways,
    }
    assert all(times['Orbax']['ratio'] == 1 for times in results['times'].values())
    assert results['bytes'] > 3 * 4 * 0.9 * results['parameters']
    if sys.platform == 'linux':
        for row in results['times']['restore'].values():
            assert row['rchar'] > 0 and row['read_bytes'] >= 0
    title, _, *rows = text.splitlines()
    assert title.startswith(f'{small_config().name}, a state of 0.00 GB, ')
    assert [row.split('  ')[0] for row in rows] == ['save returns'] * 2 + ['save, updates'] * 3 + [
        'save, whole'
    ] * 2 + ['restore'] * 2


def test_a_wrong_restore_is_an_error(monkeypatch):
    restore = checkpoint_times.Checkpointer.restore

    def wrong(self, targets):
        restored = restore(self, targets)
        return restored._replace(state=jax.tree.map(lambda leaf: leaf + 1, restored.state))

    monkeypatch.setattr(checkpoint_times, '_time_saves', lambda *_: {})
    monkeypatch.setattr(checkpoint_times.Checkpointer, 'restore', wrong)
    with on_mesh(ONE_DEVICE), pytest.raises(RuntimeError, match='ours: what was restored is not what was saved'):
        checkpoint_times.time_checkpoints(small_config(), 1, vocab_size=VOCABULARY)
