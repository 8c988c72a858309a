"""What runs leave open is unknown, whatever the law found says of it; what they determine is not."""

import dataclasses

import numpy as np
import pytest

from gaussq_jax.scaling_laws import CHINCHILLA_AS_FIRST_PUBLISHED, PUBLISHED_CAPYBARA, CapybaraLaw, ChinchillaLaw, fit

BF16, E2M1 = (8, 7, 1), (2, 1, 32)
FORMATS = [BF16, E2M1, (4, 3, 32), (2, 3, 32), (3, 2, 64), (5, 2, 128)]


def of_one_model(seed=0, noise=0.002):
    D = np.geomspace(1e9, 1e11, 7)
    loss = CHINCHILLA_AS_FIRST_PUBLISHED.loss(3e7, D) + np.random.default_rng(seed).normal(0, noise, 7)
    return fit(ChinchillaLaw, {'N': np.full(7, 3e7), 'D': D, 'loss': loss})


def of_formats(formats, seed=0, noise=0.001):
    rows = [(N, D, *layout) for N in (4e7, 8e7, 1.5e8, 3e8) for D in (2e9, 8e9, 2e10, 1e11) for layout in formats]
    columns = dict(zip(('N', 'D', 'E', 'M', 'B'), map(np.array, zip(*rows))))
    noises = np.random.default_rng(seed).normal(0, noise, len(rows))
    return fit(CapybaraLaw, columns | {'loss': PUBLISHED_CAPYBARA.loss(**columns) + noises})


@pytest.fixture(scope='module')
def two_formats():
    return of_formats([BF16, E2M1])


@pytest.mark.parametrize('seed', range(3))
def test_runs_of_one_model_say_nothing_of_another(seed):
    """A law with another alpha, and n / N^alpha as it was, has the same losses: so has none of them at 800M."""
    result = of_one_model(seed)
    known, unknown = result.determination.is_unknown(lambda law: law.loss(np.array([3e7, 8e8]), 8e10))
    assert not known and unknown
    (low, unknown_low), (high, unknown_high) = result.interval(lambda law: law.loss(np.array([3e7, 8e8]), 8e10))
    assert low < high < low + 0.05 and np.isnan([unknown_low, unknown_high]).all()
    assert abs((low + high) / 2 - CHINCHILLA_AS_FIRST_PUBLISHED.loss(3e7, 8e10)) < 0.01


def test_constants_that_are_open_leave_their_sum_known():
    """Neither n, alpha nor epsilon; but n / N^alpha + epsilon for the N of the runs, and d and beta."""
    result = of_one_model()
    assert set(result.undetermined) == {'n', 'alpha', 'epsilon'}
    is_unknown = result.determination.is_unknown
    assert is_unknown(lambda law: np.array([law.n, law.alpha, law.epsilon])).all()
    for name, (low, high) in result.confidence_intervals().items():
        assert ((low, high) == (0, np.inf)) == np.isinf(result.standard_errors[name]) == (name in result.undetermined)
    assert not is_unknown(lambda law: law.n / np.float64(3e7) ** law.alpha + law.epsilon)
    assert not is_unknown(lambda law: np.array([law.d, law.beta])).any()


def test_one_quantized_format_says_nothing_of_others(two_formats):
    """Wherever gamma (E + 1/2)^delta (M + 1/2)^nu is not that of E2M1."""
    is_unknown = two_formats.determination.is_unknown
    assert not is_unknown(lambda law: law.loss(1e9, 1e11, 2, 1, [32, 64, 512])).any()
    assert not is_unknown(lambda law: law.critical_data_size(1e9, 2, 1, 32))
    assert is_unknown(lambda law: np.array(law.optimal_layout(np.array([4.0, 8.0])))).all()
    assert is_unknown(lambda law: law.best_format(8)).all()
    assert is_unknown(lambda law: law.critical_data_size(1e9, np.array([4, 1, 3]), np.array([3, 2, 1]), 32)).all()
    assert is_unknown(lambda law: law.precision_model_exchange(1e9, 8, 4))
    assert is_unknown(lambda law: law.compute_optimal(1e20, 32).P)


def test_the_laws_that_serve_as_well_do(two_formats):
    """Their residuals are no larger than 95 % allows, and the layouts that they call best are far apart."""
    columns = two_formats._problem.columns.values()
    squares = lambda law: np.sum((law._loss(*columns) - two_formats._problem.loss) ** 2)
    alternatives = two_formats.determination.alternatives
    assert max(map(squares, alternatives)) < squares(two_formats.law) + 3.85 * two_formats.noise**2
    best = [law.optimal_layout(8.0)[0] for law in alternatives]
    assert max(best) - min(best) > 3


def test_where_all_is_determined_nothing_is_unknown():
    result = of_formats(FORMATS)
    assert result.undetermined == ()
    is_unknown = result.determination.is_unknown
    assert not is_unknown(lambda law: law.loss(1e10, 1e12, np.array([1, 2, 5]), np.array([2, 4, 10]), 16)).any()
    assert not is_unknown(lambda law: np.array(law.optimal_layout(8.0))).any()
    assert not is_unknown(lambda law: np.array([getattr(law, name) for name in result.names])).any()


def test_a_quantity_that_a_law_has_not_is_unknown(two_formats):
    """Not an error, if only some of the laws that serve as well don't have it. Infinite is known if all agree."""

    def picky(law):
        if law.nu > 2 * two_formats.law.nu or law.nu < two_formats.law.nu / 2:
            raise ValueError('no such law')
        return law.alpha

    assert two_formats.determination.is_unknown(picky)
    assert not two_formats.determination.is_unknown(lambda law: law.critical_data_size(1e9, 2, 1, 1))  # infinite: B = 1


def test_an_epsilon_of_0_has_derivatives():
    """Steps below 0 are cut off."""
    result = of_one_model()
    law = dataclasses.replace(result.law, epsilon=0.0)
    determination = dataclasses.replace(result.determination, law=law, alternatives=())
    assert determination.is_unknown(lambda law: law.epsilon)
    assert not determination.is_unknown(lambda law: law.d)
