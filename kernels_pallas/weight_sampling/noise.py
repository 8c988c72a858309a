"""Which random bits belong to a weight, and which noise they mean: shared by every implementation.

The weight at (leading index k, row i, column j) of its whole leaf takes 16 of the 128 bits of

    Philox-4x32-10(key, counter = (j, 4 (i // 32) + i mod 4, k, 0))

namely lane (i mod 32) // 4: half `lane mod 2` (0 is the low one) of word `lane // 2`. One call so serves the
eight weights of a column that lie four rows apart. Nothing else enters: no tile, no mesh, no order.
"""

import jax
import jax.numpy as jnp

from kernels_pallas.philox import Words2, Words4, philox_4x32

GROUP_ROWS = 32  # the rows that share counters: eight lanes, four rows apart
LANES = 8
LANE_ROWS = 4

NOISES = ('rounded_normal', 'uniform')

# P(|R| = 2) and P(|R| >= 1) of R = round(N(0, 1) / 2), halved and times 2^16: 88.4 and 10397.6, cut to integers.
_TWO = 88
_ONE = 10397


def random_words(key: Words2, column: jax.Array, lane_row: jax.Array, leading: jax.Array) -> Words4:
    """The four words for uint32 arrays of global columns, lane rows (4 (i // 32) + i mod 4) and leading indices."""
    return philox_4x32(key, (column, lane_row, leading, jnp.zeros_like(column)))


def lanes(words: Words4) -> list[jax.Array]:
    """The eight 16-bit lanes of four words, as int32 arrays with values in [0, 65536)."""
    return [((word >> jnp.uint32(shift)) & jnp.uint32(0xFFFF)).astype(jnp.int32) for word in words for shift in (0, 16)]


def rounded_normal(lane: jax.Array) -> jax.Array:
    """R in {-2, .., 2} as int32, from a 16-bit lane: P(|R| = 2) = .00269, P(|R| = 1) = .31461."""
    at_least = lambda threshold: (lane >= 65536 - threshold).astype(jnp.int32)
    below = lambda threshold: (lane < threshold).astype(jnp.int32)
    return at_least(_ONE) + at_least(_TWO) - below(_ONE) - below(_TWO)


def uniform(lane: jax.Array) -> jax.Array:
    """R = (lane + 1/2) / 2^16 - 1/2 as float32: an odd multiple of 2^-17 in (-1/2, 1/2), exact."""
    return (2 * lane - 65535).astype(jnp.float32) * jnp.float32(2.0**-17)
