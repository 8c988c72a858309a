"""Scaling laws of training, with its precision in them: the laws, their fit to runs, and what they say is best."""

from gaussq_jax.scaling_laws.capybara import PUBLISHED_CAPYBARA, CapybaraLaw, ComputeOptimal
from gaussq_jax.scaling_laws.determination import Determination
from gaussq_jax.scaling_laws.errors import ERRORS, Scatter, quantile_interval
from gaussq_jax.scaling_laws.fit_result import FitResult
from gaussq_jax.scaling_laws.fitting import fit, fit_capybara
from gaussq_jax.scaling_laws.held_out import HeldOut, compare, held_out_error, hold_out
from gaussq_jax.scaling_laws.laws import (
    PUBLISHED_CHINCHILLA,
    PUBLISHED_KAPLAN,
    BitwidthLaw,
    ChinchillaLaw,
    KaplanLaw,
    KumarLaw,
    ScalingLaw,
)

__all__ = [
    'ERRORS',
    'PUBLISHED_CAPYBARA',
    'PUBLISHED_CHINCHILLA',
    'PUBLISHED_KAPLAN',
    'BitwidthLaw',
    'CapybaraLaw',
    'ChinchillaLaw',
    'ComputeOptimal',
    'Determination',
    'FitResult',
    'HeldOut',
    'KaplanLaw',
    'KumarLaw',
    'ScalingLaw',
    'Scatter',
    'compare',
    'fit',
    'fit_capybara',
    'held_out_error',
    'hold_out',
    'quantile_interval',
]
