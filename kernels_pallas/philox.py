"""Philox-4x32: counter-based random bits, the same on every backend.

Each output is a pure function of a 64-bit key and a 128-bit counter: no state, no order, no storage. The
functions here use integer multiply, shift, xor and add only, which every backend has.

Source: Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011, section 5.2.
"""

import jax
import jax.numpy as jnp

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: the Weyl sequence of the key

Words2 = tuple[jax.Array, jax.Array]
Words4 = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def philox_4x32(key: Words2, counter: Words4, rounds: int = 10) -> Words4:
    """Four uniform random 32-bit words for each counter.

    A round maps (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)), after
    which the key advances by a Weyl constant.

    Args:
      key: two uint32 arrays or scalars, k0 and k1.
      counter: four uint32 arrays or scalars; key and counter broadcast against each other.
      rounds: number of rounds; 10 is the published default, 7 the least that passes BigCrush.

    Returns:
      Four uint32 arrays of the broadcast shape.

    Example:
      >>> zero = jnp.uint32(0)
      >>> [f'{int(word):08x}' for word in philox_4x32((zero, zero), (zero,) * 4)]
      ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    m0, m1 = (jnp.uint32(m) for m in _MULTIPLIERS)
    for i in range(rounds):
        if i:
            k0, k1 = (k + jnp.uint32(increment) for k, increment in zip((k0, k1), _KEY_INCREMENTS))
        high0, low0 = _wide_product(m0, c0)
        high1, low1 = _wide_product(m1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def _wide_product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """High and low 32 bits of the product of two uint32 arrays."""
    with jax.enable_x64(True):
        wide = jax.lax.convert_element_type(a, jnp.uint64) * jax.lax.convert_element_type(b, jnp.uint64)
        high = jax.lax.convert_element_type(wide >> jnp.uint64(32), jnp.uint32)
        return high, jax.lax.convert_element_type(wide, jnp.uint32)
