"""quantized_dot_general in the layers of flax.linen and NNX: each equals its kernel's product written by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy_quantized_dot_general import (
    assert_all_identical,
    assert_identical,
    power_of_two_quantizers,
    small_numbers,
)
from numpy_quantized_dot_general import quantized_dot_general as oracle

import gaussq_jax as gq

KEY = jax.random.key(3)
QUANTIZERS = power_of_two_quantizers()
STOCHASTIC = gq.Quantizer('e2m1', block_size=16, rounding='stochastic')


@pytest.fixture(scope='module')
def dot_general():
    return gq.quantized_dot_general(**QUANTIZERS)


def small_kernel(key, shape, dtype=jnp.float32):
    return jnp.asarray(small_numbers(shape, seed=sum(shape)), dtype)


# Layers by their number of contracted axes; the features follow.
LINEN = {
    'Dense': (nn.Dense, {'features': 36}, 1),
    'DenseGeneral to heads': (nn.DenseGeneral, {'features': (3, 8)}, 1),
    'DenseGeneral from heads': (nn.DenseGeneral, {'features': 20, 'axis': (-2, -1)}, 2),
    'DenseGeneral, axes in another order': (nn.DenseGeneral, {'features': 20, 'axis': (-1, -3)}, (1, 3)),
}
NNX = {
    'Linear': (lambda rngs, **k: nnx.Linear(7, 36, rngs=rngs, **k), 1),
    'LinearGeneral to heads': (lambda rngs, **k: nnx.LinearGeneral(7, (3, 8), rngs=rngs, **k), 1),
    'LinearGeneral from heads': (
        lambda rngs, **k: nnx.LinearGeneral((6, 7), 20, axis=(-2, -1), rngs=rngs, **k),
        2,
    ),
}


def layer_oracle(x, kernel, cotangent, contracted):
    axes = contracted if isinstance(contracted, tuple) else tuple(range(x.ndim - contracted, x.ndim))
    return oracle(x, kernel, cotangent, ((axes, tuple(range(len(axes)))), ((), ())), **QUANTIZERS)


@pytest.mark.parametrize('name', LINEN)
def test_linen_layers(name, dot_general):
    layer, settings, contracted = LINEN[name]
    x = small_numbers((3, 5, 6, 7))
    model = layer(**settings, use_bias=False, kernel_init=small_kernel, dot_general=dot_general)
    params = jax.jit(model.init)(KEY, x)
    y, pull_back = jax.vjp(jax.jit(model.apply), params, x)
    cotangent = small_numbers(y.shape, seed=1)
    dparams, dx = pull_back(jnp.asarray(cotangent))
    expected = layer_oracle(x, params['params']['kernel'], cotangent, contracted)
    assert_all_identical((y, dx, dparams['params']['kernel']), expected)


def test_linen_dense_in_bfloat16_with_a_float32_kernel(dot_general):
    """The kernel's gradient is float32 again, the output bfloat16."""
    x = small_numbers((5, 40), dtype=jnp.bfloat16)
    model = nn.Dense(36, dtype=jnp.bfloat16, dot_general=dot_general, kernel_init=small_kernel)
    params = jax.jit(model.init)(KEY, x)
    loss = lambda params, x: jnp.sum(model.apply(params, x), dtype=jnp.float32)
    grads, dx = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert model.apply(params, x).dtype == dx.dtype == jnp.bfloat16
    _, expected_dx, expected = layer_oracle(x, params['params']['kernel'], np.ones((5, 36)), 1)
    assert grads['params']['kernel'].dtype == jnp.float32
    np.testing.assert_allclose(grads['params']['kernel'], expected, rtol=2.0**-8)
    np.testing.assert_allclose(np.asarray(dx, np.float32), expected_dx, rtol=2.0**-8)
    assert_identical(grads['params']['bias'], np.full(36, 5.0))


