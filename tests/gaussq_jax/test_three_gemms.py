"""The three GEMMs of each recipe, and which of them quantize when: against float64 matrices, operand by operand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_quantized_dot_general import assert_all_identical, power_of_two_quantizers, small_numbers, with_gradients
from numpy_quantized_dot_general import quantized_dot_general as oracle

import gaussq_jax as gq
from gaussq_jax.recipes import RECIPES

KEY = jax.random.key(11)
DENSE = (((2,), (0,)), ((), ()))
SHAPES = {  # (tokens, in), (in, out); axes that are transformed together have multiples of the transform's size
    'dense': ((2, 16, 32), (32, 32), DENSE),
    'wide': ((2, 64, 16), (16, 128), DENSE),
    'experts': ((2, 32, 32), (2, 32, 32), (((2,), (1,)), ((0,), (0,)))),
    'several axes': ((2, 16, 4, 8), (4, 8, 2, 16), (((2, 3), (0, 1)), ((), ()))),
}
gradients = jax.jit(with_gradients, static_argnums=(0, 4), static_argnames='when')


def data(shapes, seed, dtype=np.float32):
    """Normal activations, weights and gradients, which outliers are among."""
    lhs_shape, rhs_shape, dimension_numbers = SHAPES[shapes]
    out = jax.eval_shape(
        lambda a, b: jax.lax.dot_general(a, b, dimension_numbers), *map(jnp.zeros, (lhs_shape, rhs_shape))
    )
    generator = np.random.default_rng(seed)
    arrays = [generator.standard_normal(shape) for shape in (lhs_shape, rhs_shape, out.shape)]
    arrays[0].flat[5], arrays[2].flat[9] = 8.9, -7.1
    return [jnp.asarray(x, dtype) for x in arrays], dimension_numbers


def settings_of(recipe):
    key = {'key': KEY} if recipe.needs_key else {}
    return recipe.operands | {'backward_from': recipe.backward_from}, key


def surely(recipe, shapes, dtype=np.float32, when=(True, True)):
    """The first data of which no value hangs on a tie, and what the layer makes of them."""
    settings, key = settings_of(recipe)
    rounded = {} if dtype == np.float32 else {'round_operand': lambda x: np.asarray(jnp.asarray(x, dtype), np.float64)}
    for seed in range(20):
        arrays, numbers = data(shapes, seed, dtype)
        try:
            return arrays, numbers, oracle(*arrays, numbers, **settings, **key, **rounded, when=when, surely=True)
        except AssertionError:
            continue
    raise AssertionError('all of these data have ties')


def ours(recipe, arrays, numbers, **options):
    settings, key = settings_of(recipe)
    return gradients(gq.quantized_dot_general(**settings), *arrays, numbers, **key, **options)


def assert_close(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        scale = np.sqrt(np.mean(np.square(other)))
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=tolerance, atol=tolerance * scale)


CASES = [(name, 'wide' if name == 'quartet2' else 'dense') for name in RECIPES] + [
    ('nvfp4', 'experts'),
    ('quartet', 'experts'),
    ('nvfp4', 'several axes'),
    ('quartet', 'several axes'),
    ('deepseek_fp8', 'several axes'),
]


@pytest.mark.parametrize(('name', 'shapes'), CASES)
def test_forward_and_both_gradients(name, shapes):
    """All values of operands are known, so that only float32's sums differ: far less than one step would make."""
    recipe = RECIPES[name]
    arrays, numbers, expected = surely(recipe, shapes)
    got = ours(recipe, arrays, numbers)
    assert_close(got, expected, 4e-6)
    plain = with_gradients(jax.lax.dot_general, *arrays, numbers)
    for one, other in zip(got, plain, strict=True):
        relative = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert 0.01 < relative < (0.45 if '8' not in name else 0.09), relative


@pytest.mark.parametrize('name', ['nvfp4', 'quartet', 'mxfp8'])
def test_in_bfloat16(name):
    """What is multiplied is bfloat16, transformed or not; sums are rounded to it."""
    recipe = RECIPES[name]
    arrays, numbers, expected = surely(recipe, 'dense', jnp.bfloat16)
    got = ours(recipe, arrays, numbers)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    assert_close(got, expected, 2.0**-7)


@pytest.mark.parametrize('name', ['nvfp4', 'quartet', 'mxfp8'])
@pytest.mark.parametrize('when', [(True, False), (False, True), (False, False)])
def test_what_is_switched_off(name, when):
    """Either pass alone: what isn't quantized has the operands as they are, also where both share a weight."""
    recipe = RECIPES[name]
    arrays, numbers, expected = surely(recipe, 'dense', when=when)
    assert_close(ours(recipe, arrays, numbers, when=when), expected, 4e-6)


