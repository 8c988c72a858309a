"""Errors of constants, intervals and the bootstrap mean what they say."""

import numpy as np
import pytest
from runs_of_laws import LAW, refit, table


@pytest.fixture(scope='module')
def draws():
    """Fits of many tables that differ in their noise alone."""
    return [refit(LAW, table(noise=0.005, seed=seed)) for seed in range(80)]


def logarithms(results):
    return np.log([[getattr(result.law, name) for name in results[0].names] for result in results])


def test_standard_errors_are_the_spread_over_noise(draws):
    """Within 30 %, four standard errors of a spread estimated from 80."""
    spread = np.std(logarithms(draws), axis=0, ddof=1)
    errors = np.mean([[r.standard_errors[name] / getattr(r.law, name) for name in r.names] for r in draws], axis=0)
    np.testing.assert_allclose(errors, spread, rtol=0.3)


def test_correlations_are_those_over_noise(draws):
    found = draws[0].correlations
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-9)
    np.testing.assert_array_less(np.abs(found), 1 + 1e-9)
    np.testing.assert_allclose(found, np.corrcoef(logarithms(draws).T), atol=0.4)


def test_noise_is_the_noise(draws):
    np.testing.assert_allclose(np.mean([result.noise for result in draws]), 0.005, rtol=0.03)
    for result in draws[:3]:
        np.testing.assert_allclose(result.rmse, np.sqrt(np.mean(result.residuals**2)), rtol=1e-12)
        assert result.noise > result.rmse


def test_intervals_of_constants_are_student_intervals(draws):
    """Wider with the level, and around the constant in its logarithm; epsilon's around itself; of 16 N and D."""
    result = draws[0]
    assert result.num_groups == 16
    narrow, wide = result.confidence_intervals(0.5), result.confidence_intervals(0.99)
    for name in result.names:
        value, (low, high) = getattr(result.law, name), result.confidence_intervals()[name]
        middle, error = (low + high) / 2, high - value
        if name != 'epsilon':
            middle, error = np.sqrt(low * high), np.log(high / value) * value
        np.testing.assert_allclose(middle, value, rtol=1e-9)
        np.testing.assert_allclose(error / result.standard_errors[name], 2.1314, rtol=1e-4)  # of 15 degrees of freedom
        assert wide[name][0] < low < narrow[name][0] < value < narrow[name][1] < high < wide[name][1]


def quantities(law):
    return np.array(
        [law.critical_data_size(1e9, 2, 1, 128), law.compute_optimal(1e24, 128).P, law.loss(7e9, 2e12, 4, 3, 64)]
    )


def test_bootstrap_intervals_cover_what_they_say(draws):
    """80 % intervals of D_crit, of the best precision and of a held-out loss, over 20 tables."""
    covered = np.zeros(3)
    for result in draws[:20]:
        low, high = result.interval(quantities, result.bootstrap(30), level=0.8)
        assert low.shape == high.shape == (3,)
        covered += (low < quantities(LAW)) & (quantities(LAW) < high)
    # Of 20 at a chance of 80 %, fewer than 11 are 1 in 400, and all of them are 1 in 90.
    assert np.all(covered >= 11) and covered.min() < 20, covered


def test_bootstrap_of_one_seed_is_the_same(draws):
    assert draws[0].bootstrap(2, seed=3) == draws[0].bootstrap(2, seed=3)
    assert draws[0].bootstrap(2, seed=3) != draws[0].bootstrap(2, seed=4)
    assert len(draws[0].bootstrap(3)) == 3


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95 % intervals of each constant, over draws of the noise, so many that which ones they are does not matter."""
    covered = []
    for seed in range(1200):
        intervals = refit(LAW, table(noise=0.002, seed=seed)).confidence_intervals()
        covered.append([low < getattr(LAW, name) < high for name, (low, high) in intervals.items()])
    shares = dict(zip(intervals, np.mean(covered, axis=0).tolist()))
    print('\n95 % intervals that cover the truth:', shares)
    assert len(shares) == 9 and all(0.91 <= share <= 0.98 for share in shares.values()), shares
