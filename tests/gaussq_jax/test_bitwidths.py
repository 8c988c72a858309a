"""Effective bitwidths and the penalty that pulls them down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq


@pytest.mark.parametrize(('b_init', 'b_target'), [(6.0, 4.0), (8, 3), (5.0, 5.0)])
def test_b_i_moves_the_bitwidth_between_target_and_start(b_init, b_target):
    """b_t = b_target + b_i (b_init - b_target): b_i = 1 gives b_init, 0 b_target, exactly; of b_target to 10."""
    b_i = jnp.asarray([[1.0, 0.0, 0.5], [-1.0, 1.25, 8.0]], jnp.float32)
    b_t = gq.effective_bitwidths(b_i, b_init, b_target)
    expected = np.clip(b_target + np.asarray(b_i, np.float64) * (b_init - b_target), b_target, 10)
    assert b_t.dtype == jnp.float32 and b_t.shape == b_i.shape
    np.testing.assert_array_equal(b_t, expected)


def test_the_gradient_of_the_bitwidth_is_the_span():
    gradient = jax.grad(lambda b_i: jnp.sum(gq.effective_bitwidths(b_i, 6.0, 4.0)))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(gradient, np.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ('b_i', 'cotangent', 'expected'),
    [(-0.5, 1.0, 0.0), (-0.5, -1.0, -2.0), (0.0, 1.0, 2.0), (0.0, -1.0, -2.0), (3.5, 1.0, 2.0), (3.5, -1.0, 0.0)],
)
def test_beyond_a_bound_the_gradient_leads_back_only(b_i, cotangent, expected):
    """Descent would move b_i further out by the one sign, back by the other; b_t has no meaning out there."""
    b_t, pull_back = jax.vjp(lambda b_i: gq.effective_bitwidths(b_i, 6.0, 4.0), jnp.float32(b_i))
    assert b_t == min(max(4 + 2 * b_i, 4), 10)
    assert pull_back(jnp.float32(cotangent)) == (expected,)


def test_a_bound_of_ones_own():
    b_i = jnp.asarray([0.0, 1.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(gq.effective_bitwidths(b_i, 6, 4, b_most=7), [4, 6, 7, jnp.nan])
    np.testing.assert_array_equal(gq.effective_bitwidths(b_i, 12, 4), [4, 12, 12, jnp.nan])
    with pytest.raises(ValueError, match=r'b_most=5.*at least b_init=6'):
        gq.effective_bitwidths(b_i, 6, 4, b_most=5)


def test_a_format_bounds_the_bitwidths_whose_noise_it_holds():
    """e3m3 holds the noise of 5 bits and not of 6; of uniform noise, no format holds all."""
    state = {'up/kernel': jnp.full((1, 1), 3.0)}
    largest = lambda sampling, **fmt: float(sampling(4.5, 3.5, **fmt).bitwidths(state)['up/kernel'][0, 0])
    assert largest(gq.gaussian_weight_sampling, fmt='e3m3') == 5
    assert largest(gq.gaussian_weight_sampling) == largest(gq.uniform_weight_sampling, fmt='e3m3') == 6.5


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
