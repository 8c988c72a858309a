"""Laws of the precision of training, and of what is rounded after it."""

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from gaussq_jax.scaling_laws.inputs import BlockSizes, positive, positive_or_infinite
from gaussq_jax.scaling_laws.law import PowerLaw, geometric_mean, log_uniform, random_penalty, random_terms


@dataclasses.dataclass(frozen=True)
class KumarLaw(PowerLaw):
    """L(N, D, P) = n / N_eff^alpha + d / D^beta + epsilon, with N_eff = N (1 - exp(-P / gamma)).

    Weights, activations and gradients have P bits alike.

    Example:
      >>> law = gq.scaling_laws.KumarLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=2.0)
      >>> law.loss(1e9, 1e11, P=[4, 8, 16]).round(3)
      array([2.579, 2.563, 2.561])

    Source: Kumar et al., Scaling laws for precision (arXiv 2411.04330), with one sensitivity for all operands.
    """

    gamma: float

    COLUMNS = ('N', 'D', 'P')
    STARTS: ClassVar = {'gamma': (0.3, 5.0)}

    def _loss(self, N, D, P):
        return self._unquantized(N * -np.expm1(-P / self.gamma), D)


@dataclasses.dataclass(frozen=True)
class BitwidthLaw(PowerLaw):
    """L(N, D, b) = n / N^alpha + d / D^beta + epsilon + (D^beta / N^alpha) / (gamma b^kappa).

    The Capybara law for pseudo-quantization: the bitwidth b of a weight's block stands where exponent and mantissa bits
    do. Blocks are of one size, whose logarithm gamma takes in. b = inf is not quantized.

    Example:
      >>> laws = gq.scaling_laws
      >>> law = laws.BitwidthLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=1e5, kappa=3.0)
      >>> law.loss(1e9, 1e11, b=[2.0, 4.0, 8.0]).round(3)
      array([2.565, 2.561, 2.561])
    """

    gamma: float
    kappa: float

    COLUMNS = ('N', 'D', 'b')

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


@dataclasses.dataclass(frozen=True)
class KumarOperandsLaw(PowerLaw):
    """L = n / N_eff^alpha + d / D^beta + epsilon + what rounding after training adds; each operand has bits of its own.

        N_eff = N (1 - exp(-P_w / gamma_w)) (1 - exp(-P_a / gamma_a)) (1 - exp(-P_kv / gamma_kv))
        added = post (D^post_D / N_eff^post_N) exp(-P_post / post_gamma) product of [1 - exp(-post_x (P_x - P_post))]

    over x in w, a and kv: weights, activations, and the cache of keys and values are trained in P_w, P_a and P_kv bits,
    and weights are then rounded to P_post. inf is not rounded, and the default of P_post. A factor of the product is 0
    where P_x is at most P_post: nothing is rounded. Constants of `post…` are known where runs have a finite P_post.

    There are no published constants here: the paper's table has none for post_x, and offsets in the exponents that its
    formula has not.

    Example:
      >>> law = gq.scaling_laws.KumarOperandsLaw(
      ...     n=4299.0, alpha=0.4965, d=18060.0, beta=0.4965, epsilon=2.7648, gamma_w=2.7, gamma_a=2.2, gamma_kv=1.0
      ... )
      >>> law.loss(2.2e8, 2.6e10, P_w=[4, 8, 16], P_a=16, P_kv=16).round(3)
      array([3.239, 3.205, 3.197])

    Source: Kumar et al., Scaling laws for precision (arXiv 2411.04330), equations (3), (4), (8), (9) and (11).
    """

    gamma_w: float
    gamma_a: float
    gamma_kv: float
    post: float | None = None
    post_D: float | None = None
    post_N: float | None = None
    post_gamma: float | None = None
    post_w: float | None = None
    post_a: float | None = None
    post_kv: float | None = None

    COLUMNS = ('N', 'D', 'P_w', 'P_a', 'P_kv', 'P_post')
    DEFAULTS: ClassVar = {'P_post': np.inf}
    STARTS: ClassVar = {
        **dict.fromkeys(('gamma_w', 'gamma_a', 'gamma_kv'), (0.3, 5.0)),
        'post': (1e-3, 1e3),
        'post_D': (0.05, 1.0),
        'post_N': (0.05, 1.0),
        'post_gamma': (0.3, 3.0),
        **dict.fromkeys(('post_w', 'post_a', 'post_kv'), (0.1, 3.0)),
    }

    def _loss(self, N, D, P_w, P_a, P_kv, P_post):
        trained = {'w': P_w, 'a': P_a, 'kv': P_kv}
        N = N * np.prod(
            np.broadcast_arrays(*(-np.expm1(-P / getattr(self, f'gamma_{x}')) for x, P in trained.items())), axis=0
        )
        loss = self._unquantized(N, D)
        if np.all(np.isinf(P_post)):
            return loss + np.zeros_like(P_post)
        if self.post is None:
            raise ValueError('P_post: the law does not know what rounding after training adds; fit it to runs that say')
        added = self.post * D**self.post_D * N**-self.post_N * np.exp(-P_post / self.post_gamma)
        for x, P in trained.items():
            with np.errstate(invalid='ignore'):  # inf - inf
                beyond = np.nan_to_num(P - P_post, nan=0.0, posinf=np.inf, neginf=0.0)
            added = added * -np.expm1(-getattr(self, f'post_{x}') * np.maximum(beyond, 0))
        return loss + added

    @classmethod
    def constants_of(cls, columns):
        """Those of rounding after training where runs were rounded."""
        is_rounded = np.any(np.isfinite(columns['P_post']))
        return tuple(name for name in super().constants_of(columns) if is_rounded or not name.startswith('post'))


