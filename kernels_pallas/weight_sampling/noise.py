"""Which random bits belong to a weight, and which noise they mean: shared by every implementation.

The weight at (leading index k, row i, column j) of its whole leaf takes 16 of the 128 bits of

    Philox-4x32-7(key, counter = (j, 4 (i // 32) + i mod 4, k, 0))

namely lane (i mod 32) // 4: half `lane mod 2` (0 is the low one) of word `lane // 2`. One call so serves the
eight weights of a column that lie four rows apart. Nothing else enters: no tile, no mesh, no order.
"""

import jax
import jax.numpy as jnp

from kernels_pallas.philox import Words2, Words4, philox_4x32

GROUP_ROWS = 32  # the rows that share counters: eight lanes, four rows apart
LANES = 8
LANE_ROWS = 4
ROUNDS = 7  # the least that pass BigCrush: on a GPU, the backward pass is near to being bound by arithmetic

NOISES = ('rounded_normal', 'uniform')

# P(|R| = 2) and P(|R| >= 1) of R = round(N(0, 1) / 2), times 2^15: 88.4 and 10397.6, cut to integers.
_TWO = 88
_ONE = 10397

_SIGN = 0x80000000


def random_words(key: Words2, column: jax.Array, lane_row: jax.Array, leading: jax.Array) -> Words4:
    """The four words for uint32 arrays of global columns, lane rows (4 (i // 32) + i mod 4) and leading indices."""
    return philox_4x32(key, (column, lane_row, leading, jnp.zeros_like(column)), ROUNDS)


def lanes(words: Words4) -> list[jax.Array]:
    """The eight 16-bit lanes of four words, each in the upper half of a uint32, whose lower half is arbitrary."""
    return [lane for word in words for lane in (word << jnp.uint32(16), word)]


def rounded_normal(lane: jax.Array) -> jax.Array:
    """R in {-2, .., 2} as float32: P(|R| = 2) = .00269, P(|R| = 1) = .31461.

    The lane's first bit is the sign, and its other 15 are compared with the probabilities.
    """
    magnitude = lane & jnp.uint32(_SIGN - 1)
    below = lambda threshold: magnitude < jnp.uint32(threshold << 16)
    r = jax.lax.bitcast_convert_type(jnp.where(below(_TWO), jnp.float32(2), jnp.float32(1)), jnp.uint32)
    r = jax.lax.bitcast_convert_type(r | (lane & jnp.uint32(_SIGN)), jnp.float32)
    return jnp.where(below(_ONE), r, jnp.float32(0))


def uniform(lane: jax.Array) -> jax.Array:
    """R = (u + 1/2) / 2^16 - 1/2 as float32, u the lane as an integer: odd multiples of 2^-17 in (-1/2, 1/2), exact."""
    one_to_two = (lane >> jnp.uint32(9)) & jnp.uint32(0x7FFF80) | jnp.uint32(0x3F800000)  # 1 + u / 2^16
    return jax.lax.bitcast_convert_type(one_to_two, jnp.float32) - jnp.float32(1.5 - 2.0**-17)
