"""GEMMs of FP8 operands: the float64 product of the numbers that the simulation rounds to, within float32's sums."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy_quantized_dot_general import CONTRACTIONS
from numpy_quantized_dot_general import quantized_dot_general as oracle

import gaussq_jax as gq
from gaussq_jax.hardware_dot_general import check, hardware_dot_general

DENSE = CONTRACTIONS['dense'][-1]
E4M3, E5M2 = (gq.Quantizer(fmt, block_size='channel') for fmt in ('float8_e4m3fn', 'float8_e5m2'))
E4M3_TENSOR, E5M2_TENSOR = (gq.Quantizer(fmt, block_size='tensor') for fmt in ('float8_e4m3fn', 'float8_e5m2'))
PAIRS = ((E4M3, E4M3), (E4M3_TENSOR, E5M2), (E5M2, E4M3_TENSOR), (E5M2_TENSOR, E4M3_TENSOR))
ROUNDINGS = {jnp.float32: 0, jnp.float16: 2.0**-11, jnp.bfloat16: 2.01 * 2.0**-8}  # of results, relative, at most


multiply = jax.jit(hardware_dot_general, static_argnums=(2, 3, 4), static_argnames=('preferred_element_type',))


def random_operands(contraction='dense', dtype=jnp.float32, seed=0):
    lhs_shape, rhs_shape, dimension_numbers = CONTRACTIONS[contraction]
    random = np.random.default_rng(seed)
    return *(jnp.asarray(random.normal(size=shape), dtype) for shape in (lhs_shape, rhs_shape)), dimension_numbers


def numbers_and_scale(x, quantizer, axes):
    """By NumPy and ml_dtypes: numbers of FP8 in float64, and what they are divided by."""
    x = np.asarray(x, np.float32)
    axes = tuple(axes) if quantizer.block_size == 'channel' else None
    scale = np.float32(quantizer.fmt.max) / np.max(np.abs(x), axis=axes, keepdims=True)
    return (x * scale).astype(getattr(ml_dtypes, quantizer.fmt.name)).astype(np.float64), scale.astype(np.float64)


def exact_product(lhs, rhs, dimension_numbers, quantizers):
    """In float64; and the sum of the magnitudes, which bounds what rounding in the sum can do."""
    out = jax.eval_shape(lambda *x: jax.lax.dot_general(*x, dimension_numbers), lhs, rhs)
    parts = map(numbers_and_scale, (lhs, rhs), quantizers, dimension_numbers[0])
    arrays = [numbers / scale for numbers, scale in parts]
    product = lambda *arrays: oracle(*arrays, np.zeros(out.shape), dimension_numbers)[0]
    return product(*arrays), product(*map(np.abs, arrays))


def assert_product(got, lhs, rhs, dimension_numbers, quantizers):
    """One wrong FP8 number would be wrong by 1/16 or 1/8 of it: far beyond the bound."""
    exact, magnitudes = exact_product(lhs, rhs, dimension_numbers, quantizers)
    terms = math.prod(lhs.shape[axis] for axis in dimension_numbers[0][0])
    bound = (terms + 8) * 2.0**-24 * magnitudes + ROUNDINGS[got.dtype.type] * np.abs(exact)
    assert got.shape == exact.shape
    assert (np.abs(np.asarray(got, np.float64) - exact) <= bound).all()


@pytest.mark.parametrize('contraction, quantizers', list(zip(CONTRACTIONS, itertools.cycle(PAIRS))))
def test_all_dimension_numbers(contraction, quantizers):
    *arrays, dimension_numbers = random_operands(contraction)
    got = multiply(*arrays, *quantizers, dimension_numbers)
    assert_product(got, *arrays, dimension_numbers, quantizers)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize('dtype, out_dtype', [(jnp.bfloat16, None), (jnp.float16, None), (jnp.bfloat16, jnp.float32)])
def test_dtypes_of_operands_and_results(dtype, out_dtype):
    """Sums of float16's results are beyond it before they are scaled."""
    *arrays, dimension_numbers = random_operands('batch axis', dtype)
    got = multiply(*arrays, E5M2_TENSOR, E4M3, dimension_numbers, preferred_element_type=out_dtype)
    assert got.dtype == (out_dtype or dtype)
    assert_product(got, *arrays, dimension_numbers, (E5M2_TENSOR, E4M3))


