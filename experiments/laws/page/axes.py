"""Logarithmic axes with ticks at round numbers, three of them at the least, and numbers of few digits."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.laws.notation import human

FEWEST_TICKS, MOST_TICKS = 3, 6
LEAST_SPAN = 1.1  # of an axis, which may be of a single number
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(range(1, 10)))  # of a decade


def log_axis(low: float, high: float, title: str, write: Callable[[float], str] = human) -> dict[str, Any]:
    """A logarithmic axis of what lies between low and high: title, domain, and ticks with how they are written."""
    margin = max((high / low) ** 0.04, math.sqrt(max(1, LEAST_SPAN / (high / low))))
    low, high = low / margin, high * margin
    ticks = [{'value': value, 'label': write(value)} for value in log_ticks(low, high)]
    return {'title': title, 'domain': [low, high], 'ticks': ticks}


def log_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between low and high, however near these are.

    Example:
      >>> log_ticks(1e9, 1e12), log_ticks(2e9, 9e9), log_ticks(1000, 1300)
      ([1000000000.0, 10000000000.0, 100000000000.0, 1000000000000.0], [2000000000.0, 3000000000.0, 5000000000.0, \
7000000000.0], [1000.0, 1100.0, 1200.0, 1300.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in STEPS:
        ticks = [float(f'{step}e{decade}') for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) >= FEWEST_TICKS:
            return ticks[:: -(-len(ticks) // MOST_TICKS)]
    step = 10.0 ** math.floor(math.log10(high - low))
    while True:
        for part in (step, step / 2, step / 5):
            ticks = part * np.arange(math.ceil(low / part - 1e-9), math.floor(high / part + 1e-9) + 1)
            if len(ticks) >= FEWEST_TICKS:
                return [float(f'{tick:.12g}') for tick in ticks[:: -(-len(ticks) // MOST_TICKS)]]
        step /= 10


def cost_text(C: float) -> str:
    """Three digits of a number of operations.

    Example:
      >>> cost_text(5.76e23)
      '5.76e23'
    """
    return f'{C:.3g}'.replace('e+', 'e')


def digits(values: Any, number: int = 6) -> Any:
    """Numbers with so many digits, in lists as deep as they are; None for what is not finite.

    Example:
      >>> digits([[1.23456789, float('nan')]], 3)
      [[1.23, None]]
    """
    if isinstance(values, list | tuple | np.ndarray):
        return [digits(value, number) for value in values]
    value = float(values)
    return float(f'{value:.{number}g}') if math.isfinite(value) else None
