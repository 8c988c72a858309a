"""largest_magnitudes: where each block saturates, by an independent computation, and as fake_quantize does it."""

import jax
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest

import gaussq_jax as gq
from gaussq_jax import block_scaling

fake_quantize = jax.jit(gq.fake_quantize, static_argnames=('quantizer', 'axis'))
largest_magnitudes = jax.jit(block_scaling.largest_magnitudes, static_argnames=('quantizer', 'axis'))

QUANTIZERS = [
    gq.Quantizer('e4m3', block_size=32),
    gq.Quantizer('e2m1', block_size='channel'),
    gq.Quantizer('e3m2', block_size=(8, 16)),
    gq.Quantizer('e4m3', block_size='tensor', scale='mx'),
    gq.Quantizer('float8_e4m3fn', scale='mx'),
    gq.Quantizer('e2m1', block_size=16, scale='nvfp4'),
]


def expected_largest(x, quantizer, axis):
    """fmt.max / S in float64, block by block."""
    x, fmt_max = x.astype(np.float64), quantizer.fmt.max
    largest = np.empty(x.size)
    tensor_scale = 2688 / oracle.absmax(x)
    for positions in oracle.to_blocks(x, quantizer.block_size, axis):
        absmax = oracle.absmax(x.ravel()[positions])
        largest[positions] = {
            'absmax': lambda absmax=absmax: absmax,
            'mx': lambda absmax=absmax: fmt_max * 2.0 ** (oracle.floor_log2(absmax) - oracle.floor_log2(fmt_max)),
            'nvfp4': lambda absmax=absmax: 6 * float(ml_dtypes.float8_e4m3fn(absmax / 6 * tensor_scale)) / tensor_scale,
        }[quantizer.scale]()
    return largest.reshape(x.shape)


@pytest.mark.parametrize('quantizer', QUANTIZERS)
@pytest.mark.parametrize('axis', [-1, -2])
def test_where_blocks_saturate(quantizer, axis):
    x = oracle.heavy_tailed((3, 40, 70), seed=3, spread=0.5)
    x[0, 0, :2] = np.inf, np.nan  # not in the maximum of their block
    largest = largest_magnitudes(x, quantizer, axis=axis)
    assert (largest.shape, largest.dtype) == (x.shape, np.float32)
    np.testing.assert_allclose(largest, expected_largest(x, quantizer, axis), rtol=2**-22)


@pytest.mark.parametrize('quantizer', QUANTIZERS)
def test_what_lies_beyond_becomes_the_largest(quantizer):
    """Bit for bit: nothing that fake_quantize returns is larger, and what was larger becomes it."""
    x = oracle.heavy_tailed((40, 70), seed=4, spread=0.5)
    x *= np.float32(1.9) / np.abs(x).max()  # of the tensor: E4M3 in MX holds up to 1.875
    largest = np.asarray(largest_magnitudes(x, quantizer))
    quantized = np.abs(np.asarray(fake_quantize(x, quantizer)))
    beyond = np.abs(x) > largest
    assert np.all(quantized <= largest)
    np.testing.assert_array_equal(quantized[beyond], largest[beyond])
    assert beyond.any() or quantizer.scale == 'absmax'


def test_a_scale_of_zero_holds_nothing():
    x = np.full((2, 16), 448.0 * 6, np.float32)
    x[1] = 6 * 2**-10
    largest = largest_magnitudes(x, gq.Quantizer('e2m1', block_size=16, scale='nvfp4'))
    np.testing.assert_array_equal(largest, [[2688.0] * 16, [0.0] * 16])


def test_narrow_and_empty_arrays():
    quantizer = gq.Quantizer('e4m3', scale='mx')
    x = oracle.heavy_tailed((4, 70), seed=5, dtype=ml_dtypes.bfloat16)
    expected = largest_magnitudes(x.astype(np.float32), quantizer)
    np.testing.assert_array_equal(largest_magnitudes(x, quantizer), expected)
    empty = largest_magnitudes(x[:0], quantizer)
    assert (empty.shape, empty.dtype) == ((0, 70), np.float32)


def test_mistakes_are_told():
    tiles = gq.Quantizer('e4m3', block_size=(8, 8))
    with pytest.raises(ValueError, match='axis=0 of an array of 3 axes'):
        largest_magnitudes(np.zeros((2, 3, 4), np.float32), tiles, axis=0)
    with pytest.raises(ValueError, match='int32'):
        largest_magnitudes(np.zeros(4, np.int32), gq.Quantizer('e4m3'))


def test_on_a_mesh_of_explicit_axes():
    """Sharded as x is, where blocks cross the shards."""
    mesh = jax.make_mesh((8,), ('a',), axis_types=(jax.sharding.AxisType.Explicit,))
    x, quantizer = oracle.heavy_tailed((4, 80), seed=6), gq.Quantizer('e4m3', scale='mx')
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(None, 'a')))
        largest = largest_magnitudes(sharded, quantizer)
    assert largest.sharding.spec == jax.P(None, 'a')
    np.testing.assert_array_equal(largest, largest_magnitudes(x, quantizer))
