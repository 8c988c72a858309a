"""Sixteen random bits a value: those of the definition, uniform, unrelated, and the same on every mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_random_bits as oracle
import pytest
from jax.extend.random import define_prng_impl
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kernels_pallas.random_bits import key_words, random_bits_16

KEY = jax.random.key(3)
draw = jax.jit(lambda key, shape: random_bits_16(key_words(key), shape), static_argnums=1)
UNIFORM = np.asarray(draw(KEY, (512, 512)))


@pytest.mark.parametrize(
    'shape', [(), (0, 3), (1,), (1001,), (64, 96), (3, 100), (33, 7), (5, 7, 3), (8, 3, 5), (2, 3, 9, 16)]
)
def test_equal_the_definition(shape):
    for key in (KEY, jax.random.key(2**32 - 1)):
        got = draw(key, shape)
        assert got.dtype == jnp.uint16
        np.testing.assert_array_equal(got, oracle.random_bits_16(jax.random.key_data(key), shape))


@pytest.mark.optimized
def test_equal_the_definition_as_users_compile_them():
    for shape in ((200, 96), (999,)):
        np.testing.assert_array_equal(draw(KEY, shape), oracle.random_bits_16(jax.random.key_data(KEY), shape))


@pytest.mark.parametrize('implementation', ['rbg', 'unsafe_rbg'])
def test_keys_of_four_words(implementation):
    key = jax.random.key(5, impl=implementation)
    np.testing.assert_array_equal(draw(key, (40, 9)), oracle.random_bits_16(jax.random.key_data(key), (40, 9)))


def test_a_foreign_key_gives_its_own_first_bits():
    implementation = define_prng_impl(
        key_shape=(3,),
        seed=lambda seed: jnp.full(3, seed, jnp.uint32),
        split=lambda key, shape: jnp.broadcast_to(key, (*shape, 3)),
        random_bits=lambda key, bit_width, shape: jnp.broadcast_to(key[1:], shape),
        fold_in=lambda key, data: key + data,
        name='three_words',
    )
    key = jax.random.wrap_key_data(jnp.arange(3, dtype=jnp.uint32), impl=implementation)
    assert [int(word) for word in key_words(key)] == [1, 2]


@pytest.mark.parametrize('key', [0, np.zeros(2, np.float32), np.zeros(3, np.uint32), jax.random.split(KEY, 3)])
def test_what_is_no_single_key_is_refused(key):
    with pytest.raises((TypeError, ValueError), match='key'):
        key_words(key)


# --- statistics: |z| < 5 ------------------------------------------------------------------------------


def test_uniform():
    """Each bit alone, and the values in 256 equal bins, of the upper eight bits and of the lower eight."""
    ones = (UNIFORM[..., None] >> np.arange(16) & 1).sum((0, 1))
    assert np.abs(ones / UNIFORM.size - 0.5).max() < 5 * 0.5 / np.sqrt(UNIFORM.size)
    for part in (UNIFORM >> 8, UNIFORM & 255):
        counts, expected = np.bincount(part.ravel(), minlength=256), UNIFORM.size / 256
        chi_squared = np.sum((counts - expected) ** 2 / expected)
        assert abs(chi_squared - 255) < 5 * np.sqrt(2 * 255)


def test_bits_of_a_value_are_unrelated():
    """Each pair of the sixteen."""
    signs = 1.0 - 2 * (UNIFORM.ravel()[:, None] >> np.arange(16) & 1)
    correlations = signs.T @ signs / UNIFORM.size - np.eye(16)
    assert np.abs(correlations).max() < 5 / np.sqrt(UNIFORM.size)


def assert_unrelated(one, other):
    one, other = ((x.astype(np.float64).ravel() - 32767.5) / np.sqrt((2**32 - 1) / 12) for x in (one, other))
    assert abs(np.mean(one * other)) < 5 / np.sqrt(one.size)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('distance', [1, 2, 4, 7, 8, 64])
def test_neighbours_are_unrelated(axis, distance):
    """Of one Philox call, and of neighbouring counters."""
    x = np.moveaxis(UNIFORM, axis, 0)
    assert_unrelated(x[:-distance], x[distance:])


@pytest.mark.parametrize('other', [jax.random.key(4), jax.random.fold_in(KEY, 1)], ids=['next seed', 'folded'])
def test_keys_are_unrelated(other):
    assert_unrelated(UNIFORM, np.asarray(draw(other, UNIFORM.shape)))


# --- transformations ----------------------------------------------------------------------------------


def test_mapped_keys_draw_each_their_own():
    keys = jax.random.split(KEY, 3)
    mapped = jax.vmap(lambda key: random_bits_16(key_words(key), (16, 10)))(keys)
    np.testing.assert_array_equal(mapped, np.stack([draw(key, (16, 10)) for key in keys]))
    assert len({bits.tobytes() for bits in np.asarray(mapped)}) == 3
    same = jax.vmap(lambda x: x + random_bits_16(key_words(KEY), (16, 10)))(jnp.zeros((3, 16, 10), jnp.uint16))
    np.testing.assert_array_equal(same, np.broadcast_to(draw(KEY, (16, 10)), (3, 16, 10)))


def compiled_on_mesh(shape, spec, axis_type):
    """The program that adds an array's bits to it, and its result for zeros."""
    mesh = jax.make_mesh((2, 2, 2), ('a', 'b', 'c'), axis_types=(axis_type,) * 3)
    add = lambda x, key: x + random_bits_16(key_words(key), x.shape)
    if axis_type == AxisType.Explicit:
        add = jax.sharding.auto_axes(add, axes=mesh.axis_names, out_sharding=NamedSharding(mesh, spec))
    x = jax.device_put(jnp.zeros(shape, jnp.uint16), NamedSharding(mesh, spec))
    key = jax.device_put(KEY, NamedSharding(mesh, P()))
    compiled = jax.jit(add).lower(x, key).compile()
    result = compiled(x, key)
    assert result.sharding.is_equivalent_to(x.sharding, x.ndim)
    return compiled.as_text(), result


