"""A drop-in `dot_general` that quantizes any of the six operands of a linear layer's three GEMMs."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax import explicit_sharding
from gaussq_jax.block_scaling import Quantizer, fake_quantize
from gaussq_jax.rounding import check_input
from kernels_pallas.partitioning import varying

TARGETS = ('P1', 'P2', 'P3', 'P4', 'P5', 'P6')
DimensionNumbers = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def quantized_dot_general(
    *,
    P1: Quantizer | None = None,
    P2: Quantizer | None = None,
    P3: Quantizer | None = None,
    P4: Quantizer | None = None,
    P5: Quantizer | None = None,
    P6: Quantizer | None = None,
    weight_gradient_dtype: Any = None,
    ordered: bool = False,
) -> Callable[..., jax.Array]:
    """A `dot_general` for fully quantized training: X (lhs) the activations, W (rhs) the weights, dY the gradient.

        Y = P1(X) P2(W),    dX = P3(dY) P4(W)^T,    dW = P6(X)^T P5(dY)

    Each operand is fake-quantized, in its own dtype, by scales along the axes that its GEMM contracts: the
    contracting axes of X and W for P1 and P2, the free axes of W for P3 and P4, the free axes of X for P5 and P6.
    Several such axes are read as one. Then `jax.lax.dot_general` multiplies, forward and backward, as it does
    without quantization: bfloat16 operands with float32 accumulation. (The gradient of a result that is wider than its
    operands, by `preferred_element_type`, is rounded to their dtype before it is multiplied.)

    The lhs is what comes first, and `jnp.einsum` may swap its operands: 'btd,edf->betf' does, 'ebd,edf->ebf' doesn't.
    Where that can be seen it is refused: the rhs contracts its last axes, as activations do, and the lhs doesn't, as
    weights. It can't be seen of weights (out, in), where both contract their last axes, nor of `weight @ x`: there P1
    and P6 would quantize the weights. `quantized_einsum` never swaps.

    Args:
      P1, P2, P3, P4, P5, P6: a Quantizer, or None to leave the operand as it is. Tiles (rows, cols) have their
        columns along the contracted axis and their rows along the free one, batch by batch.
      weight_gradient_dtype: a floating dtype, in which the GEMM of dW gives its result, before that is rounded to W's;
        None is W's. Where the rows of X are split over devices, their parts of dW are summed in that dtype: with
        float32, bfloat16 weights get a gradient that is rounded once, however many devices there are.
      ordered: whether the lhs is known to be the activations, whatever it looks like.

    Returns:
      f(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, *, out_sharding=None, key=None), with
      the meaning of `jax.lax.dot_general`, for `dot_general=` of Flax's linear layers, linen or NNX, and
      `_dot_general=` of `jnp.einsum`. `key` is a JAX PRNG key, needed if a Quantizer rounds stochastically, and new
      for each use: the operand Pi takes its random bits from fold_in(key, i). For linen there is
      `gaussq_jax.models.QuantizedDotGeneral`, which takes keys from an rng stream. If all arguments are None, f
      is `jax.lax.dot_general`. f has derivatives of first order, in reverse mode.

    Raises:
      ValueError: for an operand that is no Quantizer; in f, for operands that are not float32, bfloat16 or float16, or
        seem to be swapped, and for a key missing or given for nothing.

    Example:
      >>> fqt = quantized_dot_general(P2=Quantizer('e2m1', block_size='channel'))
      >>> fqt(jnp.ones((1, 3)), jnp.array([[6.0], [2.2], [0.8]]), (((1,), (0,)), ((), ())))
      Array([[9.]], dtype=float32)

    Source: arXiv 2501.02423, section 3.1.
    """
    quantizers = (P1, P2, P3, P4, P5, P6)
    for name, quantizer in zip(TARGETS, quantizers):
        if not isinstance(quantizer, Quantizer | None):
            raise ValueError(f'{name}={quantizer!r}: allowed are a Quantizer and None')
    if weight_gradient_dtype is not None and not jnp.issubdtype(weight_gradient_dtype, jnp.floating):
        raise ValueError(f'weight_gradient_dtype={weight_gradient_dtype!r}: allowed are floating dtypes and None')
    stochastic = [name for name, q in zip(TARGETS, quantizers) if q and q.rounding == 'stochastic']

    def dot_general(
        lhs: jax.Array,
        rhs: jax.Array,
        dimension_numbers: DimensionNumbers,
        precision: Any = None,
        preferred_element_type: Any = None,
        *,
        out_sharding: Any = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        if bool(stochastic) != (key is not None):
            needs = f'is needed by {", ".join(stochastic)}' if stochastic else 'is given for nothing'
            raise ValueError(f'a key {needs}: stochastic rounding takes one (in linen, by QuantizedDotGeneral)')
        multiply = functools.partial(
            jax.lax.dot_general, dimension_numbers=dimension_numbers, precision=precision, out_sharding=out_sharding
        )
        if not any(quantizers) and weight_gradient_dtype is None:
            return multiply(lhs, rhs, preferred_element_type=preferred_element_type)
        check_input(lhs, 'lhs')
        check_input(rhs, 'rhs')
        roles = _roles(dimension_numbers, lhs.ndim, rhs.ndim)
        if not ordered:
            _check_order(*roles[:2])
        return _three_gemms(multiply, roles, quantizers, preferred_element_type, weight_gradient_dtype)(key, lhs, rhs)

    return dot_general


class _Roles(NamedTuple):
    """The axes of one array: those in both operands and the output, those in the lhs and those in the rhs alone."""

    batch: tuple[int, ...]
    lhs: tuple[int, ...] = ()
    rhs: tuple[int, ...] = ()
    contracting: tuple[int, ...] = ()


def _roles(dimension_numbers: DimensionNumbers, lhs_ndim: int, rhs_ndim: int) -> tuple[_Roles, _Roles, _Roles]:
    """Of lhs, rhs and output."""
    contracting, batch = dimension_numbers
    free = [
        tuple(axis for axis in range(ndim) if axis not in (*contracted, *batched))
        for ndim, contracted, batched in zip((lhs_ndim, rhs_ndim), contracting, batch)
    ]
    lhs = _Roles(tuple(batch[0]), lhs=free[0], contracting=tuple(contracting[0]))
    rhs = _Roles(tuple(batch[1]), rhs=free[1], contracting=tuple(contracting[1]))
    axes = iter(range(len(lhs.batch) + len(lhs.lhs) + len(rhs.rhs)))  # of the output: batch.., lhs.., rhs..
    take = lambda names: tuple(next(axes) for _ in names)
    return lhs, rhs, _Roles(take(lhs.batch), lhs=take(lhs.lhs), rhs=take(rhs.rhs))


def _check_order(lhs: _Roles, rhs: _Roles):
    """ValueError for operands of which the lhs looks like weights, and the rhs like activations."""
    is_last = lambda contracting, free: not free or min(contracting, default=-1) > max(free)
    if lhs.lhs and rhs.rhs and is_last(rhs.contracting, rhs.rhs) and not is_last(lhs.contracting, lhs.lhs):
        raise ValueError(
            'the operands seem to be swapped, as jnp.einsum may do: the rhs contracts its last axes, as activations do,'
            f' and the lhs its axes {lhs.contracting} of {len(lhs.batch + lhs.lhs + lhs.contracting)}, as weights;'
            ' use quantized_einsum(spec, x, w, ...), or ordered=True if the lhs are activations'
        )


def _three_gemms(
    multiply: Callable,
    roles: tuple[_Roles, _Roles, _Roles],
    quantizers: Sequence[Quantizer | None],
    out_dtype: Any,
    weight_gradient_dtype: Any,
) -> Callable[..., jax.Array]:
    """The function (key, lhs, rhs) -> output with its backward pass; `multiply` does without quantization."""
    of_lhs, of_rhs, of_out = roles

    def quantize(number, key, x, axes, free):
        quantizer = quantizers[number - 1]
        if quantizer is None:
            return x
        key = jax.random.fold_in(key, number) if quantizer.rounding == 'stochastic' else None
        return _quantize_operand(x, quantizer, key, axes, free)

    def product(key, lhs, rhs):
        return multiply(
            quantize(1, key, lhs, of_lhs.contracting, of_lhs.lhs),
            quantize(2, key, rhs, of_rhs.contracting, of_rhs.rhs),
            preferred_element_type=out_dtype,
        )

    gemms = jax.custom_vjp(product)

    def forward(key, lhs, rhs):
        return product(key, lhs, rhs), (key, lhs, rhs)  # not `gemms`, which hides its matmul from checkpoint policies

    def backward(residuals, d_out):
        key, lhs, rhs = residuals
        d_out = d_out.astype(lhs.dtype if lhs.dtype == rhs.dtype else jnp.float32)
        p3 = quantize(3, key, d_out, of_out.rhs, of_out.lhs)
        p4 = quantize(4, key, rhs, of_rhs.rhs, of_rhs.contracting)
        p5 = quantize(5, key, d_out, of_out.lhs, of_out.rhs)
        p6 = quantize(6, key, lhs, of_lhs.lhs, of_lhs.contracting)
        (d_lhs,) = jax.linear_transpose(lambda lhs: multiply(lhs, p4), lhs)(p3)
        d_rhs = explicit_sharding.like(rhs, weight_gradient)(p6, p5)
        if parts := tuple(varying(d_rhs) - varying(rhs)):  # of the devices, inside `jax.shard_map`
            d_rhs = jax.lax.psum(d_rhs, parts)
        return None, d_lhs, d_rhs.astype(rhs.dtype)

    def weight_gradient(p6, p5):
        """X^T dY, and not the transpose of dY^T X, as JAX has it: XLA:CPU copies the first operand, transposed."""
        d_rhs = jax.lax.dot_general(
            p6,
            p5,
            ((of_lhs.lhs, of_out.lhs), (of_lhs.batch, of_out.batch)),
            precision=multiply.keywords['precision'],
            preferred_element_type=weight_gradient_dtype,
        )
        contracting = sorted(zip(of_lhs.contracting, of_rhs.contracting))  # the axes are in the order of the lhs
        order = (*of_rhs.batch, *(axis for _, axis in contracting), *of_rhs.rhs)
        if list(order) != sorted(order):  # XLA:CPU has no matmul for the transposition that it would fold into this one
            d_rhs = jnp.transpose(jax.lax.optimization_barrier(d_rhs), np.argsort(order))
        return d_rhs

    gemms.defvjp(forward, backward)
    return gemms


def _quantize_operand(x: jax.Array, quantizer: Quantizer, key, contracted: tuple[int, ...], free: tuple[int, ...]):
    """Fake quantization with scales along `contracted`; tiles have their rows along `free`, both read as one axis."""
    if not isinstance(quantizer.block_size, tuple):
        return fake_quantize(x, quantizer, axis=contracted, key=key)
    order = (*(axis for axis in range(x.ndim) if axis not in (*free, *contracted)), *free, *contracted)
    rows, columns = (math.prod(x.shape[axis] for axis in axes) for axes in (free, contracted))

    def quantize(x, key):
        ordered = jnp.transpose(x, order)
        batch = ordered.shape[: x.ndim - len(free) - len(contracted)]
        tiles = fake_quantize(ordered.reshape(*batch, rows, columns), quantizer, key=key)
        return jnp.transpose(tiles.reshape(ordered.shape), np.argsort(order))

    return explicit_sharding.like(x, quantize)(x, key)
