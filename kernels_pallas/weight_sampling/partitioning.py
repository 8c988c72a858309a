"""Kernels on sharded arrays: each device samples its own shard, and nothing is gathered.

Blocks are independent, and XLA's partitioner is told so: leading axes and blocks may be sharded in any way, the 32 rows
and columns of a block not at all. Where a device's blocks lie is read from `row_block` and `column`, which are sharded
as the weights are. Under `jax.vmap`, the mapped axis becomes one more leading axis.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels_pallas.partitioning import partitioned, vary_alike, vary_as
from kernels_pallas.weight_sampling.noise import GROUP_ROWS

FORWARD = '... p, m, (n c), ... (m r) (n c), ... m n -> ... (m r) (n c), ... m n'
BACKWARD = '... p, m, (n c), ... (m r) (n c) -> ... m n'


@functools.cache
def on_any_mesh(kernel: Callable, sharding_rule: str, *, has_effects: bool, **how) -> Callable:
    """`kernel(place, row_block, column, weights[, scale], **how)`, sharded or not, mapped or not.

    Args:
      kernel: the forward or backward of weights of one leading axis, see `triton.py`.
      sharding_rule: FORWARD or BACKWARD.
      has_effects: see `partitioned`.
      how: its other arguments, hashable.

    Returns:
      A function of place (..., 5), weights (..., m, n) and scale (..., m / 32, n / 32) of any leading axes.
    """

    def on_device(*arguments):
        place, row_block, column, weights, *scale = vary_alike(arguments)
        flat = lambda x, axes: x.reshape(-1, *x.shape[x.ndim - axes :])
        results = kernel(flat(place, 1), row_block, column, flat(weights, 2), *(flat(x, 2) for x in scale), **how)
        results = jax.tree.map(lambda x: x.reshape(*weights.shape[:-2], *x.shape[1:]), results)
        return vary_as(weights, results)

    def partition(mesh, arguments, results):
        leading, rows, columns = _whole_block_sharding(mesh, arguments[3])
        sharding = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
        by_matrix = sharding(*leading, rows, columns)  # of weights and of blocks
        inputs = [sharding(*leading, None), sharding(rows), sharding(columns), *[by_matrix] * len(arguments[3:])]
        return mesh, on_device, jax.tree.map(lambda _: by_matrix, results), tuple(inputs)

    rule = dict(
        sharding_rule=sharding_rule,
        need_replication_factors=('p', 'c', 'r'),  # in the order in which the rules name them
        r=GROUP_ROWS,
        c=GROUP_ROWS,
    )
    mappable = custom_vmap(partitioned(on_device, partition, has_effects=has_effects, **rule))

    @mappable.def_vmap
    def map_matrices(size, mapped, place, row_block, column, *arrays):
        spread = lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
        results = mappable(
            spread(place, mapped[0]), row_block, column, *(spread(*pair) for pair in zip(arrays, mapped[3:]))
        )
        return results, jax.tree.map(lambda _: True, results)

    def run(place, weights, *scale):
        m, n = weights.shape[-2:]
        row_block, column = np.arange(m // GROUP_ROWS, dtype=np.uint32), np.arange(n, dtype=np.uint32)  # constants
        return mappable(place, row_block, column, weights, *scale)

    return jax.jit(run)  # called as it is, what is partitioned would run on gathered arrays


def _whole_block_sharding(mesh: Mesh, weights: jax.ShapeDtypeStruct):
    """The mesh axes that weights keep: of each leading axis, of rows, of columns; all but those that cut a block."""
    spec = [*weights.sharding.spec, *[None] * len(weights.shape)][: len(weights.shape)]
    units = [1] * (len(spec) - 2) + [GROUP_ROWS] * 2

    def keep(axes, size, unit):
        names = (axes,) if isinstance(axes, str) else axes or ()
        return axes if size % (unit * math.prod(mesh.shape[name] for name in names)) == 0 else None

    *leading, rows, columns = map(keep, spec, weights.shape, units)
    return leading, rows, columns
