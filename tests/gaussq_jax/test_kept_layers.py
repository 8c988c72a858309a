"""Which layers stay in full precision: masks by path and place, texts, and a scan that does what layers alone do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import gaussq_jax as gq
from gaussq_jax.models.quantized_dot_general import QuantizedDotGeneral, telling_layer
from gaussq_jax.recipes import NVFP4, KeptLayers, parse_kept_layers

KEY = jax.random.key(1)
DENSE = (((1,), (0,)), ((), ()))


@pytest.mark.parametrize(
    ('rule', 'num_layers', 'kept'),
    [
        (KeptLayers(first=1), 4, [0]),
        (KeptLayers(last=2), 4, [2, 3]),
        (KeptLayers(first=1, last=0.25), 4, [0, 3]),
        (KeptLayers(first=2 / 62, last=8 / 62), 62, [0, 1, *range(54, 62)]),
        (KeptLayers(first=2 / 62, last=8 / 62), 4, [3]),
        (KeptLayers(last=0.1), 4, []),
        (KeptLayers(first=9), 3, [0, 1, 2]),
        (KeptLayers(first=3, last=3), 4, [0, 1, 2, 3]),
        (KeptLayers(last=4), 4, [0, 1, 2, 3]),
        (KeptLayers(), 2, [0, 1]),
        (KeptLayers('layers/mlp/down'), 2, [0, 1]),
        (KeptLayers('mlp/down'), 2, []),
        (KeptLayers('.*/(up|down)', first=1), 3, [0]),
        (KeptLayers('.*/up', first=1), 3, []),
    ],
)
def test_masks(rule, num_layers, kept):
    mask = rule.mask('layers/mlp/down', num_layers)
    assert mask.shape == (num_layers,) and mask.dtype == bool
    assert np.flatnonzero(mask).tolist() == kept


def test_a_layer_in_no_stack():
    """Rules by path hold for it, rules by place can't; but those of other paths do no harm."""
    assert KeptLayers('head').mask('head', None).shape == ()
    assert KeptLayers('head').mask('head', None) and not KeptLayers('head').mask('body', None)
    with pytest.raises(
        ValueError, match=r"first=1: 'head' is in no stack of layers, of which there were first and last"
    ):
        KeptLayers(first=1).mask('head', None)
    assert not KeptLayers('layers/.*', first=1).mask('head', None)


@pytest.mark.parametrize(
    ('text', 'rules'),
    [
        ('', ()),
        (' ; ', ()),
        ('.*/down', (KeptLayers('.*/down'),)),
        ('first=1+last=15%', (KeptLayers(first=1, last=0.15),)),
        ('last=2', (KeptLayers(last=2),)),
        ('.*/down@last=2; head', (KeptLayers('.*/down', last=2), KeptLayers('head'))),
        ('last=12.5%+first=2', (KeptLayers(first=2, last=0.125),)),
    ],
)
def test_rules_as_text(text, rules):
    assert parse_kept_layers(text) == rules
    assert parse_kept_layers('; '.join(map(str, rules))) == rules


@pytest.mark.parametrize(
    'text',
    [
        'first=1+first=2',
        'last=-1',
        'last=x',
        'up@middle=2',
        'last=1.5',
        'first 1',
        'up@last=2+',
        'up@',
        'last=0',
        'last=0%',
    ],
)
def test_texts_that_are_no_rules(text):
    """'last=0' among them, which a rule of no number, so of all layers, must not be read as."""
    message = f'{text!r} is no rule for layers in full precision: allowed are PATH'
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_kept_layers(text)


@pytest.mark.parametrize('text', ['(up', 'last=100%', '(up@last=1'])
def test_texts_of_values_that_can_not_be(text):
    with pytest.raises(ValueError, match=r'is no regular expression|must be a number of layers, or a share'):
        parse_kept_layers(text)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(path='(up'), r"path='\(up' is no regular expression"),
        (dict(path=3), r'path=3 is no regular expression'),
        (dict(first=-1), r'first=-1 must be a number of layers, or a share of them, less than 1'),
        (dict(last=1.0), r'last=1.0 must be'),
        (dict(last=True), r'last=True must be'),
        (dict(first='1'), r"first='1' must be"),
        (dict(last=float('nan')), r'last=nan must be'),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        KeptLayers(**arguments)


# --- in a scan -------------------------------------------------------------------------------------------

RECIPE = gq.recipes.capybara(2, 1, 16, 'P1+P2+P4+P6').replace(
    full_precision=(KeptLayers('.*', first=1), KeptLayers('layers/up', last=1))
)


