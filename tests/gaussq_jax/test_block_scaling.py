"""fake_quantize against an independent float64 computation: what shares a scale, and how it is computed."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from numpy_float_formats import assert_same_bits

import gaussq_jax as gq

fake_quantize = jax.jit(gq.fake_quantize, static_argnames=('quantizer', 'axis'))


def triple_of(fmt):
    return fmt.exponent_bits, fmt.mantissa_bits, fmt.special_values


def assert_matches_float64(x, quantizer, axis=-1, most_unsure=0.01):
    """Equal but for float32 rounding of the scale, of the product and of the quotient; ties aside, whose share is
    bounded. Results that are float32 subnormals may be zeros."""
    actual = np.asarray(fake_quantize(x, quantizer, axis=axis))
    assert (actual.shape, actual.dtype) == (x.shape, x.dtype)
    expected, unsure = oracle.fake_quantize(
        x, triple_of(quantizer.fmt), quantizer.block_size, quantizer.scale, quantizer.rounding, axis
    )
    assert unsure.mean() <= most_unsure
    np.testing.assert_allclose(actual[~unsure], expected[~unsure], rtol=2**-21, atol=2.0**-126)
    step = np.abs(expected[unsure]) + np.abs(x[unsure].astype(np.float64))  # a tie: either neighbour will do
    assert np.all(np.abs(actual[unsure] - expected[unsure]) <= step)


LAYOUTS = [
    ((6, 96), -1, 32),
    ((6, 70), -1, 32),
    ((70, 6), 0, 32),
    ((3, 70, 5), 1, 16),
    ((3, 70, 5), -2, 7),
    ((6, 70), 1, 1),
    ((6, 70), 1, 100),
    ((70,), 0, 32),
    ((6, 70), -1, 'channel'),
    ((6, 7, 8), 1, 'channel'),
    ((6, 7, 8), 1, 'tensor'),
    ((4, 6, 10), (0, 1), 7),
    ((4, 6, 10), (2, 0), 7),
    ((4, 6, 10), (1, -1, 0), 64),
    ((4, 6, 10), (-1, 0), 'channel'),
    ((4, 6, 10), (0, 1), 'tensor'),
    ((2, 40, 70), -1, (32, 32)),
    ((2, 40, 70), -1, (8, 32)),
    ((2, 40, 70), -2, (8, 32)),
    ((40, 70), 0, (1, 16)),
    ((2, 3, 8, 4), 3, (16, 16)),
]


@pytest.mark.parametrize(('shape', 'axis', 'block_size'), LAYOUTS)
def test_what_shares_a_scale(shape, axis, block_size):
    x = oracle.heavy_tailed(shape, seed=len(shape))
    assert_matches_float64(x, gq.Quantizer('e4m3', block_size=block_size), axis)


@pytest.mark.parametrize(('shape', 'axis'), [((6, 96), -1), ((70, 6), 0), ((3, 40, 5), 1), ((4, 6, 10), (2, 0))])
def test_nvfp4(shape, axis):
    """Its scales, too, are rounded: blocks whose scale hangs on a tie are left out."""
    x = oracle.heavy_tailed(shape, seed=4)
    assert_matches_float64(x, gq.Quantizer('e2m1', block_size=16, scale='nvfp4'), axis, most_unsure=0.05)


def test_nvfp4_by_hand():
    """g = 2688 / 6 = 448; blocks of absmax 6, 1.6, 2^-10: e4m3fn scales 448, 120 (from 119.5), 0.0703125 (0.0729)."""
    x = np.zeros((3, 16), np.float32)
    x[0, :4], x[1, :3], x[2, :3] = [6, 2.4, -0.7, 1.25], [1.6, -0.7, 0.3], [2**-10, 2**-12, -(2**-13)]
    expected = np.zeros((3, 16))
    expected[0, :4] = 6, 2, -0.5, 1  # 1.25 is a tie, to even
    expected[1, :3] = np.float64([6, -3, 1]) * 120 / 448
    expected[2, :3] = np.float64([6, 1.5, -1]) * 0.0703125 / 448
    actual = fake_quantize(x, gq.Quantizer('e2m1', block_size=16, scale='nvfp4'))
    np.testing.assert_allclose(actual, expected, rtol=2**-22)


def test_nvfp4_blocks_far_below_the_tensor_are_zeros():
    """absmax / 6 * g of at most 2^-10 rounds to the scale 0."""
    x = np.full((2, 16), 448.0 * 6, np.float32)
    x[1] = 6 * 2**-10
    actual = np.asarray(fake_quantize(x, gq.Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4')))
    np.testing.assert_array_equal(actual, [[2688.0] * 16, [0.0] * 16])


@pytest.mark.parametrize('name', ['e0m3', 'e1m1', 'e3m0', 'e5m2', 'e4m10', 'e7m2', 'bfloat16', 'float8_e4m3fn'])
@pytest.mark.parametrize('exponent', [-70, 70])
def test_absmax_in_other_formats(name, exponent):
    """Also where a scale of fmt.max / absmax overflows float32, or underflows."""
    x = np.ldexp(oracle.heavy_tailed((40, 70), seed=5), exponent)
    assert_matches_float64(x, gq.Quantizer(name), most_unsure=0.02)


@pytest.mark.parametrize('rounding', ['nearest_away', 'toward_zero'])
def test_other_roundings(rounding):
    """Toward zero, a block's largest magnitude may lose a step to the rounding of the scale."""
    x = oracle.heavy_tailed((40, 70), seed=6)
    assert_matches_float64(x, gq.Quantizer('e4m3', rounding=rounding), most_unsure=0.06)


