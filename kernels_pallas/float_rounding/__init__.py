"""Simulated casts on arrays: rounding to the numbers of a format, by any implementation."""

import jax

from kernels_pallas import implementations, rounding_on_bits
from kernels_pallas.float_rounding.sharded_rounding import on_any_mesh
from kernels_pallas.rounding_on_bits import Representable


def round_to_representable(
    x: jax.Array,
    random_bits: jax.Array | None = None,
    *,
    representable: Representable,
    overflow: float | None = None,
    rounding: str = 'nearest_even',
    implementation: str | None = None,
) -> jax.Array:
    """Arguments and result of `rounding_on_bits.round_to_representable`, by any implementation.

    None is 'xla' everywhere: XLA fuses a cast with what is before and after it into one pass over memory, and a kernel
    would stand in the way of that. No gradient goes through any of them.

    Raises:
      ValueError: if there is no such implementation, or if it can't run here, saying why; for more values than a kernel
        can count.
    """
    options = dict(representable=representable, overflow=overflow, rounding=rounding)
    name = 'xla' if implementation is None else implementations.check(implementation)
    if name == 'xla':
        return rounding_on_bits.round_to_representable(x, random_bits, **options)
    kernel, interpret = implementations.load(__name__, name)
    options |= dict(has_effects=name == 'mosaic_interpret', **interpret)
    arrays = [jax.lax.stop_gradient(x)] if random_bits is None else [jax.lax.stop_gradient(x), random_bits]
    return on_any_mesh(kernel.round_to_representable, len(arrays), **options)(*arrays)
