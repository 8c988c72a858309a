"""The best training for a budget, by a search: where laws have closed forms, the same; and what serving does to it."""

import numpy as np
import pytest

from gaussq_jax.scaling_laws import (
    CHINCHILLA_REFIT,
    PUBLISHED_CAPYBARA,
    PUBLISHED_KAPLAN,
    PUBLISHED_QUARTET,
    ChinchillaLaw,
    ScalingLaw,
    optimal_training,
)

UNROUNDED = ChinchillaLaw(n=406.4, alpha=0.33917084, d=410.7, beta=0.2849083, epsilon=1.69337368)  # of its TeX source


def test_chinchilla_by_search_is_its_closed_form():
    C = np.array([1e18, 5.76e23, 1e30])
    N, D = CHINCHILLA_REFIT.compute_optimal(C)
    best = optimal_training(CHINCHILLA_REFIT, C)
    np.testing.assert_allclose(best.N, N, rtol=1e-5)
    np.testing.assert_allclose(best.D, D, rtol=1e-5)
    np.testing.assert_array_equal(best.loss, CHINCHILLA_REFIT.loss(best.N, best.D))


def test_capybara_by_search_is_the_root_of_its_derivative():
    E, M = np.array([2, 4, 8]), np.array([1, 3, 7])
    for B in (128, 'channel'):
        exact = PUBLISHED_CAPYBARA.compute_optimal_for_format(1e24, E, M, B)
        best = optimal_training(PUBLISHED_CAPYBARA, 1e24, price=(1 + E + M) / 16, E=E, M=M, B=B)
        np.testing.assert_allclose(best.N, exact.N, rtol=1e-5)
        np.testing.assert_allclose(best.loss, exact.loss, rtol=1e-12)


def test_critical_data_sizes_by_search_are_the_closed_forms():
    N, E, M = np.array([1e8, 1e9]), np.array([[2], [4]]), np.array([[1], [3]])
    by_search = ScalingLaw.critical_data_size(PUBLISHED_CAPYBARA, N, E=E, M=M, B=128)
    np.testing.assert_allclose(by_search, PUBLISHED_CAPYBARA.critical_data_size(N, E, M, 128), rtol=1e-4)
    for law in (CHINCHILLA_REFIT, PUBLISHED_KAPLAN):
        np.testing.assert_array_equal(law.critical_data_size(N), [np.inf, np.inf])


def test_given_weights_or_tokens_leave_the_other():
    best = optimal_training(CHINCHILLA_REFIT, 1e22, price=[1.0, 0.5], N=1e9)
    np.testing.assert_allclose(best.D, 1e22 / (6e9 * np.array([1, 0.5])))
    best = optimal_training(CHINCHILLA_REFIT, 1e22, price=0.5, serve=2e12, D=1e11)
    np.testing.assert_allclose(6 * best.N * best.D * 0.5 + 2e12 * best.N, 1e22)


def test_half_the_price_is_twice_the_budget():
    for inputs in ({'forward': 'bf16'}, {'forward': 'mxfp4', 'backward': ['bf16', 'mxfp4']}):
        cheap = optimal_training(PUBLISHED_QUARTET, 1e21, price=0.5, **inputs)
        rich = optimal_training(PUBLISHED_QUARTET, 2e21, **inputs)
        np.testing.assert_allclose(cheap.loss, rich.loss, rtol=1e-14)


@pytest.mark.parametrize(('size', 'served', 'saved'), [(13e9, 2e12, 0.17), (30e9, 1e13, 0.28)])
def test_who_serves_overtrains(size, served, saved):
    """Sardana et al. (arXiv 2401.00448): for the loss of a Chinchilla-optimal model a smaller one is cheaper in all.

    By 17 % of 13B that serves 2T tokens, and 28 % of 30B that serves 10T; within a point and a half of that, for the
    constants are Chinchilla's as far as they are public.
    """
    budgets = np.geomspace(1e20, 1e26, 601)
    usual = UNROUNDED.compute_optimal(budgets)
    C = np.interp(np.log(size), np.log(usual[0]), budgets)
    N, D = UNROUNDED.compute_optimal(C)
    costs = 6 * N * D + 2 * N * served
    best = optimal_training(UNROUNDED, np.linspace(0.6, 1, 401) * costs, serve=2 * served)
    cheapest = np.argmax(best.loss <= UNROUNDED.loss(N, D))
    np.testing.assert_allclose(1 - np.linspace(0.6, 1, 401)[cheapest], saved, atol=0.015)
    assert best.N[cheapest] < 0.6 * N and best.D[cheapest] > 1.5 * D


@pytest.mark.parametrize(
    ('options', 'error'),
    [
        (dict(N=1e9, D=1e9), 'N and D leave nothing to choose'),
        (dict(N=1e9, serve=1e14), r'no token for N=1e\+09 weights, and to serve them costs 1e\+23'),
        (dict(N=1e22), r'C=1e\+22 leaves no token for N=1e\+22 weights$'),
        (dict(price=0.0), 'price=0 must be a finite number above 0'),
        (dict(serve=-1.0), 'serve=-1 must be a finite number, at least 0'),
        (dict(E=2), "got an unexpected keyword argument 'E'"),
    ],
)
def test_what_makes_no_sense_is_named(options, error):
    with pytest.raises((ValueError, TypeError), match=error):
        optimal_training(CHINCHILLA_REFIT, 1e22, **options)


def test_no_best_model_is_an_error():
    """With so steep a term of N, the least model wins; with none to speak of, at 1 token the largest."""
    law = ChinchillaLaw(n=1e-300, alpha=0.3, d=1e5, beta=0.3, epsilon=1.0)
    for C in np.geomspace(1e18, 1e26, 20):  # whichever way the end of the search is rounded
        with pytest.raises(ValueError, match='by this law there is no best N'):
            optimal_training(law, C)
