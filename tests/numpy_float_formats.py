"""What float formats, casts and block scales must give, written a second time in float64 NumPy.

Slow and obvious, and shares nothing with the package: a format is the list of its values, one per code, from
the definition; a cast looks up the two neighbours and compares with the number half way, which float64 holds
exactly; a block of entries that share a scale is a row of a matrix.
"""

import functools
import itertools
import math

import ml_dtypes
import numpy as np

# The largest value, and so the largest code, of each OCP format that ends in 'fn': special_values='fn'.
OCP_MAX = {(4, 3): 448.0, (3, 2): 28.0, (2, 3): 7.5, (2, 1): 6.0}
# E, M, special values of each format that ml_dtypes has under a name.
STANDARD = {
    'float8_e4m3fn': (4, 3, 'fn'),
    'float8_e4m3': (4, 3, 'ieee'),
    'float8_e5m2': (5, 2, 'ieee'),
    'float8_e3m4': (3, 4, 'ieee'),
    'float6_e3m2fn': (3, 2, 'fn'),
    'float6_e2m3fn': (2, 3, 'fn'),
    'float4_e2m1fn': (2, 1, 'fn'),
    'bfloat16': (8, 7, 'ieee'),
    'float16': (5, 10, 'ieee'),
}
# Blocks, and for NVFP4 tensors, whose largest magnitude is smaller are scaled as if it were this.
SMALLEST_ABSMAX = {'absmax': 2.0**-123, 'mx': 2.0**-125, 'nvfp4': 2.0**-105}


def standard_dtype(name):
    return np.dtype('float16' if name == 'float16' else getattr(ml_dtypes, name))


def value_of_code(exponent_bits, mantissa_bits, code):
    """The value of a non-negative code, as if every code were a number."""
    exponent, fraction = divmod(code, 2**mantissa_bits)
    if exponent_bits == 0:
        return math.ldexp(code, 1 - mantissa_bits)
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 0:
        return math.ldexp(fraction, 1 - bias - mantissa_bits)
    return math.ldexp(2**mantissa_bits + fraction, exponent - bias - mantissa_bits)


@functools.cache
def code_values(exponent_bits, mantissa_bits, special_values):
    """The numbers of a format without their sign, in the order of their codes, and the next one after the largest."""
    codes = 2 ** (exponent_bits + mantissa_bits)
    if special_values == 'ieee':
        codes -= 2**mantissa_bits
    values = [value_of_code(exponent_bits, mantissa_bits, code) for code in range(codes + 1)]
    if special_values == 'fn':
        values = values[: values.index(OCP_MAX[exponent_bits, mantissa_bits]) + 2]
    return np.array(values[:-1]), values[-1]


def all_formats():
    """Every (E, M, special values) that is a format of signed numbers within float32."""
    for exponent_bits, mantissa_bits in itertools.product(range(9), range(11)):
        if exponent_bits < 8 and exponent_bits + mantissa_bits > 0:
            yield exponent_bits, mantissa_bits, 'finite'
        if exponent_bits > 0 and (exponent_bits, mantissa_bits) != (1, 0):
            yield exponent_bits, mantissa_bits, 'ieee'
    for exponent_bits, mantissa_bits in OCP_MAX:
        yield exponent_bits, mantissa_bits, 'fn'


def shared_max(fmt, dtype):
    """The largest number that is both in the format and in dtype."""
    values, _ = code_values(*fmt)
    with np.errstate(over='ignore'):
        return values[values.astype(dtype).astype(np.float64) == values].max()


def cast(x, fmt, rounding='nearest_even', saturate=True, dtype=np.float32):
    """x, an array exact in float64, rounded to fmt; dtype bounds the largest result."""
    values, following = code_values(*fmt)
    values_and_next = np.append(values, following)
    with np.errstate(invalid='ignore'):  # a signalling NaN
        x = np.asarray(x, np.float64)
    magnitude = np.abs(x)
    code = np.clip(np.searchsorted(values_and_next, magnitude, side='right') - 1, 0, len(values) - 1)
    below, above = values_and_next[code], values_and_next[code + 1]
    half_way = (below + above) / 2
    if rounding == 'nearest_even':
        up = (magnitude > half_way) | ((magnitude == half_way) & (code % 2 == 1))
    elif rounding == 'nearest_away':
        up = magnitude >= half_way
    else:
        assert rounding == 'toward_zero'
        up = np.isinf(magnitude)
    rounded = np.where(up, above, below)
    if saturate or fmt[2] == 'finite' or (fmt[2] == 'fn' and fmt != (4, 3, 'fn')):
        rounded = np.minimum(rounded, shared_max(fmt, dtype))
    else:
        rounded = np.where(rounded > values[-1], np.inf if fmt[2] == 'ieee' else np.nan, rounded)
    return np.where(np.isnan(x), x, np.copysign(rounded, x))


def distance_from_a_turn(x, fmt, rounding):
    """How far each |x| is from where the rounding turns from one number to the next, a tie or, toward zero, a number
    of the format; relative to that."""
    values, following = code_values(*fmt)
    values_and_next = np.append(values, following)
    turns = values[1:] if rounding == 'toward_zero' else (values_and_next[1:] + values_and_next[:-1]) / 2
    x = np.abs(np.asarray(x, np.float64))
    after = np.searchsorted(turns, x)
    nearest = [turns[np.clip(index, 0, len(turns) - 1)] for index in (after - 1, after)]
    return np.min([np.abs(x / turn - 1) for turn in nearest], axis=0)


