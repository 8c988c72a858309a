"""Stochastic rounding: between the two neighbours, up as often as the fraction of the step says, by the key alone."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy_float_formats import assert_same_bits
from numpy_random_bits import random_bits_16

import gaussq_jax as gq

KEY = jax.random.key(5)
DRAWS = 2**15


@jax.jit(static_argnames=('fmt', 'saturate'))
def round_stochastic(key, x, fmt, saturate=True):
    return gq.round_to_format(x, fmt, rounding='stochastic', key=key, saturate=saturate)


def numbers_between(name, dtype):
    """Numbers of the dtype strictly between neighbours of the format, subnormal ones too, both signs; and what they
    lie between."""
    fmt = gq.parse_format(name)
    triple = fmt.exponent_bits, fmt.mantissa_bits, fmt.special_values
    values, _ = oracle.code_values(*triple)
    values = values[values <= oracle.shared_max(triple, dtype)]
    codes = np.unique(np.concatenate([np.arange(4), np.linspace(0, len(values) - 2, 30).astype(int)]))
    codes = codes[codes < len(values) - 1]
    below, above = np.repeat(values[codes], 8), np.repeat(values[codes + 1], 8)
    fraction = np.resize([1 / 2, 1 / 4, 7 / 8, 2**-7, 1 - 2**-6, 0.3, 0.62, 0.91], below.shape)
    x = (np.resize([1, -1, -1], below.shape) * (below + fraction * (above - below))).astype(dtype)
    magnitude = np.abs(x.astype(np.float64))
    inside = (magnitude > below) & (magnitude < above)
    return x[inside], below[inside], above[inside]


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [
        ('e2m1', 'float32'),
        ('e4m3', 'float32'),
        ('float8_e5m2', 'float32'),
        ('e0m7', 'float32'),
        ('e3m0', 'float32'),
        ('bfloat16', 'float32'),
        ('e4m3', 'bfloat16'),
        ('float8_e5m2', 'float16'),
    ],
)
def test_unbiased_between_the_two_neighbours(name, dtype):
    """The number of times each x goes up is binomial: none beyond 5 standard deviations, and chi-square over all."""
    dtype = np.dtype(dtype if dtype != 'bfloat16' else ml_dtypes.bfloat16)
    x, below, above = numbers_between(name, dtype)
    assert len(x) > 20
    rounded = np.asarray(round_stochastic(KEY, jnp.broadcast_to(x, (DRAWS, len(x))), name))
    assert rounded.dtype == dtype
    magnitude = rounded.astype(np.float64) * np.sign(x.astype(np.float64))
    assert np.all((magnitude == below) | (magnitude == above))
    fraction = (np.abs(x.astype(np.float64)) - below) / (above - below)
    count = np.sum(magnitude == above, axis=0)
    score = (count - DRAWS * fraction) / np.sqrt(DRAWS * fraction * (1 - fraction))
    assert np.max(np.abs(score)) < 5
    assert abs(np.sum(score**2) - len(x)) < 5 * np.sqrt(2 * len(x))


def test_up_as_the_bits_of_the_key_say():
    """If f > (r + 1/2) / 2^16 in float64, r being Philox's of NumPy: on both sides of that, and where it is equal."""
    shape, step = (40, 30), 2.0**-6
    r = random_bits_16(jax.random.key_data(KEY), shape).astype(np.float64)
    threshold = (r + 0.5) / 2**16
    for fraction in (threshold, threshold + 2**-17, threshold - 2**-17):  # float32 holds each of 1 + fraction * step
        x = (1 + fraction * step).astype(np.float32)
        expected = 1 + step * (fraction > threshold)
        assert_same_bits(round_stochastic(KEY, x, 'e4m6'), expected.astype(np.float32))


