"""Kernels on sharded arrays: each device samples its own shard, and nothing is gathered.

Blocks are independent, and XLA's partitioner is told so: leading axes and blocks may be sharded in any way, the 32 rows
and columns of a block not at all. Where a device's blocks lie is read from `row_block` and `column`, which are sharded
as the weights are. Under `jax.vmap`, the mapped axis becomes one more leading axis.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.sharding import AbstractMesh

from kernels_pallas import jax_internals
from kernels_pallas.partitioning import partitioned, vary_alike, vary_as
from kernels_pallas.weight_sampling.noise import GROUP_ROWS

FORWARD = '... p, m, n c, ... m r n c, ... m n -> ... m r n c, ... m n'
BACKWARD = '... p, m, n c, ... m r n c -> ... m n'
MOST_PROGRAMS = 2**16 - 1  # of a launch along its second and third axes, which are rows of blocks and matrices


def fits_a_launch(matrices: int, rows: int) -> bool:
    """Whether a kernel can sample so many matrices of so many rows."""
    return max(matrices, -(-rows // GROUP_ROWS)) <= MOST_PROGRAMS


@functools.cache
def on_any_mesh(kernel: Callable, sharding_rule: str, *, has_effects: bool, **options) -> Callable:
    """`kernel(place, row_block, column, weights[, scale], **options)`, sharded or not, mapped or not.

    Args:
      kernel: the forward or backward of weights of one leading axis, see `triton.py`.
      sharding_rule: FORWARD or BACKWARD.
      has_effects: see `partitioned`.
      **options: its other arguments, hashable.

    Returns:
      A function of place (..., 5), weights (..., m, n) and scale (..., m / 32, n / 32) of any leading axes. It raises
      ValueError for more matrices or rows than a launch can have.
    """

    def on_device(*arguments):
        place, row_block, column, weights, *scale = vary_alike(arguments)
        *leading, m, _, n, _ = weights.shape
        matrices = weights.reshape(-1, m * GROUP_ROWS, n * GROUP_ROWS)
        if not fits_a_launch(*matrices.shape[:2]):
            raise ValueError(
                f'a kernel samples at most {MOST_PROGRAMS:,} matrices of at most {GROUP_ROWS * MOST_PROGRAMS:,} rows at'
                f" a time, and these are {matrices.shape}; implementation='xla' samples any"
            )
        flat = lambda x, axes: x.reshape(-1, *x.shape[x.ndim - axes :])
        scale = (flat(x, 2) for x in scale)
        results = kernel(flat(place, 1), row_block, column.reshape(-1), matrices, *scale, **options)
        by_block = lambda x: x.reshape(*leading, m, n) if x.shape[1:] == (m, n) else x.reshape(weights.shape)
        return vary_as(weights, jax.tree.map(by_block, results))

    def on_one_of_many(*arguments):
        device = jax.sharding.get_abstract_mesh().abstract_device
        with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):  # without explicit axes
            return on_device(*arguments)

    def partition(mesh, arguments, results):
        weights = arguments[3]
        *leading, m, _, n, _ = range(len(weights.shape))
        like = _sharded_as(weights)
        by_block, by_weight = like(*leading, m, n), like(*leading, m, None, n, None)
        inputs = like(*leading, None), like(m), like(n, None), by_weight, *[by_block] * len(arguments[4:])
        outputs = jax.tree.map(lambda x: by_weight if len(x.shape) == len(weights.shape) else by_block, results)
        return mesh, on_one_of_many, outputs, inputs

    rule = dict(
        sharding_rule=sharding_rule,
        need_replication_factors=('p', 'c', 'r'),  # in the order in which the rules name them
        decode_shardings=False,  # for JAX can't name a part of a mesh axis, which fewer blocks than devices are cut by
    )
    mappable = custom_vmap(partitioned(on_device, partition, has_effects=has_effects, **rule))

    @mappable.def_vmap
    def map_matrices(size, mapped, place, row_block, column, *arrays):
        map_all = lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
        arrays = map(map_all, arrays, mapped[3:])
        results = mappable(map_all(place, mapped[0]), row_block, column, *arrays)
        return results, jax.tree.map(lambda _: True, results)

    @jax.jit  # called as it is, what is partitioned would run on gathered arrays
    def on_blocks(*arguments):
        return mappable(*arguments)

    def run(place, weights, *scale):
        *leading, m, n = weights.shape
        row_block, column = np.arange(m // GROUP_ROWS, dtype=np.uint32), np.arange(n, dtype=np.uint32)  # constants
        blocks = weights.reshape(*leading, m // GROUP_ROWS, GROUP_ROWS, n // GROUP_ROWS, GROUP_ROWS)
        results = on_blocks(place, row_block, column.reshape(-1, GROUP_ROWS), blocks, *scale)
        return jax.tree.map(lambda x: x.reshape(weights.shape) if x.ndim == blocks.ndim else x, results)

    return run


def _sharded_as(weights: jax.ShapeDtypeStruct) -> Callable:
    """A function of axes of the weights, None for another, that gives the sharding of an array that has these axes."""
    sharding, ndim = weights.sharding, len(weights.shape)
    devices = jax_internals.device_tiles(sharding, ndim)
    if devices is None:
        return lambda *axes: sharding

    def like(*axes):
        axes = [axis if axis is not None and weights.shape[axis] % devices.shape[axis] == 0 else None for axis in axes]
        kept = [axis for axis in axes if axis is not None]
        cuts = [1 if axis is None else devices.shape[axis] for axis in axes]
        others = [axis for axis in range(devices.ndim) if axis not in kept]
        return jax_internals.tiled(sharding, ndim, devices.transpose(*kept, *others).reshape(*cuts, -1))

    return like
