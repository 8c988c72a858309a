"""rounded_normal and sample_weights, with its gradients, against an independent NumPy computation."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest
from jax.extend.random import define_prng_impl
from numpy_weight_sampling import assert_identical, random_bitwidths, random_weights

import gaussq_jax as gq

KEY = jax.random.key(2024)
sample_weights = jax.jit(gq.sample_weights, static_argnames=('block_size', 'noise', 'dtype'))
rounded_normal = jax.jit(gq.rounded_normal, static_argnums=1)
PROBABILITIES = {0: 0.682689492137086, 1: 0.157305355899827, 2: 0.00134961138005822}


def key_data(key):
    return np.asarray(jax.random.key_data(key))


# --- the noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', [0, 1, 2**31 + 7])
def test_noise_has_the_probabilities_of_a_rounded_normal(seed):
    """Chi-square over 10^7 draws with four degrees of freedom: p > 1e-4."""
    noise = np.asarray(rounded_normal(jax.random.key(seed), (4096, 2560)))
    assert noise.dtype == np.int8
    values, counts = np.unique(noise, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    expected = noise.size * np.array([PROBABILITIES[abs(value)] for value in values.tolist()])
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert math.exp(-statistic / 2) * (1 + statistic / 2) > 1e-4


def z_score(a, b):
    """Standard normal for independent a and b: their sample correlation times sqrt(n)."""
    a, b = a.astype(np.float32).ravel(), b.astype(np.float32).ravel()
    a, b = a - a.mean(), b - b.mean()
    return float(np.sum(a * b, dtype=np.float64) / np.sqrt(np.sum(a * a) * np.sum(b * b)) * np.sqrt(a.size))


@pytest.mark.parametrize('power', [1, 2])
def test_neighbours_are_uncorrelated(power):
    """Along rows, columns and leading axes, between keys, and between the leaves of one key; R and R^2."""

    def draw(key):
        return np.asarray(rounded_normal(key, (2, 1024, 1024))).astype(np.float32) ** power

    noise = draw(KEY)
    scores = {f'rows {lag} apart': z_score(noise[:, :-lag], noise[:, lag:]) for lag in (1, 2, 3, 4, 8, 16, 32, 64)}
    scores |= {f'columns {lag} apart': z_score(noise[..., :-lag], noise[..., lag:]) for lag in (1, 2, 32)}
    scores['diagonal'] = z_score(noise[:, 1:, 1:], noise[:, :-1, :-1])
    scores['transposed'] = z_score(noise, noise.swapaxes(1, 2))
    scores['leading'] = z_score(noise[0], noise[1])
    scores['next seed'] = z_score(noise, draw(jax.random.key(2025)))
    scores['another leaf'] = z_score(noise, draw(jax.random.fold_in(KEY, 1)))
    assert {name: score for name, score in scores.items() if abs(score) > 4.5} == {}


@pytest.mark.parametrize(
    ('shape', 'origin'),
    [
        ((64, 96), (0, 0, 0)),
        ((33, 45), (0, 0, 0)),
        ((1, 1), (0, 0, 0)),
        ((2, 3, 40, 70), (0, 0, 0)),
        ((3, 32, 64), (5, 96, 320)),
        ((40, 33), (100_000, 2_000_000 * 32, 60_000 * 32)),
    ],
)
def test_noise_of_a_weight_follows_from_its_global_index(shape, origin):
    got = rounded_normal(KEY, shape, origin=origin)
    np.testing.assert_array_equal(got, oracle.rounded_normal(key_data(KEY), shape, origin))


def test_outside_of_jit_the_bits_are_the_same():
    w, bitwidths = random_weights((32, 32)), random_bitwidths((32, 32))
    assert_identical(gq.sample_weights(KEY, w, bitwidths), sample_weights(KEY, w, bitwidths))


@pytest.mark.parametrize('make', [jax.random.key, jax.random.PRNGKey])
def test_typed_and_legacy_threefry_keys_give_one_noise(make):
    expected = oracle.rounded_normal(key_data(jax.random.key(7)), (64, 64))
    np.testing.assert_array_equal(rounded_normal(make(7), (64, 64)), expected)


@pytest.mark.parametrize('implementation', ['rbg', 'unsafe_rbg'])
def test_four_word_keys_are_mixed_into_two(implementation):
    """Every word matters: keys that differ in the last word alone have different noise."""
    for words in ([1, 2, 3, 4], [1, 2, 3, 5], [2, 2, 3, 4]):
        words = jnp.asarray(words, jnp.uint32)
        got = rounded_normal(jax.random.wrap_key_data(words, impl=implementation), (64, 64))
        np.testing.assert_array_equal(got, oracle.rounded_normal(words, (64, 64)))


def test_an_unknown_key_implementation_is_refused_by_name():
    implementation = define_prng_impl(
        key_shape=(3,),
        seed=lambda seed: jnp.full(3, seed, jnp.uint32),
        split=lambda key, shape: jnp.broadcast_to(key, (*shape, 3)),
        random_bits=lambda key, bit_width, shape: jnp.zeros(shape, jnp.uint32),
        fold_in=lambda key, data: key + data,
        name='three_words',
    )
    key = jax.random.wrap_key_data(jnp.zeros(3, jnp.uint32), impl=implementation)
    with pytest.raises((TypeError, ValueError), match='three_words'):
        rounded_normal(key, (32, 32))
    with pytest.raises((TypeError, ValueError), match='three_words'):
        gq.sample_weights(key, jnp.ones((32, 32)), jnp.full((1, 1), 4.0))


@pytest.mark.parametrize(
    'key', [0, 1.5, np.zeros(2, np.float32), np.zeros((5, 2), np.uint32), jax.random.split(KEY, 3)]
)
def test_what_is_no_single_key_is_refused(key):
    with pytest.raises((TypeError, ValueError), match='key'):
        gq.sample_weights(key, jnp.ones((32, 32)), jnp.full((1, 1), 4.0))


# --- W_hat and its gradients ----------------------------------------------------------------------

# shape, block size, noise, dtype of w, dtype of W_hat, origin
CASES = [
    ((64, 96), 32, 'rounded_normal', 'float32', 'bfloat16', (0, 0, 0)),
    ((50, 70), 32, 'rounded_normal', 'float32', 'bfloat16', (0, 0, 0)),
    ((50, 70), 32, 'rounded_normal', 'bfloat16', 'bfloat16', (0, 0, 0)),
    ((50, 70), 32, 'rounded_normal', 'float32', 'float32', (0, 0, 0)),
    ((2, 3, 40, 33), 32, 'rounded_normal', 'float32', 'bfloat16', (4, 64, 32)),
    ((64, 70), 32, 'uniform', 'float32', 'bfloat16', (0, 0, 0)),
    ((2, 41, 64), 32, 'uniform', 'bfloat16', 'float32', (1, 32, 320)),
    ((50, 70), 16, 'rounded_normal', 'float32', 'bfloat16', (0, 16, 48)),
    ((50, 70), 8, 'uniform', 'float32', 'float32', (0, 0, 0)),
    ((150, 70), 64, 'rounded_normal', 'float32', 'bfloat16', (0, 64, 128)),
    ((2, 100, 110), 48, 'rounded_normal', 'float32', 'bfloat16', (3, 48, 96)),
    ((3, 5), 1, 'uniform', 'float32', 'bfloat16', (0, 7, 9)),
    ((1, 1), 32, 'rounded_normal', 'float32', 'bfloat16', (0, 0, 0)),
]


@pytest.mark.optimized
@pytest.mark.parametrize(('shape', 'block_size', 'noise', 'w_dtype', 'dtype', 'origin'), CASES)
def test_sampled_weights_and_gradients_equal_the_oracle(shape, block_size, noise, w_dtype, dtype, origin):
    """W_hat and dW exactly; db to float32 rounding of its terms."""
    w, bitwidths = jnp.asarray(random_weights(shape), w_dtype), random_bitwidths(shape, block_size)
    cotangent = jnp.asarray(random_weights(shape, seed=2), dtype)
    options = dict(origin=origin, block_size=block_size, noise=noise)

    @jax.jit
    def run(key, w, bitwidths, cotangent):
        sample = functools.partial(gq.sample_weights, key, dtype=dtype, **options)
        w_hat, pull_back = jax.vjp(sample, w, bitwidths)
        return w_hat, *pull_back(cotangent)

    w_hat, dw, db = run(KEY, w, bitwidths, cotangent)
    assert w_hat.dtype == jnp.dtype(dtype) and w_hat.shape == shape
    assert_identical(w_hat, oracle.sample_weights(key_data(KEY), w, bitwidths, dtype=dtype, **options))
    assert dw.dtype == w.dtype
    assert_identical(dw, cotangent.astype(w.dtype))
    assert db.dtype == jnp.float32 and db.shape == bitwidths.shape
    expected, size = oracle.bitwidth_gradient(key_data(KEY), w, bitwidths, cotangent, **options)
    assert np.all(np.abs(np.asarray(db, np.float64) - expected) <= 2e-6 * size)
    assert np.any(expected != 0.0) or w.size == 1


@pytest.mark.parametrize('noise', ['rounded_normal', 'uniform'])
def test_step_is_exact_for_every_kind_of_bitwidth(noise):
    """A block that is zero but for its largest weight shows R * step itself, in float32."""
    generator = np.random.default_rng(5)
    grid = generator.integers(-4 * 1024, 40 * 1024, 400) / 1024
    between = generator.uniform(-4.0, 40.0, 400)
    ties = (generator.integers(0, 8 * 1024, 200) + 0.5) / 1024
    bitwidths = np.concatenate([grid, between, ties, np.arange(-4.0, 40.0), [0.0, -0.0]]).astype(np.float32)[None]
    absmax = np.exp2(generator.uniform(-20.0, 20.0, bitwidths.size)) * generator.choice([-1, 1], bitwidths.size)
    w = np.zeros((32, 32 * bitwidths.size), np.float32)
    w[0, ::32] = absmax
    w_hat = sample_weights(KEY, jnp.asarray(w), jnp.asarray(bitwidths), noise=noise, dtype=jnp.float32)
    assert_identical(w_hat, oracle.sample_weights(key_data(KEY), w, bitwidths, noise=noise, dtype='float32'))
    step = oracle.per_weight(oracle.block_step(w, bitwidths, noise=noise), w.shape, 32)
    real_step = np.abs(absmax.astype(np.float32)) * np.exp2(1 - bitwidths[0].astype(np.float64))
    np.testing.assert_allclose(step[0, ::32], real_step, rtol=4e-4 if noise == 'rounded_normal' else 4e-4 + 2**-8)
    if noise == 'rounded_normal':
        assert_identical(w_hat[1:], np.asarray(rounded_normal(KEY, w.shape))[1:] * step[1:])


def test_bitwidths_off_the_grid_of_2_to_the_minus_10_round_to_even():
    """5 + 1/2048 lies between 5 and 5 + 1/1024 and acts as 5, 5 + 3/2048 as 5 + 2/1024."""
    w = random_weights((32, 32))

    def sample(b):
        return sample_weights(KEY, w, jnp.full((1, 1), b, jnp.float32), dtype=jnp.float32)

    assert_identical(sample(5 + 1 / 2048), sample(5.0))
    assert_identical(sample(5 + 3 / 2048), sample(5 + 2 / 1024))
    assert np.any(np.asarray(sample(5 + 1 / 1024)) != np.asarray(sample(5.0)))


def test_noise_survives_rounding_to_bfloat16_up_to_eight_bits():
    """Where R != 0 no block's largest weight keeps its value at b = 8; at b = 9 about a quarter do."""
    shape = (32 * 40, 32 * 40)
    w = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    is_largest = np.abs(w) == oracle.per_weight(oracle.block_sum(np.abs(w), 32, np.max), shape, 32)
    drawn = is_largest & (np.asarray(rounded_normal(KEY, shape)) != 0)
    lost = {}
    for bits in (8.0, 9.0):
        w_hat = sample_weights(KEY, w, jnp.full((40, 40), bits))
        lost[bits] = np.mean(np.asarray(w_hat == w.astype(jnp.bfloat16))[drawn])
    assert lost[8.0] == 0.0
    assert 0.15 < lost[9.0] < 0.35


