"""Weight sampling as one kernel each way, for GPUs of compute capability 9.x and 10.x: Pallas by way of Mosaic GPU.

A program is four warps, whose threads keep all they need in registers. In the forward kernel a warp has one block, and
a thread four neighbouring columns of eight rows, four apart, which one Philox call a column serves: a row of float32 is
one line of 128 bytes, and the block's maximum takes five shuffles. In the backward kernel a warp has two blocks and a
thread 16 rows of its columns, so that fewer sums go between threads. The forward kernel reads W once and writes W_hat
and a step a block; the backward kernel reads dW_hat and writes a sum a block. The bits are those of `xla.py`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.jax_internals import mosaic_load
from kernels_pallas.mosaic_kernel import mosaic_kernel, store
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
GRID_NAMES = ('matrix', 'row', 'column')
COLUMNS = (2, 2, 2, 4)  # a block's, of which a thread has four; a sum halves one axis after the other


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """W_hat (l, m, n) in `dtype` and the blocks' steps (l, m / 32, n / 32): `xla.forward` for whole blocks of 32.

    Arguments as of the kernel in `triton.py`; `interpret` emulates the GPU, on any platform.
    """
    by_row = _by_row(w)
    m_blocks, n_blocks = by_row.shape[1], by_row.shape[5]
    tile = _Tile.of(n_blocks, rows=(2, 2), blocks_of_a_warp=1)
    decode = getattr(noise_bits, noise)

    def kernel(place, row_block, column, w, scale, w_hat, step):
        k, i, j = tile.position(n_blocks)
        rows = [tile.load(w.at[k, i, lane, :, :, j]).astype(jnp.float32) for lane in range(noise_bits.LANES)]
        order = functools.reduce(jnp.maximum, map(finite_order, rows))
        for axis in (6, 5, 4, 3, 1, 0):
            order = jnp.max(order, axis)
        absmax = magnitude_of(order)
        steps = block_step(absmax, tile.load(scale.at[k, i, j], 2), noise)
        store(step.at[k, i, j], steps)
        expand = lambda x: tile.expand(x, 2)
        lane_row = 2 * tile.index(0) + tile.index(1)
        words = _random_words(tile, place.at[k], row_block[i], column.at[j], lane_row)
        for lane, bits in enumerate(noise_bits.lanes(words)):
            sample = rows[lane] + decode(bits) * expand(steps)
            if representable is not None:
                sample = round_sampled(rows[lane], sample, absmax, representable, expand)
            store(w_hat.at[k, i, lane, :, :, j], sample.astype(dtype))

    w_hat, step = mosaic_kernel(
        kernel,
        grid=(w.shape[0], m_blocks, pl.cdiv(n_blocks, tile.blocks)),
        grid_names=GRID_NAMES,
        out_type=(jax.ShapeDtypeStruct(by_row.shape, dtype), jax.ShapeDtypeStruct(scale.shape, jnp.float32)),
        kernel_name=f'sample_weights_{noise}',
        interpret=interpret,
    )(place, row_block, column.reshape(n_blocks, *COLUMNS), by_row, scale)
    return w_hat.reshape(w.shape), step


def backward(
    place: jax.Array,
    row_block: jax.Array,
    column: jax.Array,
    dw_hat: jax.Array,
    *,
    noise: str,
    interpret: bool = False,
) -> jax.Array:
    """sum(dW_hat * R) over each block, float32 (l, m / 32, n / 32): `xla.backward`; arguments as of `forward`."""
    by_row = _by_row(dw_hat)
    l, m_blocks, n_blocks = by_row.shape[0], by_row.shape[1], by_row.shape[5]
    tile = _Tile.of(n_blocks, rows=(2,), blocks_of_a_warp=2)
    decode = getattr(noise_bits, noise)

    def kernel(place, row_block, column, dw_hat, sums):
        k, i, j = tile.position(n_blocks)
        halves = []  # for each half of the lane rows, of each part
        for half in range(2):
            words = _random_words(tile, place.at[k], row_block[i], column.at[j], tile.index(0) + jnp.uint32(2 * half))
            products = []  # for each lane, of each part
            for lane, bits in enumerate(noise_bits.lanes(words)):
                row = tile.load(dw_hat.at[k, i, lane, half, :, j])
                products.append([part * decode(bits) for part in exact_parts(row, noise)])
            halves.append([add_halves(part) for part in zip(*products)])
        totals = [_sum_between_threads(tile, add_halves(part)) for part in zip(*halves)]
        store(sums.at[k, i, j], functools.reduce(jnp.add, totals))

    return mosaic_kernel(
        kernel,
        grid=(l, m_blocks, pl.cdiv(n_blocks, tile.blocks)),
        grid_names=GRID_NAMES,
        out_type=jax.ShapeDtypeStruct((l, m_blocks, n_blocks), jnp.float32),
        kernel_name=f'sample_weights_{noise}_backward',
        interpret=interpret,
    )(place, row_block, column.reshape(n_blocks, *COLUMNS), by_row)


def _by_row(w: jax.Array) -> jax.Array:
    """(l, m, n) as (l, m / 32, lane, 2, 2, n / 32, 2, 2, 2, 4): an axis for all that a kernel tells apart."""
    l, m, n = w.shape
    return w.reshape(l, m // BLOCK_SIZE, noise_bits.LANES, 2, 2, n // BLOCK_SIZE, *COLUMNS)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Arrays (*rows, blocks, 2, 2, 2, 4) over the threads of a program: some rows of blocks side by side.

    A warp has all the rows of its blocks, over its lanes. What is too small for the four warps and 32 lanes, is in more
    than one of them.
    """

    rows: tuple[int, ...]
    blocks: int
    blocks_of_a_warp: int

    @classmethod
    def of(cls, n_blocks: int, *, rows: tuple[int, ...], blocks_of_a_warp: int) -> '_Tile':
        blocks = min(4 * blocks_of_a_warp, 1 << (n_blocks.bit_length() - 1))
        return cls(rows, blocks, min(blocks, blocks_of_a_warp))

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.rows, self.blocks, *COLUMNS)

    @property
    def layout(self) -> plgpu.Layout:
        of_a_warp = (*self.rows, self.blocks_of_a_warp, *COLUMNS)
        tiling, warps = (self.shape,), {}
        if self.blocks > self.blocks_of_a_warp:  # then an axis of warps, before those of a warp
            tiling = (self.shape, of_a_warp)
            warps = {-len(of_a_warp) - len(COLUMNS) - 1: self.blocks // self.blocks_of_a_warp}
        lanes = {axis - len(of_a_warp): size for axis, size in enumerate(of_a_warp[:-1]) if size > 1}
        return plgpu.Layout.TILED(plgpu.Tiling(tiling), _fill(4, warps), _fill(32, lanes), -1)

    def position(self, n_blocks: int) -> tuple[jax.Array, jax.Array, pl.Slice]:
        """The program's matrix, row of blocks and blocks; the last program's may be another's too, none is outside."""
        k, i, j = (jax.lax.axis_index(name) for name in GRID_NAMES)
        return k, i, pl.ds(jnp.minimum(j * self.blocks, n_blocks - self.blocks), self.blocks)

    def load(self, ref, *axes: int) -> jax.Array:
        """What has these axes of the tile; all of them if none is named."""
        others = tuple(axis for axis in range(len(self.shape)) if axis not in axes)
        return mosaic_load(ref, layout=self.layout.reduce(others) if axes else self.layout)

    def expand(self, x: jax.Array, *axes: int) -> jax.Array:
        """What has these axes of the tile, at each of its weights."""
        return plgpu.layout_cast(jax.lax.broadcast_in_dim(x, self.shape, axes), self.layout)

    def index(self, axis: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.uint32, self.shape, axis, layout=self.layout)


def _fill(threads: int, axes: dict[int, int]) -> tuple:
    """The axes, whose sizes are given, and how often they are repeated to be over so many threads."""
    repeated = threads // math.prod(axes.values())
    return (*axes, plgpu.Replicated(repeated)) if repeated > 1 else tuple(axes)


def _random_words(tile: _Tile, place, row_block, column, lane_row: jax.Array) -> Words4:
    k0, k1, leading, first_row_block, first_column = (place[i] for i in range(5))
    axes = range(len(tile.rows), len(tile.shape))
    column = tile.expand(first_column + tile.load(column, *axes), *axes)
    lane_row = (first_row_block + row_block) * noise_bits.LANE_ROWS + lane_row
    return noise_bits.random_words((k0, k1), column, lane_row, jnp.full(tile.shape, leading))


def _sum_between_threads(tile: _Tile, x: jax.Array) -> jax.Array:
    """(2, blocks, 2, 2, 2, 4) -> (blocks,), by halves; of a thread's own four, first the even and the odd ones."""
    for axis in (0, 1, 1, 1):
        x = jax.lax.optimization_barrier(jnp.sum(x, axis))  # interpreted, XLA would make one sum of them
    odd = plgpu.broadcasted_iota(jnp.uint32, x.shape, 1, layout=tile.layout.reduce((0, 2, 3, 4))) & jnp.uint32(1) == 1
    nothing = jnp.float32(-0.0)  # changes no number that it is added to
    return jnp.sum(jnp.where(odd, nothing, x), 1) + jnp.sum(jnp.where(odd, x, nothing), 1)
