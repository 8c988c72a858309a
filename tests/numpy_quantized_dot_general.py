"""What a fully quantized dot_general must compute, written a second time with float64 matrices.

Every operand becomes a stack of matrices (batch, rows, contraction) whose last axis is the contraction axis of the GEMM
at hand, is quantized there, and the products are plain float64 matrix products. Power-of-two scales are exact, so
that with few-bit formats whole gradients can be compared bit for bit.
"""

import dataclasses
import math

import jax
import numpy as np

import gaussq_jax as gq

TARGETS = ('P1', 'P2', 'P3', 'P4', 'P5', 'P6')
# Dimension numbers of dense layers, of attention's projections, of experts, and some that only einsum makes.
CONTRACTIONS = {
    'dense': ((24, 40), (40, 36), (((1,), (0,)), ((), ()))),
    'dense with leading axes': ((3, 10, 40), (40, 36), (((2,), (0,)), ((), ()))),
    'several features': ((3, 10, 40), (40, 3, 7), (((2,), (0,)), ((), ()))),
    'several contracting axes': ((3, 5, 6, 7), (6, 7, 20), (((2, 3), (0, 1)), ((), ()))),
    'unsorted contracting axes': ((5, 6, 7), (7, 6, 20), (((2, 1), (0, 1)), ((), ()))),
    'contracting axes apart': ((6, 5, 7), (6, 20, 7), (((2, 0), (2, 0)), ((), ()))),
    'transposed': ((40, 24), (36, 40), (((0,), (1,)), ((), ()))),
    'batch axis': ((3, 24, 20), (3, 20, 18), (((2,), (1,)), ((0,), (0,)))),
    'batch axes in the middle': ((12, 2, 20, 3), (3, 18, 2, 20), (((2,), (3,)), ((1, 3), (2, 0)))),
    'a vector': ((5, 40), (40,), (((1,), (0,)), ((), ()))),
    'two vectors': ((40,), (40,), (((0,), (0,)), ((), ()))),
    'no contraction': ((5, 6), (7,), (((), ()), ((), ()))),
}


def small_numbers(shape, seed=0, dtype=np.float32):
    """Eighths of about normal size, none larger than 3 7/8: few bits, so that float32 sums of products are exact."""
    normal = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(np.clip(np.round(normal * 8), -31, 31) / 8, dtype)


def operands(contraction, seed=0, dtype=np.float32):
    """lhs, rhs, a cotangent of their product, and the dimension numbers."""
    lhs_shape, rhs_shape, dimension_numbers = CONTRACTIONS[contraction]
    lhs, rhs = small_numbers(lhs_shape, 3 * seed, dtype), small_numbers(rhs_shape, 3 * seed + 1, dtype)
    out = jax.eval_shape(lambda lhs, rhs: jax.lax.dot_general(lhs, rhs, dimension_numbers), lhs, rhs)
    return lhs, rhs, small_numbers(out.shape, 3 * seed + 2, dtype), dimension_numbers


