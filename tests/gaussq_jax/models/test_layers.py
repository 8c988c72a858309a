"""What all models promise: causality, dtypes, the scanned layers, layer_transform, remat and dot_general."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax_modes import assert_same_bits

from gaussq_jax import models
from gaussq_jax.models import layers

NUM_LAYERS = 3
SIZES = dict(vocab_size=32, num_layers=NUM_LAYERS, hidden_size=16, num_heads=4, mlp_size=24)
QWEN3 = dict(
    num_kv_heads=2, head_dim=6, attention_bias=True, rope_factor=8.0, rope_original_length=4, dtype=jnp.float32
)
MODELS = {
    'llama': lambda **options: models.Llama(**SIZES | {'num_kv_heads': 2, 'dtype': jnp.float32} | options),
    'qwen3': lambda **options: models.Qwen3(**SIZES | QWEN3 | options),
    'gpt2': lambda **options: models.GPT2(**SIZES | {'max_length': 8, 'dtype': jnp.float32} | options),
}
LINEAR_LAYERS = {'llama': 7, 'qwen3': 7, 'gpt2': 6}

every_model = pytest.mark.parametrize('name', MODELS)
llama_and_slowly_others = pytest.mark.parametrize(
    'name', ['llama', *(pytest.param(name, marks=pytest.mark.slow) for name in ('qwen3', 'gpt2'))]
)
with_and_without_remat = pytest.mark.parametrize('remat_policy', [None, 'full'])


def random_tokens(length=8):
    return jax.random.randint(jax.random.key(1), (2, length), 0, SIZES['vocab_size'])


def random_params(name):
    """Parameters large enough for every layer to matter; scales and biases random too."""
    params = jax.eval_shape(MODELS[name]().init, jax.random.key(0), random_tokens())['params']
    leaves, treedef = jax.tree.flatten(params)
    generator = np.random.default_rng(2)
    return jax.tree.unflatten(
        treedef, [jnp.asarray(generator.normal(0.2, 0.3, leaf.shape), leaf.dtype) for leaf in leaves]
    )


def logits(name, params, **options):
    return jax.jit(lambda params: MODELS[name](**options).apply({'params': params}, random_tokens()))(params)


def loss(name, params, **options):
    return jnp.mean(logits(name, params, **options) ** 2)


def gradient(name, params, **options):
    return jax.jit(jax.grad(lambda params: loss(name, params, **options)))(params)


def assert_trees_close(actual, expected, tolerance=1e-5):
    """Equal within `tolerance` of the tree's largest number: GPT-2's key biases have a zero gradient."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest), actual, expected)


@every_model
def test_no_token_sees_a_later_one(name):
    params, tokens = random_params(name), random_tokens()
    apply = jax.jit(lambda tokens: MODELS[name]().apply({'params': params}, tokens))
    before = apply(tokens)
    after = apply(tokens.at[:, 4].add(1) % SIZES['vocab_size'])
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert np.all(np.any(after[:, 4:] != before[:, 4:], axis=-1))


@every_model
def test_parameters_are_created_in_float32(name):
    params = jax.eval_shape(MODELS[name](dtype=jnp.bfloat16).init, jax.random.key(0), random_tokens())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}