@functools.cache
def stack():
    generator = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(generator.standard_normal(shape), jnp.float32)
    return array(8, 32), array(4, 32, 32) / 6, array(8, 32)


def layer(recipe, x, kernel, index):
    return jnp.tanh(recipe.dot_general('layers/up', index, num_layers=4)(x, kernel, DENSE))


@pytest.mark.parametrize('wrap', [lambda f: f, jax.checkpoint], ids=['scan', 'remat'])
def test_a_scan_does_what_its_layers_do_one_by_one(wrap):
    """Each with its index known: those that are kept are plain, those that aren't quantized, and all gradients too."""
    x, kernels, cotangent = stack()

    def scanned(x, kernels):
        step = wrap(lambda x, of: (layer(RECIPE, x, *of), None))
        return jax.lax.scan(step, x, (kernels, jnp.arange(4)))[0]

    def one_by_one(x, kernels):
        for index, kernel in enumerate(kernels):
            x = layer(RECIPE, x, kernel, index)
        return x

    def by_hand(x, kernels):
        own = gq.quantized_dot_general(**RECIPE.operands)
        for index, kernel in enumerate(kernels):
            x = jnp.tanh((jax.lax.dot_general if index in (0, 3) else own)(x, kernel, DENSE))
        return x

    def gradients(function):
        y, pull_back = jax.vjp(function, x, kernels)
        return y, *pull_back(cotangent)

    got, expected, known = (jax.jit(gradients, static_argnums=0)(f) for f in (scanned, one_by_one, by_hand))
    for one, other, third in zip(got, expected, known, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other, third, rtol=1e-5, atol=1e-6)


def test_layers_that_are_all_kept_are_plain_and_take_no_part_in_branches():
    x, kernels, _ = stack()
    all_kept = RECIPE.replace(full_precision=(KeptLayers(first=4),))
    none_kept = RECIPE.replace(full_precision=(KeptLayers('head'),))
    program = lambda recipe: str(jax.make_jaxpr(functools.partial(layer, recipe))(x, kernels[0], jnp.asarray(1)))
    plain = str(
        jax.make_jaxpr(lambda x, k, i: jnp.tanh(jax.lax.dot_general(x, k, DENSE)))(x, kernels[0], jnp.asarray(1))
    )
    assert program(all_kept) == plain
    assert 'cond[' not in program(none_kept) and 'reduce_max' in program(none_kept)
    assert 'cond[' in program(RECIPE)


@pytest.mark.parametrize('when', [True, False, (True, False)])
def test_kept_layers_and_flags(when):
    """A layer quantizes if it isn't kept and the flag is on, whichever of them is traced."""
    x, kernels, _ = stack()
    product = lambda index, when: RECIPE.dot_general('layers/up', index, num_layers=4, when=when)(x, kernels[0], DENSE)
    forward, traced = (when[0] if isinstance(when, tuple) else when), jax.tree.map(jnp.asarray, when)
    of_traced_index, of_all = jax.jit(functools.partial(product, when=when)), jax.jit(product)
    own = gq.quantized_dot_general(**RECIPE.operands)
    for index in (0, 1):
        known = functools.partial(own, dimension_numbers=DENSE, when=bool(index and forward))
        expected = jax.jit(known)(x, kernels[0])
        of_traced_flag = jax.jit(functools.partial(product, index))
        for got in (
            of_traced_index(index),
            of_traced_flag(when=traced),
            of_all(index, traced),
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_linen_scan_tells_its_layers():
    """QuantizedDotGeneral in a scan whose body is told its index: the bits of modules one by one."""
    recipe = NVFP4.replace(full_precision=(KeptLayers(first=1),), P3=None, P5=None, P6=None)
    dense = functools.partial(
        nn.Dense, 32, use_bias=False, dot_general_cls=functools.partial(QuantizedDotGeneral, recipe=recipe)
    )
    x, kernels, _ = stack()
    module = dense(name='up')
    apply = lambda x, kernel: module.apply({'params': {'kernel': kernel}}, x)

    def step(x, of):
        with telling_layer(of[1], num_layers=4):
            return apply(x, of[0]), None

    got = jax.jit(lambda x: jax.lax.scan(step, x, (kernels, jnp.arange(4)))[0])(x)
    own = gq.quantized_dot_general(**recipe.operands)
    for index, kernel in enumerate(kernels):
        x = (own if index else jax.lax.dot_general)(x, kernel, DENSE)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='is in no stack of layers'):
        apply(x, kernels[0])
