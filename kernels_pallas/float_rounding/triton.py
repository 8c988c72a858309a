"""Rounding as one kernel, for NVIDIA GPUs from Ampere on: Pallas by way of Triton."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.rounding_on_bits import fast_round_to_representable

TILE = 2048  # values a program: 16 a thread, loaded four at a time


def round_to_representable(
    x: jax.Array, random_bits: jax.Array | None = None, *, tile: int = TILE, interpret: bool = False, **options
) -> jax.Array:
    """The bits of `rounding_on_bits.round_to_representable`.

    Args:
      x: float32 of any shape.
      random_bits: for stochastic rounding, uint32 or uint16 of x's shape.
      tile: the most values that a program takes, a power of two.
      interpret: run it step by step in XLA, on any platform.
      **options: the other arguments of `rounding_on_bits.round_to_representable`, all of them.
    """
    if not x.size:
        return x
    tile = min(tile, 1 << (x.size.bit_length() - 1))

    def kernel(*refs):
        # None lies beyond the end: the last values are two programs', which write the same.
        here = pl.ds(jnp.minimum(pl.program_id(0) * tile, x.size - tile), tile)
        *inputs, output = (ref.at[here] for ref in refs)
        values, *bits = (ref[...] for ref in inputs)
        output[...] = fast_round_to_representable(values, *bits or [None], **options)

    inputs = [x] if random_bits is None else [x, random_bits]
    rounded = pl.pallas_call(
        kernel,
        grid=pl.cdiv(x.size, tile),
        out_shape=jax.ShapeDtypeStruct((x.size,), jnp.float32, manual_axis_type=jax.typeof(x).manual_axis_type),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        name=f'round_{options["rounding"]}',
        interpret=interpret,
    )(*(array.reshape(-1) for array in inputs))
    return rounded.reshape(x.shape)