def test_the_mean_of_many_draws():
    """Of 10^5, within 5 standard deviations: 2^-17 of a step, which 16 bits leave open, is far less."""
    draws, step = 100_000, 2.0**-3
    fraction = np.linspace(0.01, 0.99, 12)
    x = np.resize([1, -1], 12) * (1 + fraction * step)
    rounded = round_stochastic(KEY, jnp.broadcast_to(np.float32(x), (draws, 12)), 'e4m3')
    error = np.asarray(rounded).mean(0, dtype=np.float64) - x
    assert np.all(np.abs(error) < 5 * step * np.sqrt(fraction * (1 - fraction) / draws))


def test_far_below_the_smallest_number():
    """2^-12 of the first step goes up once in 4096."""
    x = jnp.full(2**22, gq.parse_format('e4m3').smallest_subnormal * 2**-12, jnp.float32)
    rounded = np.asarray(round_stochastic(KEY, x, 'e4m3'))
    assert set(np.unique(rounded).tolist()) == {0.0, 2.0**-9}
    assert abs(np.count_nonzero(rounded) - 1024) < 5 * 32


@pytest.mark.parametrize('name', ['e4m3', 'float8_e5m2', 'e0m5', 'e8m2_ieee'])
def test_numbers_of_the_format_stay(name):
    values = gq.parse_format(name).values()
    x = np.resize(np.concatenate([values, -values, [np.nan]]), 1024).astype(np.float32)
    for seed in range(20):
        assert_same_bits(round_stochastic(jax.random.key(seed), x, name), x)


def test_beyond_the_largest():
    """Saturating, always the largest; otherwise infinity as if the next number were in the format."""
    x = jnp.full(DRAWS, 57344 + 0.25 * 8192)
    assert np.all(np.asarray(round_stochastic(KEY, x, 'float8_e5m2')) == 57344)
    rounded = np.asarray(round_stochastic(KEY, -x, 'float8_e5m2', saturate=False))
    assert set(np.unique(rounded).tolist()) == {-np.inf, -57344.0}
    assert abs(np.isinf(rounded).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / DRAWS)
    extremes = np.float32([np.inf, 3.4e38, 65536.0])
    assert_same_bits(round_stochastic(KEY, extremes, 'float8_e5m2'), np.full(3, 57344, np.float32))
    infinite = np.full(3, np.inf, np.float32)
    assert_same_bits(round_stochastic(KEY, extremes, 'float8_e5m2', saturate=False), infinite)


def test_the_key_decides():
    x = oracle.heavy_tailed((64, 100))
    first = round_stochastic(KEY, x, 'e4m3')
    assert_same_bits(round_stochastic(KEY, x, 'e4m3'), first)
    assert_same_bits(gq.round_to_format(x, 'e4m3', rounding='stochastic', key=KEY), first)
    other = np.asarray(round_stochastic(jax.random.key(6), x, 'e4m3'))
    assert 0.2 < np.mean(other != np.asarray(first)) < 0.5  # two draws differ for 2 f (1 - f) of the numbers: 1/3


def test_fixed_point_and_one_exponent_bit_draw_alike():
    """E1M(m) is the grid of 2 E0M(m + 1), and the same bits decide."""
    x = oracle.heavy_tailed((64, 100), seed=1)
    doubled = 2 * np.asarray(round_stochastic(KEY, x, 'e0m4'))
    assert_same_bits(round_stochastic(KEY, 2 * x, 'e1m3'), doubled)


def test_vmap_draws_with_the_key_of_each_row():
    x, keys = oracle.heavy_tailed((4, 100)), jax.random.split(KEY, 4)
    rows = jax.vmap(lambda key, row: gq.round_to_format(row, 'e4m3', rounding='stochastic', key=key))(keys, x)
    assert_same_bits(rows, np.stack([round_stochastic(key, row, 'e4m3') for key, row in zip(keys, x)]))


def test_a_mesh_changes_no_bit():
    x = oracle.heavy_tailed((64, 96))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ('data', 'tensor'))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data', 'tensor')))
    got = round_stochastic(KEY, placed, 'e4m3')
    assert not got.is_fully_replicated
    assert_same_bits(got, round_stochastic(KEY, x, 'e4m3'))
