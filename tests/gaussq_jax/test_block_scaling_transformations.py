"""fake_quantize under jit, vmap, scan, differentiation and sharding, and with stochastic rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_float_formats as oracle
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy_float_formats import assert_same_bits

import gaussq_jax as gq

KEY = jax.random.key(3)
QUANTIZERS = [
    gq.Quantizer('e4m3'),
    gq.Quantizer('e2m1', block_size=(32, 32)),
    gq.Quantizer('e3m2', block_size='tensor'),
    gq.Quantizer('float8_e5m2', scale='mx'),
    gq.Quantizer('e2m1', block_size=16, scale='nvfp4'),
    gq.Quantizer('e2m1', block_size='channel', rounding='stochastic'),
]
fake_quantize = jax.jit(gq.fake_quantize, static_argnames=('quantizer', 'axis'))


def key_for(quantizer):
    return KEY if quantizer.rounding == 'stochastic' else None


@pytest.mark.parametrize('quantizer', QUANTIZERS)
def test_scan_and_vmap_change_no_bit(quantizer):
    """XLA rewrites divisions by constants and scalars: a tensor alone must come out as it does among others."""
    x = oracle.heavy_tailed((3, 40, 70))
    quantize = lambda matrix: gq.fake_quantize(matrix, quantizer, key=key_for(quantizer))
    expected = np.stack([fake_quantize(matrix, quantizer, key=key_for(quantizer)) for matrix in x])
    assert_same_bits(jax.jit(lambda x: jax.lax.map(quantize, x))(x), expected)
    assert_same_bits(jax.jit(jax.vmap(quantize, in_axes=2))(np.moveaxis(x, 0, 2)), expected)


@pytest.mark.parametrize('quantizer', [QUANTIZERS[0], QUANTIZERS[2], QUANTIZERS[4]])
def test_jit_changes_no_bit(quantizer):
    x = oracle.heavy_tailed((40, 70))
    assert_same_bits(gq.fake_quantize(x, quantizer), fake_quantize(x, quantizer))


@pytest.mark.parametrize('quantizer', [QUANTIZERS[i] for i in (0, 3, 5)])
def test_the_gradient_is_straight_through(quantizer):
    dtype = 'bfloat16' if quantizer.scale == 'mx' else 'float32'
    x = jnp.asarray(oracle.heavy_tailed((40, 70)), dtype)
    v = jax.random.normal(KEY, x.shape, dtype)

    @jax.jit
    def derivatives(x, v):
        quantize = lambda x: gq.fake_quantize(x, quantizer, axis=0, key=key_for(quantizer))
        return jax.vjp(quantize, x)[1](v)[0], jax.jvp(quantize, (x,), (v,))

    gradient, (value, tangent) = derivatives(x, v)
    assert_same_bits(gradient, v)
    assert_same_bits(tangent, v)
    assert_same_bits(value, fake_quantize(x, quantizer, axis=0, key=key_for(quantizer)))


@pytest.mark.parametrize(
    ('quantizer', 'shape', 'axis'),
    [*((quantizer, (128, 256), -1) for quantizer in QUANTIZERS), *((QUANTIZERS[i], (48, 80), 0) for i in (0, 4, 5))],
)
def test_a_mesh_changes_no_bit(quantizer, shape, axis):
    """Shards that are whole blocks, and shards that cut through blocks."""
    x = oracle.heavy_tailed(shape, seed=1)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ('data', 'tensor'))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec('tensor', 'data')))
    got = fake_quantize(placed, quantizer, axis=axis, key=key_for(quantizer))
    assert len(got.sharding.device_set) == 8
    assert_same_bits(got, fake_quantize(x, quantizer, axis=axis, key=key_for(quantizer)))


def test_shards_of_whole_blocks_stay_where_they_are():
    """No collective in the compiled program, and the result is sharded as its input."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ('data', 'tensor'))
    sharding = NamedSharding(mesh, PartitionSpec('tensor', 'data'))
    x = jax.ShapeDtypeStruct((128, 256), jnp.float32, sharding=sharding)
    for quantizer in (
        gq.Quantizer('e4m3'),
        gq.Quantizer('e2m1', scale='mx'),
        gq.Quantizer('e2m1', block_size=(32, 32)),
        gq.Quantizer('e2m1', rounding='stochastic'),
    ):
        compiled = fake_quantize.lower(x, quantizer, key=key_for(quantizer)).compile()
        assert compiled.output_shardings.is_equivalent_to(sharding, 2)
        for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
            assert collective not in compiled.as_text()


# --- stochastic rounding --------------------------------------------------------------------------


@pytest.mark.parametrize(
    'quantizer',
    [
        gq.Quantizer('e2m1', scale='mx', rounding='stochastic'),
        gq.Quantizer('e0m3', rounding='stochastic'),
        gq.Quantizer('e2m1', block_size=16, scale='nvfp4', rounding='stochastic'),
    ],
)
def test_stochastic_rounding_is_unbiased(quantizer):
    """The same 32 numbers in 2^15 rows: two results at most, within a step that nearest rounding takes too, and up as
    often as the fraction says. What lies beyond 6 scales, in MX and NVFP4, saturates."""
    draws = 2**15
    row = oracle.heavy_tailed(32, seed=2, spread=1)
    rounded = np.asarray(fake_quantize(jnp.broadcast_to(row, (draws, 32)), quantizer, key=KEY)).astype(np.float64)
    low, high = rounded.min(axis=0), rounded.max(axis=0)
    assert np.all((rounded == low) | (rounded == high))
    inside = (low < row) & (row < high)
    assert np.count_nonzero(inside) > 20
    fraction = (row - low)[inside] / (high - low)[inside]
    count = np.sum(rounded == high, axis=0)[inside]
    score = (count - draws * fraction) / np.sqrt(draws * fraction * (1 - fraction))
    assert np.max(np.abs(score)) < 5
    nearest_quantizer = gq.Quantizer(quantizer.fmt, block_size=quantizer.block_size, scale=quantizer.scale)
    nearest = np.asarray(fake_quantize(row[None], nearest_quantizer))[0]
    np.testing.assert_allclose(nearest, np.where(row - low < high - row, low, high), rtol=2**-21)


def test_the_key_decides():
    x = oracle.heavy_tailed((40, 70))
    quantizer = gq.Quantizer('e2m1', rounding='stochastic')
    first = np.asarray(fake_quantize(x, quantizer, key=KEY))
    assert_same_bits(fake_quantize(x, quantizer, key=KEY), first)
    assert np.mean(np.asarray(fake_quantize(x, quantizer, key=jax.random.key(4))) != first) > 0.1


def test_fixed_point_and_one_exponent_bit_draw_alike():
    x = oracle.heavy_tailed((40, 70))
    none, one = (fake_quantize(x, gq.Quantizer(fmt, rounding='stochastic'), key=KEY) for fmt in ('e0m7', 'e1m6'))
    assert_same_bits(one, none)
