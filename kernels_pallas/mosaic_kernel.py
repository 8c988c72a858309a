"""Pallas by way of Mosaic GPU, as each version of JAX has it: kernels of four warps, without shared memory."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.implementations import why_not


def mosaic_kernel(kernel: Callable, *, interpret: bool, **how) -> Callable:
    """`plgpu.kernel` with these arguments; or its emulation, on any platform.

    Raises:
      NotImplementedError: if this JAX can't emulate it.
    """
    if interpret and (reason := why_not('mosaic_interpret')):
        raise NotImplementedError(reason)
    return plgpu.kernel(
        kernel,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
        **how,
    )


def store(ref, x: jax.Array):
    """Writes x, whatever its layout, to a `ref` of its shape."""
    if x.shape == (1,):  # no layout of a single number is stored
        ref[0] = jnp.max(x)
    else:
        _store_array(ref, x)


# 'Optimized' is a check that a warp's accesses fill whole sectors, which a number a block does not.
_INDEX = inspect.signature(plgpu.load).parameters.get('idx')
if _INDEX and _INDEX.default is inspect.Parameter.empty:  # JAX 0.10; 0.11 warns if it is given
    load = lambda ref, layout: plgpu.load(ref, ..., layout=layout, optimized=False)
else:
    load = functools.partial(plgpu.load, optimized=False)

if hasattr(plgpu, 'store'):  # from JAX 0.12
    _store_array = functools.partial(plgpu.store, optimized=False)
else:

    def _store_array(ref, x):
        ref[...] = x
