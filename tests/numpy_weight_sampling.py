"""What Gaussian weight sampling must compute, written a second time in NumPy integers and float64.

It shares nothing with the package: every weight runs its own Philox call, rounding is done on float64
significands, and gradients are the closed forms. A float64 sum of two float32 numbers rounds to float32 as
the exact sum would (53 >= 2 * 24 + 2 bits), so W_hat can be compared bit for bit.
"""

import math

import numpy as np
import numpy_float_formats

SMALLEST_STEP = {'rounded_normal': 2.0**-126, 'uniform': 2.0**-109}
LARGEST_STEP = 2.0**125


def philox_4x32(key_words, counter_words, rounds=10):
    """Philox-4x32 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", in 64-bit integers."""
    low_half, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = (int(word) for word in key_words)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter_words))
    for _ in range(rounds):
        product_0, product_1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product_1 >> shift) ^ c1 ^ np.uint64(k0),
            product_1 & low_half,
            (product_0 >> shift) ^ c3 ^ np.uint64(k1),
            product_0 & low_half,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def noise_key(key_data):
    """The two Philox key words of the raw words of a JAX key: themselves, or four of them mixed into two."""
    words = [int(word) for word in np.asarray(key_data).ravel()]
    if len(words) == 2:
        return words
    return [int(word) for word in philox_4x32((0x67617573, 0x73715F6A), words)[:2]]


