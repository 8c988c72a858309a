"""Effective bitwidths and the penalty that pulls them down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq


@pytest.mark.parametrize(('b_init', 'b_target'), [(6.0, 4.0), (8, 3), (5.0, 5.0)])
def test_b_i_moves_the_bitwidth_between_target_and_start(b_init, b_target):
    """b_t = b_target + b_i (b_init - b_target): b_i = 1 gives b_init, 0 b_target, exactly."""
    b_i = jnp.asarray([[1.0, 0.0, 0.5], [-1.0, 2.0, 0.25]], jnp.float32)
    b_t = gq.effective_bitwidths(b_i, b_init, b_target)
    expected = b_target + np.asarray(b_i, np.float64) * (b_init - b_target)
    assert b_t.dtype == jnp.float32 and b_t.shape == b_i.shape
    np.testing.assert_array_equal(b_t, expected)


def test_the_gradient_of_the_bitwidth_is_the_span():
    gradient = jax.grad(lambda b_i: jnp.sum(gq.effective_bitwidths(b_i, 6.0, 4.0)))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(gradient, np.full((2, 3), 2.0))


def test_the_penalty_is_the_mean_over_blocks_not_over_leaves():
    tree = {
        'a/kernel': jnp.full((2, 3), 5.0),
        'b/kernel': jnp.full((1, 2), 9.0),
        'c': {'d': jnp.full(2, 1.0)},
    }
    penalty, gradient = jax.value_and_grad(gq.bitwidth_penalty)(tree)
    assert penalty.shape == () and penalty.dtype == jnp.float32
    np.testing.assert_allclose(penalty, (6 * 5.0 + 2 * 9.0 + 2 * 1.0) / 10, rtol=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.1, rtol=1e-6)


def test_the_penalty_of_nothing_learned_is_an_error():
    """The mean of no block is no number; the baseline's loop must not add NaN, nor silently nothing."""
    baseline = gq.cast_params()
    state = baseline.init({'dense': {'kernel': jnp.ones((4, 4))}})
    with pytest.raises(ValueError, match='bitwidths'):
        gq.bitwidth_penalty(baseline.bitwidths(state))


def test_penalty_pulls_the_learned_bitwidths_of_a_transform_to_the_target():
    """Gradient descent on the penalty alone moves every block down by the same amount."""
    transform = gq.gaussian_weight_sampling(b_init=6.0, b_target=4.0)
    state = transform.init({'a': {'kernel': jnp.ones((64, 64))}, 'b': {'kernel': jnp.ones((32, 96))}})
    penalty, gradient = jax.value_and_grad(lambda s: gq.bitwidth_penalty(transform.bitwidths(s)))(state)
    assert float(penalty) == 6.0
    blocks = 4 + 3
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, (6.0 - 4.0) / blocks, rtol=1e-6)
