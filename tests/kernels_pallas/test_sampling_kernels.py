"""Kernels of weight sampling, interpreted: the bits of the reference and of NumPy, for every kind of block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest
from numpy_float_formats import STANDARD

import gaussq_jax as gq
from kernels_pallas import implementations, weight_sampling
from kernels_pallas.arg_specs import matching
from kernels_pallas.weight_sampling import triton

WORDS = np.array([0xDEADBEEF, 0x01234567], np.uint32)
KEY = jax.random.wrap_key_data(WORDS, impl='threefry2x32')
ZERO = np.zeros(3, np.uint32)  # an origin
SMALLEST_NORMAL = 2.0**-126
FORMATS = {
    None: None,
    'e2m1': (2, 1, 'finite'),
    'e3m2': (3, 2, 'finite'),
    'e5m2': (5, 2, 'finite'),
    'e0m7': (0, 7, 'finite'),
    **{name: STANDARD[name] for name in ('float8_e4m3fn', 'bfloat16')},
}


@pytest.fixture(params=implementations.INTERPRETED)
def implementation(request):
    if reason := implementations.why_not(request.param):
        pytest.skip(reason)
    return request.param


# --- blocks of weights, each with a trait of its own --------------------------------------------------


def blocks_with_traits():
    """{trait: (weights (32, 32), bitwidth)}."""
    generator = np.random.default_rng(0)
    normal = lambda: generator.normal(size=(32, 32))
    one_at = lambda magnitude: magnitude * np.eye(1, 32 * 32, 77).reshape(32, 32)
    with_specials, with_zeros = normal(), normal()
    with_specials[3, :3], with_specials[31, 31] = (np.inf, -np.inf, np.nan), np.inf
    with_zeros[generator.random((32, 32)) < 0.5] = -0.0
    return {
        'fine': (normal(), 10.5),
        'coarse': (normal() * 2.0 ** generator.integers(-9, 9, (32, 1)), 2 + 37 / 1024),
        'fractional bitwidth': (normal() * 1e-3, 5 + 511 / 1024),
        'zeros': (0 * normal() ** 2, 4.0),
        'negative zeros': (np.full((32, 32), -0.0), 4.0),
        'half of them negative zeros': (with_zeros, 3.0),
        'the largest in the last column': (np.where(np.arange(32) == 31, -100.0, normal()), 6.25),
        'the largest in the last row': (np.where(np.arange(32)[:, None] == 31, 100.0, normal()), 6.25),
        'denormal': (normal() * 1e-40, 4.0),
        'denormal but one': (one_at(1.0) + 1e-40, 4.0),
        'smallest normal': (normal() * 4e-38, 3.0),
        'constant': (np.full((32, 32), -1.5), 8.0),
        'almost infinite': (np.clip(normal(), -1, 1) * 3e38, 8.0),
        'infinities and NaN': (with_specials, 5.0),
        'NaN': (np.full((32, 32), np.nan), 5.0),
        'nothing finite': (np.full((32, 32), -np.inf), 5.0),
        'step of 2^-126': (one_at(2.0**-100), 27.0),
        'step below 2^-126': (one_at(2.0**-100), 28.0),
        'step of 2^-109': (one_at(2.0**-100), 10.0),
        'step below 2^-109': (one_at(2.0**-100), 11.0),
        'largest step': (normal(), -126.0),
    }


TRAITS = blocks_with_traits()


def arrange(shape):
    """Weights (l, m, n) and their bitwidths, of `shape` (l, m / 32, n / 32) blocks, all traits in turn."""
    assert np.prod(shape) >= len(TRAITS)
    turn = np.resize(np.arange(len(TRAITS)), shape)
    blocks, bitwidths = (np.array(values, np.float32) for values in zip(*TRAITS.values()))
    l, m_blocks, n_blocks = shape
    w = blocks[turn].swapaxes(2, 3).reshape(l, 32 * m_blocks, 32 * n_blocks)
    return w, bitwidths[turn]


def scales(bitwidths):
    return np.exp2(1.0 - bitwidths.astype(np.float64)).astype(np.float32)


def cotangents(shape, dtype):
    """Of all sizes, some of them zeros, and a block with infinities, NaN and overflow each."""
    generator = np.random.default_rng(1)
    l, m_blocks, n_blocks = shape
    dw_hat = generator.normal(size=(l, 32 * m_blocks, 32 * n_blocks))
    dw_hat *= np.exp2(generator.integers(-20, 20, (l, 32 * m_blocks, 1))) * generator.integers(0, 2, dw_hat.shape)
    dw_hat[0, :32, :32] = 3e38
    dw_hat[-1, -1, -3:] = np.inf, -np.inf, np.nan
    return jnp.asarray(dw_hat, dtype)


# --- comparisons --------------------------------------------------------------------------------------


def assert_same_bits(got, expected):
    """Of floats of one dtype, 0 and -0 told apart, whatever kind of NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    bits = lambda x: np.where(np.isnan(x), 1, x.view(f'uint{8 * x.itemsize}'))
    np.testing.assert_array_equal(bits(got), bits(expected))


