"""Paths of leaves, whatever they are boxed in."""

import hashlib

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import gaussq_jax as gq
from gaussq_jax.param_tree import path_hash, short_names

W = jnp.ones((2, 3))


@pytest.mark.parametrize('box', [lambda w: w, lambda w: nn.Partitioned(w, ('data', None)), nnx.Param])
def test_boxes_add_nothing_to_a_path(box):
    assert {path: leaf.shape for path, leaf in gq.leaves_by_path({'layers': [{'w': box(W)}]}).items()} == {
        'layers/0/w': (2, 3)
    }


def test_a_part_of_a_tree_has_the_names_above_it():
    [(path, _)] = jax.tree_util.tree_leaves_with_path({'up': {'w': W}})
    assert gq.leaf_path(path, ('model', 3)) == 'model/3/up/w'
    assert gq.leaf_path((), ('w',)) == 'w' and gq.leaf_path(()) == ''


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="two leaves have the path 'a/b'"):
        gq.leaves_by_path({'a/b': W, 'a': {'b': W}})


def test_the_hash_of_a_path():
    digest = hashlib.sha256(b'up/kernel').digest()
    assert path_hash('up/kernel') == digest[0] + 256 * digest[1] + 256**2 * digest[2] + 256**3 * digest[3]


@pytest.mark.parametrize(
    ('paths', 'names'),
    [
        (['a/attention/out/kernel', 'a/mlp/up/kernel', 'a/mlp/up/kernel'], ['out', 'up']),
        (['a/attention/out/kernel', 'a/mlp/up/kernel', 'b/mlp/up/kernel'], ['a/attention/out', 'a/mlp/up', 'b/mlp/up']),
        (['up', 'up/kernel'], ['up', 'kernel']),  # which are one without 'kernel'
        ([], []),
    ],
)
def test_short_names_keep_paths_apart(paths, names):
    """They name curves and metrics: two leaves of one name would be one."""
    assert short_names(paths) == dict(zip(dict.fromkeys(paths), names))
