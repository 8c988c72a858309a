"""What every implementation does with a block, beside its noise: its step, its rounding to a low-bit format, its sum.

Backends differ about NaN in minima and maxima of floats: there are none here.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kernels_pallas.rounding_on_bits import Representable, fast_round_to_representable, power_of_two_scale

SMALLEST_STEP = {'rounded_normal': 2.0**-126, 'uniform': 2.0**-109}  # so that R * step is a normal number
LARGEST_STEP = 2.0**125  # so that 2 * step is finite

_UPPER_HALF = 0xFFFF0000  # of a float32: its sign, exponent and seven bits of mantissa
_WRAPS_NONFINITE = 1 << 24


def finite_order(w: jax.Array) -> jax.Array:
    """uint32 in the order of the magnitudes of float32 weights, infinity and NaN below all others: for a maximum.

    Twice the bits, which leaves no sign, plus 2^24, which wraps around for infinity and NaN alone: two instructions.
    """
    return 2 * jax.lax.bitcast_convert_type(w, jnp.uint32) + jnp.uint32(_WRAPS_NONFINITE)


def magnitude_of(order: jax.Array) -> jax.Array:
    """The float32 magnitude of what `finite_order` gave; 0 for infinity and NaN."""
    offset = jnp.uint32(_WRAPS_NONFINITE)
    return jax.lax.bitcast_convert_type((jnp.maximum(order, offset) - offset) >> jnp.uint32(1), jnp.float32)


def block_step(absmax: jax.Array, scale: jax.Array, noise: str) -> jax.Array:
    """The step of blocks of these largest magnitudes: absmax * scale, such that R * step is exact and finite."""
    step = absmax * scale
    step = jnp.where(step > LARGEST_STEP, LARGEST_STEP, step)
    step = jnp.where(step < SMALLEST_STEP[noise], 0, step)
    if noise == 'rounded_normal':
        return step
    bits = jax.lax.bitcast_convert_type(step, jnp.uint32)  # to eight significant bits, whatever is fused
    bits += jnp.uint32(0x7FFF) + ((bits >> jnp.uint32(16)) & jnp.uint32(1))
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(_UPPER_HALF), jnp.float32)
    return jnp.where(step == step, rounded, step)


def round_sampled(
    w: jax.Array, w_hat: jax.Array, absmax: jax.Array, representable: Representable, expand: Callable
) -> jax.Array:
    """W + R * step rounded to a low-bit format, whose top binade `absmax` of the block is scaled into.

    An infinite or NaN weight stays as it is. `expand` makes of one number a block one of each of the block's weights.
    """
    scale, inverse, shift = power_of_two_scale(absmax, representable.largest)
    rounded = fast_round_to_representable(w_hat * expand(scale), representable=representable.shifted(shift))
    return jnp.where(jnp.abs(w) < jnp.inf, rounded * expand(inverse), w)


def exact_parts(dw_hat: jax.Array, noise: str) -> list[jax.Array]:
    """float32 arrays that sum to dW_hat and whose products with R are exact.

    One is enough, but for a float32 cotangent and the 16 bits of the uniform noise: three of eight significant bits.
    """
    rest = dw_hat.astype(jnp.float32)
    parts = []
    if noise == 'uniform' and dw_hat.dtype == jnp.float32:
        for _ in range(2):
            bits = jax.lax.bitcast_convert_type(rest, jnp.uint32) & jnp.uint32(_UPPER_HALF)
            parts.append(jax.lax.bitcast_convert_type(bits, jnp.float32))
            rest = rest - parts[-1]
    return [*parts, rest]


def add_halves(parts: Sequence[jax.Array]) -> jax.Array:
    """The sum of 2^k arrays in the order of the reference: the two halves are added until one array is left."""
    while half := len(parts) // 2:
        parts = [a + b for a, b in zip(parts[:half], parts[half:])]
    return parts[0]
