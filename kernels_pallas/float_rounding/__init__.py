"""Simulated casts on arrays: rounding to the numbers of a format that arrives as plain numbers."""

import jax

from kernels_pallas import implementations
from kernels_pallas.float_rounding import xla
from kernels_pallas.float_rounding.partitioning import on_any_mesh
from kernels_pallas.float_rounding.xla import ROUNDINGS, power_of_two_scale, round_in_kernel, round_to_dtype

__all__ = ['ROUNDINGS', 'power_of_two_scale', 'round_in_kernel', 'round_to_dtype', 'round_to_grid']


def round_to_grid(
    x: jax.Array,
    random_bits: jax.Array | None = None,
    *,
    mantissa_bits: int,
    min_exponent: int,
    largest: float,
    overflow: float | None = None,
    rounding: str = 'nearest_even',
    implementation: str | None = None,
) -> jax.Array:
    """x rounded to a grid: arguments and result of `xla.round_to_grid`, by any implementation.

    None is 'xla' everywhere: XLA fuses a cast with what is before and after it into one pass over memory, and a kernel
    would stand in the way of that. No gradient goes through any of them.

    Raises:
      ValueError: if there is no such implementation, or if it can't run here, saying why; for more values than a kernel
        can count.
    """
    how = dict(
        mantissa_bits=mantissa_bits, min_exponent=min_exponent, largest=largest, overflow=overflow, rounding=rounding
    )
    name = 'xla' if implementation is None else implementations.check(implementation)
    if name == 'xla':
        return xla.round_to_grid(x, random_bits, **how)
    kernels, interpret = implementations.load(__name__, name)
    arrays = [jax.lax.stop_gradient(x)] if random_bits is None else [jax.lax.stop_gradient(x), random_bits]
    run = on_any_mesh(kernels.round_to_grid, len(arrays), has_effects=name == 'mosaic_interpret', **how, **interpret)
    return run(*arrays)
