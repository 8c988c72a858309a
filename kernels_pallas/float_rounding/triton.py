"""Rounding to a grid as one kernel, for NVIDIA GPUs from Ampere on: Pallas by way of Triton. The bits are `xla.py`'s."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.float_rounding.xla import round_in_kernel

TILE = 2048  # values a program: 16 a thread, whose loads are 16 bytes wide


def round_to_grid(
    x: jax.Array, random_bits: jax.Array | None = None, *, tile: int = TILE, interpret: bool = False, **grid
) -> jax.Array:
    """`xla.round_to_grid`, all its arguments given.

    Args:
      x: float32 of any shape.
      random_bits: as there.
      tile: the most values that a program takes, a power of two.
      interpret: run it step by step in XLA, on any platform.
      **grid: mantissa_bits, min_exponent, largest, overflow, rounding.
    """
    if not x.size:
        return x
    tile = min(tile, 1 << (x.size.bit_length() - 1))

    def kernel(*refs):
        *inputs, output = refs
        # The last values may be another program's too: both write the same, and none is beyond the end.
        here = pl.ds(jnp.minimum(pl.program_id(0) * tile, x.size - tile), tile)
        values, *bits = (ref[here] for ref in inputs)
        output[here] = round_in_kernel(values, *(bits or [None]), **grid)

    inputs = [x] if random_bits is None else [x, random_bits]
    rounded = pl.pallas_call(
        kernel,
        grid=pl.cdiv(x.size, tile),
        out_shape=jax.ShapeDtypeStruct((x.size,), jnp.float32, manual_axis_type=jax.typeof(x).manual_axis_type),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        name=f'round_{grid["rounding"]}',
        interpret=interpret,
    )(*(array.reshape(-1) for array in inputs))
    return rounded.reshape(x.shape)
