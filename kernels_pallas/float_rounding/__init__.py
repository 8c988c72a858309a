"""Simulated casts on arrays: rounding to the numbers of a format that arrives as plain numbers."""

from kernels_pallas.float_rounding.xla import (
    ROUNDINGS,
    power_of_two_scale,
    round_to_dtype,
    round_to_grid,
    round_to_nearest,
)

__all__ = ['ROUNDINGS', 'power_of_two_scale', 'round_to_dtype', 'round_to_grid', 'round_to_nearest']
