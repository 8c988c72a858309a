"""Sixteen random bits for each value of an array, by Philox: the same on every device, backend and mesh.

One call of Philox-4x32-7 serves eight values that lie side by side along one axis of the array: the axis before the
last, unless groups of eight fit another one better. Let i be a value's index along that axis, and (leading, row,
column) the value's place with i // 8 instead of i, all axes before the last two read as one, row-major. Then

    words = Philox-4x32-7(key, counter = (column, row, leading, 'bits'))

and the value takes half `i mod 2` (0 is the low one) of word `i mod 8 // 2`. So a shard of whole groups draws what it
needs and nothing else; shards that cut groups each draw the whole axis.

Source: Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011, section 5.2.
"""

import functools

import jax
import jax.numpy as jnp

from kernels_pallas import jax_internals
from kernels_pallas.philox import Words2, Words4, philox_4x32

LANES = 8  # of 16 bits in the four words of a call
ROUNDS = 7  # the least that pass BigCrush
KEY_IMPLEMENTATIONS = ('threefry2x32', 'rbg', 'unsafe_rbg')  # whose words make a Philox key

_STREAM = 0x62697473  # 'bits': no counter is one of weight sampling's, where this word is 0
_WIDE_KEY_MIX = (0x67617573, 0x73715F6A)  # 'gaus', 'sq_j'


@functools.partial(jax.jit, static_argnames='shape')
def random_bits_16(key: Words2, shape: tuple[int, ...]) -> jax.Array:
    """uint16 of `shape`, uniform: a function of the key, the value's index in the whole array, and the shape.

    No device of a mesh needs what another one has, unless eight divides no axis. Under `jax.vmap`, each mapped key
    gives its own bits, and one key for all gives the same bits to all.

    Args:
      key: two uint32 scalars, such as `key_words` gives.
      shape: of the result.

    Example:
      >>> random_bits_16((jnp.uint32(0), jnp.uint32(7)), (2, 3))
      Array([[26267, 28755, 33793],
             [ 6209,  8208, 35567]], dtype=uint16)
    """
    if 0 in shape or not shape:
        return random_bits_16(key, (1,))[0] if not shape else jnp.zeros(shape, jnp.uint16)
    axis = _lanes_axis(shape)
    groups = (*shape[:axis], -(-shape[axis] // LANES), *shape[axis + 1 :])
    words = philox_4x32(key, (*places(groups), jnp.full(groups, _STREAM, jnp.uint32)), ROUNDS)
    bits = (over_lanes(words, axis + 1) >> 16).astype(jnp.uint16)
    bits = bits.reshape(*groups[:axis], groups[axis] * LANES, *groups[axis + 1 :])
    return jax.lax.slice_in_dim(bits, 0, shape[axis], axis=axis)


def key_words(key: jax.Array) -> Words2:
    """The 64-bit Philox key of a JAX PRNG key, typed or not.

    The two words of a threefry key as they are, the four of an rbg key mixed into two by Philox, and of a key of
    another implementation the first 64 bits that it draws.

    Raises:
      ValueError: for an array of keys.
      TypeError: for what is no PRNG key.

    Example:
      >>> [int(word) for word in key_words(jax.random.key(7))]
      [0, 7]
    """
    dtype = getattr(key, 'dtype', None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.ndim:
            raise ValueError(f'key has shape {key.shape}: one key is needed; map over several with jax.vmap')
        if jax.random.key_impl(key) not in KEY_IMPLEMENTATIONS:  # a str, or an object if it is foreign
            return tuple(jax.random.bits(key, (2,), jnp.uint32))
        key = jax.random.key_data(key)
    elif dtype != jnp.uint32 or key.shape not in ((2,), (4,)):
        raise TypeError(f'key must be a JAX PRNG key, as jax.random.key(0) is; got {key!r:.200}')
    words = tuple(jnp.asarray(key))
    return words if len(words) == 2 else philox_4x32(tuple(map(jnp.uint32, _WIDE_KEY_MIX)), words)[:2]


def places(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Column, row and leading index of each value, uint32 of `shape`: all axes before the last two read as one."""
    index = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
    leading = jnp.zeros(shape, jnp.uint32)
    row, column = (leading, *index)[-2:]
    for axis, length in enumerate(shape[:-2]):
        leading = leading * jnp.uint32(length) + index[axis]
    return column, row, leading


def over_lanes(words: Words4, axis: int) -> jax.Array:
    """The eight 16-bit lanes of four words along a new axis: each the upper half of a uint32, whose lower is arbitrary.

    XLA:CPU computes each array that is kept from its beginning: Philox runs twice, for two pairs of words, and not
    four times. One pair in 2^64, that of which all bits are set, becomes 0 in JAX 0.10.
    """
    shape = (*words[0].shape[:axis], LANES, *words[0].shape[axis:])
    lane = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    with jax.enable_x64(True):
        wide = [jax.lax.convert_element_type(word, jnp.uint64) for word in words]
        pairs = [low | high << jnp.uint64(32) for low, high in (wide[:2], wide[2:])]
        low, high = (jnp.expand_dims(jax_internals.optimization_barrier(pair), axis) for pair in pairs)
        pair = jnp.where(lane < LANES // 2, low, high)
        word = jax.lax.convert_element_type(pair, jnp.uint32), jax.lax.convert_element_type(pair >> 32, jnp.uint32)
    word = jnp.where(lane % 4 < 2, *word)
    return jnp.where(lane % 2, word, word << 16)


def _lanes_axis(shape: tuple[int, ...]) -> int:
    """The axis along which the least is drawn in vain; of those where that is equal, the one before the last first."""
    last = len(shape) - 1
    order = [*range(last - 1, last), last, *reversed(range(last - 1))] if last else [0]
    return min(order, key=lambda axis: -(-shape[axis] // LANES) / shape[axis])
