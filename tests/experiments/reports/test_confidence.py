"""Means and their intervals, by SciPy's tests of significance and by closed forms."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.reports import confidence


def test_the_interval_is_students():
    """The quantiles of one and of two degrees of freedom have closed forms."""
    p = 0.975
    one, two = math.tan(math.pi * (p - 0.5)), (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    assert confidence.mean([1.0, 2.0]) == (1.5, pytest.approx(one * 0.5))
    assert confidence.mean([1.0, 2.0, 6.0]) == (3, pytest.approx(two * math.sqrt(14 / 2 / 3)))


@pytest.mark.parametrize('n', [2, 3, 10])
def test_the_interval_is_that_of_the_t_test(n):
    """It excludes 0 where the test of the paired differences has p below 0.05, and has the test's ends."""
    rng = np.random.default_rng(n)
    significant = 0
    for shift in np.linspace(-3, 3, 50):
        seeds = rng.normal(0, 10, n)  # which differ by more than what is compared
        one, other = seeds + rng.normal(shift, 1, n), seeds + rng.normal(0, 1, n)
        differences = confidence.paired_differences(dict(enumerate(one)), dict(enumerate(other)))
        mean, half_width = interval = confidence.mean(differences)
        test = scipy.stats.ttest_rel(one, other)
        ends = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        np.testing.assert_allclose((mean - half_width, mean + half_width), ends)
        assert interval.excludes_zero == (test.pvalue < 0.05)
        significant += interval.excludes_zero
    assert 0 < significant < 50


def test_differences_are_of_the_seeds_that_both_have():
    assert confidence.paired_differences({'0': 2.0, '2': 3.0, '3': 9.0}, {'2': 1.0, '1': 5.0, '0': 1.5}) == [0.5, 2.0]


def test_one_seed_has_no_interval_and_says_so():
    one = confidence.mean([1.25])
    assert one == (1.25, None) and not one.excludes_zero
    assert one.text('.2f') == one.marked_text('.2f') == '1.25 (one seed)'


def test_what_is_bold():
    """A difference of exactly 0 excludes nothing; one that is the same in all seeds excludes 0; NaN is told."""
    assert confidence.mean([0.0, 0.0, 0.0]).marked_text('+.1f') == '+0.0 ± 0.0'
    assert confidence.mean([0.5, 0.5, 0.5]).marked_text('+.1f') == '**+0.5 ± 0.0**'
    assert confidence.mean([0.5, 0.5, np.nan]).marked_text('+.1f') == '+nan ± nan'
    assert confidence.mean([-2.0, -3.0]).marked_text('+.1%') == '-250.0% ± 635.3%'