# --- blocks that are not ordinary numbers ---------------------------------------------------------


@pytest.mark.parametrize('noise', ['rounded_normal', 'uniform'])
def test_blocks_of_zeros_and_denormals_get_no_noise_and_no_gradient(noise):
    w = np.zeros((32, 96), np.float32)
    w[3, 40] = 2.0**-140
    w[:, 64:] = np.random.default_rng(0).normal(size=(32, 32))
    bitwidths = jnp.full((1, 3), 4.0)
    w_hat, pull_back = jax.vjp(lambda b: sample_weights(KEY, jnp.asarray(w), b, noise=noise), bitwidths)
    (db,) = pull_back(jnp.ones_like(w_hat))
    assert_identical(w_hat[:, :32], np.zeros((32, 32)))
    block = np.asarray(w_hat[:, 32:64])  # some backends flush denormals to zero
    assert block[3, 8] in (0.0, 2.0**-133, 2.0**-140) and np.count_nonzero(np.delete(block.ravel(), 3 * 32 + 8)) == 0
    assert_identical(w_hat[:, 64:], oracle.sample_weights(key_data(KEY), w, bitwidths, noise=noise)[:, 64:])
    assert db[0, 0] == 0.0 and db[0, 1] == 0.0 and db[0, 2] != 0.0


