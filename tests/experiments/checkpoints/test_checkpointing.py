"""A checkpoint comes back bit for bit, on any mesh, or is refused by name; nothing damaged is ever used."""

import contextlib
import errno
import itertools
import json
import resource
import shutil
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.checkpoints import checkpointing
from experiments.checkpoints.checkpointing import CONTENTS, Checkpointer, SaveError, load_config, newest_step
from experiments.checkpoints.manifests import MANIFEST, find_damage

CONFIG = {
    'model': {'name': 'llama', 'num_layers': 4, 'hidden_size': 64},
    'method': 'gaussws',
    'optimizer': {'learning_rate': 3e-4},
    'log_every': 10,
}
IDENTITY = ('model', 'method')


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
        'step': 3,
        'params': params,
        'bitwidths': {'dense/kernel': jax.device_put(jnp.full((2, 2), 0.75), replicated)},
        'optimizer': jax.tree.map(on_mesh, optimizer.init(params)),
        'noise_key': jax.device_put(key, replicated),
        'keys': jax.device_put(jax.random.split(jax.random.key(7, impl='rbg'), 8), NamedSharding(mesh, P('data'))),
        'tokens': np.arange(3, dtype=np.int64) + 2**40,
    }


def abstract(state, sharding_of=lambda leaf: leaf.sharding):
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf))
            if isinstance(leaf, jax.Array)
            else leaf
        ),
        state,
    )


def bits(leaf):
    """The bits of a leaf, with its type and dtype: what has to be equal."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return ('key', str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes())
    if isinstance(leaf, jax.Array | np.ndarray):
        kind = 'jax' if isinstance(leaf, jax.Array) else 'numpy'
        return (kind, str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes())
    return (type(leaf), leaf)


def assert_same_bits(restored, state):
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.map(bits, restored) == jax.tree.map(bits, state)


def small_state(step):
    return {'step': jnp.int32(step), 'w': jnp.full((300,), step, jnp.float32) + jnp.arange(300) / 7}


def save_steps(directory, steps, keep=3):
    with Checkpointer(directory, keep=keep) as checkpointer:
        for step in steps:
            assert checkpointer.save(step, small_state(step), {'next': step}, CONFIG)


def restore(directory, state=None):
    with Checkpointer(directory) as checkpointer:
        return checkpointer.restore(small_state(0) if state is None else state, config=CONFIG, identity=IDENTITY)


def step_names(directory):
    return sorted(path.name for path in directory.iterdir())


def largest_file(directory):
    files = [path for path in directory.rglob('*') if path.is_file() and 'process_0' in str(path)]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_round_trip_keeps_every_bit(tmp_path):
    """Types, dtypes, NaN payloads, the sign of zero, denormals, keys: what resuming exactly needs."""
    state = make_state(make_mesh(2, 4))
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
        assert checkpointer.restore(abstract(state), config=CONFIG, identity=IDENTITY) is None
        checkpointer.save(3, state, {'next_index': 24, 'epoch': [1, None]}, CONFIG)
        restored = checkpointer.restore(abstract(state), config=CONFIG, identity=IDENTITY)
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
        checkpointer.save(3, state, b'\x00\xff state', CONFIG)
        on_other = checkpointer.restore(moved, config=CONFIG, identity=IDENTITY)
        on_one = checkpointer.restore(abstract(state, lambda _: None), config=CONFIG, identity=IDENTITY)
    assert on_other.data_state == b'\x00\xff state'
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
            restored = checkpointer.restore(target, config=CONFIG, identity=IDENTITY)
            np.testing.assert_array_equal(restored.state['w'], 3 * step)


def test_manifest_comes_without_another_call(tmp_path):
    """A process that is killed long after a save must leave it whole: nobody has to call `wait`."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, small_state(1), {}, CONFIG)
        deadline = time.monotonic() + 60
        while not (tmp_path / '1').exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert find_damage(tmp_path / '1') is None


def test_manifest_is_what_sha256sum_reads(tmp_path):
    """An independent judge of the digests, and that they cover every file."""
    save_steps(tmp_path, [1])
    files = {str(path.relative_to(tmp_path / '1')) for path in (tmp_path / '1').rglob('*') if path.is_file()}
    listed = {line.split('  ')[1] for line in (tmp_path / '1' / MANIFEST).read_text().splitlines()}
    assert listed == files - {MANIFEST}
    assert CONTENTS in listed
    subprocess.run(['sha256sum', '--check', '--strict', MANIFEST], cwd=tmp_path / '1', check=True, capture_output=True)


