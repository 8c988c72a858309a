"""A checkpoint comes back bit for bit, on any mesh, and a save that fails spoils nothing."""

import contextlib
import errno
import itertools
import json
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from saved_states import (
    CONFIG,
    abstract,
    assert_same_bits,
    flip_bit,
    largest_file,
    restore,
    save_steps,
    small_state,
    step_names,
)

from experiments.checkpoints import checkpointing
from experiments.checkpoints.checkpointing import Checkpointer, SaveError
from experiments.checkpoints.contents import CONTENTS
from experiments.checkpoints.manifests import MANIFEST, find_damage
from experiments.checkpoints.step_directories import newest_whole_step


def make_mesh(*shape):
    return Mesh(np.array(jax.devices()).reshape(shape), ('data', 'fsdp'))


def make_state(mesh):
    """A train state with every kind of leaf that a run has, on a mesh."""
    sharded = NamedSharding(mesh, P('fsdp', None))
    replicated = NamedSharding(mesh, P())
    optimizer = optax.masked(optax.adamw(1e-3), {'dense': True, 'norm': True, 'negative_zeros': True, 'half': False})

    def on_mesh(leaf):
        return leaf if isinstance(leaf.sharding, NamedSharding) else jax.device_put(leaf, replicated)

    key = jax.random.key(3)
    odd_floats = np.array([0x80000000, 0x00000001, 0x7FC12345, 0xFFA00001, 0x7F800000], np.uint32).view(np.float32)
    params = {
        'dense': {'kernel': jax.device_put(jax.random.normal(key, (64, 48)), sharded)},
        'norm': {'scale': jax.device_put(jnp.asarray(odd_floats), replicated)},
        'negative_zeros': jax.device_put(jnp.full((8, 2), -0.0), sharded),
        'half': jax.device_put(jnp.arange(16, dtype=jnp.bfloat16).reshape(8, 2), sharded),
    }
    return {
        'step': jax.device_put(jnp.int32(3), replicated),
        'params': params,
        'bitwidths': {'dense/kernel': jax.device_put(jnp.full((2, 2), 0.75), replicated)},
        'optimizer': jax.tree.map(on_mesh, optimizer.init(params)),
        'noise_key': jax.device_put(key, replicated),
        'keys': jax.device_put(jax.random.split(jax.random.key(7, impl='rbg'), 8), NamedSharding(mesh, P('data'))),
    }


def test_round_trip_keeps_every_bit(tmp_path):
    """Types, dtypes, NaN payloads, the sign of zero, denormals, keys: what resuming exactly needs."""
    state = make_state(make_mesh(2, 4))
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
        assert checkpointer.restore(abstract(state)) is None
        checkpointer.save(3, state, {'next_index': 24, 'epoch': [1, None]}, CONFIG)
        restored = checkpointer.restore(abstract(state))
    assert restored.step == 3
    assert restored.data_state == {'next_index': 24, 'epoch': [1, None]}
    assert_same_bits(restored.state, state)
    assert restored.state['params']['dense']['kernel'].sharding == state['params']['dense']['kernel'].sharding


def test_restores_on_another_mesh_and_on_one_device(tmp_path):
    """The mesh is no part of the state: a run moves between machines."""
    state = make_state(make_mesh(2, 4))
    other = make_mesh(4, 2)
    moved = abstract(state, lambda leaf: NamedSharding(other, leaf.sharding.spec))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, state, {'next_index': 24}, CONFIG)
        on_other = checkpointer.restore(moved)
        on_one = checkpointer.restore(abstract(state, lambda _: None))
    assert on_other.data_state == {'next_index': 24}
    assert_same_bits(on_other.state, state)
    assert on_other.state['params']['dense']['kernel'].sharding == NamedSharding(other, P('fsdp', None))
    assert_same_bits(on_one.state, state)
    assert on_one.state['params']['dense']['kernel'].devices() == {jax.devices()[0]}