@every_model
def test_bfloat16_weights_count_for_what_they_are(name):
    """In float32 compute nothing but the weights is rounded: they give the logits of their float32 copies."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(name))
    in_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    np.testing.assert_array_equal(logits(name, rounded), logits(name, in_float32))


@llama_and_slowly_others
def test_bfloat16_compute_is_near_float32_and_what_comes_out_is_float32(name):
    params = random_params(name)

    def run(dtype):
        def loss_and_logits(params):
            result = logits(name, params, dtype=dtype)
            return jnp.mean(result**2), result

        gradients, result = jax.jit(jax.grad(loss_and_logits, has_aux=True))(params)
        return result, gradients

    (actual, actual_gradients), (expected, expected_gradients) = run(jnp.bfloat16), run(jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((actual, actual_gradients))} == {np.dtype('float32')}
    assert_trees_close(actual, expected, tolerance=0.05)
    assert_trees_close(actual_gradients, expected_gradients, tolerance=0.1)
    assert np.mean(actual == actual.astype(jnp.bfloat16)) < 0.1, 'the logits were rounded to bfloat16'


@llama_and_slowly_others
@pytest.mark.parametrize('scan_unroll', [2, NUM_LAYERS, 99])
def test_an_unrolled_scan_computes_the_same(name, scan_unroll):
    """Also where the layers are no multiple of it, and if it is more than there are."""
    params = random_params(name)
    scanned, unrolled = (jax.jit(lambda params, n=n: logits(name, params, scan_unroll=n)) for n in (1, scan_unroll))
    assert_trees_close(unrolled(params), scanned(params))
    loops = lambda program: program.lower(params).as_text().count('stablehlo.while')
    assert loops(scanned) - loops(unrolled) == (scan_unroll >= NUM_LAYERS)


def test_every_remat_policy_can_be_differentiated():
    for remat_policy in layers.REMAT_POLICIES:
        jax.eval_shape(functools.partial(gradient, 'llama', remat_policy=remat_policy), random_params('llama'))


@every_model
@with_and_without_remat
def test_identity_transform_changes_no_bit(name, remat_policy):
    params = random_params(name)
    identity = logits(name, params, layer_transform=lambda params, index: params, remat_policy=remat_policy)
    np.testing.assert_array_equal(identity, logits(name, params, remat_policy=remat_policy))


@every_model
def test_transform_sees_one_layer_and_its_index(name):
    """Zeroing what layer 1 adds to the residual stream is the same as having no layer 1."""
    params = random_params(name)
    seen = []

    def without_layer_1(layer_params, layer_index):
        seen.append((jax.tree.map(jnp.shape, layer_params), layer_index.shape, layer_index.dtype))
        out, down = layer_params['attention']['out'], layer_params['mlp']['down']
        out, down = (jax.tree.map(lambda w: jnp.where(layer_index == 1, 0, w), tree) for tree in (out, down))
        return layer_params | {
            'attention': layer_params['attention'] | {'out': out},
            'mlp': layer_params['mlp'] | {'down': down},
        }

    actual = logits(name, params, layer_transform=without_layer_1)
    fewer = params | {'layers': jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], params['layers'])}
    expected = logits(name, fewer, num_layers=2)
    assert_trees_close(actual, expected)
    assert np.abs(actual - logits(name, params)).max() > 0.01 * np.abs(actual).max()
    layer_shapes = jax.tree.map(lambda leaf: leaf.shape[1:], params['layers'])
    assert all(entry == (layer_shapes, (), np.dtype('int32')) for entry in seen)


@every_model
def test_transform_is_not_applied_at_initialisation(name):
    def refuse(layer_params, layer_index):
        raise AssertionError('applied')

    model = MODELS[name](layer_transform=refuse)
    variables = jax.eval_shape(model.init, jax.random.key(0), random_tokens())
    with pytest.raises(AssertionError, match='applied'):
        jax.eval_shape(model.apply, variables, random_tokens())


@llama_and_slowly_others
def test_gradients_flow_through_the_transform_to_what_it_closes_over(name):
    """A traced key and a learned state, closed over under jit and grad, against noise added from outside."""

    def noise(key, layer_index):
        return 0.1 * jax.random.normal(jax.random.fold_in(key, layer_index))

    def inside(params, state, key, remat_policy):
        def add_noise(layer_params, layer_index):
            factor = 1 + state[layer_index] * noise(key, layer_index)
            return jax.tree.map(lambda leaf: factor * leaf, layer_params)

        return loss(name, params, layer_transform=add_noise, remat_policy=remat_policy)

    def outside(params, state, key):
        factors = 1 + state * jnp.stack([noise(key, i) for i in range(NUM_LAYERS)])
        noisy = jax.tree.map(lambda leaf: jnp.einsum('i,i...->i...', factors, leaf), params['layers'])
        return loss(name, params | {'layers': noisy})

    arguments = random_params(name), jnp.array([0.5, 1.0, 2.0]), jax.random.key(3)
    expected = jax.jit(jax.grad(outside, argnums=(0, 1)))(*arguments)
    for remat_policy in (None, 'full'):
        actual = jax.jit(jax.grad(inside, argnums=(0, 1)), static_argnums=3)(*arguments, remat_policy)
        assert_trees_close(actual[0], expected[0])
        np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4)


def equations(jaxpr):
    """Every equation of a jaxpr and of the jaxprs inside it, bodies of `injected` left out."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.params.get('name') != 'injected':
            for inner in jaxprs_in_params(equation.params):
                yield from equations(inner)


