"""Pallas by way of Mosaic GPU: kernels of four warps, without shared memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas import jax_internals


def mosaic_kernel(kernel: Callable, *, interpret: bool, **launch) -> Callable:
    """`plgpu.kernel` with these arguments; or its emulation, on any platform."""
    return plgpu.kernel(
        kernel,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
        **launch,
    )


def store(ref, x: jax.Array):
    """Writes x, whatever its layout, to a `ref` of its shape."""
    if x.shape == (1,):  # no layout of a single number is stored
        ref[0] = jnp.max(x)
    else:
        jax_internals.mosaic_store(ref, x)
