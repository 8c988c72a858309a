"""Recipes as values: what each of them is, how they are found, added and refused, and what is left of them without."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq
from gaussq_jax import recipes
from gaussq_jax.recipes import KeptLayers, Recipe

E4M3 = gq.Quantizer('e4m3')
DENSE = (((1,), (0,)), ((), ()))
STOCHASTIC = {  # which operands are rounded stochastically, and which transformed, as the papers have it
    'nvfp4': ({'P3', 'P5'}, {'P5', 'P6'}),
    'fp4_all_the_way': ({'P3', 'P5', 'P6'}, set()),
    'quartet': ({'P3', 'P4', 'P5', 'P6'}, {'P1', 'P2', 'P3', 'P4', 'P5', 'P6'}),
    'quartet2': (set(), {'P3', 'P4', 'P5', 'P6'}),
    'mxfp8': (set(), set()),
    'fp8_rowwise': (set(), set()),
    'fp8_tensorwise': (set(), set()),
    'deepseek_fp8': (set(), set()),
}


@pytest.mark.parametrize('name', recipes.RECIPES)
def test_what_each_is(name):
    """All six operands; which are stochastic and which transformed; formats of 4 bits in blocks along the GEMM."""
    recipe = recipes.find(name)
    assert recipe.name == name and recipe.about and recipe.source.startswith('arXiv ')
    assert list(recipe.operands) == ['P1', 'P2', 'P3', 'P4', 'P5', 'P6']
    stochastic, transformed = STOCHASTIC[name]
    assert {of for of, quantizer in recipe.operands.items() if quantizer.rounding == 'stochastic'} == stochastic
    assert {of for of, quantizer in recipe.operands.items() if quantizer.hadamard} == transformed
    bits = {quantizer.fmt.bits for quantizer in recipe.operands.values()}
    assert bits == ({8} if '8' in name else {4})
    assert recipe.weights is None and not recipe.deterministic().needs_key
    assert recipe.needs_key == bool(stochastic or name == 'quartet2')
    for first in (1, 3, 5):  # of a GEMM, both operands are transformed alike
        pair = [recipe.operands[f'P{i}'].hadamard for i in (first, first + 1)]
        assert pair[0] == pair[1]


def test_the_shares_of_nvfp4_are_the_papers():
    """The 12B model's: 2 first and 8 last of 62 blocks, a sixth of its linear layers."""
    assert recipes.NVFP4.kept('layers/mlp/up', 62).sum() == 10
    assert recipes.NVFP4.ends == 'forward' and not recipes.QUARTET.full_precision


def test_deterministic():
    """Without random bits and signs, so that evaluation is the same each time; with the same scales."""
    recipe = recipes.QUARTET.deterministic()
    assert recipe.P3.rounding == 'nearest_even' and recipe.P3.hadamard == gq.Hadamard(32) and recipe.P3.prescale == 0.75
    assert recipe.P1 == recipes.QUARTET.P1
    x, w = jnp.ones((2, 32)), jnp.ones((32, 32))
    product = jax.jit(lambda x, w: recipe.dot_general('layer')(x, w, DENSE))
    first, second = (product(x, w) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert recipes.QUARTET2.deterministic().P5.fit == 'absmax'


def test_without_weights():
    recipe = recipes.NVFP4.without_weights()
    assert list(recipe.operands) == ['P1', 'P3', 'P5', 'P6'] and recipe.full_precision == recipes.NVFP4.full_precision
    assert recipes.QUARTET.without_weights().backward_from == 'operands'
    assert recipes.capybara(2, 1, targets='P2+P4').without_weights() is None
    assert recipes.qat(E4M3).without_weights() is None


def test_a_recipe_of_ones_own_is_found_and_another_of_its_name_refused(monkeypatch):
    monkeypatch.setattr(recipes, 'RECIPES', dict(recipes.RECIPES))
    own = Recipe(name='own', P1=E4M3)
    assert recipes.register(own) is own and recipes.find('own') is own
    assert recipes.register(Recipe(name='own', P1=E4M3)) == own
    with pytest.raises(ValueError, match=r"a recipe 'own' is there already"):
        recipes.register(Recipe(name='own', P2=E4M3))
    with pytest.raises(ValueError, match=r"a recipe 'nvfp4' is there already"):
        recipes.register(own.replace(name='nvfp4'))
    assert recipes.find('nvfp4') is recipes.NVFP4


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match=r"recipe='nvfp8': allowed are 'nvfp4', 'fp4_all_the_way', 'quartet'"):
        recipes.find('nvfp8')