SHARDED = [
    ((32, 24), P('a')),
    ((32, 24), P(None, ('a', 'b'))),
    ((1024,), P(('a', 'b', 'c'))),
    ((4, 32, 24), P('a', 'b', 'c')),
    ((4, 32, 24), P(('a', 'b'))),
    ((24, 36), P(('a', 'b'), None)),  # shards cut through groups of eight
]


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize(('shape', 'spec'), SHARDED, ids=str)
def test_a_mesh_changes_no_bit_and_nothing_is_sent(shape, spec, axis_type):
    program, result = compiled_on_mesh(shape, spec, axis_type)
    assert not re.search('all-|collective|reduce-scatter', program)
    np.testing.assert_array_equal(result, draw(KEY, shape))


def wide_products(program, ndim):
    """The shapes of Philox's products; in the first rounds these have fewer axes, where a counter's word has."""
    return [shape for shape in re.findall(r'u64\[([\d,]+)\]\S* multiply', program) if shape.count(',') == ndim - 1]


def test_a_shard_draws_no_more_than_its_own():
    """A quarter of the counters (4, 32 / 8, 24) are each device's, and all products of Philox are of these."""
    program, _ = compiled_on_mesh((4, 32, 24), P('a', 'b'), AxisType.Auto)
    assert set(wide_products(program, ndim=3)) == {'2,2,24'}


def test_a_mesh_changes_no_bit_where_no_axis_is_of_whole_groups():
    _, result = compiled_on_mesh((12, 20, 36), P('a', 'b', 'c'), AxisType.Auto)
    np.testing.assert_array_equal(result, draw(KEY, (12, 20, 36)))


@pytest.mark.optimized
def test_philox_runs_at_most_twice_a_group():
    """Compiled for CPUs: two wide products a round, of seven rounds, for two pairs of words."""
    program = draw.lower(KEY, (64, 64)).compile().as_text()
    products = wide_products(program, ndim=2)
    assert set(products) == {'8,64'} and len(products) <= 2 * 7 * 2
