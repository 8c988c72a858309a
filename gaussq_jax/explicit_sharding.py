"""Arrays of a mesh with explicit axes: what JAX can't tell the sharding of is left to XLA's partitioner."""

from collections.abc import Callable

import jax


def like(x: jax.Array, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function`, whose result has the shape of x, for use on a mesh with explicit axes: the result is sharded as x is.

    Reshapes into blocks that cross shards, and random bits, have no sharding that JAX could tell.
    """
    sharding = jax.typeof(x).sharding
    explicit = sharding.mesh.explicit_axes
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=sharding) if explicit else function