RANDOM = gq.Quantizer('e4m3', hadamard=gq.Hadamard(16))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, r'the recipe own must have operands P1 to P6, or weights, and not both'),
        (dict(P1=E4M3, weights=E4M3), r'and not both'),
        (dict(P1='e4m3'), r"P1='e4m3': allowed are a Quantizer and None"),
        (dict(weights='e4m3'), r"weights='e4m3' of the recipe own: it must be a Quantizer, or None"),
        (dict(P1=E4M3, ends='backward'), r"ends='backward' of the recipe own: allowed are 'all' and 'forward'"),
        (
            dict(P1=E4M3, backward_from='weights'),
            r"backward_from='weights': allowed are 'operands', 'quantized'|allowed are",
        ),
        (dict(P1=E4M3, P2=RANDOM, backward_from='quantized'), r"backward_from='quantized' takes P1 and P2 of the same"),
        (dict(P1=E4M3, full_precision=('up',)), r"full_precision=\('up',\): it must be a sequence of KeptLayers"),
        (dict(P1=E4M3, full_precision=KeptLayers('up')), r'full_precision=KeptLayers\(.*: it must be a sequence'),
        (dict(weights=E4M3, backward_from='quantized'), r"backward_from='quantized' of the recipe own: weights alone"),
        (dict(P4=gq.Quantizer('e4m3', clips_gradient=True)), r'clips_gradient=True of P4: gradients are those of what'),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(name='own', **arguments)


def test_an_unknown_operand_is_refused():
    with pytest.raises(TypeError, match='P7'):
        Recipe(name='own', P7=E4M3)


@pytest.mark.parametrize('arguments', [dict(layer=1), dict(num_layers=4)])
def test_a_layer_without_its_stack_is_refused(arguments):
    with pytest.raises(ValueError, match=r'layer=.* and num_layers=.*: both are given, or none'):
        recipes.NVFP4.dot_general('layers/up', **arguments)


@pytest.mark.parametrize('layer', [4, -1, np.int64(9)])
def test_a_layer_that_the_stack_has_not_is_refused(layer):
    with pytest.raises(ValueError, match=r'layer=.* of num_layers=4: allowed are 0 to num_layers - 1'):
        recipes.NVFP4.dot_general('layers/up', layer, num_layers=4)


@pytest.mark.parametrize('make', [recipes.qat, lambda quantizer: recipes.of_targets(quantizer, 'P2')])
def test_a_recipe_of_one_quantizer_takes_a_quantizer(make):
    with pytest.raises(ValueError, match=r"quantizer='e2m1': it must be a Quantizer"):
        make('e2m1')


def test_a_layer_in_no_stack_can_not_be_first_or_last():
    with pytest.raises(ValueError, match=r"'head' is in no stack of layers"):
        recipes.NVFP4.dot_general('head')


def test_a_layer_that_is_kept_takes_a_key_and_does_not_use_it():
    kept = recipes.NVFP4.replace(full_precision=(KeptLayers('head'),)).dot_general('head')
    x, w = jnp.ones((2, 16)), jnp.ones((16, 16)) / 3
    expected = jax.lax.dot_general(x, w, DENSE)
    np.testing.assert_array_equal(kept(x, w, DENSE, key=jax.random.key(0)), expected)
    np.testing.assert_array_equal(kept(x, w, DENSE), expected)


# --- of one format -------------------------------------------------------------------------------------


def test_capybara():
    recipe = recipes.capybara(4, 3, 128, 'P1+P5')
    assert recipe.operands == dict.fromkeys(['P1', 'P5'], gq.Quantizer(gq.FloatFormat(4, 3), block_size=128))
    assert list(recipes.capybara(2, 1).operands) == ['P2', 'P4', 'P6']
    x, w = jax.random.normal(jax.random.key(0), (4, 32)), jax.random.normal(jax.random.key(1), (32, 8))
    expected = gq.quantized_dot_general(**recipe.operands)(x, w, DENSE)
    np.testing.assert_array_equal(recipe.dot_general('any')(x, w, DENSE), expected)


@pytest.mark.parametrize('targets', ['', 'P0', 'P1+P1', 'P1,P2', 'P1+P7'])
def test_targets_that_are_none(targets):
    message = f'targets={targets!r}: allowed are P1, P2, P3, P4, P5, P6, joined by +'
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.capybara(2, 1, targets=targets)


def test_weights_alone():
    """No operand of a matmul; weights are rounded, straight through, and then cast."""
    recipe = recipes.qat(gq.Quantizer('e2m1', block_size=2))
    dot_general = recipe.dot_general('layers/up', 0, num_layers=2)
    x, w = jnp.ones((2, 16)), jnp.ones((16, 16)) / 3
    np.testing.assert_array_equal(dot_general(x, w, DENSE, key=None), x @ w)
    params = {'up': {'kernel': jnp.array([[0.1, -0.7], [3.0, 5.0]])}}
    transform = recipe.transform(dtype=jnp.float32)
    kernel = transform.apply(None, params, transform.init(params))['up']['kernel']
    np.testing.assert_array_equal(kernel, gq.fake_quantize(params['up']['kernel'], recipe.weights, axis=0))
    assert recipes.NVFP4.transform().matrices != transform.matrices
