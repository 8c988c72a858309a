"""No NaN and no infinity of fake_quantize's making, forward or backward, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest

import gaussq_jax as gq

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-126
QUANTIZERS = [
    gq.Quantizer('e2m1'),
    gq.Quantizer('e0m7'),
    gq.Quantizer('e5m2', block_size='channel'),
    gq.Quantizer('e7m0'),
    gq.Quantizer('bfloat16'),
    gq.Quantizer('e4m3', block_size=(1, 32), rounding='toward_zero'),
    gq.Quantizer('float8_e5m2', scale='mx'),
    gq.Quantizer('e1m1', scale='mx'),
    gq.Quantizer('float4_e2m1fn', scale='mx'),
]
NVFP4 = gq.Quantizer('e2m1', block_size=16, scale='nvfp4')


@jax.jit(static_argnames='quantizer')
def quantize_with_gradient(x, cotangent, quantizer):
    y, pull_back = jax.vjp(lambda x: gq.fake_quantize(x, quantizer), x)
    return y, pull_back(cotangent)[0]


def extreme_rows(dtype=np.float32):
    """Rows of 32: each would be a block, a tensor, and part of a larger tensor."""
    generator = np.random.default_rng(0)
    normal = generator.standard_normal(32)
    rows = {
        'zeros': np.zeros(32),
        'negative zeros': np.full(32, -0.0),
        'subnormals': normal * 2.0**-140,
        'smallest normal': np.full(32, SMALLEST),
        'around the smallest normal': normal * SMALLEST,
        'around the floor of scales': normal * 2.0**-123,
        'around 1e-32, the floor of NVFP4': normal * 2.0**-105,
        'constant': np.full(32, 0.1),
        'constant 3e38': np.full(32, -3e38),
        'around 1e38': normal * 1e38,
        'largest': np.full(32, LARGEST),
        'largest and smallest': np.resize([LARGEST, -SMALLEST, 1.0, -LARGEST], 32),
        'largest among ordinary': np.append(normal[1:], LARGEST),
        'one number': np.append(np.zeros(31), 1e-20),
        'infinite among ordinary': np.append(normal[2:], [np.inf, -np.inf]),
        'NaN among ordinary': np.append(normal[1:], np.nan),
        'infinite and NaN among largest': np.resize([LARGEST, np.inf, -np.inf, np.nan, -1e-38, 0], 32),
        'infinite and NaN among zeros': np.resize([0, np.inf, 0, np.nan], 32),
        'all infinite': np.full(32, -np.inf),
        'all NaN': np.full(32, np.nan),
    }
    largest = float(ml_dtypes.finfo(dtype).max)
    clipped = {name: np.where(np.isinf(row), row, np.clip(row, -largest, largest)) for name, row in rows.items()}
    return {name: row.astype(dtype) for name, row in clipped.items()}


def assert_sane(x, quantizer):
    cotangent = np.random.default_rng(1).standard_normal(x.shape).astype(x.dtype)
    y, gradient = (np.asarray(a) for a in quantize_with_gradient(x, cotangent, quantizer))
    assert y.dtype == gradient.dtype == x.dtype
    x, y = x.astype(np.float64), y.astype(np.float64)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(y[~finite], x[~finite])
    assert np.all(np.isfinite(y[finite]))
    assert np.all(y[x == 0] == 0)
    assert np.all((y[finite] == 0) | (np.sign(y[finite]) == np.sign(x[finite])))
    np.testing.assert_array_equal(gradient, cotangent)
    return y


def assert_matches_float64(x, quantizer):
    """float32 subnormals may be zeros, and so may numbers 2^128 times smaller than the largest beside them."""
    y = assert_sane(x, quantizer)
    fmt = quantizer.fmt.exponent_bits, quantizer.fmt.mantissa_bits, quantizer.fmt.special_values
    expected, unsure = oracle.fake_quantize(x, fmt, quantizer.block_size, quantizer.scale, quantizer.rounding)
    finite = np.isfinite(x)
    row_absmax = np.max(np.abs(x), where=finite, initial=0, axis=-1, keepdims=True).astype(np.float64)
    y, expected = np.where(finite, [y, expected], 0)
    assert np.all(
        (np.abs(y - expected) <= 2**-21 * np.abs(expected) + np.maximum(SMALLEST, 2.0**-128 * row_absmax)) | unsure
    )


@pytest.mark.parametrize('quantizer', [*QUANTIZERS, NVFP4])
def test_extreme_blocks_of_one_tensor(quantizer):
    """Each as the float64 computation has it, which can't overflow."""
    assert_matches_float64(np.stack(list(extreme_rows().values())), quantizer)


