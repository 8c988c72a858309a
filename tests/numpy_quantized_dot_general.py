"""What a fully quantized dot_general must compute, written a second time with float64 matrices.

Every operand becomes a stack of matrices (batch, rows, contraction) whose last axis is the contraction axis of the GEMM
at hand, is quantized there by `numpy_quantizers`, and the products are plain float64 matrix products. Power-of-two
scales are exact, so that with few-bit formats whole gradients can be compared bit for bit.
"""

import dataclasses
import math
import typing

import jax
import numpy as np
import numpy_quantizers

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

    def draws(self, key, shape, quantizer):
        """Uniform numbers for each value: of an array of this shape, but for tiles of the matrices themselves."""
        if not isinstance(quantizer.block_size, tuple):
            return self.matrices(numpy_quantizers.thresholds(key, shape))
        groups = (
            [shape[axis] for axis in self.batch],
            *([shape[axis] for axis in of] for of in (self.rows, self.columns)),
        )
        rows, columns = math.prod(groups[1]), math.prod(groups[2])
        return numpy_quantizers.thresholds(key, (*groups[0], rows, columns)).reshape(-1, rows, columns)

    def draws_of_blocks(self, key, shape, size):
        """Uniform numbers for each block along the columns, which lie where the first of these was."""
        others = [axis for axis in range(len(shape)) if axis not in self.columns]
        before = sum(axis < self.columns[0] for axis in others)
        count = -(-math.prod(shape[axis] for axis in self.columns) // size)
        lengths = [shape[axis] for axis in others]
        drawn = numpy_quantizers.thresholds(key, (*lengths[:before], count, 1, *lengths[before:]))
        drawn = np.moveaxis(np.squeeze(drawn, before + 1), before, -1)
        return np.transpose(drawn, [*(others.index(axis) for axis in self.batch + self.rows), len(others)])


class Read(typing.NamedTuple):
    """An operand (batch, rows, columns), quantized along its columns.

    matrix: the Hadamard transform's, of `held`, and of the values if the pair `is_transformed`; None if there is none.
    """

    values: np.ndarray
    held: np.ndarray | None = None
    matrix: np.ndarray | None = None
    is_transformed: bool = False


def quantized_dot_general(
    lhs,
    rhs,
    cotangent,
    dimension_numbers,
    round_operand=lambda x: x,
    *,
    key=None,
    backward_from='operands',
    when=(True, True),
    surely=False,
    **quantizers,
):
    """(Y, dlhs, drhs) in float64; round_operand is applied to each quantized operand, as it is multiplied.

    surely: AssertionError if float32 could round any value to another one.
    """
    lhs, rhs, cotangent = (np.asarray(x, np.float64) for x in (lhs, rhs, cotangent))
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = (tuple(map(tuple, pair)) for pair in dimension_numbers)
    lhs_free = tuple(i for i in range(lhs.ndim) if i not in lhs_contracting + lhs_batch)
    rhs_free = tuple(i for i in range(rhs.ndim) if i not in rhs_contracting + rhs_batch)
    out = range(cotangent.ndim)
    n_batch, n_lhs = len(lhs_batch), len(lhs_batch) + len(lhs_free)
    out_batch, out_lhs, out_rhs = tuple(out[:n_batch]), tuple(out[n_batch:n_lhs]), tuple(out[n_lhs:])

    def read(number, x, batch, rows, columns, on):
        operand = Operand(batch, rows, columns)
        matrices = operand.matrices(x)
        quantizer = quantizers.get(f'P{number}')
        if quantizer is None or not on:
            return Read(matrices)
        first = (number - 1) // 2 * 2 + 1
        pair = [of and of.hadamard for of in (quantizers.get(f'P{first}'), quantizers.get(f'P{first + 1}'))]
        is_transformed = pair[0] is not None and pair[0] == pair[1]
        own_key = jax.random.fold_in(key, number) if quantizer.needs_key else None
        matrix = None
        if quantizer.hadamard is not None:
            signs_key = jax.random.fold_in(key, 7 + first // 2) if quantizer.hadamard.is_random else None
            matrix = numpy_quantizers.matrix_of(quantizer.hadamard, signs_key)
        draws = operand.draws(own_key, x.shape, quantizer) if quantizer.rounding == 'stochastic' else None
        scale_draws = operand.draws_of_blocks(own_key, x.shape, 16) if quantizer.fit == 'eden' else None
        values, unsure, held = numpy_quantizers.quantize(
            matrices, quantizer, matrix=matrix, draws=draws, scale_draws=scale_draws
        )
        assert not (surely and unsure.any()), f'P{number}: {unsure.sum()} values hang on ties'
        if matrix is not None and not is_transformed:
            values = numpy_quantizers.transform(values, matrix.T)
        return Read(round_operand(values), held if quantizer.clips_gradient else None, matrix, is_transformed)

    def pull_back(gradient, of):
        """The gradient of an operand, of that of what was made of it in the forward pass."""
        transformed = of.is_transformed and backward_from == 'quantized'
        if of.held is not None:
            rotate = of.matrix is not None and not transformed
            gradient = numpy_quantizers.transform(gradient, of.matrix) if rotate else gradient
            gradient = np.where(of.held, gradient, 0)
            return gradient if of.matrix is None else numpy_quantizers.transform(gradient, of.matrix.T)
        return numpy_quantizers.transform(gradient, of.matrix.T) if transformed else gradient

    of_lhs, of_rhs = Operand(lhs_batch, lhs_free, lhs_contracting), Operand(rhs_batch, rhs_free, rhs_contracting)
    p1 = read(1, lhs, lhs_batch, lhs_free, lhs_contracting, when[0])
    p2 = read(2, rhs, rhs_batch, rhs_free, rhs_contracting, when[0])
    if backward_from == 'quantized':
        lhs, rhs = of_lhs.array(p1.values, lhs.shape), of_rhs.array(p2.values, rhs.shape)
    p3 = read(3, cotangent, out_batch, out_lhs, out_rhs, when[1])
    p4 = read(4, rhs, rhs_batch, rhs_contracting, rhs_free, when[1])
    p5 = read(5, cotangent, out_batch, out_rhs, out_lhs, when[1])
    p6 = read(6, lhs, lhs_batch, lhs_contracting, lhs_free, when[1])
    pairs = (p1, p2), (p3, p4), (p5, p6)
    y, dlhs, drhs = (np.matmul(a.values, np.swapaxes(b.values, 1, 2)) for a, b in pairs)
    return (
        y.reshape(cotangent.shape),
        of_lhs.array(pull_back(dlhs, p1), lhs.shape),
        of_rhs.array(pull_back(drhs, p2), rhs.shape),
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
