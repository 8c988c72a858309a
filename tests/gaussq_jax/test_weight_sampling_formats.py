"""Sampled weights rounded to a low-bit format: W_hat = s round((W + R step) / s), s a power of two for each block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest
from numpy_float_formats import STANDARD, all_formats, cast, code_values
from numpy_weight_sampling import assert_identical, random_bitwidths, random_weights

import gaussq_jax as gq

KEY = jax.random.key(11)
WORDS = jax.random.key_data(KEY)
FORMATS = {
    'e2m1': (2, 1, 'finite'),
    'e3m2': (3, 2, 'finite'),
    'e4m6': (4, 6, 'finite'),
    'e1m1': (1, 1, 'finite'),
    'e0m7': (0, 7, 'finite'),
    'e6m0': (6, 0, 'finite'),
    **{name: STANDARD[name] for name in ('float8_e4m3fn', 'float8_e4m3', 'float8_e5m2', 'bfloat16')},
}


@functools.partial(jax.jit, static_argnames=('fmt', 'noise', 'block_size', 'dtype'))
def sample(w, bitwidths, fmt, noise='rounded_normal', block_size=32, dtype=jnp.bfloat16):
    return gq.sample_weights(KEY, w, bitwidths, noise=noise, block_size=block_size, fmt=fmt, dtype=dtype)


def expected(w, bitwidths, fmt, **options):
    return oracle.sample_weights(WORDS, w, bitwidths, fmt=FORMATS[fmt], **options)


# --- the bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('fmt', FORMATS)
def test_every_format_equals_the_oracle(fmt):
    """Edge blocks that are smaller than the others, and blocks of different magnitude."""
    w, bitwidths = random_weights((2, 45, 70)), random_bitwidths((2, 45, 70))
    w_hat = sample(w, bitwidths, fmt)
    assert w_hat.dtype == jnp.bfloat16
    assert_identical(w_hat, expected(w, bitwidths, fmt))
    assert np.mean(np.asarray(w_hat) != np.asarray(sample(w, bitwidths, None))) > 0.05 or fmt == 'bfloat16'


@pytest.mark.parametrize(
    ('fmt', 'noise', 'block_size', 'w_dtype', 'dtype'),
    [
        ('e3m2', 'uniform', 32, jnp.float32, jnp.bfloat16),
        ('e3m2', 'rounded_normal', 7, jnp.float32, jnp.float32),
        ('e4m6', 'rounded_normal', 32, jnp.bfloat16, jnp.float32),
        ('e2m1', 'uniform', 16, jnp.bfloat16, jnp.float32),
    ],
)
def test_noises_block_sizes_and_dtypes_equal_the_oracle(fmt, noise, block_size, w_dtype, dtype):
    w, bitwidths = jnp.asarray(random_weights((45, 70)), w_dtype), random_bitwidths((45, 70), block_size)
    w_hat = sample(w, bitwidths, fmt, noise, block_size, dtype)
    assert w_hat.dtype == dtype
    assert_identical(w_hat, expected(w, bitwidths, fmt, noise=noise, block_size=block_size, dtype=w_hat.dtype.name))


def test_ten_mantissa_bits_in_float32():
    w, bitwidths = random_weights((45, 70)), random_bitwidths((45, 70))
    w_hat = sample(w, bitwidths, 'float16', dtype=jnp.float32)
    assert_identical(w_hat, oracle.sample_weights(WORDS, w, bitwidths, fmt=STANDARD['float16'], dtype='float32'))


def test_the_values_are_those_of_the_format_and_saturate():
    """With few bits the noise reaches far beyond the largest weight, which is in the top binade."""
    w = np.random.default_rng(0).uniform(-7, 7, (64, 64)).astype(np.float32)
    w_hat = np.abs(np.asarray(sample(w, jnp.full((2, 2), 1.0), 'e2m1'), np.float64))
    assert set(np.unique(w_hat)) == set(code_values(2, 1, 'finite')[0])


@pytest.mark.parametrize(
    ('fmt', 'dtype'),
    [('e2m1', jnp.bfloat16), ('e3m2', jnp.float32), ('e0m7', jnp.float32), ('bfloat16', jnp.bfloat16)],
)
def test_extreme_blocks(fmt, dtype):
    """A block each of zeros, denormals, tiny, huge and the largest weights; one with infinities and NaN, which stay."""
    magnitudes = np.array([0, 1e-40, 3e-38, 1e-30, 1.0, 3e38, 3.4028235e38], np.float32)
    blocks = np.random.default_rng(1).uniform(-1, 1, (7, 32, 32)).astype(np.float32) * magnitudes[:, None, None]
    blocks[:, 0, 0] = magnitudes
    blocks[4, 1, :3] = np.inf, -np.inf, np.nan
    w, bitwidths = np.concatenate(blocks, axis=1), np.full((1, 7), 3.0)
    w_hat = np.asarray(sample(w, bitwidths, fmt, dtype=dtype), np.float64)
    np.testing.assert_array_equal(np.isfinite(w_hat), np.isfinite(w))
    with np.errstate(invalid='ignore'):
        assert not w_hat[:, :32].any()
        # Devices may flush what is subnormal in float32, before and after.
        oracle_result = expected(w, bitwidths, fmt, dtype=jnp.dtype(dtype).name)
        np.testing.assert_allclose(w_hat[:, :96], oracle_result[:, :96], rtol=0, atol=2.0**-126)
    assert_identical(w_hat[:, 96:], oracle_result[:, 96:])


def test_gradients_are_those_without_a_format():
    w, bitwidths = random_weights((45, 70)), random_bitwidths((45, 70))
    cotangent = jnp.asarray(random_weights((45, 70), 5), jnp.bfloat16)

    @functools.partial(jax.jit, static_argnames='fmt')
    def gradients(fmt):
        return jax.vjp(lambda w, b: sample(w, b, fmt), w, bitwidths)[1](cotangent)

    (dw, db), (dw_without, db_without) = gradients('e2m1'), gradients(None)
    assert_identical(dw, cotangent)
    assert_identical(dw, dw_without)
    assert_identical(db, db_without)


def test_a_consumer_in_a_rematerialised_scan_multiplies_what_is_rounded():
    """Forward, and in the backward pass, which samples again: a matmul with powers of two, exact."""
    w, bitwidths = random_weights((3, 64, 96)), random_bitwidths((3, 64, 96))
    w_hat = np.stack([expected(w[i : i + 1], bitwidths[i : i + 1], 'e3m2', origin=(i, 0, 0))[0] for i in range(3)])
    reverse = np.eye(64, dtype=np.float32)[::-1] * 4.0

    def stack(scale):
        @jax.checkpoint
        def layer(carry, inputs):
            w, bitwidths, index = inputs
            sampled = gq.sample_weights(KEY, w, bitwidths, origin=(index, 0, 0), fmt='e3m2')
            return carry, scale * jnp.matmul(reverse, sampled.astype(jnp.float32), precision='highest')

        return jax.lax.scan(layer, None, (w, bitwidths, jnp.arange(3)))[1]

    ones = jnp.ones((64, 96))
    assert_identical(jax.jit(stack)(ones), 4 * w_hat[:, ::-1])
    assert_identical(jax.jit(jax.grad(lambda scale: jnp.sum(stack(scale)[-1])))(ones), 4 * w_hat[-1, ::-1])


# --- the width that the noise needs -------------------------------------------------------------------

# Bitwidth -> the narrowest format: exponent and mantissa bits.
NARROWEST = {3: (2, 1), 4: (3, 2), 5: (3, 3), 6: (3, 4), 7: (3, 5), 8: (4, 6), 9: (4, 7)}


@pytest.mark.parametrize('b', NARROWEST)
def test_format_for_bitwidth_is_the_table(b):
    assert gq.format_for_bitwidth(b) == gq.FloatFormat(*NARROWEST[b], 'finite')
    assert gq.format_for_bitwidth(np.float32(b - 0.25)) == gq.format_for_bitwidth(b)


def test_format_for_bitwidth_beyond_the_table():
    assert gq.format_for_bitwidth(1.0) == gq.format_for_bitwidth(2.5) == gq.parse_format('e2m1')
    assert gq.format_for_bitwidth(9.001) == gq.format_for_bitwidth(16) == gq.parse_format('bfloat16')
    with pytest.raises(ValueError, match='b_t'):
        gq.format_for_bitwidth(float('nan'))


def top_binade(exponent_bits, mantissa_bits):
    """The format's numbers in its top binade but for the first, the power of two, and the last, the largest."""
    values, _ = code_values(exponent_bits, mantissa_bits, 'finite')
    return values[-(2**mantissa_bits) :]