def test_a_step_below_the_smallest_normal_number_is_zero():
    absmax, largest_bitwidth = 2.0**-100, 27.0
    w = jnp.zeros((32, 64)).at[0, ::32].set(absmax)
    w_hat = gq.sample_weights(KEY, w, jnp.asarray([[largest_bitwidth, largest_bitwidth + 1.0]]), dtype=jnp.float32)
    noise = oracle.rounded_normal(key_data(KEY), (32, 64))
    assert_identical(w_hat[1:, :32], noise[1:, :32] * 2.0**-126)
    assert_identical(w_hat[:, 32:], w[:, 32:])


@pytest.mark.parametrize('noise', ['rounded_normal', 'uniform'])
def test_infinite_and_nan_weights_stay_and_leave_their_neighbours_alone(noise):
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    w[1, 2], w[40, 3], w[5, 50] = np.inf, -np.inf, np.nan
    bitwidths = np.full((2, 2), 5.0, np.float32)
    w_hat = sample_weights(KEY, jnp.asarray(w), jnp.asarray(bitwidths), noise=noise)
    expected = oracle.sample_weights(key_data(KEY), w, bitwidths, noise=noise)
    assert_identical(w_hat, expected)
    assert np.count_nonzero(~np.isfinite(np.asarray(w_hat))) == 3