def critical_float32(fmt, size=None, seed=0):
    """float32 numbers, both signs, where casts go wrong, shuffled: a format's values, ties and their neighbours,
    the edge of overflow, powers of two, the extremes of float32; the rest, up to size, random bit patterns."""
    values, following = code_values(*fmt)
    values_and_next = np.append(values, following)
    with np.errstate(over='ignore'):
        exact = np.concatenate([values_and_next, (values_and_next[1:] + values_and_next[:-1]) / 2]).astype(np.float32)
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    extremes = np.array([0, 1e-45, 2**-126, np.nextafter(np.float32(2**-126), 0), 3e38, 3.4028235e38, np.inf, np.nan])
    points = np.concatenate([exact, powers, np.float32(1.5) * powers[:-1], extremes.astype(np.float32)])
    steps = points.view(np.int32)[:, None] + np.arange(-2, 3, dtype=np.int32)
    points = np.concatenate([points, np.maximum(steps, 0).ravel().view(np.float32)])
    points = np.unique(points[~np.isnan(points)])
    points = np.concatenate([points, -points, np.float32([np.nan, -0.0])])
    generator = np.random.default_rng(seed)
    size = size or len(points)
    bits = generator.integers(0, 2**32, max(0, size - len(points)), dtype=np.uint32)
    points = np.concatenate([generator.permutation(points), bits.view(np.float32)])
    return points[:size]


# --- block scaling --------------------------------------------------------------------------------


def to_blocks(x, block_size, axis):
    """x as a list of blocks, and the positions in x that each block's entries come from, both flat arrays."""
    positions = np.arange(x.size).reshape(x.shape)
    if block_size == 'tensor':
        return [positions.ravel()]
    if isinstance(block_size, tuple):
        rows, columns = block_size
        columns_last = axis % x.ndim == x.ndim - 1
        positions = positions if columns_last else positions.swapaxes(-1, -2)
        return [
            matrix[i : i + rows, j : j + columns].ravel()
            for matrix in positions.reshape(-1, *positions.shape[-2:])
            for i in range(0, matrix.shape[0], rows)
            for j in range(0, matrix.shape[1], columns)
        ]
    axes = tuple(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
    others = tuple(a for a in range(x.ndim) if a not in axes)
    length = math.prod(x.shape[a] for a in axes)
    rows = positions.transpose(*others, *axes).reshape(-1, length)
    count = length if block_size == 'channel' else block_size
    return [row[start : start + count] for row in rows for start in range(0, length, count)]


def without_subnormals(x):
    """float64 of x, float32 subnormals as zeros of their sign."""
    x = np.asarray(x).astype(np.float64)
    return np.where(np.abs(x) < 2.0**-126, np.copysign(0.0, x), x)


def absmax(x):
    return np.max(np.abs(x[np.isfinite(x)]), initial=0.0)


def floor_log2(x):
    return math.frexp(x)[1] - 1


def scaled_cast(x, scale, fmt, rounding):
    """round(x * scale) / scale, and which results hang on a turn of the rounding: x * scale within 1e-6 of it."""
    finite = np.isfinite(x)
    scaled = np.where(finite, x, 0.0) * scale
    result = np.where(finite, cast(scaled, fmt, rounding) / scale, x)
    return result, distance_from_a_turn(scaled, fmt, rounding) < 1e-6


def fake_quantize(x, fmt, block_size=32, scale='absmax', rounding='nearest_even', axis=-1):
    """The float64 result, and a mask of those entries that a float32 computation may round the other way."""
    x = without_subnormals(x)
    flat, result, unsure = x.ravel(), np.full(x.size, np.nan), np.zeros(x.size, bool)
    tensor_scale = 2688 / max(absmax(flat), SMALLEST_ABSMAX['nvfp4'])
    fmt_max = code_values(*fmt)[0][-1]
    for positions in to_blocks(x, block_size, axis):
        block = flat[positions]
        if scale == 'absmax':
            block_scale = fmt_max / max(absmax(block), SMALLEST_ABSMAX[scale])
        elif scale == 'mx':
            exponent = floor_log2(max(absmax(block), SMALLEST_ABSMAX[scale])) - floor_log2(fmt_max)
            block_scale = 2.0 ** -min(max(exponent, -127), 127)
        else:
            assert scale == 'nvfp4'
            stored = absmax(block) / 6 * tensor_scale
            unsure[positions] |= distance_from_a_turn(stored, (4, 3, 'fn'), 'nearest_even') < 1e-6
            stored = float(np.minimum(stored, 448.0).astype(ml_dtypes.float8_e4m3fn))
            if stored == 0:
                result[positions] = np.where(np.isfinite(block), np.copysign(0.0, block), block)
                continue
            block_scale = tensor_scale / stored
        result[positions], ties = scaled_cast(block, block_scale, fmt, rounding)
        unsure[positions] |= ties & (scale != 'mx')
    return result.reshape(x.shape), unsure.reshape(x.shape)


def heavy_tailed(shape, seed=0, spread=2.0, dtype=np.float32):
    """Student's t with three degrees of freedom times a log-normal scale: outliers, and ranges that differ."""
    generator = np.random.default_rng(seed)
    x = generator.standard_t(3, shape) * np.exp2(spread * generator.standard_normal(shape))
    return x.astype(dtype)


def bits(x):
    """Integer bit patterns, for comparisons that see the sign of zero; every NaN is one and the same."""
    x = np.asarray(x)
    integers = x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])
    return np.where(np.isnan(x), np.array(-1).astype(integers.dtype), integers)


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    different = np.nonzero(bits(actual).ravel() != bits(expected).ravel())[0]
    shown = [(float(actual.ravel()[i]), float(expected.ravel()[i])) for i in different[:5]]
    assert not len(different), f'{len(different)} of {actual.size} differ, first (actual, expected): {shown}'
