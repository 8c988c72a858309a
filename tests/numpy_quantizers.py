"""What a Quantizer must give, written a second time from the papers' formulas, in NumPy's float64.

Powers of two are compared by their exponents, so that no logarithm rounds. Where float32 may decide otherwise, at ties
of values, of scales, and of two errors, the result says so: these values are `unsure`.
"""

import functools
import math
import typing

import jax
import numpy as np
from numpy_float_formats import absmax, cast, code_values, floor_log2, to_blocks
from numpy_random_bits import random_bits_16

E4M3 = (4, 3, 'fn')
NEAR = 8e-7  # relative; what float32 may make of a few operations


class Quantized(typing.NamedTuple):
    """Values, float64 and transformed if they were to be; which float32 may round otherwise; which a scale holds."""

    values: np.ndarray
    unsure: np.ndarray
    held: np.ndarray


def triple_of(fmt):
    return fmt.exponent_bits, fmt.mantissa_bits, fmt.special_values


def thresholds(key, shape):
    """Of each value, what a fraction of a step is above if it goes up: sixteen bits, and half of the last one."""
    return (random_bits_16(jax.random.key_data(key), shape).astype(np.float64) + 0.5) / 2**16


def signs(hadamard, key):
    if hadamard.signs == 'random':
        return np.asarray(jax.random.rademacher(key, (hadamard.size,), np.float32), np.float64)
    return np.ones(hadamard.size) if hadamard.signs == 'none' else np.array(hadamard.signs, np.float64)


def matrix_of(hadamard, key=None):
    """diag(signs) H / sqrt(size); H[i, j] = -1 to the number of ones that i and j share."""
    size = hadamard.size
    of_bits = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    return signs(hadamard, key)[:, None] * np.array(of_bits) / math.sqrt(size)


def transform(x, matrix, axis=-1):
    """Blocks along an axis, or several that are read as one, times the matrix."""
    positions = np.array(to_blocks(x, len(matrix), axis))
    result = np.empty(x.size)
    with np.errstate(invalid='ignore'):
        result[positions] = x.ravel()[positions] @ matrix
    return result.reshape(x.shape)


def quantize(x, quantizer, axis=-1, *, matrix=None, draws=None, scale_draws=None):
    """Quantized; `matrix` is the Hadamard transform's, which isn't undone.

    draws: of stochastic rounding, uniform numbers of x's shape. scale_draws: of eden, one a block, in the order of
    `to_blocks`.
    """
    x = np.asarray(x).astype(np.float64)
    x = np.where(np.abs(x) < 2.0**-126, np.copysign(0.0, x), x)
    slack = np.zeros(x.size)  # of sums in float32
    if matrix is not None:
        x = transform(x, matrix, axis)
        summed = np.array(to_blocks(x, len(matrix), axis))
        slack[summed] = NEAR * np.max(np.abs(x.ravel()[summed]), axis=1, keepdims=True)
    flat = x.ravel()
    values, unsure, held = np.empty(x.size), np.zeros(x.size, bool), np.ones(x.size, bool)
    of_tensor = max(absmax(flat), 2.0**-105)
    for i, positions in enumerate(to_blocks(x, quantizer.block_size, axis)):
        block = flat[positions]
        up_above = None if draws is None else draws.ravel()[positions]
        scale_draw = None if scale_draws is None else scale_draws.ravel()[i]
        values[positions], unsure[positions], held[positions] = _of_block(
            block, quantizer, of_tensor, up_above, scale_draw, np.max(slack[positions])
        )
    return Quantized(*(result.reshape(x.shape) for result in (values, unsure, held)))


def _of_block(block, quantizer, of_tensor, draws, scale_draw, slack):
    fmt = triple_of(quantizer.fmt)
    if quantizer.fit == 'eden':
        return _eden(block, fmt, of_tensor, scale_draw, slack)
    if quantizer.scale == 'nvfp4':
        step, doubtful = _nvfp4_step(block, quantizer, fmt, of_tensor, slack)
    elif quantizer.scale == 'mx':
        step, doubtful = _mx_step(block, quantizer, fmt, slack)
    else:
        largest, doubtful = _largest(block, quantizer), False
        step = max(largest, 2.0**-123) / fmt_max(fmt)
    step /= quantizer.prescale
    if step == 0:
        return np.where(np.isfinite(block), np.copysign(0, block), block), doubtful, block == 0
    values, ties = _rounded(block, step, fmt, quantizer.rounding, draws, slack)
    is_exact = quantizer.scale == 'mx' and math.frexp(quantizer.prescale)[0] == 0.5 and not slack
    at_edge = quantizer.fit == 'rms' and np.abs(np.abs(block) / step / fmt_max(fmt) - 1) < NEAR
    return values, doubtful | (ties & (not is_exact)) | at_edge, np.abs(block) <= step * fmt_max(fmt) * (1 + NEAR)


def fmt_max(fmt):
    return code_values(*fmt)[0][-1]


def _rounded(block, step, fmt, rounding, draws, slack):
    """The format's numbers times the step; and which of them hang on a tie."""
    finite = np.isfinite(block)
    scaled = np.where(finite, block, 0) / step
    if rounding == 'stochastic':
        numbers, ties = _stochastic(scaled, fmt, draws, slack / step)
    else:
        numbers = cast(scaled, fmt, rounding)
        doubt = np.abs(scaled) * NEAR + slack / step
        ties = (cast(scaled + doubt, fmt, rounding) != numbers) | (cast(scaled - doubt, fmt, rounding) != numbers)
    return np.where(finite, numbers * step, block), ties & finite


