"""Hadamard transforms: orthogonal, undone in products, the same on any mesh, and refused where a block would be cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_quantizers as oracle
import pytest
import scipy.linalg
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gaussq_jax as gq
from gaussq_jax.hadamard import transform

KEY = jax.random.key(2)
NVIDIAS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
SIZES = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
normal = lambda shape, seed=0: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('size', SIZES)
def test_the_matrix_is_sylvesters(size):
    """SciPy's, in its order, divided by the root of the size; orthogonal to float32's error."""
    matrix = np.asarray(gq.Hadamard(size).matrix(None))
    np.testing.assert_allclose(matrix, scipy.linalg.hadamard(size) / np.sqrt(size), rtol=2**-23)
    assert matrix.dtype == np.float32
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, np.eye(size), atol=2**-23)


def test_signs():
    """On the rows, which meet the values before they are mixed: fixed, or drawn from the key."""
    plain = np.asarray(gq.Hadamard(16).matrix(None))
    fixed = gq.Hadamard(16, list(NVIDIAS))
    assert fixed.signs == NVIDIAS and not fixed.is_random and hash(fixed) == hash(gq.Hadamard(16, NVIDIAS))
    np.testing.assert_array_equal(fixed.matrix(None), np.array(NVIDIAS)[:, None] * plain)
    random = gq.Hadamard(16, 'random')
    drawn = [np.asarray(random.matrix(jax.random.key(seed))) / plain for seed in range(400)]
    assert all(np.array_equal(np.abs(signs), np.ones((16, 16))) and np.all(signs == signs[:, :1]) for signs in drawn)
    counts = np.sum([signs[:, 0] for signs in drawn], axis=0)
    assert np.all(np.abs(counts) < 5 * np.sqrt(400)) and len({signs.tobytes() for signs in drawn}) > 390
    assert random.is_random


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('size', [2, 16, 128, 1024])
def test_undone_by_its_transpose(size, dtype):
    """In float32, whatever the dtype was: by the error of a float32 sum, and back in the dtype exactly."""
    x = jnp.asarray(normal((3, 2 * size)), dtype)
    matrix = gq.Hadamard(size, 'random').matrix(KEY)
    wide = x.astype(jnp.float32)
    rotated = transform(wide, (1,), matrix)
    np.testing.assert_allclose(np.linalg.norm(rotated), np.linalg.norm(wide), rtol=1e-6)
    back = transform(rotated, (1,), matrix.T)
    np.testing.assert_allclose(back, wide, atol=2.0**-21 * size**0.5)
    if dtype != jnp.float32:
        close = np.abs(np.float64(wide)) > 1e-2
        np.testing.assert_array_equal(np.asarray(back.astype(dtype))[close], np.asarray(x)[close])


@pytest.mark.parametrize(
    ('shape', 'axes'),
    [
        ((3, 32), (1,)),
        ((32, 3), (0,)),
        ((2, 48, 5), (1,)),
        ((2, 4, 32), (1, 2)),  # blocks lie within the last axis
        ((2, 6, 8), (1, 2)),  # and across two
        ((8, 3, 4), (0, 2)),
        ((4, 3, 8), (2, 0)),
        ((4, 2, 6), (0, 1, 2)),
    ],
)
def test_along_an_axis_and_along_several_read_as_one(shape, axes):
    x = normal(shape)
    size = 16 if shape != (4, 2, 6) else 8
    hadamard = gq.Hadamard(size, NVIDIAS[:size])
    expected = oracle.transform(x.astype(np.float64), oracle.matrix_of(hadamard), axes)
    np.testing.assert_allclose(transform(jnp.asarray(x), axes, hadamard.matrix(None)), expected, atol=1e-6)


@pytest.mark.parametrize('signs', ['none', NVIDIAS, 'random'])
def test_a_product_of_two_transformed_operands_is_the_product(signs):
    """Along the axis that is contracted; not so if signs differ."""
    x, w = normal((5, 64)), normal((64, 7), 1)
    matrix = gq.Hadamard(16, signs).matrix(KEY)
    product = transform(jnp.asarray(x), (1,), matrix) @ transform(jnp.asarray(w), (0,), matrix)
    np.testing.assert_allclose(product, x.astype(np.float64) @ w, atol=1e-5)
    other = gq.Hadamard(16, 'random').matrix(jax.random.key(3))
    assert np.max(np.abs(transform(jnp.asarray(x), (1,), matrix) @ transform(jnp.asarray(w), (0,), other) - x @ w)) > 1


def test_outliers_are_spread():
    x = np.zeros((1, 16), np.float32)
    x[0, 3] = 8
    np.testing.assert_allclose(np.abs(transform(jnp.asarray(x), (1,), gq.Hadamard(16).matrix(None))), 2.0)


@pytest.mark.parametrize('fmt', ['float8_e4m3fn', 'bfloat16'])
def test_fake_quantize_undoes_it(fmt):
    """A fine format leaves of it no more than its own error."""
    quantizer = gq.Quantizer(fmt, scale='mx', hadamard=gq.Hadamard(32, 'random'))
    x = normal((4, 64))
    y = np.asarray(gq.fake_quantize(x, quantizer, key=KEY))
    error = 2.0 ** -(1 + quantizer.fmt.mantissa_bits)
    assert np.linalg.norm(y - x) < error * np.linalg.norm(x)


# --- meshes -------------------------------------------------------------------------------------------

FORMS = {
    'rows': P(('a', 'b', 'c')),
    'the axis': P(None, ('a', 'b', 'c')),
    'both': P('a', ('b', 'c')),
    'not at all': P(),
}


@functools.cache
def quantized_alone():
    x = normal((16, 256))
    quantizer = gq.Quantizer('float4_e2m1fn', scale='mx', hadamard=gq.Hadamard(64, 'random'))
    return x, quantizer, np.asarray(jax.jit(lambda x: gq.fake_quantize(x, quantizer, key=KEY))(x))


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('form', FORMS)
def test_the_same_bits_on_any_mesh(form, axis_type):
    """Whole blocks on each device, or blocks of 64 on several, which XLA gathers here; one key's signs everywhere."""
    x, quantizer, expected = quantized_alone()
    mesh = jax.make_mesh((2, 2, 2), ('a', 'b', 'c'), axis_types=(axis_type,) * 3)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, FORMS[form]))
        got = jax.jit(lambda x: gq.fake_quantize(x, quantizer, key=KEY))(placed)
    assert len(got.sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(got), expected)


