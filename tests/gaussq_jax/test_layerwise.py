"""Weights made layer by layer: the bits and the gradients of making all of them at once, without the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_trees import RULES

import gaussq_jax as gq
from gaussq_jax import models

TRANSFORMS = {
    'gaussws': gq.gaussian_weight_sampling(),
    'diffq': gq.uniform_weight_sampling(fmt='e4m3'),
    'qat': gq.quantization_aware(gq.Quantizer('e2m1', rounding='stochastic')),
    'cast': gq.cast_params(),
}
MODEL = models.Llama(
    vocab_size=50, num_layers=3, hidden_size=48, mlp_size=80, num_heads=2, dtype=jnp.float32, remat_policy='full'
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 9)))
KEY = jax.random.key(3)
GENERATOR = np.random.default_rng(2)


def params_and_state(transform):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(1), TOKENS)['params']
    draw = lambda low, high: lambda leaf: GENERATOR.uniform(low, high, leaf.shape).astype(np.float32)
    return jax.tree.map(draw(-0.2, 0.3), shapes), jax.tree.map(draw(0, 1), jax.eval_shape(transform.init, shapes))


def loss(model, weights):
    return jnp.mean(model.apply({'params': weights}, TOKENS) ** 2)


@pytest.mark.parametrize(
    ('transform', 'key'),
    [
        pytest.param(TRANSFORMS['gaussws'], KEY, id='gaussws'),
        pytest.param(TRANSFORMS['qat'], KEY, id='qat', marks=pytest.mark.slow),
        pytest.param(TRANSFORMS['diffq'], None, id='diffq without noise', marks=pytest.mark.slow),
    ],
)
def test_bits_of_logits_and_gradients(transform, key):
    params, state = params_and_state(transform)

    @jax.jit
    def at_once(params, state):
        return jax.value_and_grad(lambda weights: loss(MODEL, weights))(transform.apply(key, params, state))

    @jax.jit
    def layer_by_layer(params, state):
        weights, layer_transform = gq.layerwise(transform, key, params, state)
        return jax.value_and_grad(lambda weights: loss(MODEL.clone(layer_transform=layer_transform), weights))(weights)

    (expected_loss, expected), (actual_loss, actual) = at_once(params, state), layer_by_layer(params, state)
    assert actual_loss == expected_loss
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert one.dtype == other.dtype == jnp.bfloat16 and np.any(other)
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=2**-7, atol=1e-8)  # an ulp


@pytest.mark.parametrize('transform', [TRANSFORMS['gaussws'], TRANSFORMS['cast']], ids=['gaussws', 'cast'])
def test_weights_take_the_place_of_gradients_only(transform):
    """All leaves outside the layers are made, those of the layers are zeros that no result depends on."""
    params, state = params_and_state(transform)
    key = jax.random.key(0)
    weights, layer_transform = gq.layerwise(transform, key, params, state)
    whole = jax.jit(transform.apply)(key, params, state)
    for name in set(whole) - {'layers'}:
        jax.tree.map(np.testing.assert_array_equal, weights[name], whole[name])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(weights['layers']))
    garbage = jax.tree.map(lambda leaf: jnp.full_like(leaf[2], jnp.nan), weights['layers'])
    layer = jax.jit(layer_transform)(garbage, 2)
    jax.tree.map(lambda one, all_: np.testing.assert_array_equal(one, all_[2]), layer, whole['layers'])


def test_layers_deeper_in_the_tree():
    transform = gq.gaussian_weight_sampling(rules=RULES)
    kernel = jax.random.normal(jax.random.key(0), (2, 32, 64))
    params = {'decoder': {'layers': {'up': {'kernel': kernel}}, 'norm': {'scale': jnp.ones(4)}}}
    state, key = transform.init(params), jax.random.key(1)
    weights, layer_transform = gq.layerwise(transform, key, params, state, path=('decoder', 'layers'))
    assert weights['decoder']['norm']['scale'].dtype == jnp.bfloat16
    one = layer_transform(jax.tree.map(lambda leaf: leaf[1], weights['decoder']['layers']), 1)
    whole = transform.apply(key, params, state)
    np.testing.assert_array_equal(one['up']['kernel'], whole['decoder']['layers']['up']['kernel'][1])


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_layers_on_any_axis(axis):
    """As MaxText stacks them, on axis 1, norms and biases included; each is taken along its own."""
    generator = np.random.default_rng(0)
    shapes = {'up': {'kernel': (32, 64), 'bias': (64,)}, 'down': {'kernel': (64, 32)}, 'norm': {'scale': (32,)}}
    layers = [
        jax.tree.map(lambda shape: generator.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
        for _ in range(3)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves, axis).astype(np.float32), *layers)
    transform, params = gq.gaussian_weight_sampling(), {'blocks': stacked}
    state, key = transform.init(params), jax.random.key(1)
    assert state['blocks/up/kernel'].shape == (3, 1, 2)
    weights, layer_transform = gq.layerwise(transform, key, params, state, path=('blocks',))
    whole = transform.apply(key, params, state)['blocks']
    for index in range(3):
        take = lambda leaf, index=index: jnp.take(leaf, index, axis)
        one = layer_transform(jax.tree.map(take, weights['blocks']), index)
        jax.tree.map(np.testing.assert_array_equal, one, jax.tree.map(take, whole))
        part = jax.tree.map(take, params['blocks'])
        resolved = transform.resolve(params).apply(key, part, state, path=('blocks',), layer=index)
        jax.tree.map(np.testing.assert_array_equal, one, resolved)


def test_leaves_that_are_not_stacked_alike():
    params = {'layers': {'up': {'kernel': jnp.ones((3, 32, 64))}, 'table': jnp.ones((4, 5))}}
    transform = gq.gaussian_weight_sampling(rules=RULES, unnamed='cast')
    with pytest.raises(ValueError, match=r"along {'up/kernel': 0}, and other leaves are {'table': \(4, 5\)}"):
        gq.layerwise(transform, None, params, transform.init(params))
    experts = (gq.MatrixRule('layers/.*', (0,), (1,), (2,), expert_axes=(0,)), gq.CastOnly('.*'))
    transform = gq.gaussian_weight_sampling(rules=experts)
    params = {'layers': {'up': params['layers']['up']}, 'other': jnp.ones(3)}
    with pytest.raises(ValueError, match='not all weight matrices under it have an axis that counts layers'):
        gq.layerwise(transform, None, params, transform.init(params))


def test_a_path_that_is_not_there():
    transform = TRANSFORMS['cast']
    with pytest.raises(ValueError, match=r"path=\('layers',\): params has \['blocks'\] under \(\)"):
        gq.layerwise(transform, None, {'blocks': {}}, {})


def test_no_more_than_a_layer_is_kept():
    """What the compiled gradient of 24 layers takes beside its arguments and results, less what it takes at once."""
    transform = TRANSFORMS['gaussws']
    model = MODEL.clone(num_layers=24, hidden_size=128, mlp_size=384)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS)['params'])
    state = jax.eval_shape(transform.init, params)
    key = jax.random.key(0)

    def at_once(params, state):
        return jax.grad(lambda weights: loss(model, weights))(transform.apply(key, params, state))

    def layer_by_layer(params, state):
        weights, layer_transform = gq.layerwise(transform, key, params, state)
        return jax.grad(lambda weights: loss(model.clone(layer_transform=layer_transform), weights))(weights)

    def temporary_bytes(function):
        return jax.jit(function).lower(params, state).compile().memory_analysis().temp_size_in_bytes

    num_sampled = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(params['layers']) if leaf.ndim == 3)
    assert temporary_bytes(at_once) - temporary_bytes(layer_by_layer) > 0.8 * 2 * num_sampled
