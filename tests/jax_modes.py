"""Modes of JAX in which nothing may raise, nor change by a bit: 64-bit numbers; no promotion of ranks, of dtypes."""

import contextlib

import jax
import numpy as np

_CONTEXTS = {
    'x64': lambda: jax.enable_x64(True),
    'rank': lambda: jax.numpy_rank_promotion('raise'),
    'dtype': lambda: jax.numpy_dtype_promotion('strict'),
}
_FLAGS = {'jax_enable_x64': True, 'jax_numpy_rank_promotion': 'raise', 'jax_numpy_dtype_promotion': 'strict'}
NAMES = (*_CONTEXTS, 'all')


@contextlib.contextmanager
def in_mode(name):
    """One of these modes, or all together, in this thread."""
    with contextlib.ExitStack() as stack:
        for enter in _CONTEXTS.values() if name == 'all' else [_CONTEXTS[name]]:
            stack.enter_context(enter())
        yield


@contextlib.contextmanager
def in_all_modes_everywhere():
    """All of them, as flags of the process, which its other threads see too."""
    with contextlib.ExitStack() as stack:
        for name, value in _FLAGS.items():
            stack.callback(jax.config.update, name, getattr(jax.config, name))
            jax.config.update(name, value)
        yield


def assert_same_bits(got, expected):
    """Of trees: one structure, one dtype of each leaf, and the same bits."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected)):
        name, leaf, other = jax.tree_util.keystr(path), np.asarray(leaf), np.asarray(other)
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape), name
        assert leaf.tobytes() == other.tobytes(), name
