"""Kernels of weight sampling, interpreted and, on a GPU, compiled: the bits of the reference and of NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest
from numpy_float_formats import STANDARD

import gaussq_jax as gq
from kernels_pallas import implementations
from kernels_pallas.weight_sampling import NOISES, triton, xla

WORDS = np.array([0xDEADBEEF, 0x01234567], np.uint32)
KEY = jax.random.wrap_key_data(WORDS, impl='threefry2x32')
SMALLEST_NORMAL = 2.0**-126
FORMATS = {
    None: None,
    'e2m1': (2, 1, 'finite'),
    'e3m2': (3, 2, 'finite'),
    'e5m2': (5, 2, 'finite'),
    'e0m7': (0, 7, 'finite'),
    **{name: STANDARD[name] for name in ('float8_e4m3fn', 'bfloat16')},
}


@pytest.fixture(params=(*implementations.KERNELS, *implementations.INTERPRETED))
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
        'smallest normal': (np.clip(np.rint(4 * normal()), -8, 8) * SMALLEST_NORMAL, 4.0),
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

ORIGINS = {'first': (0, 0, 0), 'inside': (5, 3200, 96), 'far': (2**31, 2**31, 2**31)}

# noise, dtype of w, dtype of W_hat, format: (blocks (l, m / 32, n / 32), Triton's tile, origin); all others are slow
FORWARD = {
    ('rounded_normal', 'float32', 'bfloat16', None): ((1, 6, 4), 1, 'first'),
    ('rounded_normal', 'bfloat16', 'float32', None): ((1, 7, 3), 4, 'far'),
    ('uniform', 'float32', 'float32', None): ((2, 3, 6), 4, 'inside'),
    ('uniform', 'bfloat16', 'bfloat16', None): ((1, 2, 16), 16, 'first'),
    ('rounded_normal', 'float32', 'bfloat16', 'e3m2'): ((21, 1, 1), 8, 'inside'),
    ('uniform', 'float32', 'float32', 'e2m1'): ((2, 1, 12), 2, 'first'),
    ('rounded_normal', 'bfloat16', 'float32', 'bfloat16'): ((1, 2, 16), 8, 'inside'),
}
EVERY = set(itertools.product(NOISES, ('float32', 'bfloat16'), ('float32', 'bfloat16'), FORMATS))
OTHERS = {case: ((1, 5, 5), 4, 'first') for case in EVERY - FORWARD.keys()}

# noise, dtype of dW_hat, and as above
BACKWARD = [
    ('rounded_normal', 'bfloat16', (2, 3, 4), 4, 'first'),
    ('rounded_normal', 'float32', (1, 2, 3), 2, 'far'),
    ('uniform', 'bfloat16', (3, 2, 6), 1, 'inside'),
    ('uniform', 'float32', (2, 1, 16), 16, 'first'),
]


def slow(cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def interpreted(implementation, shape, origin, tile):
    """The kernels' module, their arguments that say where an array of `shape` lies, and those that say how to run."""
    module, interpret = implementations.load('kernels_pallas.weight_sampling', implementation)
    leading, row, column = origin
    place = np.array([[*WORDS, leading + i, 0, column // 2] for i in range(shape[0])], np.uint32)
    row_block = np.arange(row // 32, row // 32 + shape[1] // 32, dtype=np.uint32)
    column = np.arange(column - column // 2, column - column // 2 + shape[2], dtype=np.uint32)
    return module, (place, row_block, column), interpret | ({'tile': tile} if module is triton else {})


def representable(fmt):
    return gq.parse_format(fmt).representable if fmt else None


def as_words(numbers):
    return tuple(np.array(numbers, np.uint32))


@pytest.mark.parametrize(('noise', 'w_dtype', 'dtype', 'fmt'), [*FORWARD, *slow(sorted(OTHERS, key=str))])
def test_forward(implementation, noise, w_dtype, dtype, fmt):
    """Every trait; and nothing but infinite or NaN weights comes out as such."""
    blocks, tile, origin = (FORWARD | OTHERS)[noise, w_dtype, dtype, fmt]
    check_forward(implementation, noise, w_dtype, dtype, fmt, blocks, tile, ORIGINS[origin])


@pytest.mark.parametrize(('tile', 'n_blocks'), slow(itertools.product((1, 2, 4, 8, 16), (1, 3, 4, 6, 16))))
def test_every_tile(tile, n_blocks):
    blocks = (2, -(-len(TRAITS) // n_blocks), n_blocks)
    check_forward('triton_interpret', 'uniform', 'float32', 'bfloat16', None, blocks, tile, ORIGINS['inside'])
    check_backward('triton_interpret', 'uniform', 'float32', blocks, tile, ORIGINS['inside'])


def check_forward(implementation, noise, w_dtype, dtype, fmt, blocks, tile, origin):
    w, bitwidths = arrange(blocks)
    w, scale = jnp.asarray(w, w_dtype), scales(bitwidths)
    module, where, launch = interpreted(implementation, w.shape, origin, tile)
    options = dict(noise=noise, dtype=jnp.dtype(dtype), representable=representable(fmt))
    w_hat, step = jax.jit(functools.partial(module.forward, **options, **launch))(*where, w, scale)
    reference = xla.forward(as_words(WORDS), as_words(origin), w, scale, block_size=32, **options)
    assert_same_bits(w_hat, reference[0])
    assert_same_bits(step, reference[1])
    with np.errstate(invalid='ignore'):
        expected = oracle.sample_weights(WORDS, w, bitwidths, origin=origin, noise=noise, fmt=FORMATS[fmt], dtype=dtype)
        assert_is(w_hat, expected, w)
    assert_is(step, oracle.block_step(w, bitwidths, noise=noise))
    np.testing.assert_array_equal(np.isfinite(w_hat), np.isfinite(w))
    assert np.all(np.isfinite(step))


def test_a_nan_bitwidth_shows_in_its_block_alone(implementation):
    w, scale = np.ones((1, 32, 96), np.float32), np.array([[[0.25, np.nan, 0.25]]], np.float32)
    module, where, launch = interpreted(implementation, w.shape, (0, 0, 0), 4)
    options = dict(noise='rounded_normal', dtype=jnp.dtype('bfloat16'))
    w_hat, step = jax.jit(functools.partial(module.forward, **options, **launch))(*where, w, scale)
    np.testing.assert_array_equal(np.isnan(w_hat), np.isnan(scale).repeat(32, 1).repeat(32, 2))
    np.testing.assert_array_equal(np.isnan(step), np.isnan(scale))


@pytest.mark.parametrize(('noise', 'dtype', 'blocks', 'tile', 'origin'), BACKWARD)
def test_backward(implementation, noise, dtype, blocks, tile, origin):
    check_backward(implementation, noise, dtype, blocks, tile, ORIGINS[origin])


def check_backward(implementation, noise, dtype, blocks, tile, origin):
    """Bits against the reference and the sum by halves, and the size of the sum in float64."""
    dw_hat = cotangents(blocks, dtype)
    module, where, launch = interpreted(implementation, dw_hat.shape, origin, tile)
    sums = jax.jit(functools.partial(module.backward, noise=noise, **launch))(*where, dw_hat)
    assert sums.dtype == jnp.float32
    assert_same_bits(sums, xla.backward(as_words(WORDS), as_words(origin), dw_hat, block_size=32, noise=noise))
    r = oracle.noise_values(WORDS, dw_hat.shape, origin, noise)
    with np.errstate(invalid='ignore', over='ignore'):
        assert_is(sums, sums_by_halves(np.asarray(dw_hat), r))
        terms = np.asarray(dw_hat, np.float64) * r
    exact, size = oracle.block_sum(terms, 32), oracle.block_sum(np.abs(terms), 32)
    ordinary = size < 1e38
    assert np.count_nonzero(~ordinary) == 2  # see `cotangents`
    assert np.all(np.abs(np.asarray(sums, np.float64) - exact)[ordinary] <= 2e-6 * size[ordinary])


# --- what users call ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'shape', [(2, 3, 40, 100), (0, 32), (2, 32, 0), *slow([[(33, 5)], [(1, 1)], [(1, 700)], [(700, 1)]])]
)
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
    if w.size:
        assert_is(results[0], oracle.sample_weights(WORDS, w, bitwidths, origin=(2, 32, 64)))
