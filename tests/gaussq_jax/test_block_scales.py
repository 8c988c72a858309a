"""How scales are chosen, values transformed and gradients clipped: against the papers' formulas in float64.

Where float32 may decide otherwise, at a tie of values, of scales or of errors, either result will do; their share is
bounded.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_quantizers as oracle
import pytest
from numpy_float_formats import assert_same_bits, heavy_tailed, to_blocks

import gaussq_jax as gq
from gaussq_jax.block_scales import gaussian_clipping

KEY = jax.random.key(5)
E2M1, E4M3 = 'float4_e2m1fn', 'float8_e4m3fn'
SIGNS = (1, -1, -1, 1, 1, 1, -1, 1, -1, 1, 1, 1, -1, -1, 1, -1)
fake_quantize = jax.jit(gq.fake_quantize, static_argnames=('quantizer', 'axis'))


def nvfp4(block_size=16, **settings):
    return gq.Quantizer(E2M1, block_size=block_size, scale='nvfp4', **settings)


def mx(fmt=E2M1, block_size=32, **settings):
    return gq.Quantizer(fmt, block_size=block_size, scale='mx', **settings)


def uneven(shape, seed=1, spread=2.0):
    """Heavy tails; a row of zeros, one of -0, one of a single value."""
    x = heavy_tailed(shape, seed, spread=spread)
    x[0], x[1], x[2] = 0, -0.0, 0
    x[2].flat[-1] = -0.3
    return x


def expected(x, quantizer, axis=-1, key=None):
    """Of the oracle, transformed back."""
    matrix = None
    if quantizer.hadamard is not None:
        matrix = oracle.matrix_of(quantizer.hadamard, None if key is None else jax.random.fold_in(key, 7))
    draws = oracle.thresholds(key, x.shape) if quantizer.rounding == 'stochastic' else None
    scale_draws = None
    if quantizer.fit == 'eden':
        scale_draws = oracle.thresholds(key, (*x.shape[:-1], -(-x.shape[-1] // 16), 1))
    result = oracle.quantize(x, quantizer, axis, matrix=matrix, draws=draws, scale_draws=scale_draws)
    if matrix is None:
        return result
    spread_over = np.array(to_blocks(x, len(matrix), axis))  # what is unsure makes all of its block so
    unsure = result.unsure.ravel()[spread_over].any(1, keepdims=True) & np.ones_like(spread_over, bool)
    back = np.empty(x.size, bool)
    back[spread_over] = unsure
    return result._replace(values=oracle.transform(result.values, matrix.T, axis), unsure=back.reshape(x.shape))


CASES = {
    'ceil': (mx(scale_rounding='ceil'), -1),
    'rceil of tiles': (mx(E4M3, (32, 32), scale_rounding='rceil'), -1),
    'even by channel': (mx('e3m2', 'channel', scale_rounding='even'), 0),
    'nearest of the tensor': (mx('e2m3', 'tensor', scale_rounding='nearest'), -1),
    'nearest': (mx(scale_rounding='nearest'), -1),
    'rceil of a few bits': (mx('e3m0', 7, scale_rounding='rceil'), -1),
    'prescale of mx': (mx(prescale=0.75), -1),
    'prescale 1/2': (mx(prescale=0.5), -1),
    'prescale and absmax': (gq.Quantizer('e4m3', prescale=0.8), 0),
    'rms of mx': (mx(scale_rounding='nearest', fit='rms'), -1),
    'rms of mx, ragged': (mx(block_size=20, scale_rounding='floor', fit='rms'), 0),
    'rms of absmax': (gq.Quantizer('e2m1', block_size=16, fit='rms'), -1),
    'rms of tiles, ragged': (gq.Quantizer('e3m2', block_size=(16, 32), fit='rms'), -1),
    'rms by channel': (gq.Quantizer('e0m3', block_size='channel', fit='rms'), 0),
    'rms of the tensor': (gq.Quantizer('e4m3', block_size='tensor', fit='rms'), -1),
    'nvfp4 in tiles': (nvfp4((16, 16)), -1),
    'nvfp4 in tiles, along the other axis': (nvfp4((16, 16)), 0),
    'nvfp4 by columns': (nvfp4((16, 1)), -1),
    'nvfp4, prescaled': (nvfp4(prescale=16 / 17), -1),
    'four over six': (nvfp4(fit='four_over_six'), -1),
    'four over six, along the other axis': (nvfp4(fit='four_over_six'), 0),
    'four over six in tiles': (nvfp4((16, 16), fit='four_over_six'), -1),
    'transformed': (mx(hadamard=gq.Hadamard(16)), -1),
    'transformed, fixed signs': (nvfp4(hadamard=gq.Hadamard(16, SIGNS)), -1),
    'transformed along the other axis': (mx(E4M3, hadamard=gq.Hadamard(4), scale_rounding='rceil'), 0),
    'transformed, then four over six': (nvfp4(fit='four_over_six', hadamard=gq.Hadamard(32)), -1),
    'quartet': (mx(scale_rounding='nearest', fit='rms', hadamard=gq.Hadamard(32)), -1),
    'stochastic mx': (mx(rounding='stochastic', prescale=0.75), -1),
    'stochastic nvfp4': (nvfp4(rounding='stochastic', prescale=16 / 17), 0),
    'stochastic, saturating': (nvfp4(rounding='stochastic'), -1),
    'stochastic, which of four and six chosen as without': (nvfp4(fit='four_over_six', rounding='stochastic'), -1),
    'stochastic, random signs': (mx(rounding='stochastic', hadamard=gq.Hadamard(16, 'random')), -1),
    'eden': (nvfp4(fit='eden'), -1),
    'eden, random signs': (nvfp4(fit='eden', hadamard=gq.Hadamard(128, 'random')), -1),
}


@pytest.mark.parametrize('case', CASES)
def test_the_formulas(case):
    quantizer, axis = CASES[case]
    x = uneven((40 if quantizer.hadamard is None or axis == -1 else 32, 256 if quantizer.hadamard else 70))
    key = KEY if quantizer.needs_key else None
    got = np.asarray(fake_quantize(x, quantizer, axis=axis, key=key))
    values, unsure, _ = expected(x, quantizer, axis, key)
    assert unsure.mean() < (0.2 if quantizer.hadamard and quantizer.hadamard.size > 16 else 0.05)
    is_exact = quantizer.scale == 'mx' and quantizer.prescale in (1, 0.5) and quantizer.hadamard is None
    if is_exact:
        assert_same_bits(got[~unsure], values[~unsure].astype(np.float32))
    largest = np.max(np.abs(values))
    atol = 2e-6 * largest if quantizer.hadamard else 0
    np.testing.assert_allclose(got[~unsure], values[~unsure], rtol=4e-6, atol=atol)
    assert np.all(np.abs(got - values)[unsure] <= np.abs(values)[unsure] + np.abs(x)[unsure] + 0.1 * largest)
    assert np.count_nonzero(got) > x.size / 50


@pytest.mark.parametrize('case', ['rms of mx', 'rms of absmax', 'four over six', 'eden', 'nvfp4 in tiles', 'ceil'])
def test_any_magnitude(case):
    """Powers of two pass through, near both ends of float32; zeros, infinities and NaN stay what they are."""
    quantizer, _ = CASES[case]
    key = KEY if quantizer.needs_key else None
    x = uneven((32, 64), spread=0.3)
    values = np.asarray(fake_quantize(x, quantizer, key=key))
    for exponent in (-90, 100):
        scaled = np.asarray(fake_quantize(np.ldexp(x, exponent), quantizer, key=key))
        assert_same_bits(scaled, np.ldexp(values, exponent))
    largest = np.finfo(np.float32).max
    extremes = np.full((32, 64), largest, np.float32)
    extremes[:, ::3] = -largest
    assert np.all(np.isfinite(fake_quantize(extremes, quantizer, key=key)))
    x[3, 5], x[4, 6], x[5, 7], x[6] = np.inf, -np.inf, np.nan, np.nan
    got = np.asarray(fake_quantize(x, quantizer, key=key))
    beyond = ~np.isfinite(x)
    np.testing.assert_array_equal(got[beyond], x[beyond])
    assert np.all(np.isfinite(got[~beyond]))
    assert np.all(np.signbit(got[0]) == 0) and np.all(np.signbit(got[1])) and np.all(got[:2] == 0)
    tiny = np.full((32, 64), 1e-44, np.float32)
    assert np.all(np.abs(fake_quantize(tiny, quantizer, key=key)) < 1e-30)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('case', ['quartet', 'four over six', 'eden, random signs'])
def test_narrow_dtypes_are_computed_in_float32_and_rounded_once(case, dtype):
    quantizer, _ = CASES[case]
    key = KEY if quantizer.needs_key else None
    x = jnp.asarray(uneven((40, 256), spread=0.5), dtype)
    wide = fake_quantize(x.astype(jnp.float32), quantizer, key=key)
    assert_same_bits(fake_quantize(x, quantizer, key=key), wide.astype(dtype))


# --- what is known by hand, or by other formulas ----------------------------------------------------


def test_the_clipping_of_normal_values():
    """E2M1's is published with Quartet; others are found by sums over a grid."""
    assert abs(gaussian_clipping(gq.parse_format(E2M1)) - 2.92247856) < 4e-6
    for fmt in ('e0m3', 'e2m3', 'e3m0'):
        fmt = gq.parse_format(fmt)
        assert gaussian_clipping(fmt) == pytest.approx(oracle.gaussian_clipping(oracle.triple_of(fmt)), rel=1e-4)


