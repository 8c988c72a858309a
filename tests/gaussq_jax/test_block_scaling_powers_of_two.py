"""What powers of two make exact: MX bit for bit, E0M(m + 1) and E1M(m) alike, scaled inputs with scaled results."""

import math

import jax
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from numpy_float_formats import assert_same_bits

import gaussq_jax as gq

fake_quantize = jax.jit(gq.fake_quantize, static_argnames=('quantizer', 'axis'))


def blocks_of_every_magnitude(seed, emax):
    """Heavy-tailed blocks of 32 at every exponent of float32, largest values next to powers of two, and at ties."""
    generator = np.random.default_rng(seed)
    exponents = np.repeat(np.arange(-126, 128), 4)
    x = np.ldexp(oracle.heavy_tailed((len(exponents), 32), seed, spread=4).astype(np.float64), exponents[:, None] - 8)
    x[1::4, 0] = np.ldexp(1.0, exponents[1::4])
    x[2::4, 0] = np.ldexp(1 - 2.0**-24, exponents[2::4])
    ties = generator.integers(-128, 129, (len(exponents[3::4]), 32)) / 16
    x[3::4] = np.ldexp(ties, exponents[3::4, None] - emax)
    largest = float(np.finfo(np.float32).max)
    x = np.clip(x, -largest, largest)
    return np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float32)


def exact_mx(x, name):
    """Each step exact in float64: a power of two by frexp, the quotient, ml_dtypes' own cast, the product."""
    dtype = oracle.standard_dtype(name)
    info = ml_dtypes.finfo(dtype)
    largest, emax = float(info.max), math.frexp(float(info.max))[1] - 1
    absmax = np.max(np.abs(x.astype(np.float64)), axis=-1, keepdims=True)
    exponent = np.clip(np.frexp(absmax)[1] - 1 - emax, -127, 127)
    scale = np.where(absmax > 0, np.ldexp(1.0, exponent), 1.0)
    quotient = np.clip(x.astype(np.float64) / scale, -largest, largest)
    with np.errstate(under='ignore'):
        return quotient.astype(np.float32).astype(dtype).astype(np.float64) * scale


@pytest.mark.parametrize(
    ('name', 'emax'),
    [('float8_e4m3fn', 8), ('float8_e5m2', 15), ('float6_e3m2fn', 4), ('float6_e2m3fn', 2), ('float4_e2m1fn', 2)],
)
def test_mx_is_exact(name, emax):
    """Over all of float32's exponents; a result that would be a float32 subnormal may be a zero of its sign."""
    x = blocks_of_every_magnitude(emax, emax)
    actual, expected = np.asarray(fake_quantize(x, gq.Quantizer(name, scale='mx'))), exact_mx(x, name)
    normal = (np.abs(expected) >= 2.0**-126) | (expected == 0)
    assert normal.mean() > 0.99
    assert_same_bits(actual[normal], expected[normal].astype(np.float32))
    subnormal = actual[~normal]
    assert np.all((subnormal == 0) | (subnormal == expected[~normal]))
    assert np.all(np.signbit(subnormal) == np.signbit(expected[~normal]))


@pytest.mark.parametrize(
    ('shape', 'axis', 'block_size'),
    [
        ((6, 70), -1, 32),
        ((3, 70, 5), 1, 16),
        ((6, 70), 0, 'channel'),
        ((6, 70), -1, 'tensor'),
        ((4, 6, 10), (2, 0), 7),
        ((2, 40, 70), -2, (8, 32)),
    ],
)
def test_mx_of_any_layout_is_exact(shape, axis, block_size):
    x = oracle.heavy_tailed(shape, seed=7, spread=6)
    expected, _ = oracle.fake_quantize(x, (3, 2, 'finite'), block_size, 'mx', axis=axis)
    actual = fake_quantize(x, gq.Quantizer('e3m2', block_size=block_size, scale='mx'), axis=axis)
    assert_same_bits(actual, expected.astype(np.float32))


# E1M(m) is the grid of 2 E0M(m + 1): no scaling can tell them apart.


@pytest.mark.parametrize('scale', ['absmax', 'mx'])
@pytest.mark.parametrize('block_size', [32, 'channel', 'tensor', (32, 32)])
def test_e0m7_and_e1m6_quantize_alike(scale, block_size):
    """Every bit, at every magnitude of the blocks."""
    x = oracle.heavy_tailed((1016, 32), seed=2) if block_size == 'tensor' else blocks_of_every_magnitude(1, 0)
    axis = 0 if block_size == 'channel' else -1
    none, one = (
        fake_quantize(x, gq.Quantizer(f, block_size=block_size, scale=scale), axis=axis) for f in ('e0m7', 'e1m6')
    )
    assert_same_bits(one, none)
    assert np.count_nonzero(one) > x.size / 100


@pytest.mark.parametrize(('mantissa_bits', 'rounding'), [(0, 'nearest_even'), (1, 'nearest_away'), (9, 'toward_zero')])
def test_fixed_point_and_one_exponent_bit_quantize_alike(mantissa_bits, rounding):
    x = oracle.heavy_tailed((100, 70))
    none, one = (
        fake_quantize(x, gq.Quantizer(fmt, rounding=rounding))
        for fmt in (gq.FloatFormat(0, mantissa_bits + 1), gq.FloatFormat(1, mantissa_bits))
    )
    assert_same_bits(one, none)


@pytest.mark.parametrize(
    'quantizer',
    [
        gq.Quantizer('e4m3'),
        gq.Quantizer('e0m7', block_size='channel'),
        gq.Quantizer('e2m1', scale='mx'),
        gq.Quantizer('e2m1', block_size=16, scale='nvfp4'),
    ],
)
def test_powers_of_two_pass_through(quantizer):
    x = oracle.heavy_tailed((20, 70), seed=8)
    expected = np.asarray(fake_quantize(x, quantizer))
    for exponent in (-60, -1, 3, 60):
        assert_same_bits(fake_quantize(np.ldexp(x, exponent), quantizer), np.ldexp(expected, exponent))
