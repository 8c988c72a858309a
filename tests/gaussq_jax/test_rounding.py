"""round_to_format bit for bit: against ml_dtypes, and against the float64 definition."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from numpy_float_formats import assert_same_bits

import gaussq_jax as gq

pytestmark = pytest.mark.optimized

DTYPES = [np.dtype('float32'), np.dtype(ml_dtypes.bfloat16), np.dtype('float16')]
DETERMINISTIC = ('nearest_even', 'nearest_away', 'toward_zero')
round_to_format = jax.jit(gq.round_to_format, static_argnames=('fmt', 'rounding', 'saturate'))


def every_input(dtype):
    return np.arange(2**16, dtype=np.uint16).view(dtype)


@functools.cache
def float32_inputs(name):
    """Every bfloat16 and float16 number, and a hundred thousand more where casts to the format go wrong."""
    with np.errstate(invalid='ignore'):
        exact = [every_input(dtype).astype(np.float32) for dtype in DTYPES[1:]]
    return np.concatenate([*exact, oracle.critical_float32(oracle.STANDARD[name], size=100_000)])


def ml_dtypes_cast(x, name, saturate):
    """x through ml_dtypes' type and back; saturation by clipping first, to what the type and x's dtype share."""
    dtype = oracle.standard_dtype(name)
    with np.errstate(all='ignore'):
        wide = x.astype(np.float32)
        if saturate:
            largest = np.float32(oracle.shared_max(oracle.STANDARD[name], x.dtype))
            wide = np.clip(wide, -largest, largest)
        rounded = wide.astype(dtype).astype(np.float32)
        return np.where(np.isnan(wide), wide, rounded).astype(x.dtype)


@pytest.mark.parametrize('name', oracle.STANDARD)
@pytest.mark.parametrize('saturate', [True, False])
def test_equals_ml_dtypes(name, saturate):
    for x in [float32_inputs(name), *(every_input(dtype) for dtype in DTYPES[1:])]:
        assert_same_bits(round_to_format(x, name, saturate=saturate), ml_dtypes_cast(x, name, saturate))


@functools.partial(jax.jit, static_argnames=('fmt', 'saturate'))
def round_in_every_way(x, fmt, saturate):
    return [gq.round_to_format(x, fmt, rounding=rounding, saturate=saturate) for rounding in DETERMINISTIC]


@pytest.mark.parametrize('name', ['e0m3', 'float8_e4m3fn', 'float6_e3m2fn', 'float8_e5m2', 'e8m0_ieee'])
@pytest.mark.parametrize('saturate', [True, False])
def test_equals_the_definition(name, saturate):
    fmt = gq.parse_format(name)
    triple = fmt.exponent_bits, fmt.mantissa_bits, fmt.special_values
    x = oracle.critical_float32(triple, size=20_000)
    for rounding, result in zip(DETERMINISTIC, round_in_every_way(x, fmt, saturate)):
        assert_same_bits(result, oracle.cast(x, triple, rounding, saturate).astype(np.float32))


# Formats whose range or precision is not that of the dtype: their largest number is beyond or between its numbers.
@pytest.mark.parametrize('dtype', DTYPES[1:])
@pytest.mark.parametrize(
    'fmt', [(5, 2, 'finite'), (4, 10, 'finite'), (8, 2, 'ieee'), (7, 10, 'finite'), (6, 0, 'ieee')]
)
def test_a_narrow_dtype_stays_on_the_grid(fmt, dtype):
    """The definition over every number of the dtype; saturating, the result is a number of the format, and finite."""
    x, values = every_input(dtype), oracle.code_values(*fmt)[0]
    for saturate in (True, False):
        for rounding, result in zip(DETERMINISTIC, round_in_every_way(x, gq.FloatFormat(*fmt), saturate)):
            with np.errstate(all='ignore'):
                expected = oracle.cast(x.astype(np.float64), fmt, rounding, saturate, dtype).astype(dtype)
                magnitude = np.abs(np.asarray(result).astype(np.float64))
            assert_same_bits(result, expected)
            assert np.all(np.isin(magnitude, values) | np.isnan(magnitude) | ((not saturate) & np.isinf(magnitude)))


def test_special_inputs():
    x = np.float32([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1e-30, -1e-30])
    saturated = np.float32([448, -448, np.nan, np.nan, 0.0, -0.0, 0.0, -0.0])
    assert_same_bits(round_to_format(x, 'float8_e4m3fn'), saturated)
    assert_same_bits(round_to_format(x, 'float8_e4m3fn', saturate=False), np.where(np.isinf(x), np.nan, saturated))
    assert_same_bits(round_to_format(x, 'float8_e4m3', saturate=False), np.where(np.isinf(x), x, saturated))
    for name in ('e2m1', 'float4_e2m1fn'):
        six = np.where(np.isinf(x), np.copysign(np.float32(6), x), saturated)
        assert_same_bits(round_to_format(x, name, saturate=False), six)


def test_subnormals_of_float32_are_kept():
    """bfloat16's subnormals are float32's: not flushed, and rounded among themselves."""
    step = 2.0**-133
    x = np.float64([1, 1.5, 2.5, -3, 0.5, 0.25, 127.5, 128]) * step
    expected = np.float64([1, 2, 2, -3, 0, 0, 128, 128]) * step
    assert_same_bits(round_to_format(x.astype(np.float32), 'bfloat16'), expected.astype(np.float32))


# --- transformations ------------------------------------------------------------------------------


def test_jit_vmap_and_eager_agree():
    x = oracle.critical_float32((4, 3, 'finite'), size=1000).reshape(10, 100)
    expected = round_to_format(x, 'e4m3')
    assert_same_bits(gq.round_to_format(x, 'e4m3'), expected)
    assert_same_bits(jax.vmap(lambda row: gq.round_to_format(row, gq.FloatFormat(4, 3)))(x), expected)
    assert_same_bits(gq.round_to_format(jnp.float32(2.3), 'e2m1'), np.float32(2.0))
    assert gq.round_to_format(jnp.zeros((0, 3), jnp.bfloat16), 'e2m1').shape == (0, 3)


@pytest.mark.parametrize('rounding', [*DETERMINISTIC, 'stochastic'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_the_gradient_is_straight_through(rounding, dtype):
    """The identity, of saturated, infinite and NaN entries too, in reverse mode, forward mode and both."""
    x = jnp.array([0.3, -1e-9, 1e4, -1e4, jnp.inf, jnp.nan, 0.0], dtype)
    v = jnp.arange(1, 8).astype(dtype)
    key = jax.random.key(0) if rounding == 'stochastic' else None

    def cast(x):
        return gq.round_to_format(x, 'e2m1', rounding=rounding, key=key)

    value, pull_back = jax.vjp(cast, x)
    assert_same_bits(value, cast(x))
    assert_same_bits(pull_back(v)[0], v)
    value, tangent = jax.jvp(cast, (x,), (v,))
    assert_same_bits(value, cast(x))
    assert_same_bits(tangent, v)
    assert_same_bits(jax.jit(jax.grad(lambda x: jnp.sum(cast(x) * v)))(x), v)


def test_the_second_derivative_sees_the_rounded_value():
    """d/dx q(x)^2 = 2 q(x), whose derivative is 2."""
    square = lambda x: gq.round_to_format(x, 'e2m1') ** 2
    assert (jax.grad(square)(2.3), jax.grad(jax.grad(square))(2.3)) == (4.0, 2.0)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['int32', 'bool', 'complex64', 'float8_e4m3fn'])
def test_refuses_other_dtypes(dtype):
    with pytest.raises(ValueError, match=f'(?s)(?=.*{dtype})(?=.*float32)(?=.*bfloat16)(?=.*float16)'):
        gq.round_to_format(jnp.zeros(3, dtype), 'e4m3')


def test_refuses_unknown_roundings_and_formats():
    x = jnp.zeros(3)
    allowed = '(?=.*nearest_even)(?=.*nearest_away)(?=.*toward_zero)(?=.*stochastic)'
    with pytest.raises(ValueError, match=f"(?=.*'up'){allowed}"):
        gq.round_to_format(x, 'e4m3', rounding='up')
    with pytest.raises(ValueError, match=r"(?s)(?=.*'e4m33')(?=.*float8_e4m3fn)"):
        gq.round_to_format(x, 'e4m33')


def test_a_key_goes_with_stochastic_rounding_and_with_nothing_else():
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match=r'(?=.*key)(?=.*stochastic)'):
        gq.round_to_format(x, 'e4m3', rounding='stochastic')
    with pytest.raises(ValueError, match=r"(?=.*key)(?=.*stochastic)(?=.*'nearest_even')"):
        gq.round_to_format(x, 'e4m3', key=jax.random.key(0))
