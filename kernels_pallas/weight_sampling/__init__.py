"""Weight sampling on arrays: forward, backward and the noise itself, by the best implementation for the device."""

import functools
import logging
import math

import jax
import jax.numpy as jnp

from kernels_pallas import implementations
from kernels_pallas.philox import Words2
from kernels_pallas.rounding_on_bits import Representable
from kernels_pallas.weight_sampling import xla
from kernels_pallas.weight_sampling.noise import GROUP_ROWS, NOISES
from kernels_pallas.weight_sampling.sharded_sampling import BACKWARD, FORWARD, fits_a_launch, on_any_mesh
from kernels_pallas.weight_sampling.xla import Origin, draw

__all__ = ['BLOCK_SIZE', 'NOISES', 'PREFERENCE', 'backward', 'draw', 'forward', 'select', 'why_not']

# In this order. Triton serves more GPUs, and JAX is going to drop it; from then on the choice is Mosaic's.
PREFERENCE = ('triton', 'mosaic', 'xla')
BLOCK_SIZE = GROUP_ROWS  # of the kernels; the reference takes any

_log = logging.getLogger('kernels_pallas')


def forward(
    key: Words2,
    origin: Origin,
    w: jax.Array,
    scale: jax.Array,
    *,
    block_size: int,
    noise: str,
    dtype: jnp.dtype,
    representable: Representable | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """W_hat and the step of each block: arguments and results of `xla.forward`, by any implementation.

    Raises:
      ValueError: as `select` does; for more matrices or rows than a launch can have, if a kernel is asked for by name.
    """
    options = dict(noise=noise, dtype=dtype, representable=representable)
    name = _select_for(w.shape, implementation, block_size)
    if name == 'xla' or not w.size:
        return xla.forward(key, origin, w, scale, block_size=block_size, **options)
    kernel, interpret = implementations.load(__name__, name)
    options |= dict(has_effects=name == 'mosaic_interpret', **interpret)
    sample = on_any_mesh(kernel.forward, FORWARD, **options)
    w_hat, step = sample(_place(key, origin, w.shape[:-2]), _whole_blocks(w), scale)
    return w_hat[..., : w.shape[-2], : w.shape[-1]], step


def backward(
    key: Words2, origin: Origin, dw_hat: jax.Array, *, block_size: int, noise: str, implementation: str | None = None
) -> jax.Array:
    """sum(dW_hat * R) over each block: arguments and results of `xla.backward`, by any implementation.

    Raises:
      ValueError: as `select` does; for more matrices or rows than a launch can have, if a kernel is asked for by name.
    """
    name = _select_for(dw_hat.shape, implementation, block_size)
    if name == 'xla' or not dw_hat.size:
        return xla.backward(key, origin, dw_hat, block_size=block_size, noise=noise)
    kernel, interpret = implementations.load(__name__, name)
    sum_ = on_any_mesh(kernel.backward, BACKWARD, has_effects=name == 'mosaic_interpret', noise=noise, **interpret)
    return sum_(_place(key, origin, dw_hat.shape[:-2]), _whole_blocks(dw_hat))


def select(implementation: str | None, block_size: int = BLOCK_SIZE) -> str:
    """The implementation that runs: the given one, or for None the first of PREFERENCE that can run here.

    "Here" is the device of the mesh in whose context this is, else the default device: for arrays on devices of another
    kind, name one. What None picks is logged, once, to the logger 'kernels_pallas'.

    Args:
      implementation: None, or one of `implementations.IMPLEMENTATIONS`.
      block_size: side of the blocks; kernels have those of BLOCK_SIZE alone.

    Raises:
      ValueError: if there is no such implementation, or if it can't run here, saying why.

    Example:
      >>> select(None, 16), select('triton_interpret')
      ('xla', 'triton_interpret')
    """
    if implementation is None:
        return _pick(block_size)
    return implementations.check(implementation, _wrong_block_size(implementation, block_size))


def why_not(implementation: str, block_size: int = BLOCK_SIZE) -> str | None:
    """Why an implementation can't run here for blocks of this size; None if it can. "Here" is as for `select`.

    Example:
      >>> why_not('triton_interpret', 16)
      'its blocks are 32 x 32, and block_size is 16'
    """
    return _wrong_block_size(implementation, block_size) or implementations.why_not(implementation)


def _select_for(shape: tuple[int, ...], implementation: str | None, block_size: int) -> str:
    """`select` for weights of this shape: None is the reference where these are too many for a kernel."""
    name = select(implementation, block_size)
    return 'xla' if implementation is None and not fits_a_launch(math.prod(shape[:-2]), shape[-2]) else name


def _wrong_block_size(implementation: str, block_size: int) -> str | None:
    if implementation == 'xla' or block_size == BLOCK_SIZE:
        return None
    return f'its blocks are {BLOCK_SIZE} x {BLOCK_SIZE}, and block_size is {block_size}'


def _pick(block_size: int) -> str:
    reasons = {name: why_not(name, block_size) for name in PREFERENCE}
    picked = next(name for name in PREFERENCE if reasons[name] is None)
    because = '; '.join(f"{name} can't run: {reason}" for name, reason in reasons.items() if reason)
    missed = picked == 'xla' and any(implementations.why_not(name) is None for name in PREFERENCE[:-1])
    _log_once(
        logging.WARNING if missed else logging.INFO,
        f'weight sampling by blocks of {block_size} runs as {picked!r}' + (because and f' ({because})'),
    )
    return picked


@functools.cache
def _log_once(level: int, message: str):
    _log.log(level, message)


def _place(key: Words2, origin: Origin, leading_shape: tuple[int, ...]) -> jax.Array:
    """uint32 (*leading_shape, 5): for each matrix its key, leading index, first row in blocks, and first column."""
    leading, row, column = origin
    leading = leading + jnp.arange(math.prod(leading_shape), dtype=jnp.uint32).reshape(leading_shape)
    return jnp.stack(jnp.broadcast_arrays(*key, leading, row // BLOCK_SIZE, column), axis=-1)


def _whole_blocks(w: jax.Array) -> jax.Array:
    """w filled up with zeros to whole blocks."""
    missing = [(0, -size % BLOCK_SIZE) for size in w.shape[-2:]]
    return jnp.pad(w, [(0, 0)] * (w.ndim - 2) + missing) if any(after for _, after in missing) else w
