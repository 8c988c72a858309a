"""Kernels on the arrays of several devices: XLA's partitioner can't see into them, and would gather their operands."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning


def partitioned(function: Callable, partition: Callable, *, has_effects: bool = False, **rule) -> Callable:
    """`function`, partitioned as `partition` and `rule` say: those of the `def_partition` of `custom_partitioning`.

    That admits no function with side effects, as Mosaic's interpreter has. One of those is left as it is, for arrays of
    one device: of others XLA would make garbage, and they are refused.
    """
    if not has_effects:
        on_devices = custom_partitioning(function)
        on_devices.def_partition(partition, **rule)
        return on_devices

    def refuse(mesh, arrays, result):
        raise NotImplementedError('this implementation takes no arrays of several devices')

    of_one_device = custom_partitioning(lambda x: x)
    of_one_device.def_partition(refuse, sharding_rule='... -> ...')
    return lambda x, *others: function(of_one_device(x), *others)


def vary_alike(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Inside `jax.shard_map`: the arrays, each varying over all axes of the mesh that one of them varies over."""
    axes = frozenset().union(*map(varying, arrays))
    return [_vary(x, axes) for x in arrays]


def vary_as(x: jax.Array, results: Any) -> Any:
    """Inside `jax.shard_map`: a kernel's results, varying over all axes of the mesh that its argument x varies over."""
    return jax.tree.map(lambda result: _vary(result, varying(x)), results)


def varying(x: jax.Array) -> frozenset[str]:
    """Inside `jax.shard_map`: the axes of the mesh that x varies over."""
    return jax.typeof(x).manual_axis_type.varying


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(axes - varying(x))
    return jax.lax.pcast(x, missing, to='varying') if missing else x
