"""Parameter trees of the tests by path: {'a/b/kernel': leaf} <-> {'a': {'b': {'kernel': leaf}}}."""

import hashlib

import jax
import numpy as np
from numpy_weight_sampling import assert_identical

import gaussq_jax as gq

# Of trees too small to tell how their axes are to be read: fused heads, and layers stacked along the first axis.
RULES = (
    gq.MatrixRule('(.*/)?layers/.*(query|key|value)/kernel', (0,), (1,), (2, 3), optional=True),
    gq.MatrixRule('(.*/)?layers/.*out/kernel', (0,), (1, 2), (3,), optional=True),
    gq.MatrixRule('(.*/)?layers/(.*/)?kernel', (0,), (1,), (2,), optional=True),
    gq.MatrixRule('.*(query|key|value)/kernel', (), (0,), (1, 2), optional=True),
    *gq.DEFAULT_RULES,
)


def nest(leaves):
    """A nested dict of {path: leaf}."""
    tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flatten(tree):
    """{path: leaf} of any pytree: key names joined by '/', a trailing 'value' (of a variable or box) dropped."""

    def name(entry):
        return str(next(getattr(entry, part) for part in ('key', 'name', 'idx') if hasattr(entry, part)))

    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [name(entry) for entry in path]
        leaves['/'.join(names[:-1] if names[-1] == 'value' else names)] = leaf
    return leaves


def assert_identical_trees(got, expected):
    """One structure, and every leaf equal bit for bit."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(assert_identical, got, expected)


def leaf_key_data(key, path):
    """The words of a leaf's own key: the first four bytes of the SHA-256 of its path, folded into `key`."""
    path_hash = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], 'little')
    return jax.random.key_data(jax.random.fold_in(key, np.uint32(path_hash)))