@pytest.mark.parametrize('b', NARROWEST)
def test_no_narrower_format_holds_the_noise(b):
    """By trying all: next to the largest weight R step changes the sum, and alone it is a normal number."""
    narrowest = {}
    for exponent_bits, mantissa_bits, special_values in all_formats():
        if special_values != 'finite' or mantissa_bits == 0:
            continue
        fmt = exponent_bits, mantissa_bits, special_values
        largest = top_binade(exponent_bits, mantissa_bits)
        step = np.ldexp(largest, 1 - b)
        inner = slice(1, -1) if mantissa_bits > 1 else slice(1, None)  # without ties at a power of two
        changed = cast(largest - step, fmt)[inner] != largest[inner]
        smallest_normal = 2.0 ** (2 - 2 ** (exponent_bits - 1)) if exponent_bits > 1 else largest[0]
        if changed.all() and step.min() >= smallest_normal:
            narrowest.setdefault(exponent_bits + mantissa_bits, fmt)
    expected = narrowest[min(narrowest)]
    assert expected[:2] == NARROWEST[b]


def largest_weights(mantissa_bits):
    """Blocks of nothing but largest weights, +-(1 + f) with an f on the grid of M bits for each block, and zeros."""
    fractions = np.unique(np.linspace(0, 2**mantissa_bits - 1, 4).astype(int)) / 2**mantissa_bits
    signs = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (32, 32 * len(fractions)), p=[0.45, 0.1, 0.45])
    return (signs * (1 + fractions).repeat(32)).astype(np.float32)


