"""Axes have ticks enough to be read, wherever they begin and end."""

import doctest

import numpy as np

from experiments.laws.page import axes, budgets, rendering, settings, tables


def test_examples():
    for module in (axes, budgets, rendering, settings, tables):
        assert doctest.testmod(module).failed == 0


def test_every_axis_has_three_ticks_that_differ():
    """From a hundredth of an octave to thirty decades, and of a single number."""
    rng = np.random.default_rng(0)
    for low, span in zip(10.0 ** rng.uniform(0, 25, 1000), [0.0, *10.0 ** rng.uniform(-3, 1.5, 999)]):
        axis = axes.log_axis(low, low * 10**span, 'N')
        first, last = axis['domain']
        ticks = [tick['value'] for tick in axis['ticks']]
        assert 3 <= len(ticks) <= 6 and first <= ticks[0] and ticks[-1] <= last
        assert first <= low and low * 10**span <= last and last / first >= 1.09
        assert len({tick['label'] for tick in axis['ticks']}) == len(ticks)