# --- flags that are traced ------------------------------------------------------------------------------


def exact_data():
    return [jnp.asarray(small_numbers(shape, seed)) for seed, shape in enumerate([(2, 16, 32), (32, 32), (2, 16, 32)])]


@functools.cache
def traced(name):
    settings, key = settings_of(RECIPES[name]) if name in RECIPES else (power_of_two_quantizers(), {})
    dot_general = gq.quantized_dot_general(**settings)
    return jax.jit(lambda when, *arrays: with_gradients(dot_general, *arrays, DENSE, **key, when=when))


@pytest.mark.parametrize('name', ['quartet', 'powers of two'])
@pytest.mark.parametrize('when', [(True, True), (True, False), (False, True), (False, False)])
def test_a_traced_flag_does_what_a_known_one_does(name, when):
    """One program, for all four; bit for bit where sums are exact."""
    arrays, _ = data('dense', 1)
    got = traced(name)(tuple(map(jnp.asarray, when)), *arrays)
    if name == 'powers of two':
        arrays = exact_data()
        dot_general = gq.quantized_dot_general(**power_of_two_quantizers())
        assert_all_identical(
            traced(name)(tuple(map(jnp.asarray, when)), *arrays), gradients(dot_general, *arrays, DENSE, when=when)
        )
    else:
        expected = [np.asarray(x, np.float64) for x in ours(RECIPES[name], arrays, DENSE, when=when)]
        assert_close(got, expected, 4e-6)
    assert traced(name)._cache_size() == 1


@pytest.mark.parametrize('wrap', ['scan', 'remat', 'vmap'])
def test_a_traced_flag_under(wrap):
    """Of three layers, the second isn't quantized."""
    settings, key = settings_of(RECIPES['nvfp4'])
    dot_general = gq.quantized_dot_general(**settings)
    (x, w, cotangent), _ = data('dense', 2)
    kernels, flags = jnp.stack([w, 0.5 * w, 2 * w]), jnp.array([True, False, True])

    def layer(x, kernel, flag):
        return dot_general(x, kernel, DENSE, **key, when=flag)

    def one_by_one(x, kernels):
        for kernel, flag in zip(kernels, (True, False, True)):
            x = layer(x, kernel, flag)
        return x

    def scanned(x, kernels):
        step = jax.checkpoint(layer) if wrap == 'remat' else layer
        return jax.lax.scan(lambda x, of: (step(x, *of), None), x, (kernels, flags))[0]

    if wrap == 'vmap':
        one_by_one = lambda x, kernels: jnp.stack([layer(x, k, f) for k, f in zip(kernels, (True, False, True))])
        scanned = lambda x, kernels: jax.vmap(layer, in_axes=(None, 0, 0))(x, kernels, flags)
        cotangent = jnp.stack([cotangent] * 3)

    def gradients(function):
        y, pull_back = jax.vjp(function, x, kernels)
        return y, *pull_back(cotangent)

    got, expected = (jax.jit(gradients, static_argnums=0)(function) for function in (scanned, one_by_one))
    assert_close(got, [np.asarray(value, np.float64) for value in expected], 2e-5)


# --- what the programs hold -----------------------------------------------------------------------------