def test_absmax_of_the_formats_maximum_is_a_plain_cast():
    """S = 1: every tie and every subnormal as in round_to_format."""
    values, following = oracle.code_values(4, 3, 'finite')
    x = np.concatenate([values, (values + np.append(values[1:], following)) / 2])
    x = np.clip(np.concatenate([x, -x]), -480, 480).astype(np.float32)
    actual = fake_quantize(x, gq.Quantizer('e4m3', block_size='tensor'))
    assert_same_bits(actual, gq.round_to_format(x, 'e4m3'))


# --- what repetition and the dtype leave alone ------------------------------------------------------


QUANTIZERS = [
    gq.Quantizer('e4m3'),
    gq.Quantizer('e0m7', block_size='channel'),
    gq.Quantizer('e2m1', scale='mx'),
    gq.Quantizer('e2m1', block_size=16, scale='nvfp4'),
]


@pytest.mark.parametrize('quantizer', QUANTIZERS)
def test_quantizing_twice_changes_nothing_more(quantizer):
    """Each block keeps its largest magnitude, or for MX its binade: bit for bit in MX, else but for the scale's
    rounding. (NVFP4: as long as the block's scale is a normal number of e4m3fn.)"""
    x = oracle.heavy_tailed((20, 64), seed=9, spread=0.5)
    once = np.asarray(fake_quantize(x, quantizer))
    twice = fake_quantize(once, quantizer)
    if quantizer.scale == 'mx':
        assert_same_bits(twice, once)
    np.testing.assert_allclose(twice, once, rtol=2**-21)
    assert not np.array_equal(once, x)


@pytest.mark.parametrize('quantizer', QUANTIZERS)
@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_narrow_dtypes_are_computed_in_float32(quantizer, dtype):
    """And rounded once, at the end; up to the dtype's largest number, without an infinity."""
    x = oracle.heavy_tailed((20, 70), seed=10, dtype=dtype)
    x[0, 0] = ml_dtypes.finfo(dtype).max
    actual = np.asarray(fake_quantize(x, quantizer))
    assert np.all(np.isfinite(actual))
    assert_same_bits(actual, np.asarray(fake_quantize(x.astype(np.float32), quantizer)).astype(dtype))


def test_quantizers_are_frozen_and_hashable():
    quantizer = gq.Quantizer('e4m3', block_size=128)
    assert quantizer.fmt == gq.FloatFormat(4, 3)
    assert {quantizer: 1}[gq.Quantizer(gq.FloatFormat(4, 3), block_size=128)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        quantizer.block_size = 64
    with pytest.raises(TypeError):
        gq.Quantizer('e4m3', 128)
