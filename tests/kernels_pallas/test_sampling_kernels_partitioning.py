"""Kernels of weight sampling on sharded and mapped weights: the bits of one device, and nothing is gathered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy_weight_sampling import random_bitwidths, random_weights

import gaussq_jax as gq
from gaussq_jax import models
from kernels_pallas.weight_sampling import triton

KEY = jax.random.key(11)
KERNEL = 'triton_interpret'
COLLECTIVES = {
    *('all-gather', 'all-reduce', 'all-to-all', 'ragged-all-to-all', 'collective-broadcast', 'collective-permute'),
    *('reduce-scatter', 'send', 'recv'),
}


def make_mesh(axis_type=AxisType.Auto, **sizes):
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(axis_type,) * len(sizes))


def collectives(compiled):
    """What the devices of a compiled program exchange."""
    operations = set(re.findall(r' ([a-z-]+?)(?:-start)?\(', compiled.as_text()))
    return sorted(operations & COLLECTIVES)


def assert_same_bits(got, expected):
    """Of two trees of floats."""

    def check(got, expected):
        got, expected = np.asarray(got), np.asarray(expected)
        assert got.dtype == expected.dtype and got.shape == expected.shape
        unsigned = f'uint{8 * got.itemsize}'
        np.testing.assert_array_equal(got.view(unsigned), expected.view(unsigned))

    jax.tree.map(check, got, expected)


def operands(shape):
    """Weights, bitwidths and a cotangent."""
    return (
        random_weights(shape),
        random_bitwidths(shape),
        np.asarray(jnp.asarray(random_weights(shape, seed=2), jnp.bfloat16)),
    )


def sample(w, bitwidths, cotangent, key=KEY, origin=(0, 0, 0), implementation=KERNEL, **options):
    """W_hat, dW and db."""
    sample = functools.partial(gq.sample_weights, key, origin=origin, implementation=implementation, **options)
    w_hat, pull_back = jax.vjp(sample, w, bitwidths)
    return w_hat, *pull_back(cotangent)


reference = jax.jit(functools.partial(sample, implementation='xla'))


def place(arrays, mesh, layout):
    """Weights and cotangent by the layout; bitwidths too, as far as their blocks can be divided."""
    w, bitwidths, cotangent = arrays
    sharding = NamedSharding(mesh, P(*layout))

    def divides(blocks, axes):
        axes = axes if isinstance(axes, tuple) else (axes,) if axes else ()
        return blocks % int(np.prod([mesh.shape[axis] for axis in axes])) == 0

    blocks = NamedSharding(mesh, P(*(a if divides(n, a) else None for n, a in zip(bitwidths.shape, layout))))
    return jax.device_put(w, sharding), jax.device_put(bitwidths, blocks), jax.device_put(cotangent, sharding)


# --- under jit, on meshes -----------------------------------------------------------------------------

ALIGNED = [
    pytest.param((32, 256), dict(data=8), (None, 'data'), marks=pytest.mark.slow),
    pytest.param((128, 64), dict(data=4, tensor=2), ('data', 'tensor'), marks=pytest.mark.slow),
    ((128, 64), dict(replica=2, data=2, fsdp=2), (('data', 'fsdp'), None)),
    ((4, 32, 64), dict(layer=4, tensor=2), ('layer', None, 'tensor')),
]
UNALIGNED = [
    ((96, 64), dict(data=8), ('data', None)),  # 12 rows a device
    pytest.param((128, 40), dict(data=8), ('data', None), marks=pytest.mark.slow),  # 4 blocks over 8 devices
    ((4, 96, 64), dict(layer=2, data=2, tensor=2), ('layer', 'data', 'tensor')),  # 3 blocks over 2 devices
    pytest.param(
        (64, 64), dict(data=2, tensor=4), ('data', 'tensor'), marks=pytest.mark.slow
    ),  # 2 blocks over 4 devices
]


@pytest.mark.parametrize(('shape', 'sizes', 'layout'), ALIGNED)
def test_aligned_shards_exchange_nothing_and_have_the_bits_of_one_device(shape, sizes, layout):
    """Forward and both gradients; each device keeps the shard that it had."""
    arrays = operands(shape)
    mesh = make_mesh(**sizes)
    placed = place(arrays, mesh, layout)
    compiled = jax.jit(sample).lower(*placed).compile()
    assert collectives(compiled) == []
    results = compiled(*placed)
    assert_same_bits(results, reference(*arrays))
    for result in results:
        assert result.sharding.is_equivalent_to(NamedSharding(mesh, P(*layout)), len(shape))


@pytest.mark.parametrize(('shape', 'sizes', 'layout'), UNALIGNED)
def test_shards_that_cut_blocks_have_the_bits_of_one_device(shape, sizes, layout):
    arrays = operands(shape)
    placed = place(arrays, make_mesh(**sizes), layout)
    assert_same_bits(jax.jit(sample)(*placed), reference(*arrays))


def test_meshes_with_explicit_axes():
    """And the results are sharded as the weights, as far as JAX knows."""
    arrays = operands((128, 64))
    mesh = make_mesh(AxisType.Explicit, data=4, tensor=2)
    with jax.set_mesh(mesh):
        placed = place(arrays, mesh, ('data', 'tensor'))
        compiled = jax.jit(sample).lower(*placed).compile()
        w_hat, dw, db = compiled(*placed)
    assert collectives(compiled) == []
    assert_same_bits((w_hat, dw, db), reference(*arrays))
    assert jax.typeof(w_hat).sharding.spec == jax.typeof(dw).sharding.spec == P('data', 'tensor')


def test_a_kernel_that_xla_knows_nothing_about_gathers_its_weights():
    """The checks above can fail."""
    w = place(operands((256, 64)), make_mesh(data=8), ('data', None))[0][None]
    place_of_w = np.zeros((1, 5), np.uint32)
    row_block, column = np.arange(8, dtype=np.uint32), np.arange(64, dtype=np.uint32)
    bare = functools.partial(triton.forward, noise='rounded_normal', dtype=jnp.bfloat16, interpret=True)
    compiled = jax.jit(bare).lower(place_of_w, row_block, column, w, np.ones((1, 8, 2), np.float32)).compile()
    assert 'all-gather' in collectives(compiled)


# --- inside shard_map ---------------------------------------------------------------------------------


def test_inside_shard_map_the_origin_says_where_a_shard_lies():
    """Without its check of what varies over which axes, for JAX can't interpret kernels with it."""
    arrays = operands((2, 128, 64))
    layout = P(None, 'data', 'tensor')

    def local(w, bitwidths, cotangent):
        row = jax.lax.axis_index('data') * w.shape[1]
        column = jax.lax.axis_index('tensor') * w.shape[2]
        return sample(w, bitwidths, cotangent, origin=(0, row, column))

    mesh = make_mesh(data=4, tensor=2)
    run = jax.shard_map(local, mesh=mesh, in_specs=(layout,) * 3, out_specs=(layout,) * 3, check_vma=False)
    assert_same_bits(jax.jit(run)(*arrays), reference(*arrays))