@pytest.mark.parametrize('quantizer', [E4M3, E5M2])
def test_the_numbers_are_those_of_a_cast(quantizer):
    """By ml_dtypes, and the ones of `fake_quantize`: multiplied by the identity, each is alone in its sum."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 50)), jnp.float32)
    products = multiply(x, jnp.eye(50), quantizer, E4M3_TENSOR, DENSE)
    numbers, scale = numbers_and_scale(x, quantizer, (1,))
    np.testing.assert_allclose(products, numbers / scale, rtol=2.0**-21)
    np.testing.assert_allclose(products, gq.fake_quantize(x, quantizer), rtol=2.0**-21)


def test_it_is_nearer_to_the_exact_product_than_the_simulation():
    """Both round the result to bfloat16, the simulation the operands too."""
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in ((64, 512), (512, 48))]
    exact, _ = exact_product(*arrays, DENSE, (E4M3, E5M2))
    distance = lambda x: np.linalg.norm(np.asarray(x, np.float64) - exact) / np.linalg.norm(exact)
    hardware = multiply(*arrays, E4M3, E5M2, DENSE)
    simulated = jax.jit(lambda *arrays: gq.quantized_dot_general(P1=E4M3, P2=E5M2)(*arrays, DENSE))(*arrays)
    assert distance(hardware) < distance(simulated) < 0.005
    unquantized = np.matmul(*(np.asarray(x, np.float64) for x in arrays))
    assert distance(unquantized) > 0.03


def test_zeros_infinities_and_nan():
    """A block of zeros gives zeros; what isn't finite is no part of the largest magnitude, and stays in its results."""
    lhs, rhs, _ = random_operands()
    lhs = lhs.at[0].set(0).at[1, 0].set(jnp.inf).at[2, 0].set(jnp.nan)
    wrong = np.isin(np.arange(lhs.shape[0]), (1, 2))
    finite = multiply(jnp.where(jnp.isfinite(lhs), lhs, 0), rhs, E4M3, E4M3, DENSE)
    for quantizers in ((E4M3, E4M3), (E5M2, E4M3)):
        got = multiply(lhs, rhs, *quantizers, DENSE)
        np.testing.assert_array_equal(got[0], 0)
        assert np.isinf(got[1]).all() if quantizers[0] == E5M2 else np.isnan(got[1]).all()
        assert np.isnan(got[2]).all() and np.isfinite(got[~wrong]).all()
    np.testing.assert_array_equal(multiply(lhs, rhs, E4M3, E4M3, DENSE)[~wrong], finite[~wrong])


@pytest.mark.parametrize('lhs_exponent, rhs_exponent', [(-110, 0), (122, -110), (-110, 122), (124, -8), (-55, -55)])
def test_large_and_small_magnitudes(lhs_exponent, rhs_exponent):
    """No scale is flushed to zero, and no product of scales overflows, where the results don't."""
    lhs, rhs, _ = random_operands()
    got = multiply(lhs * 2.0**lhs_exponent, rhs * 2.0**rhs_exponent, E5M2, E4M3, DENSE)
    exact, magnitudes = exact_product(lhs, rhs, DENSE, (E5M2, E4M3))
    got = np.asarray(got, np.float64) * 2.0 ** -(lhs_exponent + rhs_exponent)
    np.testing.assert_array_less(np.abs(got - exact), 1e-5 * magnitudes)