@every_model
def test_rematerialised_layer_does_not_keep_the_transformed_weights(name):
    """Without remat the float16 copy of a kernel leaves the forward scan, stacked; with remat it does not."""

    def to_float16(layer_params, layer_index):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), layer_params)

    def scans_that_keep(remat_policy):
        options = dict(dtype=jnp.float16, layer_transform=to_float16, remat_policy=remat_policy)
        jaxpr = jax.make_jaxpr(lambda params: gradient(name, params, **options))(random_params(name))
        kernel = (NUM_LAYERS, SIZES['hidden_size'], SIZES['mlp_size'])
        return [
            equation
            for equation in equations(jaxpr.jaxpr)
            if equation.primitive.name == 'scan'
            and (kernel, jnp.float16) in [(out.aval.shape, out.aval.dtype) for out in equation.outvars]
        ]

    assert len(scans_that_keep(None)) == 1
    assert not scans_that_keep('full')
    assert not scans_that_keep('dots_saveable')


@every_model
def test_dot_general_is_called_for_the_linear_layers_and_nothing_else(name):
    @jax.jit
    def injected(lhs, rhs):
        return jax.lax.dot(lhs, rhs, dimension_numbers=(((2,), (0,)), ((), ())))

    def dot_general(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
        assert dimension_numbers == (((2,), (0,)), ((), ()))
        return injected(lhs, rhs)

    def count(**options):
        jaxpr = jax.make_jaxpr(lambda params: logits(name, params, **options))(random_params(name))
        return collections.Counter(
            'injected' if equation.params.get('name') == 'injected' else equation.primitive.name
            for equation in equations(jaxpr.jaxpr)
        )

    with_injection, without = count(dot_general=dot_general), count()
    assert with_injection['injected'] == LINEAR_LAYERS[name]
    assert with_injection['dot_general'] == 3  # queries with keys, weights with values, the head
    assert without['dot_general'] == 3 + LINEAR_LAYERS[name]


@every_model
def test_unknown_remat_policy_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"remat_policy='all' must be None or one of full, .*dots_saveable"):
        MODELS[name](remat_policy='all')


@every_model
def test_sizes_and_shapes_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match=r'must divide (hidden_size=16|num_heads=3)'):
        MODELS[name](num_heads=3)
    with pytest.raises(ValueError, match=r'tokens must have shape \(batch, length\)'):
        MODELS[name]().init(jax.random.key(0), jnp.zeros(8, jnp.int32))


def test_rotary_embedding_is_a_multiplication_by_a_complex_number():
    """x[i] + i x[i + d/2] turns by position * theta^(-2i/d), in float64."""
    x = np.random.default_rng(4).normal(size=(2, 50, 3, 8))
    frequencies = 100.0 ** (-2 * np.arange(4) / 8)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * np.arange(50)[:, None, None] * frequencies)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    actual = layers.rotary_position_embedding(jnp.asarray(x, jnp.float32), 100.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_rotary_angles_of_bfloat16_activations_are_not_rounded():
    """Position 1001 has no bfloat16: only the result may be rounded."""
    x = jnp.ones((1, 1002, 1, 2), jnp.bfloat16)
    actual = layers.rotary_position_embedding(x, 10000.0)[0, 1001, 0]
    expected = [np.cos(1001.0) - np.sin(1001.0), np.cos(1001.0) + np.sin(1001.0)]
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=2**-8)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kv_heads', [4, 2])
def test_attention_has_the_bits_of_that_of_jax(dtype, kv_heads):
    """Its gradients too."""
    generator = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(generator.normal(size=(2, 8, heads, 16)), dtype) for heads in (4, kv_heads, kv_heads)
    )

    def value_and_gradients(attend):
        attended, pull_back = jax.vjp(attend, query, key, value)
        return attended, pull_back(query)

    got = jax.jit(lambda: value_and_gradients(layers.causal_attention))()
    of_jax = functools.partial(jax.nn.dot_product_attention, is_causal=True)
    assert_same_bits(got, jax.jit(lambda: value_and_gradients(of_jax))())