@pytest.mark.parametrize('fmt', [E2M1, E4M3, 'float6_e3m2fn', 'float6_e2m3fn', 'e1m2', 'e3m0'])
@pytest.mark.parametrize('rounding', ['floor', 'ceil', 'rceil', 'even', 'nearest'])
def test_scales_turn_where_they_should(fmt, rounding):
    """At the float32 numbers around each turn, by the scale alone: the largest value is one of them."""
    quantizer = mx(fmt, 1, scale_rounding=rounding)
    top = quantizer.fmt.max
    around = [top, top / math.sqrt(2), 1, *(2 - 2.0**-bits for bits in range(1, 6))]
    points = np.float32([c * 2.0**k for c in around for k in (-3, 0, 1)])
    points = np.unique([np.nextafter(points, points * by, dtype=np.float32) for by in (0, 1, 2)])
    exponents = [oracle.mx_exponent(float(point), oracle.triple_of(quantizer.fmt), rounding) for point in points]
    whole = np.repeat(np.float32(points)[:, None], 2, axis=1)
    whole[:, 1] = 2.0**-60  # no value, but a mark: a block of its own, for a shape that isn't a column
    scaled = gq.block_scaling.quantize(whole, quantizer)
    np.testing.assert_array_equal(np.log2(np.float64(scaled.scales[:, 0])) + scaled.shift, exponents)


