"""Each operand of quantized_dot_general against float64 matrices: one on, six on, every layout of scales."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_quantized_dot_general import (
    CONTRACTIONS,
    TARGETS,
    assert_all_identical,
    operands,
    power_of_two_quantizers,
    small_numbers,
    with_gradients,
)
from numpy_quantized_dot_general import quantized_dot_general as oracle

import gaussq_jax as gq

gradients = jax.jit(with_gradients, static_argnums=(0, 4), static_argnames='preferred_element_type')
DENSE = CONTRACTIONS['dense'][-1]


@pytest.mark.parametrize('contraction', CONTRACTIONS)
def test_six_different_quantizers(contraction):
    """Each has its own format and layout, along the contraction axis of its GEMM, for any dimension numbers."""
    *arrays, dimension_numbers = operands(contraction)
    quantizers = power_of_two_quantizers()
    got = gradients(gq.quantized_dot_general(**quantizers, ordered=True), *arrays, dimension_numbers)
    assert_all_identical(got, oracle(*arrays, dimension_numbers, **quantizers))


@pytest.mark.parametrize('contraction', ['dense with leading axes', 'batch axis'])
@pytest.mark.parametrize('target', TARGETS)
def test_one_target_changes_its_own_product_and_no_other(target, contraction):
    *arrays, dimension_numbers = operands(contraction)
    quantizers = {target: gq.Quantizer('e2m1', block_size=16, scale='mx')}
    got = gradients(gq.quantized_dot_general(**quantizers, ordered=True), *arrays, dimension_numbers)
    assert_all_identical(got, oracle(*arrays, dimension_numbers, **quantizers))
    unquantized = gradients(jax.lax.dot_general, *arrays, dimension_numbers)
    product = {'P1': 0, 'P2': 0, 'P3': 1, 'P4': 1, 'P5': 2, 'P6': 2}[target]
    for i in range(3):
        assert np.array_equal(got[i], unquantized[i]) == (i != product)


@pytest.mark.parametrize('contraction', ['several contracting axes', 'batch axis'])
@pytest.mark.parametrize('block_size', [1, 32, 'channel', 'tensor', (4, 8)])
def test_every_layout_of_absmax_scales(block_size, contraction):
    """Ragged blocks among them; rows of a tile lie along the matrix's other axis."""
    *arrays, dimension_numbers = operands(contraction, seed=5)
    quantizers = dict.fromkeys(TARGETS, gq.Quantizer('e4m3', block_size=block_size))
    got = gradients(gq.quantized_dot_general(**quantizers, ordered=True), *arrays, dimension_numbers)
    for one, other in zip(got, oracle(*arrays, dimension_numbers, **quantizers), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('scale', ['mx', 'absmax'])
@pytest.mark.parametrize('preferred_element_type', [None, jnp.float32])
def test_bfloat16_operands_are_multiplied_as_rounded(scale, preferred_element_type):
    """A quantized operand is a bfloat16 number again, in fusions too; products are summed in float32."""
    arrays = operands('dense', dtype=jnp.bfloat16)[:3]
    quantizer = gq.Quantizer('e2m1', block_size=16, scale=scale)
    quantizers = {'P1': quantizer, 'P4': quantizer, 'P6': quantizer}
    dot_general = gq.quantized_dot_general(**quantizers)
    settings = {'preferred_element_type': preferred_element_type}
    got = gradients(dot_general, *arrays, DENSE, **settings)

    def to_bfloat16(x):
        return np.asarray(np.asarray(x, np.float32), jnp.bfloat16).astype(np.float64)

    expected = oracle(*arrays, DENSE, round_operand=to_bfloat16, **quantizers)
    assert [x.dtype for x in got] == [preferred_element_type or jnp.bfloat16, jnp.bfloat16, jnp.bfloat16]
    for one, other in zip(got, expected, strict=True):
        tolerance = 2e-6 if one.dtype == jnp.float32 else 2.0**-8
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=tolerance, atol=tolerance)


