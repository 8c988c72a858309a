"""Laws that know no precision: what loss a training of N weights on D tokens ends with."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from gaussq_jax.scaling_laws.inputs import positive
from gaussq_jax.scaling_laws.law import PowerLaw, ScalingLaw, log_uniform, random_terms


@dataclasses.dataclass(frozen=True)
class ChinchillaLaw(PowerLaw):
    """L(N, D) = n / N^alpha + d / D^beta + epsilon.

    Example:
      >>> round(float(gq.scaling_laws.CHINCHILLA_REFIT.loss(70e9, 1.4e12)), 3)
      1.974

    Source: Hoffmann et al., Training compute-optimal large language models (arXiv 2203.15556), section 3.3. With
    alpha = beta, Gadre et al., Language models scale reliably with over-training (arXiv 2403.08540).
    """

    COLUMNS = ('N', 'D')

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


@dataclasses.dataclass(frozen=True)
class OuterExponentLaw(PowerLaw):
    """L(N, D) = (n / N^alpha + d / D^beta)^gamma + epsilon.

    With gamma = 1 it is Chinchilla's law, and with beta = 1 Kaplan's.

    Example:
      >>> gq.scaling_laws.PUBLISHED_OUTER_EXPONENT.loss(30e6, [0.75e9, 3e9]).round(3)
      array([3.403, 3.212])

    Source: Panferov et al., QuEST: stable training of LLMs with 1-bit weights and activations (arXiv 2502.05003), and
    Castro et al., Quartet: native FP4 training can be optimal for large language models (arXiv 2505.14669).
    """

    gamma: float

    COLUMNS = ('N', 'D')

    def _loss(self, N, D):
        return (self.n * N**-self.alpha + self.d * D**-self.beta) ** self.gamma + self.epsilon

    @classmethod
    def random(cls, rng, columns, loss):
        return cls(**random_outer_terms(rng, columns, loss))


def random_outer_terms(rng: np.random.Generator, columns: dict[str, np.ndarray], loss: np.ndarray) -> dict[str, float]:
    """Constants of the terms of N and of D, and of the exponent around them, as `random_terms`."""
    terms, gamma = random_terms(rng, columns, loss), log_uniform(rng, 0.1, 2.0)
    excess = loss.min() - terms['epsilon']
    scale = excess ** (1 / gamma) / excess  # (model + data)^gamma is the excess, as model + data was
    return terms | {'n': terms['n'] * scale, 'd': terms['d'] * scale, 'gamma': gamma}


@dataclasses.dataclass(frozen=True)
class KaplanLaw(ScalingLaw):
    """L(N, D) = [(n / N)^(alpha / beta) + d / D]^beta + epsilon.

    The published law has no epsilon; with one it is fitted on an equal footing with the others.

    Example:
      >>> round(float(gq.scaling_laws.PUBLISHED_KAPLAN.loss(1.5e9, 22e9)), 2)
      2.31

    Source: Kaplan et al., Scaling laws for neural language models (arXiv 2001.08361), equation (1.5).
    """

    n: float
    alpha: float
    d: float
    beta: float
    epsilon: float = 0.0

    COLUMNS = ('N', 'D')

    def _loss(self, N, D):
        return ((self.n / N) ** (self.alpha / self.beta) + self.d / D) ** self.beta + self.epsilon

    @classmethod
    def random(cls, rng, columns, loss):
        terms = random_terms(rng, columns, loss)
        return cls(**terms | {'n': terms['n'] ** (1 / terms['alpha']), 'd': terms['d'] ** (1 / terms['beta'])})


CHINCHILLA_REFIT = ChinchillaLaw(n=482.01, alpha=0.3478, d=2085.43, beta=0.3658, epsilon=1.8172)
"""The runs of Chinchilla's figure 4 fitted anew: Besiroglu et al., Chinchilla scaling: a replication attempt (arXiv
2404.10102). Prefer it."""

CHINCHILLA_AS_FIRST_PUBLISHED = ChinchillaLaw(n=406.4, alpha=0.34, d=410.7, beta=0.28, epsilon=1.69)
"""Hoffmann et al., equation (10), which was shown not to describe their own runs, with intervals too narrow to be true
(arXiv 2404.10102): for comparison with what has been computed from it."""

PUBLISHED_KAPLAN = KaplanLaw(n=6.4e13, alpha=0.076, d=1.8e13, beta=0.103)

PUBLISHED_OUTER_EXPONENT = OuterExponentLaw(n=1.52e5, alpha=0.589, d=5.25e5, beta=0.544, epsilon=1.35, gamma=0.274)
"""Of Llamas of 30 to 200M weights, embeddings apart, on C4, 25 to 800 tokens a weight: Castro et al., Quartet (arXiv
2505.14669), table 6."""
