"""Kernels inside `jax.shard_map`, where arrays vary over axes of the mesh or don't, and a kernel takes only like ones."""

from collections.abc import Sequence

import jax


def vary_alike(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The arrays, each varying over all axes of the mesh that one of them varies over; outside `shard_map`, as given."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [tuple(frozenset().union(*varying) - axes) for axes in varying]
    return [jax.lax.pcast(x, axes, to='varying') if axes else x for x, axes in zip(arrays, missing)]
