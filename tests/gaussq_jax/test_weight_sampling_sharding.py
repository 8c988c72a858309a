"""One weight, one noise: W_hat, dW and db carry the same bits on one device and on any mesh of eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy_weight_sampling import assert_identical, random_bitwidths, random_weights
from parameter_trees import RULES

import gaussq_jax as gq

KEY = jax.random.key(11)
MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2)]
AXES = ('data', 'fsdp', 'tensor')


def make_mesh(sizes):
    return jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(sizes), AXES)


@functools.partial(jax.jit, static_argnames=('noise', 'dtype'))
def sample_with_gradients(key, w, bitwidths, cotangent, noise='rounded_normal', dtype='bfloat16'):
    def sample(w, bitwidths):
        return gq.sample_weights(key, w, bitwidths, noise=noise, dtype=dtype)

    w_hat, pull_back = jax.vjp(sample, w, bitwidths)
    return w_hat, *pull_back(cotangent.astype(dtype))


# How the leaf's axes lie on the mesh, and shapes whose shards are, and are not, whole blocks of 32.
BY_ROW, BY_COLUMN = PartitionSpec(('data', 'fsdp'), 'tensor'), PartitionSpec('tensor', ('data', 'fsdp'))
CASES = [
    ((256, 128), BY_ROW, 'rounded_normal', 'bfloat16'),
    ((128, 256), BY_COLUMN, 'uniform', 'bfloat16'),
    ((80, 144), BY_ROW, 'rounded_normal', 'bfloat16'),
    ((80, 144), BY_ROW, 'uniform', 'float32'),
    ((50, 200), PartitionSpec(None, ('fsdp', 'data')), 'rounded_normal', 'bfloat16'),
    ((8, 72, 40), PartitionSpec('data', 'fsdp', 'tensor'), 'rounded_normal', 'bfloat16'),
]


@pytest.mark.parametrize('sizes', MESHES)
@pytest.mark.parametrize(('shape', 'layout', 'noise', 'dtype'), CASES)
def test_a_mesh_changes_no_bit(sizes, shape, layout, noise, dtype):
    arrays = random_weights(shape), random_bitwidths(shape), random_weights(shape, seed=2)
    expected = sample_with_gradients(KEY, *arrays, noise=noise, dtype=dtype)
    words = jax.random.key_data(KEY)
    assert_identical(expected[0], oracle.sample_weights(words, *arrays[:2], noise=noise, dtype=dtype))

    mesh = make_mesh(sizes)
    sharding, replicated = NamedSharding(mesh, layout), NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put(arrays, (sharding, replicated, sharding))
    got = sample_with_gradients(jax.device_put(KEY, replicated), *placed, noise=noise, dtype=dtype)
    assert not got[0].is_fully_replicated and len(got[0].sharding.device_set) == 8
    for sharded, single in zip(got, expected):
        assert_identical(sharded, single)


@pytest.mark.parametrize('sizes', MESHES)
def test_under_shard_map_the_origin_says_where_a_shard_lies(sizes):
    """Each device samples its own slice; the traced origin comes from its place on the mesh."""
    shape = (2, 256, 512)
    w, bitwidths = random_weights(shape), random_bitwidths(shape)
    cotangent = jnp.asarray(random_weights(shape, seed=2), jnp.bfloat16)
    expected = sample_with_gradients(KEY, w, bitwidths, cotangent)
    mesh = make_mesh(sizes)
    layout = PartitionSpec(None, ('data', 'fsdp'), 'tensor')

    def local(w, bitwidths, cotangent):
        row = jax.lax.axis_index(('data', 'fsdp')) * w.shape[1]
        column = jax.lax.axis_index('tensor') * w.shape[2]

        def sample(w, bitwidths):
            return gq.sample_weights(KEY, w, bitwidths, origin=(0, row, column))

        w_hat, pull_back = jax.vjp(sample, w, bitwidths)
        return w_hat, *pull_back(cotangent)

    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(layout,) * 3, out_specs=(layout,) * 3))
    for got, single in zip(run(w, bitwidths, cotangent), expected):
        assert_identical(got, single)


def collectives(shape):
    """What the devices exchange to sample, and to pull back, a leaf whose rows lie on eight devices."""
    mesh = make_mesh((8, 1, 1))
    by_row, replicated = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
    arrays = random_weights(shape), random_bitwidths(shape), random_weights(shape, seed=2)
    placed = jax.device_put(arrays, (by_row, replicated, by_row))
    program = sample_with_gradients.lower(KEY, *placed).compile().as_text()
    names = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')
    return [name for name in names if name in program]


def test_shards_of_whole_blocks_exchange_nothing():
    """No device needs another's weights or random bits, forward or backward."""
    assert collectives((512, 256)) == []
    assert collectives((80, 256)) != []


def test_rounded_normal_on_a_mesh():
    mesh = make_mesh((2, 2, 2))
    sharding = NamedSharding(mesh, PartitionSpec(('data', 'fsdp'), 'tensor'))
    noise = jax.jit(gq.rounded_normal, static_argnums=1, out_shardings=sharding)(KEY, (80, 144))
    np.testing.assert_array_equal(noise, oracle.rounded_normal(jax.random.key_data(KEY), (80, 144)))


@pytest.mark.parametrize('make', [gq.gaussian_weight_sampling, gq.uniform_weight_sampling])
def test_a_transformed_tree_on_a_mesh(make):
    """A whole parameter tree, scanned and fused-head leaves with it, and the gradient of its state."""
    generator = np.random.default_rng(0)
    shapes = {
        'layers': {'mlp': {'kernel': (4, 48, 80)}, 'attention': {'query': {'kernel': (4, 40, 4, 16)}}},
        'head': {'kernel': (64, 144)},
    }
    params = jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    transform = make(rules=RULES)
    state = transform.init(params)

    def loss(params, state):
        sampled = transform.apply(KEY, params, state)
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(sampled)), sampled

    def run(params, state):
        (_, sampled), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, state)
        return sampled, gradients

    expected = jax.jit(run)(params, state)
    mesh = make_mesh((2, 2, 2))
    layouts = {
        'layers': {
            'mlp': {'kernel': PartitionSpec(None, 'fsdp', 'tensor')},
            'attention': {'query': {'kernel': PartitionSpec(None, 'fsdp', 'tensor')}},
        },
        'head': {'kernel': PartitionSpec(('data', 'fsdp'), 'tensor')},
    }
    placed = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params, layouts)
    got = jax.jit(run)(placed, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
    jax.tree.map(assert_identical, got, expected)