def test_nvfp4_scales_lie_along_the_contraction_axes_too():
    *arrays, dimension_numbers = operands('dense with leading axes')
    nvfp4 = gq.Quantizer('e2m1', block_size=16, scale='nvfp4')
    lhs, rhs, cotangent = (jnp.asarray(x) for x in arrays)
    got = gradients(gq.quantized_dot_general(P1=nvfp4, P4=nvfp4, P5=nvfp4), lhs, rhs, cotangent, dimension_numbers)
    quantize = jax.jit(gq.fake_quantize, static_argnums=1)
    p1, p4, p5 = (
        quantize(lhs.reshape(30, 40), nvfp4),
        quantize(rhs, nvfp4),
        quantize(cotangent.reshape(30, 36).T, nvfp4),
    )
    expected = (p1 @ rhs).reshape(3, 10, 36), cotangent @ p4.T, (p5 @ lhs.reshape(30, 40)).T
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)


EINSUMS = [
    ('bsd,dhk->bshk', (2, 5, 40), (40, 3, 8)),
    ('bshk,hkd->bsd', (2, 5, 3, 8), (3, 8, 40)),
    ('btd,edf->betf', (2, 5, 40), (3, 40, 18)),
    ('ebd,edf->ebf', (3, 5, 40), (3, 40, 18)),
    ('bqhd,bkhd->bhqk', (2, 5, 3, 16), (2, 6, 3, 16)),
]


@pytest.mark.parametrize(('subscripts', 'lhs_shape', 'rhs_shape'), EINSUMS)
def test_einsum_layers(subscripts, lhs_shape, rhs_shape):
    """einsum may hand over its operands swapped, which is refused; quantized_einsum has X as the lhs, always."""
    x, w = small_numbers(lhs_shape), small_numbers(rhs_shape, seed=1)
    of_x, of_w, of_y = subscripts.replace('->', ',').split(',')
    batch = [letter for letter in of_x if letter in of_w and letter in of_y]
    contracted = [letter for letter in of_x if letter in of_w and letter not in of_y]
    free = [letter for of in (of_x, of_w) for letter in of if letter not in (*batch, *contracted)]
    axes = lambda letters: tuple(tuple(of.index(letter) for letter in letters) for of in (of_x, of_w))
    order = [of_y.index(letter) for letter in (*batch, *free)]
    quantizers = power_of_two_quantizers()

    def with_gradients(einsum, cotangent):
        y, pull_back = jax.vjp(einsum, x, w)
        return y, *pull_back(cotangent)

    cotangent = small_numbers(np.einsum(subscripts, x, w).shape, seed=2)
    expected = oracle(x, w, cotangent.transpose(order), (axes(contracted), axes(batch)), **quantizers)
    expected = expected[0].transpose(np.argsort(order)), *expected[1:]
    ours = functools.partial(gq.quantized_einsum, subscripts, **quantizers)
    assert_all_identical(jax.jit(with_gradients, static_argnums=0)(ours, cotangent), expected)

    theirs = functools.partial(jnp.einsum, subscripts, _dot_general=gq.quantized_dot_general(**quantizers))
    if subscripts == 'btd,edf->betf':
        with pytest.raises(ValueError, match='the operands seem to be swapped'):
            theirs(x, w)
    else:
        assert_all_identical(jax.jit(with_gradients, static_argnums=0)(theirs, cotangent), expected)


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('bd,df', 'must be of two operands and an output'),
        ('bd->bd', 'must be of two operands and an output'),
        ('bd,df,f->b', 'must be of two operands and an output'),
        ('dd,df->df', 'a letter can be once in each'),
        ('bd,df->bg', "'g' is in the output alone"),
        ('bd,df->b', "'f' is in one operand alone, and would be summed"),
        ('bcd,df->bcf', 'has 3 and 2 axes, x and w have 2 and 2'),
        ('bd,fd->bf', "'d' is 4 of x, \\(2, 4\\), and 6 of w, \\(4, 6\\)"),
    ],
)
def test_a_spec_that_is_none(spec, message):
    with pytest.raises(ValueError, match=message):
        gq.quantized_einsum(spec, jnp.ones((2, 4)), jnp.ones((4, 6)))


def test_more_axes_of_activations():
    x, w = small_numbers((2, 3, 4)), small_numbers((4, 6), seed=1)
    y = gq.quantized_einsum('...d,df->...f', x, w, **power_of_two_quantizers())
    assert_all_identical([y], [gq.quantized_einsum('abd,df->abf', x, w, **power_of_two_quantizers())])
