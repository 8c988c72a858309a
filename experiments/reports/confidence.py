"""Means over seeds with their confidence intervals, as tables and pictures show them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """The mean of a sample, and half the width of its 95 % confidence interval."""

    value: float
    half_width: float | None  # of one value there is no interval

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does; never without one."""
        return self.half_width is not None and abs(self.value) > self.half_width

    def text(self, number: str) -> str:
        """'1.7924 ± 0.0740' with the format '.4f'; '1.7924 (one seed)' without an interval."""
        if self.half_width is None:
            return f'{self.value:{number}} (one seed)'
        return f'{self.value:{number}} ± {self.half_width:{number.lstrip("+")}}'

    def marked_text(self, number: str) -> str:
        """The same as Markdown, in bold where the interval excludes 0."""
        return f'**{self.text(number)}**' if self.excludes_zero else self.text(number)


def mean(values: Sequence[float]) -> Mean:
    """The mean of n values, with Student's interval: t(n - 1) s / sqrt(n) to each side, s of n - 1 degrees of freedom.

    That of two values is 12.7 standard errors to each side, that of three 4.30.

    Example:
      >>> print(mean([1.0, 2.0, 6.0]).text('.2f'))
      3.00 ± 6.57
    """
    sample = np.asarray(values, float)
    if sample.size < 2:
        return Mean(float(sample.mean()), None)
    quantile = stdtrit(sample.size - 1, (1 + CONFIDENCE) / 2)
    return Mean(float(sample.mean()), float(quantile * sample.std(ddof=1) / np.sqrt(sample.size)))


def paired_differences(by_seed: Mapping[Hashable, float], other: Mapping[Hashable, float]) -> list[float]:
    """Seed by seed, for the seeds that both have: what a seed does to both cancels."""
    return [value - other[seed] for seed, value in by_seed.items() if seed in other]