DAMAGES = {
    'flipped bit': (lambda step: flip_bit(largest_file(step)), 'SHA-256'),
    'flipped bit in the config': (lambda step: flip_bit(step / CONTENTS), 'SHA-256'),
    'truncated file': (
        lambda step: largest_file(step).write_bytes(largest_file(step).read_bytes()[:-1]),
        'SHA-256',
    ),
    'deleted file': (lambda step: largest_file(step).unlink(), 'is missing'),
    'no manifest': (lambda step: (step / MANIFEST).unlink(), f'{MANIFEST} is missing'),
    'empty manifest': (lambda step: (step / MANIFEST).write_text(''), f'is not in {MANIFEST}'),
    'binary manifest': (lambda step: (step / MANIFEST).write_bytes(b'\xff\xfe\x00'), 'is not a manifest'),
    'short manifest': (
        lambda step: (step / MANIFEST).write_text((step / MANIFEST).read_text().split('\n', 1)[1]),
        f'is not in {MANIFEST}',
    ),
    'nothing but an empty manifest': (
        lambda step: [shutil.rmtree(step), step.mkdir(), (step / MANIFEST).touch()],
        f'there is nothing beside {MANIFEST}',
    ),
    'no files': (lambda step: [shutil.rmtree(step), step.mkdir()], f'{MANIFEST} is missing'),
    'a link to its arrays': (
        lambda step: (
            (step / 'state').rename(step.parent / 'elsewhere').parent.joinpath('2/state').symlink_to('../elsewhere')
        ),
        'state is a link',
    ),
    'a link to one more file': (lambda step: (step / 'more').symlink_to(step / MANIFEST), 'more is a link'),
}


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp('two_steps')
    save_steps(directory, [1, 2])
    return directory


@pytest.mark.parametrize('damage, reason', DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_step_is_skipped_for_the_one_before(two_steps, tmp_path, damage, reason):
    """Orbax itself restores a flipped bit without noticing; the warning says which step and why."""
    directory = tmp_path / 'checkpoints'
    shutil.copytree(two_steps, directory)
    damage(directory / '2')
    with pytest.warns(UserWarning) as caught:
        restored = restore(directory)
    [warning] = caught
    assert str(directory / '2') in str(warning.message)
    assert reason in str(warning.message)
    assert restored.step == 1
    assert restored.data_state == {'next': 1}
    assert_same_bits(restored.state, small_state(1))


def test_error_when_no_step_is_whole(two_steps, tmp_path):
    """A run whose checkpoints are all damaged must never start again from the beginning unasked."""
    directory = tmp_path / 'checkpoints'
    shutil.copytree(two_steps, directory)
    for step in ('1', '2'):
        flip_bit(largest_file(directory / step))
    with (
        pytest.warns(UserWarning, match='SHA-256'),
        pytest.raises(ValueError, match='none is whole'),
    ):
        restore(directory)


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


def test_going_back(tmp_path):
    """To a step, or to the one before it if that is damaged; what came later can be discarded."""
    save_steps(tmp_path, [1, 2, 3, 4], keep=4)
    with Checkpointer(tmp_path, keep=4) as checkpointer:
        go_back = lambda at_most: checkpointer.restore(small_state(0), config=CONFIG, identity=(), at_most=at_most)
        assert [go_back(at_most).step for at_most in (1, 3, 7, None)] == [1, 3, 4, 4]
        assert go_back(0) is None
        flip_bit(largest_file(tmp_path / '3'))
        with pytest.warns(UserWarning, match='skipping the damaged'):
            assert_same_bits(go_back(3).state, small_state(2))
        checkpointer.discard_after(2)
        assert step_names(tmp_path) == ['1', '2'] and checkpointer.latest_step() == 2
        checkpointer.discard_after(0)
        assert step_names(tmp_path) == [] and checkpointer.latest_step() is None


def test_newest_step(two_steps, tmp_path):
    """As a message tells it: without a look into the checkpoints, whose reading may take minutes."""
    assert newest_step(two_steps) == 2
    assert newest_step(tmp_path) is newest_step(tmp_path / 'missing') is None


def test_a_config_of_before_is_completed(two_steps):
    """A field that it doesn't have yet counts as its default."""
    complete = lambda stored: {'dtype': 'float32', **stored}
    with Checkpointer(two_steps) as checkpointer:
        restore = lambda dtype, **options: checkpointer.restore(
            small_state(0), config={**CONFIG, 'dtype': dtype}, identity=(*IDENTITY, 'dtype'), **options
        )
        assert restore('float32', complete=complete).step == 2
        with pytest.raises(ValueError, match="dtype: stored 'float32', present 'bfloat16'"):
            restore('bfloat16', complete=complete)
        with pytest.raises(ValueError, match=r"dtype: stored \(absent\), present 'float32'"):
            restore('float32')


def test_another_configs_checkpoint_is_refused(two_steps):
    """Every differing field, with both values, before any array is read; other keys may differ."""
    present = {
        'model': {'name': 'llama', 'num_layers': 8, 'rope': True},
        'method': 'bf16',
        'optimizer': None,
        'log_every': 1,
    }
    with Checkpointer(two_steps) as checkpointer:
        with pytest.raises(ValueError, match='--workdir') as error:
            checkpointer.restore({'w': jnp.zeros(2)}, config=present, identity=IDENTITY)
        same = {**CONFIG, 'log_every': 1}
        assert checkpointer.restore(small_state(0), config=same, identity=IDENTITY).step == 2
    message = str(error.value)
    assert str(two_steps / '2') in message
    for line in (
        'model.num_layers: stored 4, present 8',
        'model.hidden_size: stored 64, present (absent)',
        'model.rope: stored (absent), present True',
        "method: stored 'gaussws', present 'bf16'",
    ):
        assert line in message
    assert 'model.name' not in message
    assert 'log_every' not in message


def test_identity_names_a_key_of_the_config(two_steps):
    with Checkpointer(two_steps) as checkpointer, pytest.raises(ValueError, match='modle'):
        checkpointer.restore(small_state(0), config=CONFIG, identity=('modle',))


def test_another_states_leaves_are_named(tmp_path):
    """Shape, dtype, key implementation, missing and new leaves: in words, not as Orbax puts it."""
    stored = {
        'w': jnp.zeros((4, 8)),
        'step': jnp.int32(0),
        'key': jax.random.key(0),
        'old': jnp.ones(3),
        'same': jnp.ones(2),
    }
    present = {
        'w': jnp.zeros((4, 16)),
        'step': jnp.float32(0),
        'key': jax.random.key(0, impl='rbg'),
        'new': jnp.ones(3),
        'same': jnp.ones(2),
    }
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, stored, {}, CONFIG)
        with pytest.raises(ValueError, match='--workdir') as error:
            checkpointer.restore(abstract(present), config=CONFIG, identity=IDENTITY)
    for line in (
        "w: stored 'float32[4, 8]', present 'float32[4, 16]'",
        "step: stored 'int32[]', present 'float32[]'",
        "key: stored 'key<fry>[]', present 'key<rbg>[]'",
        "old: stored 'float32[3]', present (absent)",
        "new: stored (absent), present 'float32[3]'",
    ):
        assert line in str(error.value)
    assert 'same' not in str(error.value)


