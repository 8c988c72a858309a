"""What a scaling law is: a frozen dataclass of positive constants, whose loss takes arrays of numbers in float64.

N counts the weights of the linear layers; D tokens; P = 1 + E + M bits; the loss is in nats a token.
"""

import dataclasses
import functools
import inspect
import itertools
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from gaussq_jax.scaling_laws.inputs import positive, read_input
from gaussq_jax.scaling_laws.optima import MOST, minimize

RISE = 1e-9  # of a loss, that is more than what float64 makes of a constant


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """The constants of a law, and its loss: epsilon, which may be 0, and others, above 0.

    A law of one's own is a frozen dataclass that says in `COLUMNS` what its loss takes, and has its formula in `_loss`,
    which takes them as they are. Its fields are the constants: numbers, None where the law doesn't know one, or
    mappings from names to numbers, by default empty dicts, which count as constants such as 'eff_N[mxfp4]'.

    Attributes:
      COLUMNS: what the loss takes, in order: N and D, and what it knows of precision, or of anything else.
      DEFAULTS: what stands for columns that may be left out.
      STARTS: for constants between which numbers the search for them begins, at random in their logarithms.

    Example:
      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True)
      ... class RepeatingLaw(gq.scaling_laws.PowerLaw):
      ...     worth: float
      ...     COLUMNS = ('N', 'D', 'epochs')
      ...     STARTS = {'worth': (1.0, 100.0)}
      ...
      ...     def _loss(self, N, D, epochs):
      ...         return self._unquantized(N, D / epochs * (1 + self.worth * (1 - np.exp((1 - epochs) / self.worth))))
      >>> law = RepeatingLaw(n=482.0, alpha=0.348, d=2085.4, beta=0.366, epsilon=1.817, worth=15.0)
      >>> law.loss(1e9, 1e11, epochs=[1, 4, 40]).round(3)
      array([2.369, 2.374, 2.455])
    """

    COLUMNS: ClassVar[tuple[str, ...]]
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    STARTS: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __post_init__(self):
        for name, value in self.constants().items():
            may_be_0 = name == 'epsilon'
            is_number = isinstance(value, (float, numbers.Real))  # the first of which is fast to tell
            if not (is_number and 0 <= value < np.inf and (value or may_be_0)):
                allowed = 'at least 0' if may_be_0 else 'above 0'
                raise ValueError(f'{type(self).__name__}.{name}={value!r} must be a finite number {allowed}')

    def loss(self, *inputs: Any, **named: Any) -> np.ndarray:
        """The loss: the formula of the class, of its `COLUMNS` in their order or by name, in arrays that broadcast.

        Raises:
          ValueError: for an impossible number, block size or recipe.
          TypeError: for an input that is missing, or that the law doesn't take.
        """
        bound = self._signature().bind(*inputs, **named)
        bound.apply_defaults()
        return self._loss(*itertools.starmap(read_input, bound.arguments.items()))

    def _loss(self, *columns: Any) -> np.ndarray:
        raise NotImplementedError

    @classmethod
    @functools.cache
    def _signature(cls):
        kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        return inspect.Signature([inspect.Parameter(c, kind, default=cls.DEFAULTS.get(c, none)) for c in cls.COLUMNS])

    @classmethod
    def title(cls) -> str:
        """'Capybara' of a CapybaraLaw."""
        return cls.__name__.removesuffix('Law')

    def constants(self) -> dict[str, float]:
        """The constants by name, without those that the law does not know; of a mapping, as 'eff_N[mxfp4]'."""
        constants = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                constants |= {f'{field.name}[{key}]': factor for key, factor in value.items()}
            elif value is not None or field.default is not None:
                constants[field.name] = value
        return constants

    @classmethod
    def from_constants(cls, constants: Mapping[str, float]) -> Self:
        """The law of what `constants` gives.

        Raises:
          TypeError: for a constant that is missing, or that the law hasn't.
        """
        fields = {}
        for name, value in constants.items():
            field, bracket, key = name.partition('[')
            if bracket and field not in cls.mappings():
                raise TypeError(f'{cls.__name__} has no constant {name!r:.80}')
            if bracket:
                fields.setdefault(field, {})[key.removesuffix(']')] = value
            else:
                fields[field] = value
        return cls(**fields)

    @classmethod
    @functools.cache
    def mappings(cls) -> frozenset[str]:
        """The fields that are mappings from names to constants."""
        return frozenset(field.name for field in dataclasses.fields(cls) if field.default_factory is dict)

    def replace(self, **constants: float) -> Self:
        """The law with other values of these constants, which are named as by `constants`."""
        return self.from_constants(self.constants() | constants)

    @classmethod
    def constants_of(cls, columns: Mapping[str, Any]) -> tuple[str, ...]:
        """The constants that a fit to runs with these columns looks for: all that they can tell of."""
        del columns
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def random(cls, rng: np.random.Generator, columns: Mapping[str, Any], loss: np.ndarray) -> Self:
        """A law to start a fit of these runs from: constants between `STARTS`, and epsilon below the least loss.

        Raises:
          ValueError: for a constant that `STARTS` doesn't have, or between what are no numbers above 0.
        """
        return cls._random_between(rng, columns, {'epsilon': float(loss.min() * rng.uniform())})

    @classmethod
    def _random_between(cls, rng, columns, known):
        """A law of known constants, and others between `STARTS`."""
        for name, ends in cls.STARTS.items():
            if np.shape(ends) != (2,) or not 0 < ends[0] <= ends[1] < np.inf:
                raise ValueError(f'{cls.__name__}.STARTS[{name!r}]={ends!r} must be two numbers, 0 < least <= greatest')
        starts = {name: log_uniform(rng, *ends) for name, ends in cls.STARTS.items()} | known
        names = cls.constants_of(columns)
        if missing := [name for name in names if name not in starts]:
            raise ValueError(f'{cls.__name__}.STARTS has no {missing[0]!r}, where a search for it is to begin')
        return cls.from_constants({name: starts[name] for name in names})

    def critical_data_size(self, N: ArrayLike, **inputs: Any) -> np.ndarray:
        """D past which more data raises the loss, in tokens: D of least loss for N; infinite where it never rises.

        Args:
          N: weights.
          **inputs: what the law takes besides N and D, by name.
        """
        N = positive('N', N)
        loss = lambda D: self.loss(N=N, D=D, **inputs)
        D = minimize(loss, 1.0, MOST)
        return np.where(loss(MOST) > loss(D) * (1 + RISE), D, np.inf)


@dataclasses.dataclass(frozen=True)
class PowerLaw(ScalingLaw):
    """A law with the terms n / N^alpha + d / D^beta + epsilon, which `_unquantized` gives."""

    n: float
    alpha: float
    d: float
    beta: float
    epsilon: float

    def _unquantized(self, N, D):
        return self.n * N**-self.alpha + self.d * D**-self.beta + self.epsilon

    @classmethod
    def random(cls, rng, columns, loss):
        """Random exponents, terms of the size of the losses, and other constants between `STARTS`."""
        return cls._random_between(rng, columns, random_terms(rng, columns, loss))


def random_terms(rng: np.random.Generator, columns: Mapping[str, Any], loss: np.ndarray) -> dict[str, float]:
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
