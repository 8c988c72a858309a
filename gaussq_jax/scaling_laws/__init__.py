"""Scaling laws of training, with its precision in them: the laws, their fit to runs, and what they say is best."""

from gaussq_jax.scaling_laws.capybara import PUBLISHED_CAPYBARA, CapybaraLaw, ComputeOptimal
from gaussq_jax.scaling_laws.determination import Determination
from gaussq_jax.scaling_laws.effective import PUBLISHED_QUARTET, EffectiveLaw
from gaussq_jax.scaling_laws.errors import ERRORS, Scatter, quantile_interval
from gaussq_jax.scaling_laws.fit_result import FitResult
from gaussq_jax.scaling_laws.fitting import fit, fit_capybara
from gaussq_jax.scaling_laws.held_out import HeldOut, compare, held_out_error, hold_out
from gaussq_jax.scaling_laws.law import PowerLaw, ScalingLaw
from gaussq_jax.scaling_laws.optima import Optimum, optimal_training
from gaussq_jax.scaling_laws.precision import PUBLISHED_QAT, BitwidthLaw, KumarLaw, KumarOperandsLaw, QATLaw
from gaussq_jax.scaling_laws.unquantized import (
    CHINCHILLA_AS_FIRST_PUBLISHED,
    CHINCHILLA_REFIT,
    PUBLISHED_KAPLAN,
    PUBLISHED_OUTER_EXPONENT,
    ChinchillaLaw,
    KaplanLaw,
    OuterExponentLaw,
)

__all__ = [
    'CHINCHILLA_AS_FIRST_PUBLISHED',
    'CHINCHILLA_REFIT',
    'ERRORS',
    'PUBLISHED_CAPYBARA',
    'PUBLISHED_KAPLAN',
    'PUBLISHED_OUTER_EXPONENT',
    'PUBLISHED_QAT',
    'PUBLISHED_QUARTET',
    'BitwidthLaw',
    'CapybaraLaw',
    'ChinchillaLaw',
    'ComputeOptimal',
    'Determination',
    'EffectiveLaw',
    'FitResult',
    'HeldOut',
    'KaplanLaw',
    'KumarLaw',
    'KumarOperandsLaw',
    'Optimum',
    'OuterExponentLaw',
    'PowerLaw',
    'QATLaw',
    'ScalingLaw',
    'Scatter',
    'compare',
    'fit',
    'fit_capybara',
    'held_out_error',
    'hold_out',
    'optimal_training',
    'quantile_interval',
]