@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_a_block_without_a_finite_weight_comes_out_as_it_is(value):
    w_hat = sample_weights(KEY, jnp.full((32, 32), value), jnp.full((1, 1), 4.0))
    assert_identical(w_hat, np.full((32, 32), value))


@pytest.mark.parametrize('noise', ['rounded_normal', 'uniform'])
@pytest.mark.parametrize('bitwidth', [-300.0, -3.0, 1.0, 300.0])
def test_huge_weights_and_extreme_bitwidths_give_no_nan(noise, bitwidth):
    """The step is capped at 2^125, so that twice it is finite."""
    w = np.linspace(-3.4e38, 3.4e38, 32 * 64).reshape(32, 64).astype(np.float32)
    w[:, 32:] *= 2.0**-3
    bitwidths = np.full((1, 2), bitwidth, np.float32)
    w_hat, pull_back = jax.vjp(lambda b: sample_weights(KEY, jnp.asarray(w), b, noise=noise), jnp.asarray(bitwidths))
    assert_identical(w_hat, oracle.sample_weights(key_data(KEY), w, bitwidths, noise=noise))
    (db,) = pull_back(jnp.full_like(w_hat, 2.0**-20))
    assert np.all(np.isfinite(db))


def test_a_nan_bitwidth_shows_in_its_block_alone():
    w_hat = sample_weights(KEY, random_weights((32, 64)), jnp.asarray([[np.nan, 4.0]]))
    assert np.all(np.isnan(np.asarray(w_hat[:, :32])))
    assert np.all(np.isfinite(np.asarray(w_hat[:, 32:])))


# --- arguments that make no sense -----------------------------------------------------------------

GOOD = dict(key=KEY, w=jnp.ones((64, 40)), bitwidths=jnp.full((2, 2), 4.0))


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(bitwidths=jnp.ones((2, 3))), [r'\(2, 3\)', r'\(2, 2\)']),
        (dict(bitwidths=jnp.ones((1, 1))), [r'\(1, 1\)', r'\(2, 2\)']),
        (dict(bitwidths=jnp.float32(4.0)), [r'\(\)', r'\(2, 2\)']),
        (dict(bitwidths=jnp.ones((1, 2, 2))), [r'\(1, 2, 2\)', r'\(2, 2\)']),
        (dict(w=jnp.ones((3, 64, 40))), [r'\(2, 2\)', r'\(3, 2, 2\)']),
        (dict(w=jnp.ones((64, 40), jnp.float16)), ['float16', 'float32', 'bfloat16']),
        (dict(w=jnp.ones((64, 40), jnp.int32)), ['int32', 'float32', 'bfloat16']),
        (dict(w=jnp.ones(64)), [r'64']),
        (dict(noise='gaussian'), ['noise', 'gaussian', 'rounded_normal', 'uniform']),
        (dict(implementation='cuda'), ['implementation', 'cuda', 'xla']),
        (dict(dtype=jnp.float16), ['dtype', 'float16', 'bfloat16', 'float32']),
        (dict(dtype=jnp.int8), ['dtype', 'int8', 'bfloat16', 'float32']),
        (dict(block_size=0), ['block_size', '0']),
        (dict(block_size=-32), ['block_size', '-32']),
        (dict(block_size=16), [r'\(2, 2\)', r'\(4, 3\)']),
        (dict(origin=(0, 16, 0)), ['origin', '16', '32']),
        (dict(origin=(0, 0, 33)), ['origin', '33', '32']),
    ],
)
def test_a_bad_argument_is_one_clear_error(arguments, words):
    """It names the argument's value and what is allowed, eagerly and while tracing."""
    arguments = GOOD | arguments
    arrays = {name: arguments.pop(name) for name in ('key', 'w', 'bitwidths')}
    with pytest.raises(ValueError) as eager:
        gq.sample_weights(**arrays, **arguments)
    with pytest.raises(ValueError):
        jax.eval_shape(functools.partial(gq.sample_weights, **arguments), **arrays)
    assert [word for word in words if not re.search(word, str(eager.value))] == []
