"""Small states, saved as checkpoints of their own, and what may happen to these."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checkpoints.checkpointing import Checkpointer

CONFIG = {
    'model': {'name': 'llama', 'num_layers': 4, 'hidden_size': 64},
    'method': 'gaussws',
    'optimizer': {'learning_rate': 3e-4},
    'log_every': 10,
}


def abstract(state, sharding_of=lambda leaf: leaf.sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf)), state)


def bits(leaf):
    """The bits of a leaf, with its type and dtype: what has to be equal."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return ('key', str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes())
    return (type(leaf), str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes())


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
        return checkpointer.restore(small_state(0) if state is None else state)


def step_names(directory):
    return sorted(path.name for path in directory.iterdir())


def largest_file(directory):
    files = [path for path in directory.rglob('*') if path.is_file() and 'process_0' in str(path)]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