def test_rceil_and_ceil_let_nothing_saturate():
    x = heavy_tailed((300, 32))
    largest = np.max(np.abs(x), axis=1)
    for rounding in ('ceil', 'rceil'):
        held = np.asarray(gq.block_scaling.largest_magnitudes(x, mx(scale_rounding=rounding)))
        assert np.all(held[:, 0] >= largest)
    assert np.all(held[:, 0] < 2 * largest)  # the least that does
    assert np.mean(np.asarray(gq.block_scaling.largest_magnitudes(x, mx()))[:, 0] < largest) > 0.2


def test_tiles_are_blocks_whose_largest_magnitude_is_the_tiles():
    """A tile of 16 x 16 as sixteen blocks of 16, of which each has a value as large as the tile's largest."""
    x = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    tiles = np.asarray(fake_quantize(x, nvfp4((16, 16))))
    of_tiles = np.abs(x).reshape(2, 16, 3, 16).max((1, 3), keepdims=True)
    blocks = np.concatenate([x.reshape(2, 16, 3, 16), np.broadcast_to(of_tiles, (2, 16, 3, 1))], axis=3)
    for row, column in np.ndindex(2, 3):
        for i in range(16):
            rows = np.zeros((2, 16), np.float32)
            rows[0, :15], rows[0, 15], rows[1, 0] = (
                blocks[row, i, column, :15],
                of_tiles[row, 0, column, 0],
                np.abs(x).max(),
            )
            alone = np.asarray(fake_quantize(rows, nvfp4()))[0, :15]
            np.testing.assert_allclose(tiles[16 * row + i, 16 * column : 16 * column + 15], alone, rtol=2**-21)


