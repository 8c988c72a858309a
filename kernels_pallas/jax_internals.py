"""What kernels take from JAX that is not public, or not the same in all versions that setup.py allows.

Each function says which versions need it, and what takes its place when they are gone.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def optimization_barrier(bits: jax.Array) -> jax.Array:
    """`jax.lax.optimization_barrier` of unsigned bits, of which not all are set, that XLA:CPU heeds.

    JAX 0.10 drops it before fusion, but a remainder counts as expensive, and this one is the identity. From 0.11: the
    barrier alone.
    """
    if jax.__version_info__ < (0, 11):
        bits = jax.lax.rem(bits, jnp.full_like(bits, jnp.iinfo(bits.dtype).max))
    return jax.lax.optimization_barrier(bits)


def why_mosaic_is_not_interpreted() -> str | None:
    """Why Mosaic kernels can't be interpreted; None if they can. JAX below 0.11.2; from there on: nothing."""
    if jax.__version_info__ < (0, 11, 2):
        return f'JAX {jax.__version__} interprets no Mosaic kernels; 0.11.2 does'
    return None


# Mosaic is imported where it is used, for a JAX may be without it. 'Optimized' is a check that a warp's accesses fill
# whole sectors, which a number a block does not.


def mosaic_load(ref: Any, layout: Any) -> jax.Array:
    """`plgpu.load` of all of `ref`. JAX 0.10 must be given an index, of which 0.11 warns; from there on: none."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    index = inspect.signature(plgpu.load).parameters.get('idx')
    needed = (...,) if index and index.default is inspect.Parameter.empty else ()
    return plgpu.load(ref, *needed, layout=layout, optimized=False)


def mosaic_store(ref: Any, x: jax.Array):
    """`plgpu.store` to all of `ref`, which JAX 0.10 and 0.11 don't have; from 0.12: that alone."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if hasattr(plgpu, 'store'):
        plgpu.store(ref, x, optimized=False)
    else:
        ref[...] = x


# XLA's partitioner asks custom partitionings by a sharding of no mesh, of which JAX, in all versions, tells and makes
# no parts. With `decode_shardings` it gives a NamedSharding in its place, but where fewer blocks than devices are cut
# by a part of a mesh axis. If JAX can name these: NamedSharding, and its spec.


def device_tiles(sharding: jax.sharding.Sharding, ndim: int) -> np.ndarray | None:
    """Which device has which part of an array of `ndim` axes; None if each has all of it.

    Returns:
      The devices' numbers, with an axis for each of the array's, as long as it is cut; more axes count copies.
    """
    hlo = sharding._to_xla_hlo_sharding(ndim)
    if hlo.is_replicated():
        return None
    return np.reshape(hlo.tile_assignment_devices(), hlo.tile_assignment_dimensions())


def tiled(sharding: jax.sharding.Sharding, ndim: int, devices: np.ndarray) -> jax.sharding.Sharding:
    """The sharding of `devices`, as `device_tiles` gives them; the last axis counts copies.

    `sharding`, of an array of `ndim` axes, is another one over the same devices.
    """
    proto = sharding._to_xla_hlo_sharding(ndim).to_proto()
    proto.tile_assignment_dimensions = list(devices.shape)
    proto.tile_assignment_devices = devices.ravel().tolist()
    proto.iota_reshape_dims = proto.iota_transpose_perm = []
    proto.replicate_on_last_tile_dim = True
    return type(sharding)(sharding._devices, proto)
