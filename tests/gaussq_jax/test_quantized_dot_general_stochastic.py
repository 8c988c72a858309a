"""Stochastic rounding in quantized_dot_general: explicit keys, bits of its own for each operand, unbiased gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy_quantized_dot_general import CONTRACTIONS, TARGETS, assert_all_identical, operands, with_gradients

import gaussq_jax as gq

KEY = jax.random.key(7)
DENSE = CONTRACTIONS['dense'][-1]
NEAREST = gq.Quantizer('e2m1', block_size=16)
STOCHASTIC = gq.Quantizer('e2m1', block_size=16, rounding='stochastic')


@functools.partial(jax.jit, static_argnums=0)
def gradients(dot_general, key, lhs, rhs, cotangent):
    return with_gradients(dot_general, lhs, rhs, cotangent, DENSE, key=key)


@pytest.fixture(scope='module')
def arrays():
    return [jnp.asarray(x / 3) for x in operands('dense')[:3]]


@pytest.mark.parametrize('target', TARGETS)
def test_a_key_gives_one_rounding_and_another_key_another(target, arrays):
    dot_general = gq.quantized_dot_general(**{target: STOCHASTIC})
    first = gradients(dot_general, KEY, *arrays)
    assert_all_identical(gradients(dot_general, KEY, *arrays), first)
    second = gradients(dot_general, jax.random.key(8), *arrays)
    product = {'P1': 0, 'P2': 0, 'P3': 1, 'P4': 1, 'P5': 2, 'P6': 2}[target]
    for i in range(3):
        assert np.array_equal(first[i], second[i]) == (i != product)


def test_raw_key_words_are_a_key(arrays):
    dot_general = gq.quantized_dot_general(P6=STOCHASTIC)
    raw = gradients(dot_general, jax.random.PRNGKey(7), *arrays)
    assert_all_identical(raw, gradients(dot_general, KEY, *arrays))


def test_the_random_bits_of_operand_i_come_from_fold_in_i(arrays):
    """P1 and P6 round the same array: a user's recomputation must know which bits each of them draws."""
    lhs, rhs, cotangent = arrays
    got = gradients(gq.quantized_dot_general(**dict.fromkeys(TARGETS, STOCHASTIC)), KEY, *arrays)
    axes = {'P1': 1, 'P2': 0, 'P3': 1, 'P4': 1, 'P5': 0, 'P6': 0}
    quantize = jax.jit(gq.fake_quantize, static_argnames=('quantizer', 'axis'))
    quantized = {
        target: quantize(x, STOCHASTIC, axis=axes[target], key=jax.random.fold_in(KEY, int(target[1])))
        for target, x in zip(TARGETS, [lhs, rhs, cotangent, rhs, cotangent, lhs])
    }
    expected = (
        quantized['P1'] @ quantized['P2'],
        quantized['P3'] @ quantized['P4'].T,
        quantized['P6'].T @ quantized['P5'],
    )
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_are_unbiased(arrays):
    """The mean over keys lies within sampling error of the unquantized product; nearest rounding's does not."""
    n_keys = 500
    keys = jax.random.split(KEY, n_keys)
    dot_general = gq.quantized_dot_general(**dict.fromkeys(TARGETS, STOCHASTIC))
    samples = jax.vmap(lambda key: gradients(dot_general, key, *arrays))(keys)
    exact = with_gradients(jax.lax.dot_general, *arrays, DENSE)
    nearest = with_gradients(gq.quantized_dot_general(**dict.fromkeys(TARGETS, NEAREST)), *arrays, DENSE)
    for sample, true, biased in zip(samples, exact, nearest, strict=True):
        sample = np.asarray(sample, np.float64)
        standard_error = sample.std(0, ddof=1) / np.sqrt(n_keys)
        z = (sample.mean(0) - true) / standard_error
        assert np.max(np.abs(z)) < 5.5
        assert abs(np.mean(z**2) - 1) < 0.2  # chi-squared over about a thousand entries
        assert np.mean(((biased - true) / standard_error) ** 2) > 25