def assert_is(got, expected, w=1.0):
    """The bits of float64 numbers; where these or the weights w are denormal in float32, zero may stand for that."""
    got, expected = np.asarray(got, np.float32), np.asarray(expected, np.float64)
    is_denormal = lambda x: (np.abs(x) < SMALLEST_NORMAL) & (x != 0)
    flushed = (is_denormal(expected) | is_denormal(np.asarray(w, np.float64))) & np.ones(got.shape, bool)
    assert np.all(np.abs(got[flushed] - expected[flushed]) < 4 * SMALLEST_NORMAL)
    assert_same_bits(np.where(flushed, 0, got), np.where(flushed, 0, expected).astype(np.float32))


def sums_by_halves(dw_hat, r):
    """sum(dW_hat R) over blocks of 32 in float32: halves of the rows are added, then halves of the columns."""
    l, m, n = dw_hat.shape
    parts = [np.asarray(dw_hat, np.float32)]
    if dw_hat.dtype == np.float32:  # eight leading bits, then eight, then the others; times R, each is exact
        for _ in range(2):
            high = (parts[-1].view(np.uint32) & 0xFFFF0000).view(np.float32)
            parts[-1:] = [high, parts[-1] - high]
    sums = []
    for part in parts if np.any(r != np.rint(r)) else [np.asarray(dw_hat, np.float32)]:
        x = (part * r.astype(np.float32)).reshape(l, m // 32, 32, n // 32, 32)
        for axis in (2, 4):
            while x.shape[axis] > 1:
                x = np.add(*np.split(x, 2, axis))
        sums.append(x[:, :, 0, :, 0])
    return functools.reduce(np.add, sums)


# --- forward and backward -----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=('noise', 'dtype', 'fmt', 'implementation'))
def forward(origin, w, scale, noise, dtype, fmt, implementation):
    fmt = fmt and gq.parse_format(fmt)
    grid = fmt and weight_sampling.Grid(fmt.mantissa_bits, fmt.min_exponent, fmt.max)
    options = dict(block_size=32, noise=noise, dtype=jnp.dtype(dtype), grid=grid)
    return weight_sampling.forward(tuple(WORDS), tuple(origin), w, scale, **options, implementation=implementation)


@functools.partial(jax.jit, static_argnames=('noise', 'implementation'))
def backward(origin, dw_hat, noise, implementation):
    return weight_sampling.backward(tuple(WORDS), tuple(origin), dw_hat, block_size=32, noise=noise, implementation=implementation)


# noise, dtype of w, dtype of W_hat, format; with blocks (l, m / 32, n / 32) and origin
FORWARD_CASES = [
    ('rounded_normal', 'float32', 'bfloat16', None, (1, 6, 4), (0, 0, 0)),
    ('rounded_normal', 'bfloat16', 'bfloat16', None, (21, 1, 1), (3, 64, 32)),
    ('rounded_normal', 'float32', 'float32', None, (2, 2, 6), (0, 0, 2**31)),
    ('rounded_normal', 'bfloat16', 'float32', None, (1, 7, 3), (2**31, 2**31, 0)),
    ('uniform', 'float32', 'bfloat16', None, (3, 1, 7), (0, 0, 0)),
    ('uniform', 'bfloat16', 'bfloat16', None, (1, 2, 16), (0, 0, 0)),
    ('uniform', 'float32', 'float32', None, (3, 3, 3), (1, 32, 0)),
    ('uniform', 'bfloat16', 'float32', None, (1, 2, 12), (0, 0, 0)),
    ('rounded_normal', 'float32', 'bfloat16', 'e3m2', (1, 5, 5), (0, 0, 0)),
    ('uniform', 'float32', 'float32', 'e2m1', (2, 1, 11), (0, 0, 0)),
    ('uniform', 'bfloat16', 'bfloat16', 'e5m2', (1, 6, 4), (0, 0, 0)),
    ('rounded_normal', 'bfloat16', 'float32', 'e0m7', (3, 4, 2), (0, 0, 0)),
    ('rounded_normal', 'float32', 'float32', 'float8_e4m3fn', (1, 6, 4), (0, 32, 0)),
    ('rounded_normal', 'float32', 'bfloat16', 'bfloat16', (1, 3, 8), (0, 0, 0)),
]


def check_forward(results, w, bitwidths, origin, noise, dtype, fmt):
    """Against the reference, NumPy, and the promise that nothing but infinite or NaN weights comes out as such."""
    w_hat, step = results
    for got, expected in zip(results, forward(origin, w, scales(bitwidths), noise, dtype, fmt, 'xla')):
        assert_same_bits(got, expected)
    options = dict(origin=origin, noise=noise, fmt=FORMATS[fmt], dtype=dtype)
    with np.errstate(invalid='ignore'):
        assert_is(w_hat, oracle.sample_weights(WORDS, w, bitwidths, **options), w)
    assert_is(step, oracle.block_step(w, bitwidths, noise=noise))
    np.testing.assert_array_equal(np.isfinite(w_hat), np.isfinite(w))
    assert np.all(np.isfinite(step))


@pytest.mark.parametrize(('noise', 'w_dtype', 'dtype', 'fmt', 'blocks', 'origin'), FORWARD_CASES)
def test_forward(implementation, noise, w_dtype, dtype, fmt, blocks, origin):
    w, bitwidths = arrange(blocks)
    w, origin = jnp.asarray(w, w_dtype), np.array(origin, np.uint32)
    results = forward(origin, w, scales(bitwidths), noise, dtype, fmt, implementation)
    check_forward(results, w, bitwidths, origin, noise, dtype, fmt)


def test_a_nan_bitwidth_shows_in_its_block_alone(implementation):
    w, bitwidths = arrange((1, 6, 4))
    bitwidths[0, 0, 1] = np.nan
    results = forward(ZERO, w, scales(bitwidths), 'rounded_normal', 'bfloat16', None, implementation)
    reference = forward(ZERO, w, scales(bitwidths), 'rounded_normal', 'bfloat16', None, 'xla')
    for got, expected in zip(results, reference):
        assert_same_bits(got, expected)
    assert np.all(np.isnan(results[0][0, :32, 32:64])) and np.all(np.isfinite(results[0][0, :32, :32]))


@pytest.mark.parametrize(
    ('noise', 'dtype', 'blocks', 'origin'),
    [
        ('rounded_normal', 'bfloat16', (2, 3, 4), (0, 0, 0)),
        ('rounded_normal', 'float32', (1, 2, 3), (7, 64, 2**31)),
        ('uniform', 'bfloat16', (3, 2, 6), (2**31, 2**31, 96)),
        ('uniform', 'float32', (2, 1, 16), (0, 0, 0)),
    ],
)
def test_backward(implementation, noise, dtype, blocks, origin):
    dw_hat = cotangents(blocks, dtype)
    origin = np.array(origin, np.uint32)
    sums = backward(origin, dw_hat, noise, implementation)
    check_sums(sums, dw_hat, noise, origin)


def check_sums(sums, dw_hat, noise, origin):
    assert sums.dtype == jnp.float32
    assert_same_bits(sums, backward(origin, dw_hat, noise, 'xla'))
    r = oracle.noise_values(WORDS, dw_hat.shape, origin, noise)
    with np.errstate(invalid='ignore', over='ignore'):
        assert_is(sums, sums_by_halves(np.asarray(dw_hat), r))
    inner = np.s_[..., :-1]  # blocks without what isn't finite, see `cotangents`; and sums in float64, in another order
    terms = np.asarray(dw_hat, np.float64) * r
    exact, size = oracle.block_sum(terms, 32)[inner], oracle.block_sum(np.abs(terms), 32)[inner]
    assert np.all(np.abs(np.asarray(sums, np.float64)[inner] - exact) <= 2e-6 * size)


# --- tiles, ragged edges ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('tile', 'n_blocks', 'noise', 'dtype'),
    [
        (1, 4, 'rounded_normal', 'float32'),
        (2, 6, 'uniform', 'bfloat16'),
        (4, 3, 'rounded_normal', 'bfloat16'),
        (8, 16, 'rounded_normal', 'float32'),
        (16, 16, 'uniform', 'float32'),
    ],
)
def test_how_triton_tiles_the_weights_changes_no_bit(tile, n_blocks, noise, dtype):
    """n / 32 a multiple of the tile, and not; place, row_block and column say where in its leaf an array lies."""
    l, m_blocks = 2, -(-len(TRAITS) // n_blocks)
    w, bitwidths = arrange((l, m_blocks, n_blocks))
    w, dw_hat = jnp.asarray(w, dtype), cotangents((l, m_blocks, n_blocks), dtype)
    place = np.array([[*WORDS, 5 + i, 100, 32] for i in range(l)], np.uint32)
    row_block, column = np.arange(7, 7 + m_blocks, dtype=np.uint32), np.arange(64, 64 + w.shape[2], dtype=np.uint32)

    @jax.jit
    def run(w, scale, dw_hat):
        w_hat = triton.forward(
            place, row_block, column, w, scale, noise=noise, dtype=jnp.bfloat16, tile=tile, interpret=True
        )
        return w_hat, triton.backward(place, row_block, column, dw_hat, noise=noise, tile=tile, interpret=True)

    results, sums = run(w, scales(bitwidths), dw_hat)
    origin = np.array([5, 107 * 32, 96], np.uint32)
    check_forward(results, w, bitwidths, origin, noise, 'bfloat16', None)
    check_sums(sums, dw_hat, noise, origin)


RAGGED = [spec.shape for spec in matching('^ragged/') if spec.size < 100_000]


@pytest.mark.parametrize('shape', [*RAGGED, (0, 32), (2, 32, 0)])
def test_sampled_weights_and_gradients_of_ragged_arrays(implementation, shape):
    """Sizes that are no multiples of 32, leading axes; W_hat, dW and db."""
    w, bitwidths = oracle.random_weights(shape), oracle.random_bitwidths(shape)
    cotangent = jnp.asarray(oracle.random_weights(shape, seed=2), jnp.bfloat16)

    @functools.partial(jax.jit, static_argnames='implementation')
    def run(w, bitwidths, cotangent, implementation):
        sample = functools.partial(gq.sample_weights, KEY, origin=(2, 32, 64), implementation=implementation)
        w_hat, pull_back = jax.vjp(sample, w, bitwidths)
        return w_hat, *pull_back(cotangent)

    results = run(w, bitwidths, cotangent, implementation)
    for got, expected in zip(results, run(w, bitwidths, cotangent, 'xla')):
        assert_same_bits(got, expected)
    assert_is(results[0], oracle.sample_weights(WORDS, w, bitwidths, origin=(2, 32, 64)))
