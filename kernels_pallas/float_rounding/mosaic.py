"""Rounding as one kernel, for GPUs of compute capability 9.x and 10.x: Pallas by way of Mosaic GPU."""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.jax_internals import mosaic_load
from kernels_pallas.mosaic_kernel import mosaic_kernel, store
from kernels_pallas.rounding_on_bits import fast_round_to_representable

THREADS = 128  # of a program
TILE = 2048  # values a program: 16 a thread, loaded four at a time


def round_to_representable(
    x: jax.Array, random_bits: jax.Array | None = None, *, interpret: bool = False, **options
) -> jax.Array:
    """The bits of `rounding_on_bits.round_to_representable`; arguments as of the kernel in `triton.py`."""
    if not x.size:
        return x
    size = max(x.size, THREADS)
    inputs = [array.reshape(-1) for array in ([x] if random_bits is None else [x, random_bits])]
    inputs = [jnp.pad(array, (0, size - x.size)) for array in inputs]
    tile = min(TILE, 1 << (size.bit_length() - 1))
    layout = plgpu.Layout.WG_STRIDED((tile,), math.gcd(size, tile // THREADS, 4))

    def kernel(*refs):
        # None lies beyond the end: the last values are two programs', which write the same.
        here = pl.ds(jnp.minimum(jax.lax.axis_index('tile') * tile, size - tile), tile)
        *inputs, output = (ref.at[here] for ref in refs)
        values, *bits = (mosaic_load(ref, layout=layout) for ref in inputs)
        store(output, fast_round_to_representable(values, *bits or [None], **options))

    rounded = mosaic_kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((size,), jnp.float32),
        grid=(pl.cdiv(size, tile),),
        grid_names=('tile',),
        kernel_name=f'round_{options["rounding"]}',
        interpret=interpret,
    )(*inputs)
    return rounded[: x.size].reshape(x.shape)
