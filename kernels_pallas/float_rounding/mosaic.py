"""Rounding to a grid as one kernel, for NVIDIA GPUs from Hopper on: Pallas by way of Mosaic GPU. The bits are `xla.py`'s."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.float_rounding.xla import round_in_kernel
from kernels_pallas.weight_sampling.mosaic import _call, _load, _store_array

THREADS = 128
TILE = 2048  # values a program: 16 a thread, whose loads are 16 bytes wide


def round_to_grid(
    x: jax.Array, random_bits: jax.Array | None = None, *, interpret: bool = False, **grid
) -> jax.Array:
    if not x.size:
        return x
    inputs = [array.reshape(-1) for array in ([x] if random_bits is None else [x, random_bits])]
    if x.size < THREADS:
        inputs = [jnp.pad(array, (0, THREADS - x.size)) for array in inputs]
    size = inputs[0].size
    tile = min(TILE, 1 << (size.bit_length() - 1))
    layout = plgpu.Layout.WG_STRIDED((tile,), math.gcd(size, 4, tile // THREADS))

    def kernel(*refs):
        *inputs, output = refs
        here = pl.ds(jnp.minimum(jax.lax.axis_index('tile') * tile, size - tile), tile)
        values, *bits = (_load(ref.at[here], layout=layout) for ref in inputs)
        _store_array(output.at[here], round_in_kernel(values, *(bits or [None]), **grid))

    rounded = _call(
        kernel,
        grid=(pl.cdiv(size, tile),),
        out_type=jax.ShapeDtypeStruct((size,), jnp.float32),
        name=f'round_{grid["rounding"]}',
        interpret=interpret,
    )(*inputs)
    return rounded[: x.size].reshape(x.shape)
