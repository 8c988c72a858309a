"""Simulated casts on arrays: rounding to the numbers of a format that arrives as plain integers."""

from kernels_pallas.float_rounding.xla import ROUNDINGS, round_to_dtype, round_to_grid

__all__ = ['ROUNDINGS', 'round_to_dtype', 'round_to_grid']