def test_the_same_signs_in_every_shard():
    """Under shard_map, of rows, which are whole: the bits of the whole array."""
    x, quantizer, expected = quantized_alone()
    mesh = jax.make_mesh((8,), ('rows',), axis_types=(AxisType.Auto,))
    of_shard = lambda x: gq.fake_quantize(x, quantizer, key=KEY)
    got = jax.jit(jax.shard_map(of_shard, mesh=mesh, in_specs=P('rows'), out_specs=P('rows')))(x)
    np.testing.assert_array_equal(np.asarray(got), expected)
    signs = lambda: gq.Hadamard(64, 'random').matrix(KEY)[None]
    each = jax.jit(jax.shard_map(signs, mesh=mesh, in_specs=(), out_specs=P('rows')))()
    assert np.array_equal(each, np.broadcast_to(each[:1], each.shape))


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [0, 1, 3, 24, 2048, -2, 16.0, True, '16'])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r'size=.*powers of two from 2 to 1024'):
        gq.Hadamard(size)


@pytest.mark.parametrize('signs', ['fixed', (1, -1), (1,) * 15 + (0,), (), [2] * 16, 5, None])
def test_other_signs_are_refused(signs):
    with pytest.raises(ValueError, match=r"signs=.*'none', 'random', and 16 numbers 1 and -1"):
        gq.Hadamard(16, signs)


@pytest.mark.parametrize(('shape', 'axis', 'length'), [((4, 40), -1, 40), ((24, 32), 0, 24), ((2, 3, 8), (0, 1), 6)])
def test_an_axis_that_blocks_would_cut_is_refused(shape, axis, length):
    quantizer = gq.Quantizer('e4m3', hadamard=gq.Hadamard(16))
    with pytest.raises(
        ValueError, match=rf'size 16 takes an axis whose length is a multiple of that, and not {length}'
    ):
        gq.fake_quantize(jnp.ones(shape), quantizer, axis=axis)


def test_what_is_not_finite_spreads_over_its_block_alone():
    x = normal((2, 64))
    x[0, 3] = np.inf
    y = np.asarray(gq.fake_quantize(x, gq.Quantizer('e4m3', hadamard=gq.Hadamard(16))))
    assert (
        np.all(np.isnan(y[0, :16]) | np.isinf(y[0, :16]))
        and np.all(np.isfinite(y[0, 32:]))
        and np.all(np.isfinite(y[1]))
    )