def test_inside_shard_map_over_some_axes():
    """The others are left to XLA's partitioner, within each shard."""
    arrays = operands((2, 128, 64))
    layout = P('layer')

    def local(w, bitwidths, cotangent):
        return sample(w, bitwidths, cotangent, origin=(jax.lax.axis_index('layer'), 0, 0))

    mesh = make_mesh(layer=2, data=4)
    placed = place(arrays, mesh, ('layer', 'data', None))
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(layout,) * 3, out_specs=(layout,) * 3, axis_names={'layer'}, check_vma=False
    )
    assert_same_bits(jax.jit(run)(*placed), reference(*arrays))


# --- mapped -------------------------------------------------------------------------------------------


def over_keys(sample, w, bitwidths, cotangent):
    keys = jax.random.split(KEY, 4)
    return jax.vmap(lambda *arrays: sample(*arrays), (None, None, None, 0))(w[0], bitwidths[0], cotangent[0], keys)


def over_origins(sample, w, bitwidths, cotangent):
    each = lambda w, b, c, i: sample(w, b, c, origin=(i, 32 * i, 0))
    return jax.vmap(each)(w, bitwidths, cotangent, jnp.arange(4))


def over_weights(sample, w, bitwidths, cotangent):
    """One noise for all; of the bitwidths, one a block for all."""
    return jax.vmap(sample, (0, None, 0))(w, bitwidths[0], cotangent)


