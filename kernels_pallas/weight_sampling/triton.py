"""Weight sampling as one kernel each way, for NVIDIA GPUs from Ampere on: Pallas by way of Triton.

A program takes `tile` blocks of one row of blocks: 32 rows of (tile, 32) weights, of which a thread holds the same few
columns. So the rows of a column, eight of which share a Philox call, meet in one thread, and only the last steps
of a reduction go between threads. The forward kernel reads W once and writes W_hat and a step a block; the
backward kernel reads dW_hat and writes a sum a block. The bits are those of the reference, `xla.py`.

What looks odd keeps Triton from moving values between threads: the columns are read from memory, as (tile, 32), because
a loaded array fixes which thread holds what, and what is computed from it follows.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.philox import Words4
from kernels_pallas.rounding_on_bits import Representable
from kernels_pallas.weight_sampling import noise as noise_bits
from kernels_pallas.weight_sampling.blocks import (
    add_halves,
    block_step,
    exact_parts,
    finite_order,
    magnitude_of,
    round_sampled,
)

BLOCK_SIZE = noise_bits.GROUP_ROWS
TILE = 4  # blocks a warp: four weights a thread and row, whose load is 16 bytes wide


def forward(
    place: jax.Array,
    row_block: jax.Array,
    column: jax.Array,
    w: jax.Array,
    scale: jax.Array,
    *,
    noise: str,
    dtype: jnp.dtype,
    representable: Representable | None = None,
    tile: int = TILE,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """W_hat (l, m, n) in `dtype` and the blocks' steps (l, m / 32, n / 32): `xla.forward` for whole blocks of 32.

    Args:
      place: uint32 (l, 5), for each matrix: the two words of its key, its leading index, the row (in blocks) and the
        column of its first weight.
      row_block: uint32 (m / 32,), added to the row of `place`: 0, 1, .. if w isn't a shard of something.
      column: uint32 (n,), added to its column.
      w: (l, m, n), float32 or bfloat16; m and n multiples of 32; l and m / 32 at most 65535, the limit of a launch.
      scale: float32 (l, m / 32, n / 32), 2^(1 - bitwidth).
      tile: the most blocks that a program takes, a power of two.
      interpret: run it step by step in XLA, on any platform.
    """
    weights, blocks, places, columns, launch = _launch(w.shape, tile)
    output = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(w).manual_axis_type)
    w_hat, step = pl.pallas_call(
        functools.partial(_forward_kernel, noise=noise, representable=representable),
        in_specs=[*places, columns, weights, blocks],
        out_specs=[weights, blocks],
        out_shape=[output(_by_block(w.shape), dtype), output(scale.shape, jnp.float32)],
        name=f'sample_weights_{noise}',
        interpret=interpret,
        **launch,
    )(place, row_block, column.reshape(-1, BLOCK_SIZE), w.reshape(_by_block(w.shape)), scale)
    return w_hat.reshape(w.shape), step


def backward(
    place: jax.Array,
    row_block: jax.Array,
    column: jax.Array,
    dw_hat: jax.Array,
    *,
    noise: str,
    tile: int = TILE,
    interpret: bool = False,
) -> jax.Array:
    """sum(dW_hat * R) over each block, float32 (l, m / 32, n / 32): `xla.backward`; arguments as of `forward`."""
    weights, blocks, places, columns, launch = _launch(dw_hat.shape, tile)
    shape = _by_block(dw_hat.shape)
    output = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(dw_hat).manual_axis_type)
    return pl.pallas_call(
        functools.partial(_backward_kernel, noise=noise),
        in_specs=[*places, columns, weights],
        out_specs=blocks,
        out_shape=output((shape[0], shape[1], shape[3]), jnp.float32),
        name=f'sample_weights_{noise}_backward',
        interpret=interpret,
        **launch,
    )(place, row_block, column.reshape(-1, BLOCK_SIZE), dw_hat.reshape(shape))


def _forward_kernel(
    place_ref, row_block_ref, column_ref, w_ref, scale_ref, w_hat_ref, step_ref, *, noise, representable
):
    rows = [w_ref[0, 0, row] for row in range(BLOCK_SIZE)]
    order = functools.reduce(jnp.maximum, (finite_order(row.astype(jnp.float32)) for row in rows))
    absmax = magnitude_of(jnp.max(order, axis=1))
    expand = lambda x: x[:, None]
    step = block_step(absmax, scale_ref[0, 0], noise)
    step_ref[0, 0] = step
    decode = getattr(noise_bits, noise)
    for lane_row in range(noise_bits.LANE_ROWS):
        words = _random_words(place_ref, row_block_ref, column_ref, lane_row)
        for lane, bits in enumerate(noise_bits.lanes(words)):
            row = lane * noise_bits.LANE_ROWS + lane_row
            w = rows[row].astype(jnp.float32)
            w_hat = w + decode(bits) * expand(step)
            if representable is not None:
                w_hat = round_sampled(w, w_hat, absmax, representable, expand)
            w_hat_ref[0, 0, row] = w_hat.astype(w_hat_ref.dtype)


def _backward_kernel(place_ref, row_block_ref, column_ref, dw_hat_ref, sums_ref, *, noise):
    decode = getattr(noise_bits, noise)
    sums = []  # for each part and lane row, one a column
    for lane_row in range(noise_bits.LANE_ROWS):
        words = _random_words(place_ref, row_block_ref, column_ref, lane_row)
        products = []  # for each lane, of each part
        for lane, bits in enumerate(noise_bits.lanes(words)):
            dw_hat = dw_hat_ref[0, 0, lane * noise_bits.LANE_ROWS + lane_row]
            products.append([part * decode(bits) for part in exact_parts(dw_hat, noise)])
        sums.append([add_halves(part) for part in zip(*products)])
    sums = [_sum_of_columns(add_halves(part)) for part in zip(*sums)]
    sums_ref[0, 0] = functools.reduce(jnp.add, sums)


def _launch(shape: tuple[int, int, int], tile: int):
    """How (l, m / 32, 32, n / 32, 32) weights, blocks, places and columns are cut for the programs, and these.

    The first axis of a grid runs fastest: programs that run together have neighbouring columns, whose rows are adjacent
    in memory.
    """
    l, m_blocks, _, n_blocks, _ = _by_block(shape)
    tile = math.gcd(n_blocks, tile)
    weights = pl.BlockSpec((1, 1, BLOCK_SIZE, tile, BLOCK_SIZE), lambda j, i, k: (k, i, 0, j, 0))
    blocks = pl.BlockSpec((1, 1, tile), lambda j, i, k: (k, i, j))
    places = [pl.BlockSpec((1, 5), lambda j, i, k: (k, 0)), pl.BlockSpec((1,), lambda j, i, k: (i,))]
    columns = pl.BlockSpec((tile, BLOCK_SIZE), lambda j, i, k: (j, 0))
    launch = dict(
        grid=(n_blocks // tile, m_blocks, l),
        compiler_params=plgpu.CompilerParams(num_warps=max(1, tile // TILE), num_stages=1),
    )
    return weights, blocks, places, columns, launch


def _by_block(shape: tuple[int, int, int]) -> tuple[int, ...]:
    l, m, n = shape
    return l, m // BLOCK_SIZE, BLOCK_SIZE, n // BLOCK_SIZE, BLOCK_SIZE


def _random_words(place_ref, row_block_ref, column_ref, lane_row: int) -> Words4:
    k0, k1, leading, first_row_block, first_column = (place_ref[0, i] for i in range(5))
    column = first_column + column_ref[...]
    lane_row = (first_row_block + row_block_ref[0]) * noise_bits.LANE_ROWS + lane_row
    return noise_bits.random_words((k0, k1), column, jnp.full_like(column, lane_row), jnp.full_like(column, leading))


def _sum_of_columns(x: jax.Array) -> jax.Array:
    """(tile, 32) -> (tile,), by halves: each sum is of two numbers, whose order is no matter."""
    while half := x.shape[1] // 2:
        x = jnp.add(*jax.lax.split(x, (half, half), axis=1))
    return x.reshape(x.shape[0])