def random_units(key_data, shape, origin=(0, 0, 0)):
    """The 16 random bits of each weight of (..., rows, columns), an array at `origin` in its leaf."""
    rows, columns = shape[-2:]
    leading = np.arange(int(np.prod(shape[:-2], dtype=int)))[:, None, None] + int(origin[0])
    row = np.arange(rows)[:, None] + int(origin[1])
    column = np.arange(columns) + int(origin[2])
    words = np.stack(philox_4x32(noise_key(key_data), (column, row // 32 * 4 + row % 4, leading, 0), rounds=7))
    lane = np.broadcast_to(row % 32 // 4, words.shape[1:])
    word = np.take_along_axis(words, (lane // 2)[None], axis=0)[0]
    return (word >> (lane % 2 * 16).astype(np.uint32) & np.uint32(0xFFFF)).astype(int).reshape(shape)


def rounded_normal(key_data, shape, origin=(0, 0, 0)):
    """R in {-2..2}, int8: the first of the 16 bits is the sign, the others decide on the size."""
    negative, size = np.divmod(random_units(key_data, shape, origin), 32768)
    magnitude = (size < 10397).astype(np.int8) + (size < 88)
    return np.where(negative, -magnitude, magnitude).astype(np.int8)


def noise_values(key_data, shape, origin=(0, 0, 0), noise='rounded_normal'):
    """R as float64: the rounded normal, or (u + 1/2) / 2^16 - 1/2."""
    if noise == 'rounded_normal':
        return rounded_normal(key_data, shape, origin).astype(np.float64)
    return (random_units(key_data, shape, origin) + 0.5) / 65536 - 0.5


def round_significand(values, bits, smallest_exponent=-(10**6)):
    """Float64 to `bits` significant bits, ties to even, but no finer than 2^smallest_exponent."""
    _, exponent = np.frexp(np.where(np.isfinite(values), values, 1.0))
    spacing_exponent = np.maximum(exponent - bits, smallest_exponent)
    with np.errstate(invalid='ignore'):
        return np.ldexp(np.rint(np.ldexp(values, -spacing_exponent)), spacing_exponent)


def to_float32(values):
    """Float64 to float32 (as float64), ties to even, overflow to infinity."""
    rounded = round_significand(values, 24, -149)
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, rounded), rounded)


def to_bfloat16(values):
    """Float64 to bfloat16 (as float64), ties to even, overflow to infinity."""
    rounded = round_significand(values, 8, -133)
    return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, rounded), rounded)


def block_sum(values, block_size, reduce=np.sum):
    """Reduces every block of (..., rows, columns); edge blocks are smaller."""
    values = np.asarray(values)
    by_row = [
        reduce(values[..., r : r + block_size, :], axis=-2, keepdims=True)
        for r in range(0, values.shape[-2], block_size)
    ]
    values = np.concatenate(by_row, axis=-2)
    by_column = [
        reduce(values[..., c : c + block_size], axis=-1, keepdims=True) for c in range(0, values.shape[-1], block_size)
    ]
    return np.concatenate(by_column, axis=-1)


def per_weight(blocks, shape, block_size):
    """One value per block to one per weight."""
    return blocks.repeat(block_size, -2).repeat(block_size, -1)[..., : shape[-2], : shape[-1]]


def block_step(w, bitwidths, block_size=32, noise='rounded_normal'):
    """step = A 2^(1 - b): b to a multiple of 2^-10, the product to 24 bits, for uniform noise then to 8."""
    w = np.asarray(w, np.float64)
    absmax = block_sum(np.where(np.isfinite(w), np.abs(w), 0.0), block_size, np.max)
    bitwidths = np.asarray(bitwidths, np.float64)
    exponent = 1024 - np.rint(np.where(np.isnan(bitwidths), 0.0, bitwidths) * 1024).astype(int)
    table = round_significand(np.exp2(exponent % 1024 / 1024), 24)
    step = np.ldexp(round_significand(absmax * table, 24), exponent // 1024)
    if noise == 'uniform':
        step = round_significand(step, 8)
    step = np.minimum(np.where(step < SMALLEST_STEP[noise], 0.0, step), LARGEST_STEP)
    return np.where(np.isnan(bitwidths), np.nan, step)


def sample_weights(
    key_data, w, bitwidths, *, origin=(0, 0, 0), block_size=32, noise='rounded_normal', fmt=None, dtype='bfloat16'
):
    """W_hat = round(w + R step), float64 holding bfloat16 or float32 values; fmt as in numpy_float_formats."""
    w = np.asarray(w, np.float64)
    step = per_weight(block_step(w, bitwidths, block_size, noise), w.shape, block_size)
    total = to_float32(w + noise_values(key_data, w.shape, origin, noise) * step)
    if fmt is not None:
        total = np.where(np.isfinite(w), block_cast(total, w, fmt, block_size), w)
    return {'bfloat16': to_bfloat16, 'float32': lambda x: x}[dtype](total)


def block_cast(total, w, fmt, block_size=32):
    """s round(total / s), s = 2^(floor(log2 max |w|) - emax) by block, s at least 2^-127, or 2^(-125 - emax)."""
    absmax = block_sum(np.where(np.isfinite(w), np.abs(w), 0.0), block_size, np.max)
    emax = math.floor(math.log2(numpy_float_formats.code_values(*fmt)[0][-1]))
    exponent = np.maximum(np.frexp(absmax)[1] - 1 - emax, max(-127, -125 - emax))
    exponent = per_weight(exponent, np.shape(w), block_size)
    return np.ldexp(numpy_float_formats.cast(np.ldexp(total, -exponent), fmt, dtype=np.float64), exponent)


def bitwidth_gradient(key_data, w, bitwidths, cotangent, *, origin=(0, 0, 0), block_size=32, noise='rounded_normal'):
    """db = -ln2 step sum(dW_hat R) and the size of its terms, ln2 step sum |dW_hat R|, float64."""
    step = block_step(w, bitwidths, block_size, noise)
    terms = np.asarray(cotangent, np.float64) * noise_values(key_data, np.shape(w), origin, noise)
    scale = np.log(2.0) * step
    return -scale * block_sum(terms, block_size), scale * block_sum(np.abs(terms), block_size)


def random_weights(shape, seed=0):
    """Float32 weights whose size differs from row to row, so that a wrong block maximum shows."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=shape) * np.exp2(generator.integers(-6, 3, (*shape[:-1], 1)))).astype(np.float32)


def random_bitwidths(shape, block_size=32, seed=1):
    """A float32 bitwidth per block of an array of `shape`: off the grid of 2^-10, coarse to fine."""
    blocks = (*shape[:-2], -(-shape[-2] // block_size), -(-shape[-1] // block_size))
    return np.random.default_rng(seed).uniform(1.5, 11.0, blocks).astype(np.float32)


def assert_identical(got, expected):
    """Equal bit for bit; float64 holds every dtype here exactly. NaN equals NaN, and 0 equals -0."""
    np.testing.assert_array_equal(np.asarray(got, np.float64), np.asarray(expected, np.float64))