def over_weights_and_keys(sample, w, bitwidths, cotangent):
    """Two maps, the inner one over a new last axis of the arrays, of weights with a leading axis."""
    keys = jax.random.split(KEY, 3)
    inner = jax.vmap(lambda w, b, c, key: sample(w, b, c, key), (-1, -1, -1, None), -1)
    last = lambda x: jnp.stack([x, 2 * x], -1)
    return jax.vmap(inner, (None, None, None, 0))(last(w), last(bitwidths), last(cotangent), keys)


@pytest.mark.parametrize(
    'mapped',
    [over_weights_and_keys, *(pytest.param(mapped, marks=pytest.mark.slow) for mapped in (over_keys, over_weights))],
)
def test_vmap(mapped):
    arrays = operands((4, 33, 64))
    got = jax.jit(functools.partial(mapped, sample))(*arrays)
    assert_same_bits(got, jax.jit(functools.partial(mapped, functools.partial(sample, implementation='xla')))(*arrays))


def test_vmap_on_a_mesh_exchanges_nothing():
    """Layers sharded, rows too: a scan-free model of stacked layers."""
    arrays = operands((4, 64, 32))
    placed = place(arrays, make_mesh(layer=4, data=2), ('layer', 'data', None))
    mapped = functools.partial(over_origins, sample)
    compiled = jax.jit(mapped).lower(*placed).compile()
    assert collectives(compiled) == []
    assert_same_bits(compiled(*placed), over_origins(reference, *arrays))


# --- whole trees of parameters ------------------------------------------------------------------------

LAYERS = {
    'layers/mlp/gate/kernel': ((2, 64, 256), P(None, None, 'fsdp')),
    'norm/scale': ((64,), P()),
}


def test_a_tree_sharded_as_fsdp_does_is_sampled_in_place():
    """W_hat and the gradients of weights and bitwidths, by gaussian_weight_sampling."""
    params = {path: jnp.asarray(random_weights((1, *shape))[0]) for path, (shape, _) in LAYERS.items()}
    cotangents = {
        path: jnp.asarray(random_weights((1, *shape), seed=3)[0], jnp.bfloat16) for path, (shape, _) in LAYERS.items()
    }

    def run(implementation, params, state, cotangents):
        transform = gq.gaussian_weight_sampling(implementation=implementation, rules=models.RULES)
        w_hat, pull_back = jax.vjp(lambda params, state: transform.apply(KEY, params, state), params, state)
        return w_hat, pull_back(cotangents)

    state = gq.gaussian_weight_sampling(rules=models.RULES).init(params)
    mesh = make_mesh(fsdp=8)
    shardings = {path: NamedSharding(mesh, spec) for path, (_, spec) in LAYERS.items()}
    placed = jax.device_put((params, cotangents), (shardings, shardings))
    everywhere = jax.device_put(state, NamedSharding(mesh, P()))
    compiled = jax.jit(functools.partial(run, KERNEL)).lower(placed[0], everywhere, placed[1]).compile()
    got = compiled(placed[0], everywhere, placed[1])
    assert_same_bits(got, jax.jit(functools.partial(run, 'xla'))(params, state, cotangents))
    assert collectives(compiled) == []
    for path in LAYERS:
        assert got[0][path].sharding.is_equivalent_to(shardings[path], got[0][path].ndim)
