"""Scaling laws as data: what loss a training of N parameters on D tokens ends with, and at which precision.

A law is a frozen dataclass of positive constants. Its `loss` takes arrays that broadcast, in float64. N counts the
weights of the linear layers; D tokens; P = 1 + E + M bits; the loss is in nats a token.
"""

import dataclasses
import numbers
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike


def at_least(name: str, values: ArrayLike, minimum: float) -> np.ndarray:
    """The values in float64; ValueError if one isn't a finite number of at least `minimum`."""
    array = _numbers(name, values)
    return _all(name, array, np.isfinite(array) & (array >= minimum), f'a finite number, at least {minimum:g}')


def positive(name: str, values: ArrayLike) -> np.ndarray:
    """The values in float64; ValueError if one isn't a finite number above 0."""
    array = _numbers(name, values)
    return _all(name, array, np.isfinite(array) & (array > 0), 'a finite number above 0')


def positive_or_infinite(name: str, values: ArrayLike) -> np.ndarray:
    """The values in float64; ValueError if one isn't a number above 0."""
    array = _numbers(name, values)
    return _all(name, array, array > 0, 'a number above 0')


def _numbers(name, values):
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'{name}={values!r} must be numbers') from None


def _all(name, array, is_allowed, allowed):
    if wrong := array[~is_allowed].tolist():
        raise ValueError(f'{name}={wrong[0]:g} must be {allowed}')
    return array


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """The constants of a law, and its loss: epsilon, which may be 0, and others, above 0.

    A subclass says in `COLUMNS` what its `loss` takes, in order; has its formula in `_loss`, which takes them as they
    are; and says how to begin a search for its constants.
    """

    COLUMNS: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            may_be_0 = field.name == 'epsilon'
            if not (isinstance(value, numbers.Real) and 0 <= value < np.inf and (value or may_be_0)):
                allowed = 'at least 0' if may_be_0 else 'above 0'
                raise ValueError(f'{type(self).__name__}.{field.name}={value!r} must be a finite number {allowed}')

    @classmethod
    def title(cls) -> str:
        """'Capybara' of a CapybaraLaw."""
        return cls.__name__.removesuffix('Law')

    def constants(self) -> dict[str, float]:
        """The constants by name, without those that the law does not know."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def random(cls, rng: np.random.Generator, columns: dict[str, np.ndarray], loss: np.ndarray) -> Self:
        """A law to start a fit of these runs from: random exponents, and terms of the size of the losses."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PowerLaw(ScalingLaw):
    """A law with the terms n / N^alpha + d / D^beta + epsilon."""

    n: float
    alpha: float
    d: float
    beta: float
    epsilon: float

    def _unquantized(self, N, D):
        return self.n * N**-self.alpha + self.d * D**-self.beta + self.epsilon


