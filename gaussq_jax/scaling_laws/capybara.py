"""The Capybara scaling law of floating-point quantized training, and what it says is best.

Source: Sun et al., Scaling laws for floating-point quantization training (arXiv 2501.02423): the law with the constants
of its table 2, and the optima that follow from it, here derived for block sizes that may depend on N and D.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import elementwise

from gaussq_jax.scaling_laws.inputs import BlockSizes, at_least, positive
from gaussq_jax.scaling_laws.law import PowerLaw, geometric_mean, log_uniform, random_penalty, random_terms

COST_PER_BIT = 6 / 16  # k in C = k N D P: 6 N D at 16 bits
LEAST_BITS, MOST_BITS = 2, 64  # of a format


class ComputeOptimal(NamedTuple):
    """What to train for a budget: parameters, tokens, bits, and the loss that the law predicts."""

    N: np.ndarray
    D: np.ndarray
    P: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class CapybaraLaw(PowerLaw):
    """The loss of training whose GEMM operands P2, P4 and P6 are floats of E exponent and M mantissa bits.

        L = n/N^alpha + d/D^beta + epsilon + (D^beta/N^alpha) log2(B) / (gamma (E+1/2)^delta (M+1/2)^nu)

    B values share a scale: a number, 'channel', which counts as log2 B = `log2_channel`, or 'tensor', which counts as
    log2 B = tensor_scale (D/N)^tensor_exponent and is known where it was fitted. B = 1 is no quantization.

    All methods take arrays that broadcast. Below, s = delta + nu, and

        g = gamma delta^delta nu^nu / s^s                      so that the best layout of P bits has the penalty
        q = (D^b / N^a) t / (g P^s)                            with, for a number or 'channel', t = log2 B, a = alpha,
                                                               b = beta; for 'tensor', t = tensor_scale,
                                                               a = alpha + tensor_exponent, b = beta + tensor_exponent.

    Training costs C = k N D P. The optima come from setting to zero the derivatives of L by ln N, ln D and ln P, under
    that constraint where there is one.

    Example:
      >>> law = PUBLISHED_CAPYBARA
      >>> law.loss(N=1e9, D=1e11, E=[4, 2], M=[3, 1], B=128).round(4)
      array([2.5631, 2.5979])
      >>> f'{law.critical_data_size(N=1e9, E=2, M=1, B=128):.2g} tokens'
      '3.9e+11 tokens'
    """

    gamma: float
    delta: float
    nu: float
    log2_channel: float = 13.1567
    tensor_scale: float | None = None
    tensor_exponent: float | None = None

    COLUMNS = ('N', 'D', 'E', 'M', 'B')

    def _loss(self, N, D, E, M, B):
        blocks, a, b = self._blocks(B)
        return self._unquantized(N, D) + blocks * D**b * N**-a / self._precision(E, M)

    def _precision(self, E, M):
        with np.errstate(over='ignore'):  # of constants that nothing determines: where it is infinite, rounding is free
            return self.gamma * (E + 0.5) ** self.delta * (M + 0.5) ** self.nu

    def critical_data_size(self, N: ArrayLike, E: ArrayLike, M: ArrayLike, B: ArrayLike | str) -> np.ndarray:
        """D past which more data raises the loss: dL/dD = 0. In tokens; infinite for B = 1.

            D_crit^(beta+b) = d beta gamma N^a (E+1/2)^delta (M+1/2)^nu / (b t)

        Source: as above, figure 16.
        """
        N, E, M = positive('N', N), at_least('E', E, 0), at_least('M', M, 0)
        blocks, a, b = self._blocks(B)
        with np.errstate(divide='ignore'):
            power = self.d * self.beta * self._precision(E, M) * N**a / (b * blocks)
        return power ** (1 / (self.beta + b))

    def optimal_layout(self, P: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Real E and M of least loss at P = 1 + E + M bits, whatever N, D and B.

            E = delta P / s - 1/2,  M = nu P / s - 1/2

        Source: as above, figure 15.
        """
        P = at_least('P', P, LEAST_BITS)
        share = self.delta / (self.delta + self.nu)
        return share * P - 0.5, (1 - share) * P - 0.5

    def best_format(self, P: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Whole E and M of least loss at P bits, P a whole number: the better neighbour of the real ones.

        (The penalty's logarithm is convex in E, so that no other can be better.)
        """
        P = at_least('P', P, LEAST_BITS)
        if wrong := P[(P % 1 != 0) | (P > MOST_BITS)].tolist():
            raise ValueError(f'P={wrong[0]:g} must be whole bits, at most {MOST_BITS}; optimal_layout takes others')
        below = np.clip(np.floor(self.optimal_layout(P)[0]), 0, P - 1)
        above = np.minimum(below + 1, P - 1)
        log_precision = [self.delta * np.log(E + 0.5) + self.nu * np.log(P - 1 - E + 0.5) for E in (below, above)]
        E = np.where(log_precision[1] > log_precision[0], above, below).astype(int)
        return E, P.astype(int) - 1 - E

    def optimal_precision_for_data(self, D: ArrayLike, B: ArrayLike | str) -> np.ndarray:
        """Real P of least loss for D tokens at a given cost; N takes what P leaves of it. No 'tensor'.

            P^s = (s - alpha) / (alpha g n) D^beta log2 B

        The cost is not in it: N^alpha stands in both of the terms that N and P trade.
        Source: as above, figure 17.
        """
        D, blocks = positive('D', D), BlockSizes.parse(B)
        if np.any(blocks.is_tensor):
            raise ValueError("B='tensor': the best precision depends on N, too; see compute_optimal")
        (s, g), t = self._s_and_g(), self._some_penalty(self._blocks(blocks)[0])
        self._check_trade(s, self.alpha)
        return ((s - self.alpha) / (self.alpha * g * self.n) * D**self.beta * t) ** (1 / s)

    def optimal_precision_for_model(
        self, N: ArrayLike, C: ArrayLike, B: ArrayLike | str, k: float = COST_PER_BIT
    ) -> np.ndarray:
        """Real P of least loss for N parameters at cost C; D takes what P leaves of it.

        P^(s+beta+b) = (s + b) t / (beta d g) (C/k)^(beta+b) / N^(a+beta+b)

        """
        N, C, k = positive('N', N), positive('C', C), positive('k', k)
        blocks, a, b = self._blocks(B)
        (s, g), t = self._s_and_g(), self._some_penalty(blocks)
        power = (s + b) * t / (self.beta * self.d * g) * (C / (k * N)) ** (self.beta + b) * N**-a
        return power ** (1 / (s + self.beta + b))

    def compute_optimal(self, C: ArrayLike, B: ArrayLike | str, k: float = COST_PER_BIT) -> ComputeOptimal:
        """N, D and real P of least loss at cost C.

            alpha n / N^alpha = (s - a) q,  beta d / D^beta = (s + b) q,  k N D P = C

        so that ln N, ln D and, by the definition of q, ln P are linear in ln q.
        Source: as above, figure 18.
        """
        C, k = positive('C', C), positive('k', k)
        blocks, a, b = self._blocks(B)
        (s, g), t = self._s_and_g(), self._some_penalty(blocks)
        self._check_trade(s, a)
        # Each is intercept + slope ln q.
        log_N = np.log((s - a) / (self.alpha * self.n)) / -self.alpha, -1 / self.alpha
        log_D = np.log((s + b) / (self.beta * self.d)) / -self.beta, -1 / self.beta
        log_P = (
            (np.log(t / g) + b * log_D[0] - a * log_N[0]) / s,
            (b * log_D[1] - a * log_N[1] - 1) / s,
        )
        intercept, slope = (N + D + P for N, D, P in zip(log_N, log_D, log_P))
        log_q = (np.log(C / k) - intercept) / slope
        N, D, P = (np.exp(start + rate * log_q) for start, rate in (log_N, log_D, log_P))
        loss = self._unquantized(N, D) + np.exp(log_q)
        return ComputeOptimal(*np.broadcast_arrays(N, D, P, loss))

    def compute_optimal_for_format(
        self, C: ArrayLike, E: ArrayLike, M: ArrayLike, B: ArrayLike | str, k: float = COST_PER_BIT
    ) -> ComputeOptimal:
        """N and D of least loss at cost C in one format, P = 1 + E + M; the root of dL/dlnN = dL/dlnD.

        B = 1 gives the optimum of training that is not quantized.
        """
        C, k, E, M = positive('C', C), positive('k', k), at_least('E', E, 0), at_least('M', M, 0)
        blocks, a, b = self._blocks(B)
        products = C / (k * (1 + E + M))
        K = blocks / (self.gamma * (E + 0.5) ** self.delta * (M + 0.5) ** self.nu)

        def difference(log_N, products, K, a, b):
            N, D = np.exp(log_N), products * np.exp(-log_N)
            q = K * D**b * N**-a
            return self.alpha * self.n * N**-self.alpha + (a + b) * q - self.beta * self.d * D**-self.beta

        arguments = np.broadcast_arrays(products, K, a, b)
        middle = np.log(arguments[0]) / 2
        with np.errstate(over='ignore'):  # far from the root, where the sign is what counts
            root = elementwise.find_root(
                difference,
                (middle - np.abs(middle) - 50, middle + np.abs(middle) + 50),
                args=tuple(arguments),
                tolerances=dict(xatol=1e-14, xrtol=1e-15),
            )
        if not np.all(root.success):
            raise ValueError(
                f'C={np.ravel(C)[0]:g}: the best N is beyond reach, as alpha={self.alpha:g} and beta={self.beta:g}'
            )
        log_N = root.x
        N, D = np.exp(log_N), arguments[0] * np.exp(-log_N)
        return ComputeOptimal(*np.broadcast_arrays(N, D, 1 + E + M, self.loss(N, D, E, M, B)))

    def precision_model_exchange(
        self, N: ArrayLike, P: ArrayLike, new_P: ArrayLike, B: ArrayLike | str = 'channel'
    ) -> np.ndarray:
        """The N for which new_P bits are best at the cost at which P bits are best for this N.

            P^(s+beta+b) N^(a+beta+b) = constant

        B matters only where it is 'tensor'.
        """
        N, P, new_P = positive('N', N), at_least('P', P, LEAST_BITS), at_least('new_P', new_P, LEAST_BITS)
        _, a, b = self._blocks(B)
        s, _ = self._s_and_g()
        return N * (P / new_P) ** ((s + self.beta + b) / (a + self.beta + b))

    def _blocks(self, B):
        """What stands for log2 B, and the powers of N and D beside it: t, a and b of the class."""
        blocks = BlockSizes.parse(B)
        t = blocks.log2 + self.log2_channel * blocks.is_channel
        if not np.any(blocks.is_tensor):
            return t, self.alpha, self.beta
        if self.tensor_scale is None or self.tensor_exponent is None:
            raise ValueError("B='tensor': this law does not know what it counts as; fit it to runs that have it")
        power = self.tensor_exponent * blocks.is_tensor
        return t + self.tensor_scale * blocks.is_tensor, self.alpha + power, self.beta + power

    def _s_and_g(self):
        s = self.delta + self.nu
        return s, np.exp(np.log(self.gamma) + sum(x * np.log(x) for x in (self.delta, self.nu)) - s * np.log(s))

    @staticmethod
    def _check_trade(s, a):
        if np.any(s <= a):
            raise ValueError(f'delta + nu = {s:g} is not above {np.max(a):g}: weights are worth more than bits, always')

    @staticmethod
    def _some_penalty(t):
        if not np.all(t > 0):
            raise ValueError('B=1 must be above 1: without a penalty the fewest bits are best')
        return t

    @classmethod
    def constants_of(cls, columns):
        """Without those of block sizes of which these runs say nothing."""
        blocks, unseen = columns['B'], set()
        if not (np.any(blocks.is_channel) and np.any(blocks.log2 > 0)):
            unseen.add('log2_channel')  # else gamma alone takes in what a channel counts as
        if not np.any(blocks.is_tensor):
            unseen |= {'tensor_scale', 'tensor_exponent'}
        return tuple(name for name in super().constants_of(columns) if name not in unseen)

    @classmethod
    def random(cls, rng, columns, loss):
        terms = random_terms(rng, columns, loss)
        delta, nu = log_uniform(rng, 0.5, 5.0), log_uniform(rng, 0.5, 5.0)
        middle = {name: geometric_mean(columns[name] + 0.5 * (name in 'EM')) for name in 'NDEM'}
        penalty = random_penalty(rng, loss)
        ratio = middle['D'] ** terms['beta'] / middle['N'] ** terms['alpha']
        gamma = ratio * 7 / (middle['E'] ** delta * middle['M'] ** nu * penalty)  # log2 B of 7 is common
        blocks = columns['B']
        tensor = dict(tensor_scale=log_uniform(rng, 3, 30), tensor_exponent=log_uniform(rng, 0.01, 0.3))
        return cls(**terms, gamma=gamma, delta=delta, nu=nu, **tensor if np.any(blocks.is_tensor) else {})


PUBLISHED_CAPYBARA = CapybaraLaw(
    n=69.2343, alpha=0.2368, d=68973.0621, beta=0.5162, epsilon=1.9061, gamma=11334.5197, delta=3.1926, nu=2.9543
)
