"""What qwix dequantizes and multiplies with are the quantized weights."""

import collections
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpy_float_formats as oracle
import pytest
from serving_models import extremes, learned_params

import gaussq_jax as gq

LAYOUTS = {
    'MXFP4': (dict(fmt='float4_e2m1fn'), 'float4_e2m1fn', (2, 24)),
    'MXFP8': (dict(fmt='float8_e4m3fn'), 'float8_e4m3fn', (2, 24)),
    'MXFP8 (E5M2)': (dict(fmt='float8_e5m2'), 'float8_e5m2', (2, 24)),
    'MXFP6': (dict(fmt='float6_e2m3fn'), 'float8_e4m3fn', (2, 24)),
    'NVFP4': (dict(fmt='float4_e2m1fn', block_size=16, scale='nvfp4'), 'float4_e2m1fn', (4, 24)),
    'by channel': (dict(fmt='float8_e4m3fn', block_size='channel', scale='absmax'), 'float8_e4m3fn', (1, 24)),
    'by tensor': (dict(fmt='float8_e4m3fn', block_size='tensor', scale='absmax'), 'float8_e4m3fn', (1, 1)),
    'by tile': (dict(fmt='float4_e2m1fn', block_size=(8, 16), scale='absmax'), 'float4_e2m1fn', (4, 3)),
}
INSTALLED = importlib.util.find_spec('qwix') is not None
Record = collections.namedtuple('Record', 'qvalue scale')
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of flax, which qwix uses


@pytest.fixture(autouse=True)
def _a_record_instead(monkeypatch):
    """Where qwix isn't installed, what it would be given is decoded by NumPy alone."""
    if not INSTALLED:
        monkeypatch.setitem(sys.modules, 'qwix', types.SimpleNamespace(QArray=Record))


