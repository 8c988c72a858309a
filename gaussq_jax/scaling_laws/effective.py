"""What recipes of low precision are worth, in weights and tokens: how many of BF16's theirs count as."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

from gaussq_jax.scaling_laws.inputs import REFERENCE, Recipes
from gaussq_jax.scaling_laws.law import PowerLaw, log_uniform
from gaussq_jax.scaling_laws.unquantized import PUBLISHED_OUTER_EXPONENT, random_outer_terms


@dataclasses.dataclass(frozen=True)
class EffectiveLaw(PowerLaw):
    """L = (n / (f N)^alpha + d / (g D)^beta)^gamma + epsilon, with f = eff_N[forward] and g = eff_D[backward].

    N weights of a forward recipe count as f N, and D tokens of a backward recipe as g D. Both are 1 for 'bf16', and for
    '', a backward recipe that isn't told apart: f then takes in what the backward pass costs. So methods compare in one
    number, at every N and D. With gamma = 1, which `fit(EffectiveLaw, runs, fixed={'gamma': 1})` keeps, the rest is
    Chinchilla's law.

    Recipes have names of any kind, in which case doesn't count.

    Example:
      >>> law = gq.scaling_laws.PUBLISHED_QUARTET
      >>> law.loss(30e6, 3e9, ['bf16', 'MXFP4'], ['bf16', 'MXFP4']).round(2)
      array([3.21, 3.3 ])
      >>> law.constants()['eff_N[mxfp4]']
      0.65

    Source: Panferov et al., QuEST (arXiv 2502.05003); with eff_D, Castro et al., Quartet: native FP4 training can be
    optimal for large language models (arXiv 2505.14669), equation (1).
    """

    gamma: float
    eff_N: Mapping[str, float] = dataclasses.field(default_factory=dict)
    eff_D: Mapping[str, float] = dataclasses.field(default_factory=dict)

    COLUMNS = ('N', 'D', 'forward', 'backward')
    DEFAULTS: ClassVar = {'backward': ''}

    def __post_init__(self):
        for field in ('eff_N', 'eff_D'):
            factors = getattr(self, field)
            if not isinstance(factors, Mapping):
                raise ValueError(f'{field}={factors!r} must be a mapping from names of recipes to numbers')
            object.__setattr__(self, field, dict(zip(_recipes(field, tuple(factors)), factors.values())))
        super().__post_init__()

    @classmethod
    def constants_of(cls, columns):
        of_N, of_D = (columns[name].others for name in ('forward', 'backward'))
        names = [name for name in super().constants_of(columns) if name not in ('eff_N', 'eff_D')]
        return (*names, *(f'eff_N[{recipe}]' for recipe in of_N), *(f'eff_D[{recipe}]' for recipe in of_D))

    @classmethod
    def random(cls, rng, columns, loss):
        names = cls.constants_of(columns)
        factors = {name: log_uniform(rng, 0.3, 1.0) for name in names if name.endswith(']')}
        return cls.from_constants(random_outer_terms(rng, columns, loss) | factors)

    def _loss(self, N, D, forward, backward):
        N, D = N * forward.factors(self.eff_N), D * backward.factors(self.eff_D)
        return (self.n * N**-self.alpha + self.d * D**-self.beta) ** self.gamma + self.epsilon


@functools.lru_cache  # a search makes thousands of laws of the same recipes
def _recipes(field: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names as laws have them; ValueError for the reference, or one twice."""
    recipes = Recipes.parse(field, list(names)).names
    if REFERENCE in recipes or len(recipes) < len(names):
        told = ', '.join(map(repr, names))
        raise ValueError(f'{field} has {told}: it must have different recipes, none of which is {REFERENCE!r}')
    return recipes


PUBLISHED_QUARTET = EffectiveLaw(**PUBLISHED_OUTER_EXPONENT.constants(), eff_N={'mxfp4': 0.65}, eff_D={'mxfp4': 0.95})
"""Of Quartet's recipe: MXFP4 by QuEST in the forward pass, and rounded to nearest in the backward one; table 3."""