@pytest.mark.parametrize('quantizer', [gq.Quantizer('e4m3', block_size='tensor'), NVFP4])
@pytest.mark.parametrize('name', extreme_rows())
def test_extreme_tensors(quantizer, name):
    assert_matches_float64(extreme_rows()[name][None], quantizer)


@pytest.mark.parametrize('quantizer', [gq.Quantizer('e5m2'), gq.Quantizer('e2m3', scale='mx'), NVFP4])
@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_extreme_blocks_of_narrow_dtypes(quantizer, dtype):
    """The result rounded to bfloat16 or float16 is finite too."""
    with np.errstate(under='ignore', over='ignore'):
        x = np.stack(list(extreme_rows(dtype).values()))
    assert_sane(x, quantizer)


def test_empty_arrays_and_a_single_number():
    for shape in ((0, 32), (4, 0), (1, 1)):
        for quantizer in (gq.Quantizer('e2m1'), gq.Quantizer('e2m1', block_size='tensor'), NVFP4):
            assert gq.fake_quantize(jnp.zeros(shape), quantizer).shape == shape


# --- refusals -------------------------------------------------------------------------------------


def refusal(*words):
    return pytest.raises(ValueError, match='(?s)' + ''.join(f'(?=.*{re.escape(word)})' for word in words))


@pytest.mark.parametrize('block_size', [0, -1, 2.5, '32', 'row', None, (32,), (32, 0), (8, 8, 8), (2.5, 8), True])
def test_refuses_block_sizes(block_size):
    with refusal('block_size', repr(block_size), "'channel'", "'tensor'", '(rows, cols)'):
        gq.Quantizer('e4m3', block_size=block_size)


def test_refuses_unknown_scales_roundings_and_formats():
    with refusal('scale', "'max'", "'absmax'", "'mx'", "'nvfp4'"):
        gq.Quantizer('e4m3', scale='max')
    with refusal('rounding', "'up'", 'nearest_even', 'nearest_away', 'toward_zero', 'stochastic'):
        gq.Quantizer('e4m3', rounding='up')
    with refusal("'e44'", 'float8_e4m3fn'):
        gq.Quantizer('e44')


@pytest.mark.parametrize(('fmt', 'block_size'), [('e4m3', 16), ('e2m1', 32), ('e2m1', 'tensor'), ('e2m1_ieee', 16)])
def test_nvfp4_is_e2m1_in_blocks_of_16(fmt, block_size):
    with refusal('nvfp4', 'e2m1', '16'):
        gq.Quantizer(fmt, block_size=block_size, scale='nvfp4')


@pytest.mark.parametrize('axis', [2, -3, (0, 2), (0, 0), (0, -2), 1.5, 'rows', None])
def test_refuses_axes(axis):
    with refusal('axis', repr(axis)):
        gq.fake_quantize(jnp.zeros((4, 4)), gq.Quantizer('e4m3'), axis=axis)


@pytest.mark.parametrize(('shape', 'axis'), [((4, 4, 4), 0), ((4, 4, 4), (1, 2)), ((4,), 0)])
def test_square_blocks_lie_in_the_last_two_axes(shape, axis):
    with refusal('axis', repr(axis), '(8, 8)'):
        gq.fake_quantize(jnp.zeros(shape), gq.Quantizer('e4m3', block_size=(8, 8)), axis=axis)


def test_refuses_other_dtypes_and_wrong_keys():
    with refusal('int32', 'float32', 'bfloat16', 'float16'):
        gq.fake_quantize(jnp.zeros((4, 4), int), gq.Quantizer('e4m3'))
    with refusal('stochastic', 'key'):
        gq.fake_quantize(jnp.zeros((4, 4)), gq.Quantizer('e4m3', rounding='stochastic'))
    with refusal('nearest_even', 'key', 'stochastic'):
        gq.fake_quantize(jnp.zeros((4, 4)), gq.Quantizer('e4m3'), key=jax.random.key(0))
