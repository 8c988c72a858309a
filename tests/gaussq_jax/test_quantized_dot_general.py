"""quantized_dot_general against lax.dot_general: with every target off, with six identities, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_quantized_dot_general import (
    CONTRACTIONS,
    TARGETS,
    assert_all_identical,
    assert_identical,
    operands,
    with_gradients,
)

import gaussq_jax as gq

gradients = jax.jit(with_gradients, static_argnums=(0, 4), static_argnames=('precision', 'preferred_element_type'))
FLOAT16_GRID = gq.FloatFormat(5, 10, 'ieee')
DENSE = CONTRACTIONS['dense'][-1]


# --- all six off ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('contraction', 'dtype', 'settings'),
    [(contraction, np.float32, {}) for contraction in CONTRACTIONS]
    + [
        ('dense', np.float32, {'precision': 'highest'}),
        ('dense with leading axes', jnp.bfloat16, {}),
        ('batch axis', jnp.bfloat16, {'preferred_element_type': jnp.float32}),
    ],
)
def test_with_every_target_off_it_is_lax_dot_general(contraction, dtype, settings):
    """Bit for bit, forward and backward, on data that are not exact."""
    *arrays, dimension_numbers = operands(contraction)
    arrays = [jnp.asarray(np.tanh(x) + x / 3, dtype) for x in arrays]
    got = gradients(gq.quantized_dot_general(), *arrays, dimension_numbers, **settings)
    expected = gradients(jax.lax.dot_general, *arrays, dimension_numbers, **settings)
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    assert_all_identical(got, expected)


def program(dot_general, settings=()):
    def layer(lhs, rhs, cotangent):
        return with_gradients(dot_general, lhs, rhs, cotangent, DENSE, **dict(settings))

    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in [(24, 40), (40, 36), (24, 36)]]
    return str(jax.make_jaxpr(layer)(*arrays)), jax.jit(layer).lower(*arrays).as_text()


@pytest.mark.parametrize('settings', [{}, {'precision': 'high', 'preferred_element_type': jnp.float32}])
def test_with_every_target_off_nothing_is_left_in_the_program(settings):
    assert program(gq.quantized_dot_general(), settings) == program(jax.lax.dot_general, settings)
    assert program(gq.quantized_dot_general(P5=gq.Quantizer('e4m3')), settings) != program(
        jax.lax.dot_general, settings
    )


def test_with_every_target_off_integers_are_multiplied_as_by_lax():
    x = jnp.arange(12).reshape(3, 4)
    assert_identical(gq.quantized_dot_general()(x, x.T, DENSE), x @ x.T)


# --- six identities -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('contraction', 'fmt'),
    [(contraction, FLOAT16_GRID) for contraction in CONTRACTIONS] + [('dense', gq.FloatFormat(8, 7, 'ieee'))],
)
def test_six_identity_quantizers_change_nothing_but_the_order_of_sums(contraction, fmt):
    """bfloat16 values between 2^-7 and 4 lie on both grids under any power-of-two scale: our own backward pass runs."""
    *arrays, dimension_numbers = operands(contraction)
    arrays = [jnp.asarray(np.tanh(x) + x / 3 + 2.0**-7, jnp.bfloat16).astype(jnp.float32) for x in arrays]
    identity = gq.Quantizer(fmt, block_size=16, scale='mx')
    dot_general = gq.quantized_dot_general(**dict.fromkeys(TARGETS, identity), ordered=True)
    got = gradients(dot_general, *arrays, dimension_numbers)
    expected = gradients(jax.lax.dot_general, *arrays, dimension_numbers)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)


def test_identities_in_another_dtype_and_precision():
    """Output and gradients have lax.dot_general's dtypes; every product of the three GEMMs gets the precision."""
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in operands('dense')[:3]]
    dot_general = gq.quantized_dot_general(**dict.fromkeys(TARGETS, gq.Quantizer(FLOAT16_GRID, scale='mx')))
    for settings in {}, {'preferred_element_type': jnp.float32}:
        got = gradients(dot_general, *arrays, DENSE, **settings)
        expected = gradients(jax.lax.dot_general, *arrays, DENSE, **settings)
        assert [x.dtype for x in got] == [x.dtype for x in expected]
        assert_all_identical(got, expected)
    jaxpr, _ = program(dot_general, {'precision': 'highest'})
    assert jaxpr.count('dot_general[') == 3
    assert jaxpr.count('Precision.HIGHEST') == program(jax.lax.dot_general, {'precision': 'highest'})[0].count(
        'HIGHEST'
    )