@dataclasses.dataclass(frozen=True)
class ChinchillaLaw(PowerLaw):
    """L(N, D) = n / N^alpha + d / D^beta + epsilon.

    Example:
      >>> round(float(PUBLISHED_CHINCHILLA.loss(70e9, 1.4e12)), 3)
      1.937

    Source: Hoffmann et al., Training compute-optimal large language models (arXiv 2203.15556), section 3.3.
    """

    COLUMNS = ('N', 'D')

    def loss(self, N: ArrayLike, D: ArrayLike) -> np.ndarray:
        """The loss of N parameters trained on D tokens."""
        return self._loss(positive('N', N), positive('D', D))

    def _loss(self, N, D):
        return self._unquantized(N, D)

    def compute_optimal(self, C: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """N and D of least loss at C = 6 N D floating-point operations.

            alpha n / N^alpha = beta d / D^beta

        Source: as above, equation (4).
        """
        products = positive('C', C) / 6
        ratio = self.alpha * self.n / (self.beta * self.d)
        N = (ratio * products**self.beta) ** (1 / (self.alpha + self.beta))
        return N, products / N

    @classmethod
    def random(cls, rng, columns, loss):
        return cls(**random_terms(rng, columns, loss))


@dataclasses.dataclass(frozen=True)
class KaplanLaw(ScalingLaw):
    """L(N, D) = [(n / N)^(alpha / beta) + d / D]^beta + epsilon.

    The published law has no epsilon; with one it is fitted on an equal footing with the others.

    Example:
      >>> round(float(PUBLISHED_KAPLAN.loss(1.5e9, 22e9)), 2)
      2.31

    Source: Kaplan et al., Scaling laws for neural language models (arXiv 2001.08361), equation (1.5).
    """

    n: float
    alpha: float
    d: float
    beta: float
    epsilon: float = 0.0

    COLUMNS = ('N', 'D')

    def loss(self, N: ArrayLike, D: ArrayLike) -> np.ndarray:
        """The loss of N parameters trained on D tokens."""
        return self._loss(positive('N', N), positive('D', D))

    def _loss(self, N, D):
        return ((self.n / N) ** (self.alpha / self.beta) + self.d / D) ** self.beta + self.epsilon

    @classmethod
    def random(cls, rng, columns, loss):
        terms = random_terms(rng, columns, loss)
        return cls(**terms | {'n': terms['n'] ** (1 / terms['alpha']), 'd': terms['d'] ** (1 / terms['beta'])})


@dataclasses.dataclass(frozen=True)
class KumarLaw(PowerLaw):
    """L(N, D, P) = n / N_eff^alpha + d / D^beta + epsilon, with N_eff = N (1 - exp(-P / gamma)).

    Weights, activations and gradients have P bits alike.

    Example:
      >>> law = KumarLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=2.0)
      >>> law.loss(1e9, 1e11, P=[4, 8, 16]).round(3)
      array([2.579, 2.563, 2.561])

    Source: Kumar et al., Scaling laws for precision (arXiv 2411.04330), with one sensitivity for all operands.
    """

    gamma: float

    COLUMNS = ('N', 'D', 'P')

    def loss(self, N: ArrayLike, D: ArrayLike, P: ArrayLike) -> np.ndarray:
        """The loss of N parameters of P bits, trained on D tokens."""
        return self._loss(positive('N', N), positive('D', D), positive('P', P))

    def _loss(self, N, D, P):
        return self._unquantized(N * -np.expm1(-P / self.gamma), D)

    @classmethod
    def random(cls, rng, columns, loss):
        return cls(**random_terms(rng, columns, loss), gamma=log_uniform(rng, 0.3, 5.0))


@dataclasses.dataclass(frozen=True)
class BitwidthLaw(PowerLaw):
    """L(N, D, b) = n / N^alpha + d / D^beta + epsilon + (D^beta / N^alpha) / (gamma b^kappa).

    The Capybara law for pseudo-quantization: the bitwidth b of a weight's block stands where exponent and mantissa bits
    do. Blocks are of one size, whose logarithm gamma takes in.

    Example:
      >>> law = BitwidthLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=1e5, kappa=3.0)
      >>> law.loss(1e9, 1e11, b=[2.0, 4.0, 8.0]).round(3)
      array([2.565, 2.561, 2.561])
    """

    gamma: float
    kappa: float

    COLUMNS = ('N', 'D', 'b')

    def loss(self, N: ArrayLike, D: ArrayLike, b: ArrayLike) -> np.ndarray:
        """The loss of N parameters, sampled at b bits, trained on D tokens. b = inf: not quantized."""
        return self._loss(positive('N', N), positive('D', D), positive_or_infinite('b', b))

    def _loss(self, N, D, b):
        return self._unquantized(N, D) + D**self.beta * N**-self.alpha / (self.gamma * b**self.kappa)

    def critical_data_size(self, N: ArrayLike, b: ArrayLike) -> np.ndarray:
        """D past which more data raises the loss: D_crit^(2 beta) = d gamma N^alpha b^kappa."""
        N, b = positive('N', N), positive_or_infinite('b', b)
        return (self.d * self.gamma * N**self.alpha * b**self.kappa) ** (1 / (2 * self.beta))

    @classmethod
    def random(cls, rng, columns, loss):
        terms = random_terms(rng, columns, loss)
        kappa = log_uniform(rng, 0.5, 8.0)
        N, D, b = (geometric_mean(columns[name]) for name in cls.COLUMNS)
        penalty = random_penalty(rng, loss)
        gamma = D ** terms['beta'] * N ** -terms['alpha'] / (b**kappa * penalty)
        return cls(**terms, gamma=gamma, kappa=kappa)


def random_terms(rng: np.random.Generator, columns: dict[str, np.ndarray], loss: np.ndarray) -> dict[str, float]:
    """Constants of the terms of N and of D, each a part of the least loss at the middle of the runs."""
    alpha, beta = log_uniform(rng, 0.05, 1.5), log_uniform(rng, 0.05, 1.5)
    model, data, rest = rng.dirichlet((1, 1, 1)) * loss.min()
    return {
        'n': model * geometric_mean(columns['N']) ** alpha,
        'alpha': alpha,
        'd': data * geometric_mean(columns['D']) ** beta,
        'beta': beta,
        'epsilon': rest,
    }


def random_penalty(rng: np.random.Generator, loss: np.ndarray) -> float:
    """Of quantization: a part of what the losses differ by, if they do."""
    return (np.ptp(loss) or loss.min()) * rng.uniform(0.05, 1.0)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between low and high, whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def geometric_mean(values: np.ndarray) -> float:
    """Of the finite values."""
    return float(np.exp(np.mean(np.log(values[np.isfinite(values)]))))


PUBLISHED_CHINCHILLA = ChinchillaLaw(n=406.4, alpha=0.34, d=410.7, beta=0.28, epsilon=1.69)
PUBLISHED_KAPLAN = KaplanLaw(n=6.4e13, alpha=0.076, d=1.8e13, beta=0.103)