@dataclasses.dataclass(frozen=True)
class QATLaw(PowerLaw):
    """L = n / N^alpha + d / D^beta + epsilon + k D^gamma_D (log2 B)^gamma_B / N^gamma_N, of one choice of bits.

    B values share a scale: a number; the channel's or the tensor's size where one of these does. B = 1 stands for no
    quantization. The paper calls it G.

    Example:
      >>> law = gq.scaling_laws.PUBLISHED_QAT['w4a4']
      >>> (law.loss(595e6, 100e9, B=[32, 128, 256]) - law.loss(595e6, 100e9, B=1)).round(4)
      array([0.0441, 0.0573, 0.0635])

    Source: Chen et al., Scaling law for quantization-aware training (arXiv 2505.14302), equations (4) and (5).
    """

    k: float
    gamma_D: float
    gamma_N: float
    gamma_B: float

    COLUMNS = ('N', 'D', 'B')

    def _loss(self, N, D, B):
        return self._unquantized(N, D) + self._penalty(N, B) * D**self.gamma_D

    def _penalty(self, N, B):
        if np.any(B.is_channel | B.is_tensor):
            raise ValueError("B='channel' or 'tensor': this law takes the number of values that share a scale")
        return self.k * B.log2**self.gamma_B * N**-self.gamma_N

    def critical_data_size(self, N: ArrayLike, B: ArrayLike) -> np.ndarray:
        """D past which more data raises the loss, infinite for B = 1.

        D_crit^(beta + gamma_D) = beta d N^gamma_N / (gamma_D k (log2 B)^gamma_B)
        """
        penalty = self._penalty(positive('N', N), BlockSizes.parse(B))
        with np.errstate(divide='ignore'):
            return (self.beta * self.d / (self.gamma_D * penalty)) ** (1 / (self.beta + self.gamma_D))

    @classmethod
    def random(cls, rng, columns, loss):
        gamma_D, gamma_N, gamma_B = (log_uniform(rng, 0.02, 1.0) for _ in range(3))
        middle = geometric_mean(columns['N']) ** -gamma_N * geometric_mean(columns['D']) ** gamma_D
        k = random_penalty(rng, loss) / (middle * max(float(np.mean(columns['B'].log2)), 1.0) ** gamma_B)
        return cls(**random_terms(rng, columns, loss), k=k, gamma_D=gamma_D, gamma_N=gamma_N, gamma_B=gamma_B)


_QAT_TERMS = dict(n=237.7042, alpha=0.3022, d=596.2490, beta=0.3022, epsilon=1.9279)
PUBLISHED_QAT = {
    'w4a4': QATLaw(**_QAT_TERMS, k=0.1582, gamma_N=0.2186, gamma_D=0.0745, gamma_B=0.7779),
    'w4a16': QATLaw(**_QAT_TERMS, k=0.2522, gamma_N=0.3589, gamma_D=0.1610, gamma_B=0.3533),
    'w16a4': QATLaw(**_QAT_TERMS, k=0.1004, gamma_N=0.1816, gamma_D=0.0331, gamma_B=0.9812),
}
"""Of INT4 weights, activations or both, as published in table 1: of 74 to 595M weights on 10 to 100B tokens."""