def test_training_goes_on_while_a_step_is_saved(tmp_path):
    """The training step donates its buffers: what is written is the state at `save`, not what came after."""
    advance = jax.jit(lambda w: w + 1, donate_argnums=0)
    target = {'w': jax.ShapeDtypeStruct((1024, 512), jnp.float32)}
    w = jnp.zeros((1024, 512))
    with Checkpointer(tmp_path) as checkpointer:
        for step in range(3):
            checkpointer.save(step, {'w': w}, {}, CONFIG)
            for _ in range(3):
                w = advance(w)
            restored = checkpointer.restore(target)
            np.testing.assert_array_equal(restored.state['w'], 3 * step)


def test_manifest_comes_without_another_call(tmp_path):
    """A process that is killed long after a save must leave it whole: nobody has to call `wait`."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, small_state(1), {}, CONFIG)
        deadline = time.monotonic() + 60
        while not (tmp_path / '1').exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert find_damage(tmp_path / '1') is None


def test_damaged_step_can_be_saved_again(two_steps, tmp_path):
    directory = tmp_path / 'checkpoints'
    shutil.copytree(two_steps, directory)
    flip_bit(largest_file(directory / '2'))
    save_steps(directory, [2])
    assert_same_bits(restore(directory).state, small_state(2))


def test_whole_step_is_left_as_it_is(two_steps):
    """A program that saves at its end the step it has just saved must not risk the good one."""
    manifest = (two_steps / '2' / MANIFEST).read_bytes()
    with Checkpointer(two_steps) as checkpointer:
        assert not checkpointer.save(2, small_state(5), {}, CONFIG)
    assert (two_steps / '2' / MANIFEST).read_bytes() == manifest


def test_keeps_the_newest_whole_steps(tmp_path):
    """Damaged steps don't count, and so the last whole one is never deleted for them."""
    save_steps(tmp_path, [1, 2, 3, 4], keep=3)
    assert step_names(tmp_path) == ['2', '3', '4']
    flip_bit(largest_file(tmp_path / '3'))
    (tmp_path / '4' / MANIFEST).unlink()
    save_steps(tmp_path, [5], keep=2)
    assert step_names(tmp_path) == ['2', '3', '4', '5']
    save_steps(tmp_path, [6], keep=2)
    assert step_names(tmp_path) == ['5', '6']
    assert restore(tmp_path).step == 6


def test_a_protected_step_stays(tmp_path):
    """It doesn't count among those that are kept; nor does it stay any longer than it is protected."""
    save_steps(tmp_path, [1, 2, 3], keep=1)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        for step, expected in [(4, ['3', '4']), (5, ['3', '5']), (6, ['3', '6'])]:
            checkpointer.save(step, small_state(step), {}, CONFIG, protected=3)
            checkpointer.wait()
            assert step_names(tmp_path) == expected
        checkpointer.save(7, small_state(7), {}, CONFIG, protected=7)
    assert step_names(tmp_path) == ['7']


def test_steps_of_a_period_stay(tmp_path):
    """Beside the newest; those that they are among count as such."""
    with Checkpointer(tmp_path, keep=2, keep_period=4) as checkpointer:
        for step in range(2, 15, 2):
            checkpointer.save(step, small_state(step), {}, CONFIG)
    assert sorted(map(int, step_names(tmp_path))) == [4, 8, 12, 14]
    with pytest.raises(ValueError, match='keep_period=-1: allowed are numbers of steps, or 0'):
        Checkpointer(tmp_path, keep_period=-1)


def test_going_back(tmp_path):
    """To a step, or to the one before it if that is damaged; what came later can be discarded."""
    save_steps(tmp_path, [1, 2, 3, 4], keep=4)
    with Checkpointer(tmp_path, keep=4) as checkpointer:
        go_back = lambda at_most: checkpointer.restore(small_state(0), at_most=at_most)
        assert [go_back(at_most).step for at_most in (1, 3, 7, None)] == [1, 3, 4, 4]
        assert go_back(0) is None
        flip_bit(largest_file(tmp_path / '3'))
        with pytest.warns(UserWarning, match='skipping the damaged'):
            assert_same_bits(go_back(3).state, small_state(2))
        checkpointer.discard_after(2)
        assert step_names(tmp_path) == ['1', '2'] and newest_whole_step(tmp_path) == 2
        checkpointer.discard_after(0)
        assert step_names(tmp_path) == [] and newest_whole_step(tmp_path) is None


