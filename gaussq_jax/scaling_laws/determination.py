"""What runs determine of what follows from a law fitted to them, and what they leave open."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gaussq_jax.scaling_laws.law import ScalingLaw

STEP = 1e-4  # in logarithms, of derivatives
CHANGE = 1e-6  # of a quantity's value, by which it changes along a direction
APART = 3.0  # standard errors by which two values of a quantity are different answers; laws as good are within 2 of it


@dataclasses.dataclass(frozen=True)
class Determination:
    """What the runs behind a fitted law say of it.

    Points are the logarithms of the constants, and epsilon itself.

    Attributes:
      law: the fitted one.
      names: the constants that were fitted, p of them.
      unseen: directions of length 1, (k, p): along which the runs' predictions don't move, or those of one group alone.
      covariance: of the point in all directions in which predictions move, by plain errors, (p, p).
      alternatives: laws that serve the runs about as well, as far as the search has come upon them.
      ties: constants that equal fitted ones.
    """

    law: ScalingLaw
    names: tuple[str, ...]
    unseen: np.ndarray
    covariance: np.ndarray
    alternatives: tuple[ScalingLaw, ...]
    ties: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def is_unknown(self, quantity: Callable[[Any], np.ndarray]) -> np.ndarray:
        """Whether a quantity depends on what the runs leave open: of the quantity's shape, bool.

        It does if it changes along an unseen direction, or if it is another by a law that serves as well: by more than
        3 of its standard errors, sqrt(g^T covariance g), g the gradient.

        Args:
          quantity: from a law to a number or an array.
        """
        with np.errstate(all='ignore'):  # of laws that are far off, and of what is infinite
            value = _value(quantity, self.law)
            slopes = [np.broadcast_to(self._slope(quantity, unit), value.shape) for unit in np.eye(len(self.names))]
            gradient = np.stack(slopes, axis=-1)
            error = np.sqrt(np.einsum('...i,ij,...j', gradient, self.covariance, gradient))
            unknown = np.zeros(value.shape, bool)
            for direction in self.unseen:
                slope = np.abs(self._slope(quantity, direction))
                unknown |= ~(slope <= CHANGE * np.abs(value)) & ~np.isnan(value)
            for law in self.alternatives:
                other = _value(quantity, law)
                apart = ~(np.abs(other - value) <= APART * error + CHANGE * np.abs(value))
                unknown |= np.where(np.isnan(value), ~np.isnan(other), apart & (other != value))
        return unknown

    def _slope(self, quantity, direction):
        """The derivative of a quantity along a direction; 0 where it is infinite on both sides."""
        of_step = lambda step: quantity(self._moved(step * direction))
        low, high = (_value(of_step, step) for step in (-STEP, STEP))
        return np.where(low == high, 0.0, (high - low) / (2 * STEP))

    def _moved(self, by):
        constants = {name: self.law.constants()[name] for name in self.names}
        for name, step in zip(self.names, by.tolist()):
            moved = constants[name] + step if name == 'epsilon' else constants[name] * np.exp(step)
            constants[name] = float(max(moved, 0.0) if name == 'epsilon' else moved)
        return self.law.replace(**constants, **tie(constants, self.ties))


def tie(constants: Mapping[str, float], ties: Mapping[str, str]) -> dict[str, float]:
    """The constants that equal others of these."""
    return {name: constants[other] for name, other in ties.items()}


def _value(quantity, of):
    """NaN where there is no such thing."""
    try:
        return np.asarray(quantity(of), float)
    except (ValueError, ArithmeticError):  # constants that nothing determines may be huge
        return np.float64(np.nan)