def test_the_two_operands_of_a_product_are_rounded_independently():
    """x @ x.T with the same bits on both sides would be too large on the diagonal, by the variance of rounding."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 64)), jnp.float32)
    dot_general = gq.quantized_dot_general(P1=STOCHASTIC, P2=STOCHASTIC)
    square = lambda key: jnp.diagonal(dot_general(x, x, (((1,), (1,)), ((), ())), key=key))
    samples = np.asarray(jax.vmap(square)(jax.random.split(KEY, 2000)), np.float64)
    z = (samples.mean(0) - np.sum(np.square(x, dtype=np.float64), 1)) / (samples.std(0, ddof=1) / np.sqrt(2000))
    assert np.max(np.abs(z)) < 5


def test_a_traced_key_inside_a_rematerialised_scan():
    """Each layer has its own key; the recomputed forward pass rounds as the first one did."""
    lhs, kernels = (jnp.asarray(x, jnp.float32) for x in (np.ones((5, 16)), np.ones((3, 16, 16))))
    lhs, kernels = lhs * 0.3, kernels * jax.random.normal(KEY, kernels.shape)
    keys = jax.random.split(KEY, 3)
    dot_general = gq.quantized_dot_general(P1=STOCHASTIC, P5=STOCHASTIC)

    def layer(x, inputs):
        kernel, key = inputs
        return jnp.tanh(dot_general(x, kernel, DENSE, key=key)), None

    def scanned(lhs, kernels, keys):
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), lhs, (kernels, keys))[0])

    def unrolled(lhs, kernels, keys):
        for i in range(3):
            lhs, _ = layer(lhs, (kernels[i], keys[i]))
        return jnp.sum(lhs)

    value, got = jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(lhs, kernels, keys)
    expected_value, expected = jax.jit(jax.value_and_grad(unrolled, argnums=(0, 1)))(lhs, kernels, keys)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_mesh_changes_no_random_bit():
    quantizer = gq.Quantizer('e2m1', block_size=16, scale='mx', rounding='stochastic')
    dot_general = gq.quantized_dot_general(P2=quantizer, P5=quantizer)
    arrays = [jnp.asarray(x) for x in operands('dense')[:3]]
    expected = gradients(dot_general, KEY, *arrays)
    mesh = jax.sharding.Mesh(np.reshape(jax.devices()[:8], (4, 2)), ('data', 'tensor'))
    specs = PartitionSpec('data'), PartitionSpec('data', 'tensor'), PartitionSpec('data', 'tensor')
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs)]
    got = gradients(dot_general, jax.device_put(KEY, NamedSharding(mesh, PartitionSpec())), *placed)
    assert_all_identical(got, expected)


def test_a_key_for_each_example_under_vmap(arrays):
    dot_general = gq.quantized_dot_general(P1=STOCHASTIC, P4=NEAREST)
    keys = jax.random.split(KEY, 3)
    got = jax.vmap(lambda key: gradients(dot_general, key, *arrays))(keys)
    for i in range(3):
        for one, other in zip(got, gradients(dot_general, keys[i], *arrays), strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('target', TARGETS)
def test_a_missing_key_is_refused(target, arrays):
    """At the call already, also where only the backward pass would need it."""
    with pytest.raises(ValueError, match=r'\bkey\b'):
        gq.quantized_dot_general(**{target: STOCHASTIC})(*arrays[:2], DENSE)


@pytest.mark.parametrize('quantizers', [{}, {'P2': NEAREST}])
def test_a_key_that_nothing_would_use_is_refused(quantizers, arrays):
    with pytest.raises(ValueError, match=r'(?s)\bkey\b.*stochastic'):
        gq.quantized_dot_general(**quantizers)(*arrays[:2], DENSE, key=KEY)
