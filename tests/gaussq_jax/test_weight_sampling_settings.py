"""The same bits under JAX's global settings and explicit meshes, and at the corners of the number range."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gaussq_jax as gq

KEY = jax.random.key(5)
NOISES = ('rounded_normal', 'uniform')


@functools.partial(jax.jit, static_argnames='noise')
def sample_with_gradients(w, bitwidths, cotangent, noise='rounded_normal'):
    w_hat, pull_back = jax.vjp(lambda w, b: gq.sample_weights(KEY, w, b, noise=noise), w, bitwidths)
    return w_hat, *pull_back(cotangent)


@pytest.fixture
def operands():
    generator = np.random.default_rng(0)
    w = jnp.asarray(generator.normal(size=(64, 128)), jnp.float32)
    return w, jnp.full((2, 4), 4.5), jnp.asarray(generator.normal(size=(64, 128)), jnp.bfloat16)


@pytest.mark.parametrize('noise', NOISES)
def test_global_settings_change_no_bit(operands, noise):
    expected = sample_with_gradients(*operands, noise)
    with jax.enable_x64(True), jax.numpy_dtype_promotion('strict'), jax.debug_nans(True):
        for ours, theirs in zip(sample_with_gradients(*operands, noise), expected):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('spec', [PartitionSpec('data'), PartitionSpec(None, 'data'), PartitionSpec()])
def test_meshes_with_automatic_and_explicit_axes_change_no_bit(operands, axis_type, spec):
    """jax.make_mesh makes explicit axes unless asked otherwise."""
    mesh = jax.make_mesh((2,), ('data',), axis_types=(axis_type,), devices=jax.devices()[:2])
    expected = sample_with_gradients(*operands)
    sharded = [jax.device_put(operand, NamedSharding(mesh, spec)) for operand in operands]
    for ours, theirs in zip(sample_with_gradients(*sharded), expected):
        np.testing.assert_array_equal(ours, theirs)


def test_a_random_word_with_all_bits_set():
    """Philox gives 2^32 - 1 for two of this block's lanes, whose uniform noise is the largest, 1/2 - 2^-17."""
    w = jnp.zeros((32, 32)).at[0, 0].set(1)
    origin = (0, 0, 2282460128)
    w_hat = gq.sample_weights(
        jax.random.key(0), w, jnp.full((1, 1), 4.0), origin=origin, noise='uniform', dtype=jnp.float32
    )
    np.testing.assert_array_equal(w_hat[jnp.array([1, 5]), 30], (0.5 - 2.0**-17) * 2.0**-3)


@pytest.mark.optimized
@pytest.mark.parametrize(
    ('noise', 'magnitude'),
    [
        ('rounded_normal', 2.0**-126),
        pytest.param('uniform', 2.0**-109, marks=pytest.mark.slow),
        pytest.param('rounded_normal', 2.0**-100, marks=pytest.mark.slow),
        *(pytest.param('uniform', magnitude, marks=pytest.mark.slow) for magnitude in (2.0**-126, 2.0**-100)),
        pytest.param('rounded_normal', 2.0**-109, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_steps_are_the_same_fused_or_not(noise, magnitude):
    w, bitwidths = jnp.full((32, 32), magnitude), jnp.full((1, 1), 1.0)
    sample = lambda w: gq.sample_weights(KEY, w, bitwidths, noise=noise, dtype=jnp.float32)
    with jax.disable_jit():
        eager = sample(w)
    np.testing.assert_array_equal(eager, jax.jit(sample)(w))


@pytest.mark.parametrize('shape', [(0, 32), (32, 0), (0, 32, 32)])
def test_empty_arrays(shape):
    blocks = (*shape[:-2], -(-shape[-2] // 32), -(-shape[-1] // 32))
    w_hat, dw, db = sample_with_gradients(jnp.zeros(shape), jnp.zeros(blocks), jnp.zeros(shape, jnp.bfloat16))
    assert w_hat.shape == dw.shape == shape
    assert db.shape == blocks


def test_numpy_bitwidths_and_float16_leaves():
    """What a notebook hands over: float64 bitwidths of NumPy; a float16 leaf beside the weights, rounded rightly."""
    w = jnp.ones((32, 32))
    db = jax.grad(lambda b: gq.sample_weights(KEY, w, b).astype(jnp.float32).sum())(np.full((1, 1), 5.0))
    assert np.isfinite(db).all()
    smallest = jnp.float16(2.0**-24)
    assert float(gq.cast_params().apply(None, {'a': smallest}, {})['a']) == 2.0**-24


@pytest.mark.parametrize('origin', [(2**32, 0, 0), (0, 2**32, 0), (-1, 0, 0), (0, 16, 0), (0, 0)])
def test_an_impossible_origin_is_named(origin):
    with pytest.raises(ValueError, match='origin'):
        gq.sample_weights(KEY, jnp.ones((32, 32)), jnp.ones((1, 1)), origin=origin)


def test_the_largest_origin():
    gq.sample_weights(KEY, jnp.ones((32, 32)), jnp.ones((1, 1)), origin=(2**32 - 1, 2**32 - 32, 2**32 - 32))
