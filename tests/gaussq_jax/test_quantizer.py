"""Quantizers as data: what is refused, what randomness they have and lose, and how they are summed up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq
from gaussq_jax.block_scaling import largest_magnitudes, quantize

NVFP4 = dict(block_size=16, scale='nvfp4')
REFUSED = [
    (dict(scale='MX'), r"scale='MX' is not one of 'absmax', 'mx', 'nvfp4'"),
    (dict(rounding='up'), r"rounding='up' is not one of .*'stochastic'"),
    (
        dict(scale='mx', scale_rounding='up'),
        r"scale_rounding='up' is not one of 'floor', 'rceil', 'ceil', 'even', 'nearest'",
    ),
    (dict(fit='mse'), r"fit='mse' is not one of 'absmax', 'rms', 'four_over_six', 'eden'"),
    (dict(scale_rounding='rceil'), r"scale_rounding='rceil' is of mx scales, and not of scale='absmax'"),
    (NVFP4 | dict(scale_rounding='even'), r"of mx scales, and not of scale='nvfp4'"),
    (dict(fit='four_over_six'), r"fit='four_over_six' with scale='absmax': four_over_six and eden are of nvfp4 scales"),
    (dict(fit='eden', scale='mx'), r"fit='eden' with scale='mx'"),
    (NVFP4 | dict(fit='rms'), r"fit='rms' with scale='nvfp4'.* rms of others"),
    (NVFP4 | dict(fit='eden', rounding='stochastic'), r"fit='eden' .*takes no stochastic rounding and no prescale"),
    (NVFP4 | dict(fit='eden', prescale=0.5), r"fit='eden' .*takes no stochastic rounding and no prescale"),
    (dict(prescale=0), r'prescale=0 must be more than 0 and at most 1'),
    (dict(prescale=1.5), r'prescale=1.5 must be'),
    (dict(prescale=-0.75), r'prescale=-0.75 must be'),
    (dict(prescale=float('nan')), r'prescale=nan must be'),
    (dict(prescale='3/4'), r"prescale='3/4' must be"),
    (dict(clips_gradient='no'), r"clips_gradient='no': allowed are True and False"),
    (dict(hadamard=16), r'hadamard=16: it must be a Hadamard, such as Hadamard\(16\), or None'),
    (dict(scale='nvfp4'), r"scale='nvfp4' with fmt .*block_size=32: .*=16 or \(1, 16\) or \(16, 1\) or \(16, 16\)"),
    (dict(scale='nvfp4', block_size=(16, 32)), r'block_size=\(16, 32\)'),
    (dict(block_size=0), r'block_size=0: allowed are a positive integer'),
    (dict(block_size='row'), r"block_size='row'"),
    (dict(block_size=(4, 4, 4)), r'block_size=\(4, 4, 4\)'),
    (dict(block_size=True), r'block_size=True'),
]


@pytest.mark.parametrize(('settings', 'message'), REFUSED)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gq.Quantizer('float4_e2m1fn', **settings)


def test_nvfp4_of_another_format_is_refused():
    with pytest.raises(ValueError, match=r"scale='nvfp4' with fmt float8_e4m3fn .*defined for e2m1"):
        gq.Quantizer('float8_e4m3fn', **NVFP4)


def test_a_format_that_clips_nothing_has_no_clipping():
    with pytest.raises(ValueError, match=r"fit='rms' with fmt e6m10: it is for formats of at most 8 bits"):
        gq.Quantizer('e6m10', fit='rms')


HADAMARD = gq.Hadamard(16, 'random')
SUMMARIES = {
    'float4_e2m1fn by 32, absmax': gq.Quantizer('float4_e2m1fn'),
    'float8_e4m3fn by 32, mx rceil': gq.Quantizer('float8_e4m3fn', scale='mx', scale_rounding='rceil'),
    'float4_e2m1fn by 16x16, nvfp4, four_over_six': gq.Quantizer(
        'float4_e2m1fn', block_size=[16, 16], scale='nvfp4', fit='four_over_six'
    ),
    'float4_e2m1fn by 32, mx, stochastic, times 0.75, Hadamard 16, random signs': gq.Quantizer(
        'float4_e2m1fn', scale='mx', rounding='stochastic', prescale=0.75, hadamard=HADAMARD
    ),
    'float4_e2m1fn by 32, mx nearest, rms, Hadamard 32, clipped gradient': gq.Quantizer(
        'float4_e2m1fn', scale='mx', scale_rounding='nearest', fit='rms', hadamard=gq.Hadamard(32), clips_gradient=True
    ),
    'e4m3 by channel, absmax, Hadamard 2, fixed signs': gq.Quantizer(
        'e4m3', block_size='channel', hadamard=gq.Hadamard(2, (1, -1))
    ),
}


@pytest.mark.parametrize('summary', SUMMARIES)
def test_in_a_few_words(summary):
    assert SUMMARIES[summary].summary == summary


@pytest.mark.parametrize(
    ('random', 'without'),
    [
        (dict(rounding='stochastic'), {}),
        (dict(rounding='nearest_away'), dict(rounding='nearest_away')),
        (dict(hadamard=HADAMARD), dict(hadamard=gq.Hadamard(16))),
        (NVFP4 | dict(fit='eden'), NVFP4),
        (NVFP4 | dict(fit='four_over_six'), NVFP4 | dict(fit='four_over_six')),
        (dict(rounding='stochastic', prescale=0.75, scale='mx'), dict(prescale=0.75, scale='mx')),
    ],
)
def test_randomness(random, without):
    """What has any needs a key, and is refused one for nothing; without it, it is another one that needs none."""
    quantizer, other = gq.Quantizer('float4_e2m1fn', **random), gq.Quantizer('float4_e2m1fn', **without)
    assert quantizer.deterministic() == other and not other.needs_key
    assert quantizer.needs_key == (quantizer != other)
    x = jnp.ones((4, 16))
    if quantizer.needs_key:
        with pytest.raises(ValueError, match='needs a key, such as key='):
            gq.fake_quantize(x, quantizer)
    else:
        with pytest.raises(ValueError, match='takes no key'):
            gq.fake_quantize(x, quantizer, key=jax.random.key(0))


@pytest.mark.parametrize('settings', [dict(hadamard=gq.Hadamard(16)), dict(prescale=0.5), NVFP4 | dict(fit='eden')])
def test_what_is_no_product_of_numbers_and_scales_is_not_stored(settings):
    quantizer = gq.Quantizer('float4_e2m1fn', **settings)
    with pytest.raises(ValueError, match='no product of its numbers and scales'):
        largest_magnitudes(jnp.ones((4, 16)), quantizer)
    with pytest.raises(ValueError, match=r'no product of its numbers and scales|needs a key'):
        quantize(jnp.ones((4, 16)), quantizer)


LARGEST = {
    'rounded up': dict(scale='mx', scale_rounding='rceil'),
    'even': dict(scale='mx', scale_rounding='even'),
    'prescaled': dict(scale='mx', rounding='stochastic', prescale=0.75),
    'little of it': dict(prescale=0.1),
    'rms': dict(fit='rms'),
    'eden': NVFP4 | dict(fit='eden'),
}


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize('name', LARGEST)
def test_the_largest_numbers_of_a_dtype_neither_overflow_nor_vanish(name, dtype):
    """They saturate, where a number of the format times the scale is beyond the dtype, or the scale beyond float32."""
    quantizer = gq.Quantizer('float4_e2m1fn', **LARGEST[name])
    x = np.full((4, 64), float(jnp.finfo(dtype).max))
    x[:, 1::2] *= -np.random.default_rng(0).uniform(0.7, 1, (4, 32))
    x = jnp.asarray(x, dtype)
    y = gq.fake_quantize(x, quantizer, key=jax.random.key(0) if quantizer.needs_key else None)
    ratios = np.asarray(y, np.float64) / np.asarray(x, np.float64)
    assert np.all(np.isfinite(ratios)) and np.all((ratios > 0.6) & (ratios < 1.5)), (ratios.min(), ratios.max())


@pytest.mark.parametrize('shape', [(0, 32), (32, 0), (2, 0, 16)])
@pytest.mark.parametrize('settings', [{}, NVFP4, dict(block_size='channel'), dict(block_size=(16, 16), scale='mx')])
def test_empty_arrays(settings, shape):
    """Quantized, stored and measured alike: nothing of a shape."""
    quantizer, x = gq.Quantizer('float4_e2m1fn', **settings), jnp.ones(shape)
    assert gq.fake_quantize(x, quantizer).shape == largest_magnitudes(x, quantizer).shape == shape
    scaled = quantize(x, quantizer)
    assert scaled.numbers.shape == shape and scaled.scales.size == 0


@pytest.mark.parametrize('fit', ['absmax', 'four_over_six'])
@pytest.mark.parametrize('block_size', [16, (16, 16)])
def test_numbers_and_scales_make_what_is_multiplied(fit, block_size):
    """Of NVFP4, in tiles too: codes times the tensor's scale, in float32."""
    quantizer = gq.Quantizer('float4_e2m1fn', block_size=block_size, scale='nvfp4', fit=fit)
    x = jax.random.normal(jax.random.key(0), (32, 64))
    scaled = quantize(x, quantizer)
    rows = 1 if block_size == 16 else 16
    scales = (np.asarray(scaled.scales) / np.asarray(scaled.divisor)).repeat(16, axis=1).repeat(rows, axis=0)
    assert np.array_equal(scaled.numbers * scales, gq.fake_quantize(x, quantizer))
    assert set(jnp.abs(scaled.numbers).ravel().tolist()) <= {0, 0.5, 1, 1.5, 2, 3, 4, 6}
    assert jnp.array_equal(scaled.scales, scaled.scales.astype(jnp.float8_e4m3fn).astype(jnp.float32))


def test_a_quantizer_is_a_value():
    """Frozen, hashable and equal to its copy, whatever its block size was written as."""
    quantizer = gq.Quantizer('e2m1', block_size=[16, 16], scale='nvfp4')
    assert quantizer == dataclasses.replace(quantizer) and hash(quantizer) == hash(dataclasses.replace(quantizer))
    assert quantizer.block_size == (16, 16)
