"""Pallas by way of Mosaic GPU, whichever of its versions JAX has: kernels whose programs are four warps."""

import functools
import inspect
from collections.abc import Callable

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128  # of a program


def mosaic_kernel(kernel: Callable, *, interpret: bool, **how) -> Callable:
    """`plgpu.kernel` of code for each thread; or emulated, on any platform.

    Raises:
      NotImplementedError: if this JAX can't emulate it.
    """
    if interpret and not hasattr(plgpu, 'InterpretGPUParams'):
        raise NotImplementedError(f'JAX {jax.__version__} cannot interpret Mosaic GPU kernels; JAX 0.11.2 can')
    return plgpu.kernel(
        kernel,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
        **how,
    )


# 'Optimized' is a check that a warp's accesses fill whole sectors, which a number a block does not.
if 'idx' in inspect.signature(plgpu.load).parameters:  # JAX 0.10

    def load(ref, layout):
        return plgpu.load(ref, ..., layout=layout, optimized=False)

    def store(ref, x):
        ref[...] = x

else:
    load = functools.partial(plgpu.load, optimized=False)
    store = functools.partial(plgpu.store, optimized=False)