def round_to_values(x, fmt):
    """The nearest of the format's values, of two as near the one with the even code; saturating."""
    values = fmt.values()
    magnitude = np.minimum(np.abs(x), values[-1])
    above = np.searchsorted(values, magnitude)
    below = np.maximum(above - 1, 0)
    to_above, to_below = values[above] - magnitude, magnitude - values[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return np.copysign(np.where(up, values[above], values[below]), x)


def quantize_block(x, quantizer):
    """One scale for the whole of x."""
    largest = np.max(np.abs(x), initial=0.0)
    if largest == 0.0:
        return x
    if quantizer.scale == 'mx':
        emax = math.frexp(quantizer.fmt.max)[1] - 1
        scale = 2.0 ** np.clip(math.frexp(largest)[1] - 1 - emax, -127, 127)
    else:
        scale = largest / quantizer.fmt.max
    return scale * round_to_values(x / scale, quantizer.fmt)


def quantize(matrices, quantizer):
    """Fake-quantized (batch, rows, contraction), in float64; blocks lie along the last axis."""
    matrices = np.asarray(matrices, np.float64)
    if quantizer is None:
        return matrices
    if quantizer.block_size == 'tensor':
        return quantize_block(matrices, quantizer)
    _, rows, columns = matrices.shape
    height, width = {'channel': (1, columns)}.get(quantizer.block_size) or (
        quantizer.block_size if isinstance(quantizer.block_size, tuple) else (1, quantizer.block_size)
    )
    result = np.zeros_like(matrices)
    for matrix, quantized in zip(matrices, result):
        for i in range(0, rows, height):
            for j in range(0, columns, width):
                block = np.s_[i : i + height, j : j + width]
                quantized[block] = quantize_block(matrix[block], quantizer)
    return result


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array read as matrices, its axes divided into (batch, rows, contraction)."""

    batch: tuple
    rows: tuple
    columns: tuple

    def matrices(self, x):
        groups = [[x.shape[axis] for axis in axes] for axes in (self.batch, self.rows, self.columns)]
        return np.transpose(x, self.batch + self.rows + self.columns).reshape([math.prod(group) for group in groups])

    def array(self, matrices, shape):
        order = self.batch + self.rows + self.columns
        return np.transpose(np.reshape(matrices, [shape[axis] for axis in order]), np.argsort(order).astype(int))


def quantized_dot_general(lhs, rhs, cotangent, dimension_numbers, round_operand=lambda x: x, **quantizers):
    """(Y, dlhs, drhs) in float64; round_operand is applied to each quantized operand."""
    lhs, rhs, cotangent = (np.asarray(x, np.float64) for x in (lhs, rhs, cotangent))
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = (tuple(map(tuple, pair)) for pair in dimension_numbers)
    lhs_free = tuple(i for i in range(lhs.ndim) if i not in lhs_contracting + lhs_batch)
    rhs_free = tuple(i for i in range(rhs.ndim) if i not in rhs_contracting + rhs_batch)
    out = range(cotangent.ndim)
    n_batch, n_lhs = len(lhs_batch), len(lhs_batch) + len(lhs_free)
    out_batch, out_lhs, out_rhs = tuple(out[:n_batch]), tuple(out[n_batch:n_lhs]), tuple(out[n_lhs:])

    def read(target, x, batch, rows, columns):
        quantizer = quantizers.get(target)
        matrices = quantize(Operand(batch, rows, columns).matrices(x), quantizer)
        return matrices if quantizer is None else round_operand(matrices)

    p1 = read('P1', lhs, lhs_batch, lhs_free, lhs_contracting)
    p2 = read('P2', rhs, rhs_batch, rhs_free, rhs_contracting)
    p3 = read('P3', cotangent, out_batch, out_lhs, out_rhs)
    p4 = read('P4', rhs, rhs_batch, rhs_contracting, rhs_free)
    p5 = read('P5', cotangent, out_batch, out_rhs, out_lhs)
    p6 = read('P6', lhs, lhs_batch, lhs_contracting, lhs_free)
    y, dlhs, drhs = (np.matmul(a, np.swapaxes(b, 1, 2)) for a, b in ((p1, p2), (p3, p4), (p5, p6)))
    return (
        y.reshape(cotangent.shape),
        Operand(lhs_batch, lhs_free, lhs_contracting).array(dlhs, lhs.shape),
        Operand(rhs_batch, rhs_free, rhs_contracting).array(drhs, rhs.shape),
    )


def with_gradients(dot_general, lhs, rhs, cotangent, dimension_numbers, **settings):
    """(Y, dlhs, drhs) of a dot_general, by JAX."""
    y, pull_back = jax.vjp(lambda lhs, rhs: dot_general(lhs, rhs, dimension_numbers, **settings), lhs, rhs)
    return y, *pull_back(cotangent.astype(y.dtype))


def power_of_two_quantizers():
    """Six different quantizers whose products are exact in float32."""
    return {
        'P1': gq.Quantizer('e2m1', block_size=16, scale='mx'),
        'P2': gq.Quantizer('e3m2', block_size='channel', scale='mx'),
        'P3': gq.Quantizer('e2m3', block_size='tensor', scale='mx'),
        'P4': gq.Quantizer('e1m2', block_size=32, scale='mx'),
        'P5': gq.Quantizer('e2m1', block_size=7, scale='mx'),
        'P6': gq.Quantizer('e1m1', block_size=(4, 8), scale='mx'),
    }


def assert_identical(got, expected):
    got = np.asarray(got)
    assert got.shape == np.shape(expected)
    np.testing.assert_array_equal(got.astype(np.float64), np.asarray(expected, np.float64))


def assert_all_identical(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert_identical(one, other)
