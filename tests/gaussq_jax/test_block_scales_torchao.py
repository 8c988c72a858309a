"""MX casts in torchao's four roundings of scales: its bits, stored, and computed anew where it is installed.

`data/torchao_mx_casts.npz` holds what `to_mx` and `to_dtype` of torchao 0.18.0 (PyTorch 2.13.0, CPU) make of 208
blocks of eighteen kinds: normal and heavy-tailed ones at all exponents, zeros of both signs, subnormals, largest
magnitudes that are powers of two, the format's largest number times these, where `even` turns, and the float32
numbers beside all of them. `input_bits` are uint32 (208, 32); `scales` E8M0 bytes; `values` the bits of float32;
`is_exact` says in which blocks it agrees with exact arithmetic. Where it doesn't, its scale has byte 0, or is that of
`rceil` just above the format's largest number times a power of two, by a logarithm in float32.
"""

import functools
import pathlib

import jax
import numpy as np
import numpy_quantizers as oracle
import pytest

import gaussq_jax as gq
from gaussq_jax.block_scaling import quantize

DATA = pathlib.Path(__file__).parents[1] / 'data' / 'torchao_mx_casts.npz'
FORMATS = {'e4m3': 'float8_e4m3fn', 'e5m2': 'float8_e5m2', 'e2m1': 'float4_e2m1fn'}
SMALLEST_NORMAL = 2.0**-126
fake_quantize = jax.jit(gq.fake_quantize, static_argnames=('quantizer', 'axis'))
cases = pytest.mark.parametrize('rounding', ['floor', 'ceil', 'rceil', 'even'])
formats = pytest.mark.parametrize('fmt', FORMATS)


@functools.cache
def stored():
    with np.load(DATA) as arrays:
        return dict(arrays)


def quantizer_of(fmt, rounding):
    return gq.Quantizer(FORMATS[fmt], scale='mx', scale_rounding=rounding)


def assert_torchaos(x, fmt, rounding, scales, values, is_exact):
    """All that it casts exactly, but for float32 subnormals, which CPUs flush, and for scales with which it makes
    infinities of the largest numbers: there we have the next lower one, and saturate."""
    quantizer = quantizer_of(fmt, rounding)
    emax = int(np.log2(quantizer.fmt.max))
    overflows = scales.astype(int) - 127 + emax > 127
    assert np.sum(overflows) <= (0 if rounding == 'floor' else 9)
    got = np.asarray(fake_quantize(x, quantizer))
    assert np.all(np.isfinite(got))
    is_normal = np.minimum(np.abs(values), np.abs(x)) >= SMALLEST_NORMAL
    compared = (is_exact & ~overflows)[:, None] & is_normal
    assert np.mean(compared.any(1)) > 0.65
    assert np.array_equal(got[compared].view(np.uint32), values[compared].view(np.uint32))
    flushed = (is_exact & ~overflows)[:, None] & ~is_normal
    assert np.all((got[flushed] == 0) | (got[flushed] == values[flushed]))
    scaled = quantize(x, quantizer)
    exponents = np.log2(np.float64(scaled.scales)).ravel() + scaled.shift
    of_normal = np.max(np.abs(x), axis=1) >= 2.0 ** (emax - 126)
    held = is_exact & ~overflows & of_normal
    assert np.array_equal(exponents[held] + 127, scales[held])


@cases
@formats
def test_the_stored_casts(fmt, rounding):
    x = stored()['input_bits'].view(np.float32)
    scales, values, is_exact = (stored()[f'{fmt}_{rounding}_{name}'] for name in ('scales', 'values', 'is_exact'))
    assert_torchaos(x, fmt, rounding, scales, values.view(np.float32), is_exact)


@cases
@formats
def test_exact_arithmetic_gives_the_stored_casts_too(fmt, rounding):
    """So the oracle of the other tests is torchao's, where that is exact."""
    x = stored()['input_bits'].view(np.float32)
    values, is_exact = (stored()[f'{fmt}_{rounding}_{name}'] for name in ('values', 'is_exact'))
    expected = oracle.quantize(x, quantizer_of(fmt, rounding)).values
    values = values.view(np.float32)
    saturates_here = np.max(np.abs(x), axis=1) >= 2.0**127
    compared = (is_exact & ~saturates_here)[:, None] & (np.minimum(np.abs(values), np.abs(x)) >= SMALLEST_NORMAL)
    assert np.array_equal(expected[compared], values[compared])


@cases
@formats
def test_casts_of_the_installed_package(fmt, rounding):
    torch = pytest.importorskip('torch', reason='compares with torchao in PyTorch')
    pytest.importorskip('torchao', reason='compares with its casts')
    from torchao.prototype.mx_formats import config, mx_tensor

    dtype = {'e4m3': torch.float8_e4m3fn, 'e5m2': torch.float8_e5m2, 'e2m1': torch.float4_e2m1fn_x2}[fmt]
    mode = getattr(config.ScaleCalculationMode, rounding.upper())
    generator = np.random.default_rng(7)
    x = np.ldexp(generator.standard_normal((500, 32)), generator.integers(-90, 90, (500, 1))).astype(np.float32)
    scale, numbers = mx_tensor.to_mx(torch.from_numpy(x), dtype, 32, scaling_mode=mode)
    values = mx_tensor.to_dtype(numbers, scale, dtype, 32, torch.float32).reshape(x.shape).numpy()
    assert_torchaos(x, fmt, rounding, scale.view(torch.uint8).numpy().ravel(), values, np.ones(500, bool))