def _stochastic(scaled, fmt, draws, slack):
    """Up where the fraction of the step above the number below is more than the draw; saturating."""
    values, following = code_values(*fmt)
    values_and_next = np.append(values, following)
    code = np.clip(np.searchsorted(values_and_next, np.abs(scaled), side='right') - 1, 0, len(values) - 1)
    below, above = values_and_next[code], values_and_next[code + 1]
    fraction = (np.abs(scaled) - below) / (above - below)
    numbers = np.minimum(np.where(fraction > draws, above, below), values[-1])
    doubt = NEAR * 16 + slack / (above - below)
    distance = np.min(
        [np.abs(fraction - draws), np.where(fraction < doubt, 1 - draws, 1), draws + 1 - fraction], axis=0
    )
    return np.copysign(numbers, scaled), distance < doubt


def _largest(block, quantizer):
    """A: the largest finite magnitude, or c RMS of the finite values."""
    if quantizer.fit != 'rms':
        return absmax(block)
    c = gaussian_clipping(triple_of(quantizer.fmt))
    finite = block[np.isfinite(block)]
    return c * math.sqrt(np.mean(np.square(finite))) if finite.size else 0.0


@functools.cache
def gaussian_clipping(fmt):
    """Where E[(Z - c/max round(Z max/c))^2] is least: integrals between ties, and a grid that becomes finer."""
    values, _ = code_values(*fmt)
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def error(c):
        numbers = values * c / values[-1]
        edges = np.concatenate([[0], (numbers[1:] + numbers[:-1]) / 2, [max(12, 2 * c)]])
        half = np.diff(edges)[:, None] / 2
        z = edges[:-1, None] + half * (1 + nodes)
        return np.sum(half * weights * np.exp(-(z**2) / 2) * (z - numbers[:, None]) ** 2)

    grid = np.geomspace(0.25, 16, 300)
    for _ in range(5):
        best = int(np.argmin([error(c) for c in grid]))
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 15)
    return float(grid[int(np.argmin([error(c) for c in grid]))])


def mx_exponent(largest, fmt, rounding):
    """Of s, for a largest magnitude > 0, by its mantissa and that of the format's largest number, both in [1/2, 1)."""
    (m, e), (m_max, e_max) = math.frexp(largest), math.frexp(fmt_max(fmt))
    return {
        'floor': lambda: e - e_max,
        'ceil': lambda: e - e_max + (m > 0.5),
        'rceil': lambda: e - e_max + (m > m_max),
        'even': lambda: e - e_max + (math.floor(m * 2 ** (fmt[1] + 1) + 0.5) == 2 ** (fmt[1] + 1)),
        'nearest': lambda: e - e_max + (m**2 >= 2 * m_max**2) - (2 * m**2 < m_max**2),
    }[rounding]()


def _mx_step(block, quantizer, fmt, slack):
    largest = _largest(block, quantizer)
    highest = 127 - floor_log2(fmt_max(fmt))  # the next power of two would make infinities
    exponent = lambda a: max(-127, min(mx_exponent(a, fmt, quantizer.scale_rounding), highest)) if a > 0 else -127
    doubt = slack + (NEAR * largest if quantizer.fit == 'rms' else 0)
    return 2.0 ** exponent(largest), exponent(largest - doubt) != exponent(largest + doubt)


def _e4m3(stored, doubt=0):
    """Rounded to float8_e4m3fn, and whether float32 may do that otherwise."""
    near = [cast(np.array(stored * (1 + by * NEAR) + by * doubt), E4M3) for by in (-1, 0, 1)]
    return float(near[1]), bool(near[0] != near[2])


def _nvfp4_step(block, quantizer, fmt, of_tensor, slack):
    """What the numbers are multiplied by: s / g."""
    largest = absmax(block)
    if quantizer.fit == 'absmax':
        code, doubtful = _e4m3(largest / of_tensor * 448, 448 * slack / of_tensor)
        return code * of_tensor / 2688, doubtful
    codes, errors, doubtful = [], [], False
    for target in (6, 4):
        code, unsure = _e4m3(largest / target * (1536 / of_tensor), 384 * slack / of_tensor)
        codes.append(code * of_tensor / 1536)
        doubtful |= unsure
        finite = block[np.isfinite(block)]
        values = _rounded(finite, codes[-1], fmt, 'nearest_even', None, 0)[0] if code else np.zeros_like(finite)
        errors.append(np.sum(np.square(values - finite)))
    doubtful |= errors[0] != errors[1] and abs(errors[1] - errors[0]) <= 1e-4 * max(errors)
    return codes[1] if errors[1] < errors[0] else codes[0], doubtful


def _eden(block, fmt, of_tensor, draw, slack):
    """The scale that makes the product with the values right, rounded stochastically: MS-EDEN."""
    top = 6 * 16 / 17 / 0.93
    code, doubtful = _e4m3(absmax(block) / of_tensor * 256, 256 * slack / of_tensor)
    if code == 0:
        return np.where(np.isfinite(block), np.copysign(0, block), block), doubtful, block == 0
    step = code * of_tensor / (256 * top)
    finite = np.isfinite(block)
    values, ties = _rounded(np.where(finite, block, 0), step, fmt, 'nearest_even', None, slack)
    product = np.sum(values * np.where(finite, block, 0))
    corrected = code * (np.sum(np.square(block[finite])) / product if product > 0 else 1.0)
    drawn, unsure = _stochastic(
        np.array([corrected]), E4M3, np.array([draw]), NEAR * corrected + 256 * slack / of_tensor
    )
    doubtful |= bool(unsure[0]) | ties.any()
    values = np.where(finite, values / code * drawn[0], block)
    return values, doubtful, np.abs(np.where(finite, block, np.inf)) <= 6 * step * (1 + NEAR)