def test_linen_attention(dot_general):
    """Projections are quantized, the attention products are not: as with its three projections written by hand."""
    x = small_numbers((2, 6, 24))
    settings = {'num_heads': 3, 'use_bias': False, 'kernel_init': small_kernel}
    model = nn.MultiHeadDotProductAttention(**settings, qkv_dot_general=dot_general, out_dot_general=dot_general)
    params = jax.jit(model.init)(KEY, x)

    @jax.jit
    def by_hand(kernels):
        project = lambda name: dot_general(x, kernels[name]['kernel'], (((2,), (0,)), ((), ())))
        attended = nn.dot_product_attention(project('query'), project('key'), project('value'))
        return dot_general(attended, kernels['out']['kernel'], (((2, 3), (0, 1)), ((), ())))

    expected = by_hand(params['params'])
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, rtol=1e-5, atol=1e-5)
    unquantized = nn.MultiHeadDotProductAttention(**settings).apply(params, x)
    assert not np.allclose(expected, unquantized, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('name', NNX)
def test_nnx_layers(name, dot_general):
    """NNX layers pass out_sharding=, None here."""
    make, contracted = NNX[name]
    x = small_numbers((3, 5, 6, 7))
    model = make(nnx.Rngs(0), use_bias=False, kernel_init=small_kernel, dot_general=dot_general)
    y = nnx.jit(lambda model, x: model(x))(model, x)
    cotangent = small_numbers(y.shape, seed=1)
    loss = lambda model, x: jnp.sum(model(x) * cotangent)
    grads, dx = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(model, jnp.asarray(x))
    assert_all_identical((y, dx, grads['kernel'][...]), layer_oracle(x, model.kernel[...], cotangent, contracted))


def test_nnx_linear_with_preferred_element_type(dot_general):
    model = nnx.Linear(
        40, 36, dtype=jnp.bfloat16, preferred_element_type=jnp.float32, dot_general=dot_general,
        kernel_init=small_kernel, use_bias=False, rngs=nnx.Rngs(0),
    )  # fmt: skip
    x = small_numbers((5, 40))
    y = model(x)
    assert y.dtype == jnp.float32
    assert_identical(y, layer_oracle(x, model.kernel[...], np.ones((5, 36)), 1)[0])


def test_nnx_linear_on_a_mesh_of_explicit_axes(dot_general):
    mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(AxisType.Explicit, AxisType.Explicit))
    sharding = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    x, cotangent = small_numbers((8, 40)), small_numbers((8, 36), seed=1)
    with jax.set_mesh(mesh):
        initialize = lambda key, shape, dtype: jax.device_put(small_kernel(key, shape, dtype), sharding('tensor', None))
        model = nnx.Linear(40, 36, dot_general=dot_general, kernel_init=initialize, use_bias=False, rngs=nnx.Rngs(0))
        placed_x = jax.device_put(x, sharding('data', 'tensor'))
        placed_cotangent = jax.device_put(cotangent, sharding('data', None))

        @nnx.jit
        def step(model, x, cotangent):
            graph, state = nnx.split(model)
            y, pull_back = jax.vjp(lambda x, state: nnx.merge(graph, state)(x, out_sharding=sharding('data')), x, state)
            dx, dstate = pull_back(cotangent)
            return y, dx, dstate['kernel'][...]

        got = step(model, placed_x, placed_cotangent)
    assert got[0].sharding.is_equivalent_to(sharding('data'), 2)
    assert got[2].sharding.is_equivalent_to(sharding('tensor'), 2)
    assert_all_identical(got, layer_oracle(x, model.kernel[...], cotangent, 1))


def test_nnx_einsum(dot_general):
    einsum = functools.partial(jnp.einsum, _dot_general=dot_general)
    model = nnx.Einsum(
        'bsd,dhk->bshk', (40, 3, 8), einsum_op=einsum, kernel_init=small_kernel, rngs=nnx.Rngs(0)
    )  # fmt: skip
    x = small_numbers((2, 5, 40))
    y = model(x)
    assert_identical(y, layer_oracle(x, model.kernel[...], np.ones(y.shape), 1)[0])


def test_nnx_stream_by_a_closure():
    """Each call draws the stream's next key; the same seed gives the same sequence."""
    stochastic = gq.quantized_dot_general(P1=STOCHASTIC)
    x = small_numbers((5, 40)) / 3

    def outputs(seed):
        rngs = nnx.Rngs(params=0, quantization=seed)
        model = nnx.Linear(40, 36, rngs=rngs, dot_general=lambda *a, **k: stochastic(*a, **k, key=rngs.quantization()))
        return model(x), model(x)

    first, second = outputs(1)
    assert not np.array_equal(first, second)
    assert_all_identical(outputs(1), (first, second))
    assert not np.array_equal(outputs(2)[0], first)


def test_nnx_stream_inside_jit():
    stochastic = gq.quantized_dot_general(P1=STOCHASTIC, P5=STOCHASTIC)
    x = small_numbers((5, 40)) / 3
    params = nnx.state(nnx.Linear(40, 36, rngs=nnx.Rngs(0)))

    @jax.jit
    @jax.grad
    def gradient(params, key):
        rngs = nnx.Rngs(quantization=key)
        model = nnx.Linear(
            40, 36, rngs=nnx.Rngs(0), dot_general=lambda *a, **k: stochastic(*a, **k, key=rngs.quantization())
        )  # fmt: skip
        nnx.update(model, params)
        return jnp.sum(jnp.sin(model(x)))

    first, again, other = (gradient(params, jax.random.key(seed)) for seed in (1, 1, 2))
    assert_identical(again['kernel'][...], first['kernel'][...])
    assert not np.array_equal(other['kernel'][...], first['kernel'][...])
