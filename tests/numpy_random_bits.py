"""The 16 random bits of each value, written a second time in NumPy: every value makes a Philox call of its own."""

import numpy as np
from numpy_weight_sampling import noise_key, philox_4x32


def random_bits_16(key_data, shape):
    """uint16 of `shape`; `key_data` are the raw words of a JAX key."""
    if not shape:
        return random_bits_16(key_data, (1,))[0]
    if 0 in shape:
        return np.zeros(shape, np.uint16)
    best = min(-(-length // 8) * 8 / length for length in shape)
    fits = [axis for axis, length in enumerate(shape) if -(-length // 8) * 8 / length == best]
    last = len(shape) - 1
    axis = next(axis for axis in (last - 1, last, *range(last - 2, -1, -1)) if axis in fits)
    place = np.indices(shape)
    lane, place[axis] = place[axis] % 8, place[axis] // 8
    groups = [length if i != axis else -(-length // 8) for i, length in enumerate(shape)]
    row = place[-2] if last else 0
    leading = np.ravel_multi_index(tuple(place[:-2]), groups[:-2]) if last > 1 else 0
    words = np.stack(philox_4x32(noise_key(key_data), (place[-1], row, leading, 0x62697473), rounds=7))
    word = np.take_along_axis(words, (lane // 2)[None], axis=0)[0]
    return (word >> (lane % 2 * 16).astype(np.uint32)).astype(np.uint16)
