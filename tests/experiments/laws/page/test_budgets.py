"""What is best at a cost, and below which price a format pays: by closed forms, and by the search at that price."""

import numpy as np
import pytest

from experiments.laws.page import budgets
from experiments.laws.page.settings import Setting
from gaussq_jax.scaling_laws import CHINCHILLA_REFIT, PUBLISHED_CAPYBARA, PUBLISHED_QUARTET, optimal_training

C = np.array([1e21, 1e23])


def test_the_best_of_a_law_without_precision_is_its_closed_form():
    N, D, loss = budgets.best_at(CHINCHILLA_REFIT, C, [Setting('', '', {}, np.array([]), False)])[:, 0]
    np.testing.assert_allclose((N, D), CHINCHILLA_REFIT.compute_optimal(C), rtol=1e-5)
    np.testing.assert_array_equal(loss, CHINCHILLA_REFIT.loss(N, D))


@pytest.mark.parametrize(
    ('law', 'inputs'),
    [
        (PUBLISHED_CAPYBARA, {'E': 2.0, 'M': 1.0, 'B': 32.0}),
        (PUBLISHED_QUARTET, {'forward': 'mxfp4', 'backward': 'mxfp4'}),
    ],
)
def test_at_the_price_at_which_a_format_pays_it_is_as_good_as_bf16(law, inputs):
    reference = {'E': 8.0, 'M': 7.0, 'B': 1.0} if 'E' in inputs else {'forward': 'bf16', 'backward': ''}
    (prices,) = budgets.worthwhile_prices(law, C, [Setting('', '', inputs, np.array([]), False)])
    assert np.all((prices > 0) & (prices < 1))
    there = optimal_training(law, C, price=prices, **inputs).loss
    np.testing.assert_allclose(there, optimal_training(law, C, **reference).loss, atol=3e-5)


def test_a_format_that_never_gets_as_good_pays_at_no_price():
    """One exponent bit without a scale for fewer than all values, at a cost that would need 1e30 tokens."""
    worst = {'E': 0.0, 'M': 1.0, 'B': 'channel'}
    ((price,),) = budgets.worthwhile_prices(PUBLISHED_CAPYBARA, [1e26], [Setting('', '', worst, np.array([]), False)])
    assert price == 0 and budgets.price_text(Setting('', '', worst, np.array([]), False), price) == 'at no price'