def test_precision_and_preferred_element_type_may_be_positional():
    lhs, rhs = (jnp.asarray(x, jnp.bfloat16) for x in operands('dense')[:2])
    for dot_general in gq.quantized_dot_general(), gq.quantized_dot_general(P1=gq.Quantizer(FLOAT16_GRID, scale='mx')):
        got = dot_general(lhs, rhs, DENSE, jax.lax.Precision.HIGHEST, jnp.float32)
        assert got.dtype == jnp.float32
        assert_identical(got, jax.lax.dot_general(lhs, rhs, DENSE, jax.lax.Precision.HIGHEST, jnp.float32))
        keywords = dot_general(lhs=lhs, rhs=rhs, dimension_numbers=DENSE, preferred_element_type=jnp.float32)
        assert_identical(keywords, got)


# --- the dtype of dW ------------------------------------------------------------------------------


@pytest.mark.parametrize('contraction', CONTRACTIONS)
@pytest.mark.parametrize('quantizers', [{}, {'P5': gq.Quantizer(FLOAT16_GRID, scale='mx')}], ids=['none', 'identity'])
def test_weight_gradient_in_float32_is_rounded_to_the_weights_dtype(contraction, quantizers):
    """Axes in the weights' order, whatever the contraction; on exact data, lax's float32 result, rounded once.

    In bfloat16, lax's own is not exact on CPUs with JAX 0.11 and newer.
    """
    *arrays, dimension_numbers = operands(contraction)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    dot_general = gq.quantized_dot_general(**quantizers, weight_gradient_dtype=jnp.float32, ordered=True)
    got = gradients(dot_general, *arrays, dimension_numbers)
    *others, _ = gradients(jax.lax.dot_general, *arrays, dimension_numbers)
    exact = gradients(jax.lax.dot_general, *(x.astype(jnp.float32) for x in arrays), dimension_numbers)[-1]
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    assert_all_identical(got, [*others, exact.astype(jnp.bfloat16)])


def test_weight_gradient_on_an_explicit_mesh():
    mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    lhs, rhs, cotangent = (jnp.asarray(x[..., :32], jnp.bfloat16) for x in operands('dense')[:3])
    lhs, rhs = lhs[:24], rhs[:32]
    wide = (x.astype(jnp.float32) for x in (lhs, rhs, cotangent))
    expected = with_gradients(jax.lax.dot_general, *wide, DENSE)[-1].astype(jnp.bfloat16)
    put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
    with jax.set_mesh(mesh):
        dot_general = gq.quantized_dot_general(weight_gradient_dtype=jnp.float32)
        arrays = put(lhs, 'data', None), put(rhs, None, 'model'), put(cotangent, 'data', 'model')
        got = jax.jit(lambda *arrays: with_gradients(dot_general, *arrays, DENSE))(*arrays)
    assert jax.typeof(got[-1]).sharding.spec == jax.P(None, 'model')
    assert_all_identical([jax.device_get(got[-1])], [expected])


def test_the_gemm_of_the_weight_gradient_gives_that_dtype():
    plain, float32 = (program(gq.quantized_dot_general(weight_gradient_dtype=d))[0] for d in (None, jnp.float32))
    assert plain.count('preferred_element_type=float32') < float32.count('preferred_element_type=float32')


@pytest.mark.parametrize('dtype', [jnp.int8, bool])
def test_a_weight_gradient_of_no_floating_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match=r'weight_gradient_dtype=.*floating'):
        gq.quantized_dot_general(weight_gradient_dtype=dtype)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('value', ['e4m3', 8, gq.FloatFormat(4, 3), gq.Quantizer])
def test_a_target_that_is_no_quantizer_is_refused(target, value):
    with pytest.raises(ValueError, match=rf'{target}\b.*Quantizer'):
        gq.quantized_dot_general(**{target: value})


def test_an_unknown_target_is_refused():
    with pytest.raises(TypeError, match='P7'):
        gq.quantized_dot_general(P7=gq.Quantizer('e4m3'))


@pytest.mark.parametrize('operand', ['lhs', 'rhs'])
def test_integer_operands_of_a_quantizer_are_refused(operand):
    arrays = {'lhs': jnp.ones((3, 4)), 'rhs': jnp.ones((4, 5))}
    arrays[operand] = arrays[operand].astype(jnp.int32)
    target = {'lhs': 'P1', 'rhs': 'P2'}[operand]
    with pytest.raises(ValueError, match='int32'):
        gq.quantized_dot_general(**{target: gq.Quantizer('e4m3')})(**arrays, dimension_numbers=DENSE)