def test_empty_arrays():
    assert hardware_dot_general(jnp.ones((0, 4)), jnp.ones((4, 3)), E4M3, E4M3, DENSE).shape == (0, 3)
    got = hardware_dot_general(jnp.ones((2, 0)), jnp.ones((0, 3)), E4M3, E4M3, DENSE)
    np.testing.assert_array_equal(got, np.zeros((2, 3)))


def test_vmap_scales_each_example_by_itself():
    lhs, rhs, _ = random_operands()
    lhs = jnp.stack([lhs, 100 * lhs])
    got = jax.jit(jax.vmap(lambda lhs: hardware_dot_general(lhs, rhs, E4M3_TENSOR, E4M3, DENSE)))(lhs)
    for example, product in zip(lhs, got):
        assert_product(product, example, rhs, DENSE, (E4M3_TENSOR, E4M3))


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('lhs_spec, rhs_spec', [(P('a'), P(None, 'b')), (P(None, 'a'), P('a'))])
def test_meshes(axis_type, lhs_spec, rhs_spec):
    """Tokens and features over devices; contracted axes over devices."""
    mesh = jax.make_mesh((2, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
    lhs, rhs, _ = random_operands()
    out_sharding = NamedSharding(mesh, P('a', 'b')) if axis_type == AxisType.Explicit else None
    with jax.set_mesh(mesh):
        arrays = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in ((lhs, lhs_spec), (rhs, rhs_spec))]
        product = lambda *arrays: hardware_dot_general(*arrays, E5M2_TENSOR, E4M3, DENSE, out_sharding=out_sharding)
        got = jax.jit(product)(*arrays)
    assert_product(got, lhs, rhs, DENSE, (E5M2_TENSOR, E4M3))
    if out_sharding:
        assert got.sharding == out_sharding


@pytest.mark.parametrize(
    'lhs, rhs, reason',
    [
        (None, E4M3, 'lhs=None: FP8 units multiply two quantized operands'),
        (E4M3, None, 'rhs=None: FP8 units multiply two quantized operands'),
        (E5M2, E5M2_TENSOR, 'both operands float8_e5m2'),
        (gq.Quantizer('e4m3', block_size='channel'), E4M3, 'fmt=e4m3 is not a dtype of FP8 units'),
        (E4M3, gq.Quantizer('float8_e4m3fn', block_size=128), 'block_size=128 gives scales within the contracted axis'),
        (gq.Quantizer('float8_e4m3fn', block_size=(1, 128)), E4M3, re.escape('block_size=(1, 128) gives scales')),
        (gq.Quantizer('float8_e5m2', block_size='tensor', scale='mx'), E4M3, 'only .* is possible of it'),
        (E4M3, gq.Quantizer('float8_e5m2', block_size='channel', rounding='stochastic'), 'random bits'),
    ],
)
def test_others_are_refused(lhs, rhs, reason):
    with pytest.raises(ValueError, match=f'{reason}.*; allowed are float8_e4m3fn and float8_e5m2, not both'):
        check(lhs, rhs)
    with pytest.raises(ValueError, match=reason):
        hardware_dot_general(jnp.ones((2, 3)), jnp.ones((3, 4)), lhs, rhs, DENSE)


def test_what_is_no_float_and_derivatives_are_refused():
    product = functools.partial(hardware_dot_general, lhs_quantizer=E4M3, rhs_quantizer=E4M3, dimension_numbers=DENSE)
    ones = jnp.ones((3, 3))
    with pytest.raises(ValueError, match='rhs is int32; allowed are float32'):
        product(ones, ones.astype(int))
    with pytest.raises(ValueError, match=r'preferred_element_type=.*int32.*: allowed are floating dtypes'):
        product(ones, ones, preferred_element_type=jnp.int32)
    with pytest.raises(ValueError, match='hardware_dot_general has no derivatives'):
        jax.grad(lambda x: product(x, ones).sum())(ones)