def in_bfloat16(array):
    """The weights of a QArray by NumPy, after a look whether qwix has the same."""
    factors = np.asarray(array.scale)
    for axis, size in enumerate(array.qvalue.shape):
        factors = factors.repeat(size // factors.shape[axis], axis=axis)
    weights = (np.asarray(array.qvalue).astype(np.float32) * factors).astype(jnp.bfloat16)
    if INSTALLED:
        import qwix

        oracle.assert_same_bits(qwix.dequantize(array).astype(jnp.bfloat16), weights)
    return weights


@pytest.mark.parametrize('layout, dtype, scales', LAYOUTS.values(), ids=LAYOUTS)
def test_qwix_dequantizes_to_the_quantized_weights(layout, dtype, scales):
    """Of a plain matrix, and of a stack of them; blocks of zeros of both signs among them."""
    kernel = oracle.heavy_tailed((3, 64, 24))
    kernel[0, :32], kernel[1, :, :8], kernel[2, 0] = 0, -0.0, -0.0
    params = {'up': {'kernel': kernel[0], 'bias': np.ones(24, np.float32)}, 'layers': {'down': {'kernel': kernel}}}
    rules = [gq.MatrixRule('up/kernel'), gq.MatrixRule('layers/.*', (0,), (1,), (2,)), gq.CastOnly('.*bias')]
    layout = gq.uniform_layout(params, **layout, rules=rules)
    found, expected = gq.to_qarray(params, layout), gq.quantize_params(params, layout)
    for array, weights, shape in (
        (found['up']['kernel'], expected['up']['kernel'], scales),
        (found['layers']['down']['kernel'], expected['layers']['down']['kernel'], (3, *scales)),
    ):
        assert array.qvalue.dtype == dtype and array.scale.dtype == jnp.float32
        assert array.qvalue.shape == weights.shape and array.scale.shape == shape
        oracle.assert_same_bits(in_bfloat16(array), weights)
    oracle.assert_same_bits(found['up']['bias'], expected['up']['bias'])


def test_numbers_by_hand():
    kernel = np.zeros((64, 2), np.float32)
    kernel[:3, 0], kernel[32:34, 1] = [6, -0.5, -0.0], [24, -4]
    array = gq.to_qarray({'kernel': kernel}, gq.uniform_layout({'kernel': kernel}, 'float4_e2m1fn'))['kernel']
    numbers = np.asarray(array.qvalue).astype(np.float32)
    assert numbers[:3, 0].tolist() == [6, -0.5, 0] and np.signbit(numbers[2, 0])
    assert numbers[32:34, 1].tolist() == [6, -1] and np.count_nonzero(numbers) == 4
    assert np.asarray(array.scale)[0, 0] == 1 and np.asarray(array.scale)[1, 1] == 4


@pytest.mark.parametrize(
    'rule, shape, block_size, scales',
    [
        (dict(row_axes=(1,), col_axes=(0,)), (24, 64), 32, (24, 2)),  # (out, in)
        (dict(row_axes=(0,), col_axes=(1, 2)), (64, 4, 6), 32, (2, 4, 6)),  # (in, heads, out of a head)
        (dict(row_axes=(0, 1), col_axes=(2,)), (4, 16, 24), 32, (2, 1, 24)),  # (heads, in of a head, out)
        (dict(row_axes=(0, 1), col_axes=(2,)), (2, 64, 24), 32, (2, 2, 24)),
        (dict(row_axes=(2,), col_axes=(0,), batch_axes=(1,)), (24, 3, 64), 32, (24, 3, 2)),
        (dict(row_axes=(0,), col_axes=(1, 2)), (64, 4, 6), 'tensor', (1, 1, 1)),
    ],
)
def test_the_axes_of_a_leaf_keep_their_order(rule, shape, block_size, scales):
    params = {'kernel': oracle.heavy_tailed(shape)}
    rules = [gq.MatrixRule('kernel', **dict(batch_axes=()) | rule)]
    layout = gq.uniform_layout(params, 'float8_e4m3fn', block_size=block_size, rules=rules)
    array = gq.to_qarray(params, layout)['kernel']
    assert array.scale.shape == scales
    oracle.assert_same_bits(in_bfloat16(array), gq.quantize_params(params, layout)['kernel'])


@pytest.mark.skipif(not INSTALLED, reason='extra peers')
@pytest.mark.parametrize('name', ['MXFP4', 'MXFP8', 'by channel'])
def test_qwix_multiplies_with_the_quantized_weights(name):
    """Integers and powers of two: no sum of them is rounded, in whatever order."""
    import qwix

    generator = np.random.default_rng(0)
    kernel = generator.integers(-6, 7, (64, 24)).astype(np.float32)
    kernel[0] = 6 if name == 'MXFP4' else 448
    layout = gq.uniform_layout({'kernel': kernel}, **LAYOUTS[name][0])
    array = gq.to_qarray({'kernel': kernel}, layout)['kernel']
    weights = gq.quantize_params({'kernel': kernel}, layout)['kernel'].astype(jnp.float32)
    x = generator.integers(-9, 10, (5, 64)).astype(np.float32)
    dimensions = (((1,), (0,)), ((), ()))
    expected = x.astype(np.float64) @ np.asarray(weights, np.float64)
    ours = jax.lax.dot_general(x, weights, dimensions)
    np.testing.assert_array_equal(np.asarray(ours), expected)
    np.testing.assert_array_equal(np.asarray(qwix.dot_general(jnp.asarray(x), array, dimensions)), expected)


def test_learned_formats_share_the_narrowest_dtype():
    for bitwidths, dtype in (([3, 3], 'float4_e2m1fn'), ([3, 5], 'float8_e4m3fn')):
        params, layout = learned_params(bitwidths)
        array = gq.to_qarray(params, layout)['up']['kernel']
        assert array.qvalue.dtype == dtype and array.scale.shape == (2, 1)
        oracle.assert_same_bits(in_bfloat16(array), gq.quantize_params(params, layout)['up']['kernel'])


def test_a_leaf_that_no_qarray_holds_can_stay_in_bfloat16():
    params, layout = learned_params([3, 6])
    found = gq.to_qarray(params, layout, unheld='bfloat16')['up']['kernel']
    oracle.assert_same_bits(found, gq.quantize_params(params, layout)['up']['kernel'])


@pytest.mark.parametrize(
    'layout, shape, told',
    [
        (dict(fmt='e3m4'), (64, 8), 'none of float4_e2m1fn, float8_e4m3fn, float8_e5m2 has all numbers of e3m4'),
        (dict(fmt='e2m1'), (40, 8), r'its inputs, \[40\], are not cut evenly by tiles of 32'),
        (dict(fmt='e2m1', block_size=(16, 16)), (32, 24), r'its outputs, \[24\], are not cut evenly by tiles of 16'),
        (dict(fmt='e2m1'), (4, 24, 8), r'its inputs, \[4, 24\], are not cut evenly by tiles of 32'),
    ],
)
def test_what_no_qarray_holds(layout, shape, told):
    params = {'up': {'kernel': oracle.heavy_tailed(shape)}}
    rules = [gq.MatrixRule('.*', (), tuple(range(len(shape) - 1)), (len(shape) - 1,))]
    layout = gq.uniform_layout(params, **layout, rules=rules)
    with pytest.raises(ValueError, match=rf"'up/kernel' can't be held exactly as a QArray, {told}"):
        gq.to_qarray(params, layout)


def test_an_error_names_what_would_hold_a_leaf():
    """96 inputs in a row of (4, 24): matrices are flat elsewhere."""
    params = {'up': {'kernel': oracle.heavy_tailed((4, 24, 8))}}
    layout = gq.uniform_layout(params, 'e2m1', rules=[gq.MatrixRule('.*', (), (0, 1), (2,))])
    with pytest.raises(ValueError, match=r'; it can be by compressed-tensors, mlx, gguf, quark-mxfp6, tr.*$'):
        gq.to_qarray(params, layout)


def test_scales_that_xla_takes_for_zero_are_an_error():
    params = {'kernel': extremes().T}
    with pytest.raises(ValueError, match=r"'kernel' has a scale of 5.88e-39, which is no normal float32 number"):
        gq.to_qarray(params, gq.uniform_layout(params, 'float8_e4m3fn'))


def test_without_qwix(monkeypatch):
    monkeypatch.setitem(sys.modules, 'qwix', None)
    params = {'kernel': np.ones((32, 8), np.float32)}
    with pytest.raises(ImportError, match=r"to_qarray needs qwix, .*: pip install 'gaussq-jax\[peers\]'"):
        gq.to_qarray(params, gq.uniform_layout(params, 'e2m1'))
