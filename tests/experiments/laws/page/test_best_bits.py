"""The best number of bits."""

from experiments.laws.page import best_bits
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA


def test_the_cost_at_which_bits_are_best():
    """At B = 128, 4 bits at 1.6e20 and 8 at 8.2e31, as published."""
    assert f'{best_bits.crossing(PUBLISHED_CAPYBARA, 128, 4):.1e}' == '1.6e+20'
    assert f'{best_bits.crossing(PUBLISHED_CAPYBARA, 128, 8):.1e}' == '8.2e+31'
