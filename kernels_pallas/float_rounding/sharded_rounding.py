"""Rounding on sharded arrays: each device rounds its own shard, and nothing is gathered."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from kernels_pallas.partitioning import partitioned, vary_alike, vary_as

MOST_VALUES = 2**31 - 1  # their indices are of 32 bits


@functools.cache
def on_any_mesh(kernel: Callable, operands: int, *, has_effects: bool, **options) -> Callable:
    """`kernel(*arrays, **options)`, sharded or not, mapped or not, of so many arrays of one shape, its result's too.

    Each value is for itself: shards may be any, as long as all arrays are cut alike. Under `jax.vmap`, the mapped axis
    is one more. Of `has_effects`, see `partitioned`.

    Raises:
      ValueError: when called with more values than a kernel can count.
    """

    def on_device(*arrays):
        if arrays[0].size > MOST_VALUES:
            raise ValueError(
                f'a kernel rounds at most {MOST_VALUES:,} values at a time, and x has {arrays[0].size:,}; leave'
                " implementation at None, or give 'xla', which takes any number"
            )
        arrays = vary_alike(arrays)
        return vary_as(arrays[0], kernel(*arrays, **options))

    def partition(mesh, arrays, result):
        return mesh, on_device, arrays[0].sharding, (arrays[0].sharding,) * operands

    rule = f'{", ".join(["..."] * operands)} -> ...'
    mappable = custom_vmap(partitioned(on_device, partition, has_effects=has_effects, sharding_rule=rule))

    @mappable.def_vmap
    def map_values(size, mapped, *arrays):
        arrays = (x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, is_mapped in zip(arrays, mapped))
        return mappable(*arrays), True

    return jax.jit(mappable)
