"""QuantizedDotGeneral: linen layers that round stochastically with an rng stream, also scanned and rematerialised."""

import functools
from collections.abc import Callable

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_quantized_dot_general import assert_identical, power_of_two_quantizers, small_numbers

import gaussq_jax as gq
from gaussq_jax import recipes
from gaussq_jax.models import QuantizedDotGeneral, layers

KEY = jax.random.key(3)
QUANTIZERS = power_of_two_quantizers()
STOCHASTIC = gq.Quantizer('e2m1', block_size=16, rounding='stochastic')


def noisy_gradients(model, params, x, seed):
    """Of the kernel, where its operands' rounding is stochastic and the forward pass's is not."""
    rngs = {'quantization': jax.random.key(seed)}
    return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(model.apply(params, x, rngs=rngs)))))(params)


def leaves_differ(one, other):
    return [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]


def test_linen_rounds_stochastically_with_an_rng_stream():
    stochastic = functools.partial(QuantizedDotGeneral, P2=QUANTIZERS['P2'], P5=STOCHASTIC)
    model = nn.Dense(36, use_bias=False, dot_general_cls=stochastic)
    x = small_numbers((5, 40))
    params = model.init(KEY, x)
    assert set(params) == {'params'} and set(params['params']) == {'kernel'}
    first = noisy_gradients(model, params, x, 0)
    assert not any(leaves_differ(first, noisy_gradients(model, params, x, 0)))
    assert all(leaves_differ(first, noisy_gradients(model, params, x, 1)))
    with pytest.raises(flax.errors.InvalidRngError, match='quantization'):
        model.apply(params, x)


def test_linen_stream_of_another_name():
    stochastic = functools.partial(QuantizedDotGeneral, P1=STOCHASTIC, rng='rounding')
    model = nn.Dense(36, dot_general_cls=stochastic)
    x = small_numbers((5, 40))
    params = model.init(KEY, x)
    one, other = (model.apply(params, x, rngs={'rounding': jax.random.key(seed)}) for seed in range(2))
    assert not np.array_equal(one, other)


def test_linen_module_without_stochastic_rounding_needs_no_stream():
    x = small_numbers((5, 40))
    with_class = nn.Dense(36, dot_general_cls=functools.partial(QuantizedDotGeneral, **QUANTIZERS))
    params = with_class.init(KEY, x)
    with_function = nn.Dense(36, dot_general=gq.quantized_dot_general(**QUANTIZERS))
    assert_identical(jax.jit(with_class.apply)(params, x), jax.jit(with_function.apply)(params, x))


def test_two_linen_layers_draw_different_bits():
    class TwoLayers(nn.Module):
        @nn.compact
        def __call__(self, x):
            make = functools.partial(nn.Dense, 36, kernel_init=nn.initializers.constant(0.3))
            cls = functools.partial(QuantizedDotGeneral, P1=STOCHASTIC)
            return make(dot_general_cls=cls)(x), make(dot_general_cls=cls)(x)

    x = small_numbers((5, 40)) / 3
    model = TwoLayers()
    one, other = model.apply(model.init(KEY, x), x, rngs={'quantization': KEY})
    assert not np.array_equal(one, other)


class Layer(nn.Module):
    """A layer for nn.scan, whose products are rounded stochastically."""

    quantizers: dict

    @nn.compact
    def __call__(self, x, _):
        cls = functools.partial(QuantizedDotGeneral, **self.quantizers)
        y = nn.Dense(40, use_bias=False, dot_general_cls=cls)(x)
        return jnp.tanh(y), y


def scanned(rematerialise, quantizers):
    layer = nn.remat(Layer, prevent_cse=False) if rematerialise else Layer
    return nn.scan(
        layer,
        length=3,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'quantization': True},
    )(quantizers)


def test_linen_stream_under_scan_and_remat():
    """Layers with the same weights and inputs draw different bits; the rematerialised pass draws the same again."""
    x = small_numbers((5, 40)) / 3
    quantizers = {'P1': STOCHASTIC, 'P5': STOCHASTIC}
    params = scanned(False, quantizers).init(KEY, x, None)

    def loss(params, seed, rematerialise):
        rngs = {'quantization': jax.random.key(seed)}
        return jnp.sum(scanned(rematerialise, quantizers).apply(params, x, None, rngs=rngs)[0])

    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    plain, again, other = gradient(params, 0, False), gradient(params, 0, True), gradient(params, 1, False)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), plain, again)
    assert all(leaves_differ(plain, other))

    class Repeated(nn.Module):
        """One kernel and one input in every step: only the random bits differ."""

        @nn.compact
        def __call__(self, x, _):
            cls = functools.partial(QuantizedDotGeneral, P1=STOCHASTIC)
            return x, nn.Dense(40, use_bias=False, dot_general_cls=cls)(x)

    settings = {'variable_broadcast': 'params', 'length': 3}
    model = nn.scan(Repeated, split_rngs={'params': False, 'quantization': True}, **settings)()
    _, steps = model.apply(model.init(KEY, x, None), x, None, rngs={'quantization': KEY})
    assert not np.array_equal(steps[0], steps[1]) and not np.array_equal(steps[1], steps[2])


class Residual(nn.Module):
    """x + down(tanh(up(x)))."""

    dot_general_cls: Callable

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, use_bias=False, dot_general_cls=self.dot_general_cls)
        return x + dense(32, name='down')(jnp.tanh(dense(64, name='up')(x)))


class Stack(nn.Module):
    """Three of them, scanned."""

    dot_general_cls: Callable
    how: dict

    @nn.compact
    def __call__(self, x):
        return layers.scan_layers(Residual(self.dot_general_cls, name='layers'), x, num_layers=3, **self.how)


@pytest.mark.parametrize('how', [{}, {'remat_policy': 'full', 'scan_unroll': 2}], ids=str)
def test_layers_kept_in_a_scan_are_those_of_a_loop(how):
    """The loop in Python knows its layer as a number; output and gradients are the same within a sum's rounding."""
    quantizer = gq.Quantizer('e2m1', block_size=16)
    rules = recipes.parse_kept_layers('first=1; layers/down@last=1')
    recipe = recipes.of_targets(quantizer, 'P1+P2+P3+P4+P5+P6').replace(full_precision=rules)
    stack = Stack(functools.partial(QuantizedDotGeneral, recipe=recipe), how)
    x = jax.random.normal(jax.random.key(0), (1, 48, 32))
    params = jax.jit(stack.init)(jax.random.key(1), x)['params']

    def loop(params, recipe=recipe):
        y = x
        for i in range(3):
            dot = lambda name, y, i=i: recipe.dot_general(f'layers/{name}', i, num_layers=3)(
                y, params['layers'][name]['kernel'][i], (((2,), (0,)), ((), ()))
            )
            y = y + dot('down', jnp.tanh(dot('up', y)))
        return jnp.sum(y * jnp.cos(y))

    def scanned(params):
        y = stack.apply({'params': params}, x)
        return jnp.sum(y * jnp.cos(y))

    got, expected = (jax.jit(jax.value_and_grad(of))(params) for of in (scanned, loop))
    other = jax.jit(jax.value_and_grad(functools.partial(loop, recipe=recipe.replace(full_precision=rules[:1]))))(
        params
    )
    close = lambda a, b: all(np.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(*map(jax.tree.leaves, (a, b))))
    assert close(got, expected) and not close(got, other)
