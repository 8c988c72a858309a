"""What is timed against each other does the same thing; what isn't installed is said to be missing."""

import importlib.util
import warnings

import ml_dtypes
import numpy as np
import pytest

from experiments.benchmarks import cast_times

SHAPE = (128, 256)
PACKAGES = {'qwix': 'qwix', 'PyTorch': 'torch'}
OPERATIONS = [
    f'{what}, {axis} axis' for what in ('block of 32', 'block of 128', 'channel', 'MX') for axis in ('first', 'last')
]


@pytest.fixture(scope='module')
def x():
    """Values of the format's normal and subnormal numbers, and none beyond its largest number."""
    generator = np.random.default_rng(0)
    return (generator.normal(size=SHAPE) * np.exp(2 * generator.normal(size=SHAPE))).clip(-440, 440).astype(np.float32)


@pytest.fixture(scope='module')
def results(x):
    """What each contender returns, None if its package isn't here."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what others warn about on import
        contenders = cast_times.contenders(x)
        return {
            what: {by: call and np.asarray(call()) for by, call in calls.items()} for what, calls in contenders.items()
        }


def of(results, what, by):
    package = PACKAGES.get(by.split(',')[0])
    if package and not importlib.util.find_spec(package):
        pytest.skip(f'{package} is not installed')
    return results[what][by]


def test_operations(results):
    assert list(results) == ['copy', 'cast', 'cast, stochastically', *OPERATIONS]
    assert all(
        list(results[what]) == ['gaussq_jax', 'gaussq_jax, stochastic', 'qwix', 'PyTorch'] for what in OPERATIONS
    )


def test_the_copy_is_the_first(x, results):
    """The ratios are to it."""
    np.testing.assert_array_equal(results['copy']['jnp.copy'], x)


@pytest.mark.parametrize(
    'by',
    [
        *('gaussq_jax', 'XLA, to float8 and back', 'XLA, clipped before that', 'ml_dtypes on the host'),
        *('PyTorch, to float8 and back', 'PyTorch, emulated'),
    ],
)
def test_casts(x, results, by):
    expected = x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(of(results, 'cast', by), expected)


def test_reduce_precision(x, results):
    """It has the format's normal numbers up to 240, without subnormals."""
    normal = (np.abs(x) > 2.0**-6) & (np.abs(x) < 240)
    expected = x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert normal.sum() > x.size / 2
    np.testing.assert_array_equal(results['cast']['lax.reduce_precision'][normal], expected[normal])


@pytest.mark.parametrize(
    ('what', 'by', 'nearest'),
    [
        ('cast, stochastically', 'gaussq_jax', 'cast'),
        ('cast, stochastically', 'gaussq_jax, bits of jax.random', 'cast'),
        *((what, 'gaussq_jax, stochastic', what) for what in OPERATIONS),
    ],
)
def test_stochastic_rounding(x, results, what, by, nearest):
    """What isn't the nearest lies on the other side of x: that is so of a quarter of the numbers."""
    rounded, nearest = results[what][by], results[nearest]['gaussq_jax']
    other = rounded != nearest
    assert 0.2 < other.mean() < 0.3
    assert np.all((rounded[other] < x[other]) == (x[other] < nearest[other]))


@pytest.mark.parametrize('what', OPERATIONS)
@pytest.mark.parametrize('by', ['gaussq_jax', 'qwix', 'PyTorch'])
def test_fake_quantization(x, results, what, by):
    """Against a plain computation: equal but for values near a tie, as scales differ by an ulp."""
    name, axis = what.split(', ')
    axis = {'first axis': 0, 'last axis': 1}[axis]
    size = {'block of 32': 32, 'block of 128': 128, 'channel': SHAPE[axis], 'MX': 32}[name]
    blocks = np.moveaxis(x.astype(np.float64), axis, 1)
    blocks = blocks.reshape(len(blocks), -1, size)
    absmax = np.abs(blocks).max(2, keepdims=True)
    scale = absmax / 448
    if name == 'MX':  # qwix rounds the scale up, OCP the exponent down
        scale = 2 ** (np.ceil(np.log2(scale)) if by == 'qwix' else np.floor(np.log2(absmax)) - 8)
    expected = (blocks / scale).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    expected = np.moveaxis(expected.reshape(len(blocks), -1), 1, axis)
    close = np.isclose(of(results, what, by), expected, rtol=1e-6, atol=0)
    assert close.mean() > 0.9999


def test_what_is_not_installed_is_listed(monkeypatch):
    monkeypatch.setattr(cast_times, '_installed', lambda package: False)
    results = cast_times.time_casts(SHAPE, turns=1)
    assert results['qwix'] == results['torch'] == 'not installed'
    missing = {
        (what, by) for what, rows in results['operations'].items() for by, row in rows.items() if row == 'not installed'
    }
    pytorch_casts = {('cast', 'PyTorch, to float8 and back'), ('cast', 'PyTorch, emulated')}
    assert missing == {(what, by) for what in OPERATIONS for by in ('qwix', 'PyTorch')} | pytorch_casts
    ours = results['operations']['cast']['gaussq_jax']
    assert ours['nanoseconds_per_value'] == pytest.approx(ours['seconds'] * 1e9 / (128 * 256))


@pytest.mark.parametrize('shape', [(4096, 100), (0, 128)])
def test_ragged_blocks_are_refused(shape):
    with pytest.raises(ValueError, match=f'shape={shape[0]}x{shape[1]}: both lengths must be multiples of 128'):
        cast_times.time_casts(shape, turns=1)
