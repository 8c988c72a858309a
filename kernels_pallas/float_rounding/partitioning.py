"""Kernels that take each value for itself, on sharded arrays: each device rounds its own shard, nothing is gathered."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning

from kernels_pallas.manual_axes import vary_alike


@functools.cache
def on_any_mesh(kernel: Callable, operands: int, *, has_effects: bool = False, **how) -> Callable:
    """`kernel(*arrays, **how)` of so many arrays of one shape, which its result has too; sharded or not, mapped or not.

    XLA's partitioner can't see into a kernel and would gather its operands: it is told that their shards may be any, as
    long as all are cut alike. Under `jax.vmap`, the mapped axis is one more. A kernel with side effects, as those
    of Mosaic's interpreter are, is for arrays of one device: others, of which it would make garbage, are refused.
    """

    def on_device(*arrays):
        return kernel(*vary_alike(arrays), **how)

    def partition(mesh, arrays, result):
        return mesh, on_device, arrays[0].sharding, (arrays[0].sharding,) * operands

    def refuse(mesh, arrays, result):
        raise NotImplementedError('this implementation takes no arrays of several devices')

    def after_refusal(*arrays):  # custom_partitioning admits no effects
        return on_device(on_devices(*arrays), *arrays[1:])

    on_devices = custom_partitioning((lambda *arrays: arrays[0]) if has_effects else on_device)
    on_devices.def_partition(
        refuse if has_effects else partition, sharding_rule=f'{", ".join(["..."] * operands)} -> ...'
    )
    mappable = custom_vmap(after_refusal if has_effects else on_devices)

    @mappable.def_vmap
    def map_values(size, mapped, *arrays):
        spread = (x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, is_mapped in zip(arrays, mapped))
        return mappable(*spread), True

    return jax.jit(mappable)