def equations(jaxpr, name):
    """All of a primitive in a jaxpr, and in those within it; which branches of conditions they are in."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr')
        ):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                yield from equations(inner, name)


def program(recipe, when=True, shapes='dense'):
    settings, key = settings_of(recipe)
    arrays, numbers = data(shapes, 0)
    dot_general = gq.quantized_dot_general(**settings)
    function = lambda when, *arrays: with_gradients(dot_general, *arrays, numbers, **key, when=when)
    if isinstance(when, bool):
        return jax.make_jaxpr(functools.partial(function, when))(*arrays).jaxpr
    return jax.make_jaxpr(function)(when, *arrays).jaxpr


def maxima(jaxpr):
    """How often largest magnitudes are taken: for each operand, of its blocks, and for NVFP4 of the tensor, too."""
    return sum(1 for _ in equations(jaxpr, 'reduce_max'))


def test_a_weight_in_square_tiles_is_quantized_once():
    """Five operands are, then, and no sixth."""
    recipe = RECIPES['deepseek_fp8']
    assert maxima(program(recipe)) == 5
    apart = recipe.replace(P4=gq.Quantizer('float8_e4m3fn', block_size=128))
    assert maxima(program(apart)) == 6
    assert maxima(program(RECIPES['nvfp4'])) == 10 and maxima(program(RECIPES['fp4_all_the_way'])) == 12


@pytest.mark.parametrize('tile', ['tensor', (4, 4), (16, 16)])
def test_once_has_the_bits_of_twice(tile):
    """Which of two of equal result P4 is: one that it shares the numbers of P2 with, or one of its own."""
    quantizer = gq.Quantizer('e0m3', block_size=tile, scale='mx')
    of_its_own = gq.Quantizer('e1m2', block_size=tile, scale='mx')  # the same numbers, under another name
    once, twice = (
        gradients(gq.quantized_dot_general(P2=quantizer, P4=of), *exact_data(), DENSE) for of in (quantizer, of_its_own)
    )
    assert_all_identical(once, twice)
    assert not np.array_equal(once[1], with_gradients(jax.lax.dot_general, *exact_data(), DENSE)[1])


def test_a_shared_weight_is_there_for_a_backward_pass_from_quantized_values():
    """Also where the forward pass is switched off, for one whose backward pass is on."""
    tiles = gq.Quantizer('e2m1', block_size=(16, 16), scale='mx')
    settings = {'P1': gq.Quantizer('e2m1', scale='mx'), 'P2': tiles, 'P4': tiles, 'backward_from': 'quantized'}
    for when in [(True, True), (True, False), (False, True), (False, False)]:
        expected = oracle(*exact_data(), DENSE, when=when, **settings)
        assert_all_identical(gradients(gq.quantized_dot_general(**settings), *exact_data(), DENSE, when=when), expected)


@pytest.mark.parametrize('name', ['nvfp4', 'quartet', 'mxfp8'])
def test_what_is_switched_off_is_not_computed(name):
    """Known: the program of a plain layer. Traced: one branch of each condition quantizes nothing."""
    recipe = RECIPES[name]
    assert maxima(program(recipe, when=False)) == 0
    conditions = list(equations(program(recipe, jnp.asarray(True)), 'cond'))
    counts = [sorted(maxima(branch.jaxpr) for branch in of.params['branches']) for of in conditions]
    assert conditions and all(low == 0 for low, _ in counts)
    assert sum(high for _, high in counts) == maxima(program(recipe))
    outside = maxima(program(recipe, jnp.asarray(True))) - sum(map(sum, counts))
    assert outside == 0


def test_one_flag_for_both_passes_is_asked_once_in_each():
    """Forward, backward, and the gradients of what the forward pass quantized; once more for a weight that both share.

    Flags that are known make no conditions at all.
    """
    count = lambda name, when: sum(1 for _ in equations(program(RECIPES[name], when), 'cond'))
    assert [count(name, jnp.asarray(True)) for name in ('mxfp8', 'quartet', 'nvfp4')] == [3, 3, 4]
    settings, key = settings_of(RECIPES['nvfp4'])
    arrays, numbers = data('dense', 0)
    for when in [(True, False), (False, True)]:
        function = functools.partial(with_gradients, gq.quantized_dot_general(**settings), **key, when=when)
        known = jax.make_jaxpr(lambda *arrays, function=function: function(*arrays, numbers))(*arrays)
        assert not list(equations(known.jaxpr, 'cond'))


@pytest.mark.parametrize(
    'when', [None, 1, 'no', [True, False], (True,), (True, False, True), jnp.array([True, False]), jnp.ones(())]
)
def test_what_is_no_flag_is_refused(when):
    with pytest.raises(
        ValueError, match=r'when=.*: allowed are a bool, a bool array of shape \(\), and a tuple of two'
    ):
        gq.quantized_dot_general(**RECIPES['mxfp8'].operands)(*data('dense', 0)[0][:2], DENSE, when=when)


# --- in the limit of a fine format ------------------------------------------------------------------------


@pytest.mark.parametrize('name', RECIPES)
def test_with_a_fine_format_the_gradients_are_the_plain_ones(name):
    """Transforms, saved operands, masks and prescales cancel: nothing but the format's rounding is left."""
    recipe = RECIPES[name]

    def fine(quantizer):
        kept = {name: getattr(quantizer, name) for name in ('block_size', 'rounding', 'prescale', 'hadamard')}
        scale = {'scale': 'mx', 'scale_rounding': 'rceil'} if quantizer.scale == 'mx' else {}
        return gq.Quantizer('e6m10', **kept, **scale, clips_gradient=quantizer.clips_gradient)

    recipe = recipe.replace(**{target: fine(quantizer) for target, quantizer in recipe.operands.items()})
    arrays, numbers = data('wide' if name == 'quartet2' else 'dense', 4)
    got = ours(recipe, arrays, numbers)
    plain = with_gradients(jax.lax.dot_general, *arrays, numbers)
    for one, other in zip(got, plain, strict=True):
        assert np.linalg.norm(one - other) < 2e-3 * np.linalg.norm(other)