def test_four_over_six_chooses_by_hand():
    """4 and 3 with the largest magnitude at 6 are 6 and 4 or 5 (4.5): scaled to 4, both are there."""
    x = np.zeros((2, 16), np.float32)
    x[0, :2], x[1, :2] = [4, 3], [6, 1]  # of the tensor 6: codes 171 and 256 for 6, 256 and 384 for 4
    got = np.asarray(fake_quantize(x, nvfp4(fit='four_over_six')))
    np.testing.assert_allclose(got, x, rtol=1e-6)
    plain = np.asarray(fake_quantize(x, nvfp4()))
    assert abs(plain[0, 1] - 3) > 0.1


# --- clipped gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize(('hadamard', 'axis'), [(None, -1), (gq.Hadamard(16, SIGNS), -1), (gq.Hadamard(16), 0)])
def test_clipped_gradients(hadamard, axis):
    """Of the transformed values, those beyond what the scale holds get none."""
    quantizer = mx(scale_rounding='nearest', fit='rms', hadamard=hadamard, clips_gradient=True)
    x = heavy_tailed((64, 64), seed=2)
    d = np.random.default_rng(3).standard_normal(x.shape).astype(np.float32)
    _, pull_back = jax.vjp(lambda x: fake_quantize(x, quantizer, axis=axis), x)
    matrix = None if hadamard is None else oracle.matrix_of(hadamard)
    held, unsure = oracle.quantize(x, quantizer, axis, matrix=matrix)[2:0:-1]
    assert 0.001 < 1 - held.mean() < 0.1 and unsure.mean() < 0.01
    got = pull_back(d)[0]
    assert got.dtype == np.float32
    if matrix is None:
        assert_same_bits(got, np.where(held, d, 0).astype(np.float32))
    else:
        masked = np.where(held, oracle.transform(d.astype(np.float64), matrix, axis), 0)
        np.testing.assert_allclose(got, oracle.transform(masked, matrix.T, axis), atol=1e-5)
    straight = gq.Quantizer(E2M1, scale='mx', scale_rounding='nearest', fit='rms', hadamard=hadamard)
    assert_same_bits(jax.vjp(lambda x: fake_quantize(x, straight, axis=axis), x)[1](d)[0], d)


def test_derivatives_of_clipped_gradients_forward_and_twice():
    quantizer = mx(fit='rms', clips_gradient=True)
    x = heavy_tailed((4, 32), seed=2)
    function = lambda x: jnp.sum(jnp.square(gq.fake_quantize(x, quantizer)))
    tangent = jnp.ones_like(x)
    _, forward = jax.jit(lambda x: jax.jvp(function, (x,), (tangent,)))(x)
    np.testing.assert_allclose(forward, jnp.sum(jax.jit(jax.grad(function))(x) * tangent), rtol=1e-5)
    held = oracle.quantize(x, quantizer).held
    hessian = jax.jit(lambda x: jax.jvp(jax.grad(function), (x,), (tangent,))[1])(x)
    np.testing.assert_allclose(hessian, 2.0 * held, rtol=1e-6)