def noise_and_what_is_left(b, exponent_bits, mantissa_bits, w):
    """R step, and W_hat - W."""
    fmt, bitwidths = f'e{exponent_bits}m{mantissa_bits}', np.full((1, w.shape[1] // 32), float(b))
    noise = np.asarray(gq.rounded_normal(KEY, w.shape)) * oracle.per_weight(
        oracle.block_step(w, bitwidths), w.shape, 32
    )
    return noise, np.asarray(sample(w, bitwidths, fmt, dtype=jnp.float32), np.float64) - w


@pytest.mark.parametrize('b', NARROWEST)
def test_noise_survives_in_the_format_of_its_bitwidth(b):
    """Next to the largest weights, but for a tie at an exact power of two and for what saturates; whole at zeros."""
    exponent_bits, mantissa_bits = NARROWEST[b]
    w = largest_weights(mantissa_bits)
    noise, left = noise_and_what_is_left(b, exponent_bits, mantissa_bits, w)
    is_one_step = np.abs(noise) == np.abs(w) * 2.0 ** (1 - b)
    tie = (np.abs(w) == 1) & is_one_step & (noise * w > 0)
    saturated = (np.abs(w) == 2 - 2.0**-mantissa_bits) & (noise * w > 0)
    np.testing.assert_array_equal(left != 0, (noise != 0) & ~tie & ~saturated)
    np.testing.assert_array_equal(left[w == 0], noise[w == 0])
    assert tie.any() and saturated.any() and noise[w == 0].any()


@pytest.mark.parametrize('b', [4, 8])
def test_noise_of_one_step_is_lost_with_a_mantissa_bit_less(b):
    exponent_bits, mantissa_bits = NARROWEST[b]
    w = largest_weights(mantissa_bits - 1)
    noise, left = noise_and_what_is_left(b, exponent_bits, mantissa_bits - 1, w)
    is_one_step = np.abs(noise) == np.abs(w) * 2.0 ** (1 - b)
    assert is_one_step.any() and not left[is_one_step & (w != 0)].any()


@pytest.mark.parametrize('b', [4, 8])
def test_the_step_is_no_number_of_the_format_with_an_exponent_bit_less(b):
    exponent_bits, mantissa_bits = NARROWEST[b]
    w = largest_weights(mantissa_bits)
    noise, left = noise_and_what_is_left(b, exponent_bits - 1, mantissa_bits, w)
    assert np.any(left[w == 0] != noise[w == 0])


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('b_init', 'fmt', 'enough'),
    [
        (6.0, 'e2m1', 'e3m4'),
        (6.0, 'e5m3', 'e3m4'),  # mantissa
        (5.0, 'e2m3', 'e3m3'),  # exponent
        (4.5, 'e3m2', 'e3m3'),
        (8.0, 'e3m7', 'e4m6'),
        (5.0, 'float8_e5m2', 'e3m3'),
    ],
)
def test_a_format_that_cannot_hold_the_noise_is_an_error_that_names_one_that_can(b_init, fmt, enough):
    with pytest.raises(ValueError) as error:
        gq.gaussian_weight_sampling(b_init, 1.0, fmt=fmt)
    message = str(error.value)
    assert f'fmt={fmt}' in message and f'b_init={b_init:g}' in message and enough in message
    gq.gaussian_weight_sampling(b_init, 1.0, fmt=enough)
    gq.uniform_weight_sampling(b_init, 1.0, fmt=fmt)


@pytest.mark.parametrize(('b_init', 'fmt'), [(9.5, 'e3m2'), (12.0, 'e5m9'), (10.0, 'bfloat16')])
def test_beyond_nine_bits_no_format_is_recommended(b_init, fmt):
    """bfloat16 loses noise of more than 9 bits itself; in float32, there are formats that hold 12 bits."""
    with pytest.raises(ValueError, match='beyond 9 bits, none that bfloat16 holds can'):
        gq.gaussian_weight_sampling(b_init, 1.0, fmt=fmt, dtype=jnp.float32)
    gq.gaussian_weight_sampling(b_init, 1.0, fmt='e5m10', dtype=jnp.float32)


@pytest.mark.parametrize(
    ('fmt', 'words'),
    [('float16', ['float16', '10', '7', 'bfloat16']), ('e4m8', ['e4m8', '8', '7', 'bfloat16']), ('e4', ['e4'])],
)
def test_a_format_wider_than_the_dtype_or_unknown_is_refused(fmt, words):
    for make in (
        lambda: gq.gaussian_weight_sampling(fmt=fmt),
        lambda: gq.uniform_weight_sampling(fmt=fmt),
        lambda: gq.sample_weights(KEY, jnp.ones((32, 32)), jnp.ones((1, 1)), fmt=fmt),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert [word for word in words if word not in str(error.value)] == []