def test_reading_makes_and_removes_nothing(tmp_path):
    """An evaluation may look at a workdir while a run saves there."""
    with Checkpointer(tmp_path / 'none') as checkpointer:
        assert checkpointer.restore(small_state(0)) is None
    assert not (tmp_path / 'none').exists()
    save_steps(tmp_path / 'run', [1])
    (tmp_path / 'run' / '2.writing').mkdir()
    assert restore(tmp_path / 'run').step == 1
    assert step_names(tmp_path / 'run') == ['1', '2.writing']


@contextlib.contextmanager
def file_size_limit(size):
    """Writes past `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_error_surfaces_and_spoils_nothing(tmp_path):
    """An error in the background is raised at the next call, and the step before stays whole."""
    state = {'w': jax.random.normal(jax.random.key(0), (512, 512))}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {}, CONFIG)
        checkpointer.wait()
        with file_size_limit(100_000):
            checkpointer.save(2, state, {}, CONFIG)
            with pytest.raises(SaveError, match=r'2 failed \(older ones are whole\): File too large$'):
                checkpointer.save(3, state, {}, CONFIG)
            assert step_names(tmp_path) == ['1'], 'the room that it took is free again'
        assert newest_whole_step(tmp_path) == 1
        assert find_damage(tmp_path / '1') is None
        assert checkpointer.save(3, state, {}, CONFIG)
        assert_same_bits(checkpointer.restore(abstract(state)).state, state)
    assert step_names(tmp_path) == ['1', '3']


def test_a_failed_save_is_told_without_waiting(tmp_path, monkeypatch):
    """By the first question after it failed, once; before, and after a good one, there is nothing to tell."""
    release, write_manifest = threading.Event(), checkpointing.write_manifest

    def fail(*_):
        assert release.wait(30)
        raise OSError(errno.ENOSPC, 'full')

    with Checkpointer(tmp_path) as checkpointer:
        monkeypatch.setattr(checkpointing, 'write_manifest', fail)
        checkpointer.save(1, small_state(1), {}, CONFIG)
        checkpointer.raise_if_failed()
        release.set()
        deadline = time.monotonic() + 30
        with pytest.raises(SaveError, match=r'/1 failed .*: No space left on device$'):
            while time.monotonic() < deadline:
                checkpointer.raise_if_failed()
                time.sleep(0.01)
        checkpointer.raise_if_failed()
        monkeypatch.setattr(checkpointing, 'write_manifest', write_manifest)
        checkpointer.save(2, small_state(2), {}, CONFIG)
        checkpointer.wait()
        checkpointer.raise_if_failed()
    assert step_names(tmp_path) == ['2']


def test_a_clock_that_is_set_spoils_no_save(tmp_path, monkeypatch):
    """The time of day may jump by hours, forth and back, while a step is saved and restored."""
    time_of_day, jumps = time.time, itertools.cycle((0, 5, -3, 20))
    monkeypatch.setattr(time, 'time', lambda: time_of_day() + 3600 * next(jumps))
    state = {'w': jnp.arange(8.0)}
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state, {}, CONFIG)
        restored = checkpointer.restore(state)
    assert restored.step == 2
    np.testing.assert_array_equal(restored.state['w'], state['w'])


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    """A checkpoint from elsewhere must not run code: pickle and NumPy's pickled arrays are never asked."""
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError('pickle was used')

    for name in ('load', 'loads', 'Unpickler', 'dump', 'dumps', 'Pickler'):
        monkeypatch.setattr(pickle, name, refuse)
    save_steps(tmp_path, [1])
    assert_same_bits(restore(tmp_path).state, small_state(1))
    assert json.loads((tmp_path / '1' / CONTENTS).read_text())['config'] == CONFIG


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match='keep=0'):
        Checkpointer(tmp_path, keep=0)