def test_load_config(two_steps, tmp_path):
    """Programs that only have a workdir build the model from what the checkpoint says."""
    assert load_config(two_steps) == CONFIG
    with pytest.raises(ValueError, match='holds no checkpoint'):
        load_config(tmp_path)


def test_reading_makes_and_removes_nothing(tmp_path):
    """An evaluation may look at a workdir while a run saves there."""
    with Checkpointer(tmp_path / 'none') as checkpointer:
        assert checkpointer.latest_step() is None
    assert not (tmp_path / 'none').exists()
    save_steps(tmp_path / 'run', [1])
    (tmp_path / 'run' / '2.writing').mkdir()
    assert restore(tmp_path / 'run').step == 1
    assert step_names(tmp_path / 'run') == ['1', '2.writing']


def test_only_an_unfinished_save_is_no_checkpoint(tmp_path):
    """A run killed during its first save starts from the beginning, and says why."""
    (tmp_path / '1.writing').mkdir()
    with pytest.warns(UserWarning, match='1.writing was never finished'):
        assert restore(tmp_path) is None
    save_steps(tmp_path, [1])
    assert step_names(tmp_path) == ['1']


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
        assert checkpointer.latest_step() == 1
        assert find_damage(tmp_path / '1') is None
        assert checkpointer.save(3, state, {}, CONFIG)
        assert_same_bits(checkpointer.restore(abstract(state), config=CONFIG, identity=IDENTITY).state, state)
    assert step_names(tmp_path) == ['1', '3']


def test_a_failed_save_is_told_without_waiting(tmp_path, monkeypatch):
    """By the first question after it failed, once; before, and after a good one, there is nothing to tell."""
    release, write_manifest = threading.Event(), checkpointing.write_manifest

    def fail(directory):
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
        restored = checkpointer.restore(state, config=CONFIG, identity=IDENTITY)
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


@pytest.mark.parametrize(
    'arguments, name',
    [
        ((-1, {'w': np.ones(2)}, {}, {}), 'step=-1'),
        ((1, {'w': np.ones((0, 2))}, {}, {}), 'w'),
        ((1, {'a/b': np.ones(2), 'a': {'b': np.ones(2)}}, {}, {}), 'a/b'),
        ((1, {'w': np.ones(2)}, {1: 2}, {}), 'data_state'),
        ((1, {'w': np.ones(2)}, object(), {}), 'data_state'),
        ((1, {'w': np.ones(2)}, {}, {'schedule': object()}), 'config'),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, name):
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer, pytest.raises(ValueError, match=name):
        checkpointer.save(*arguments)
    assert not (tmp_path / 'checkpoints').exists()


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match='keep=0'):
        Checkpointer(tmp_path, keep=0)
