"""A drop-in `dot_general` that quantizes any of the six operands of a linear layer's three GEMMs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gaussq_jax import hardware_dot_general
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.rounding import check_input
from gaussq_jax.three_gemms import Flag, Roles, ThreeGemms

ARITHMETICS = ('simulated', 'hardware')
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
    backward_from: str = 'operands',
    arithmetic: str = 'simulated',
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

    Where P2 and P4 are one Quantizer of square tiles, or of a scale of the tensor, without randomness, W is quantized
    once, and both passes multiply by the same numbers. Where both operands of a GEMM have the same Hadamard transform,
    the transformed values are multiplied, which is the product of what they were; random signs are drawn from
    fold_in(key, 7), (key, 8) and (key, 9) for Y, dX and dW. Where only one has a transform, it is undone.

    The lhs is what comes first, and `jnp.einsum` may swap its operands: 'btd,edf->betf' does, 'ebd,edf->ebf' doesn't.
    Where that can be seen it is refused: the rhs contracts its last axes, as activations do, and the lhs doesn't, as
    weights. It can't be seen of weights (out, in), where both contract their last axes, nor of `weight @ x`: there P1
    and P6 would quantize the weights. `quantized_einsum` never swaps.

    Args:
      P1, P2, P3, P4, P5, P6: a Quantizer, or None to leave the operand as it is. Tiles (rows, cols) have their
        columns along the contracted axis and their rows along the free one, batch by batch.
      backward_from: 'operands', as above; or 'quantized': P4 and P6 are given P2(W) and P1(X), as they were multiplied,
        in the place of W and X. Then dX and dW are gradients of these, transformed back where they were transformed.
      arithmetic: 'simulated', as above; or 'hardware': operands are cast to FP8, which GPUs multiply on FP8 units (see
        `hardware_dot_general`). All six operands must then have Quantizers that these units take.
      weight_gradient_dtype: a floating dtype, in which the GEMM of dW gives its result, before that is rounded to W's;
        None is W's. Where the rows of X are split over devices, their parts of dW are summed in that dtype: with
        float32, bfloat16 weights get a gradient that is rounded once, however many devices there are.
      ordered: whether the lhs is known to be the activations, whatever it looks like.

    Returns:
      f(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, *, out_sharding=None, key=None,
      when=True), with the meaning of `jax.lax.dot_general`, for `dot_general=` of Flax's linear layers, linen or NNX,
      and `_dot_general=` of `jnp.einsum`. `key` is a JAX PRNG key, needed if a Quantizer rounds stochastically or has
      random signs, and new for each use: the operand Pi takes its random bits from fold_in(key, i). For linen there is
      `gaussq_jax.models.QuantizedDotGeneral`, which takes keys from an rng stream. `when` is a bool, or a bool array
      (): whether anything is quantized; or two of them, of the forward and of the backward pass. What isn't quantized
      costs a branch and no more. If all arguments are None, f is `jax.lax.dot_general`. f has derivatives of first
      order, in reverse mode.

    Raises:
      ValueError: for an operand that is no Quantizer; for clipped gradients of P3 to P6; for operands that FP8 units
        don't take, with the reason; for `backward_from='quantized'` of operands of which only one is transformed; in f,
        for operands that are not float32, bfloat16 or float16, or seem to be swapped, for a key missing or given for
        nothing, and for another `when`.

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
    if useless := [name for name, q in zip(TARGETS[2:], quantizers[2:]) if q and q.clips_gradient]:
        raise ValueError(f'clips_gradient=True of {useless[0]}: gradients are those of what P1 and P2 quantize')
    if weight_gradient_dtype is not None and not jnp.issubdtype(weight_gradient_dtype, jnp.floating):
        raise ValueError(f'weight_gradient_dtype={weight_gradient_dtype!r}: allowed are floating dtypes and None')
    random = [name for name, q in zip(TARGETS, quantizers) if q and q.needs_key]
    if backward_from not in ('operands', 'quantized'):
        raise ValueError(f"backward_from={backward_from!r}: allowed are 'operands' and 'quantized'")
    if arithmetic not in ARITHMETICS:
        raise ValueError(f'arithmetic={arithmetic!r}: allowed are {", ".join(map(repr, ARITHMETICS))}')
    if arithmetic == 'hardware':
        for names, pair in ((('P1', 'P2'), (P1, P2)), (('P3', 'P4'), (P3, P4)), (('P6', 'P5'), (P6, P5))):
            hardware_dot_general.check(*pair, names)
        if backward_from != 'operands':
            raise ValueError(f"arithmetic='hardware' takes backward_from='operands', not {backward_from!r}")
    if backward_from == 'quantized' and len({q and q.hadamard for q in (P1, P2)}) > 1:
        raise ValueError("backward_from='quantized' takes P1 and P2 of the same Hadamard transform, or of none")

    def dot_general(
        lhs: jax.Array,
        rhs: jax.Array,
        dimension_numbers: DimensionNumbers,
        precision: Any = None,
        preferred_element_type: Any = None,
        *,
        out_sharding: Any = None,
        key: jax.Array | None = None,
        when: Flag | tuple[Flag, Flag] = True,
    ) -> jax.Array:
        if bool(random) != (key is not None):
            needs = f'is needed by {", ".join(random)}' if random else 'is given for nothing'
            raise ValueError(
                f'a key {needs}: stochastic rounding and random signs take one (in linen, by QuantizedDotGeneral)'
            )
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
        gemms = ThreeGemms(
            quantizers,
            backward_from == 'quantized',
            roles,
            multiply,
            preferred_element_type,
            weight_gradient_dtype,
            on_hardware=arithmetic == 'hardware',
        )
        return gemms(key, _flags(when), lhs, rhs)

    return dot_general


def _flags(when: Flag | tuple[Flag, Flag]) -> tuple[Flag, Flag]:
    """Of the forward and of the backward pass."""
    flags = when if isinstance(when, tuple) else (when, when)
    is_flag = lambda flag: isinstance(flag, bool) or (getattr(flag, 'dtype', None) == jnp.bool_ and not flag.shape)
    if len(flags) != 2 or not all(map(is_flag, flags)):
        raise ValueError(f'when={when!r}: allowed are a bool, a bool array of shape (), and a tuple of two of these')
    return flags


def _roles(dimension_numbers: DimensionNumbers, lhs_ndim: int, rhs_ndim: int) -> tuple[Roles, Roles, Roles]:
    """Of lhs, rhs and output."""
    contracting, batch = dimension_numbers
    free = [
        tuple(axis for axis in range(ndim) if axis not in (*contracted, *batched))
        for ndim, contracted, batched in zip((lhs_ndim, rhs_ndim), contracting, batch)
    ]
    lhs = Roles(tuple(batch[0]), lhs=free[0], contracting=tuple(contracting[0]))
    rhs = Roles(tuple(batch[1]), rhs=free[1], contracting=tuple(contracting[1]))
    axes = iter(range(len(lhs.batch) + len(lhs.lhs) + len(rhs.rhs)))  # of the output: batch.., lhs.., rhs..
    take = lambda names: tuple(next(axes) for _ in names)
    return lhs, rhs, Roles(take(lhs.batch), lhs=take(lhs.lhs), rhs=take(rhs.rhs))


def _check_order(lhs: Roles, rhs: Roles):
    """ValueError for operands of which the lhs looks like weights, and the rhs like activations."""
    is_last = lambda contracting, free: not free or min(contracting, default=-1) > max(free)
    if lhs.lhs and rhs.rhs and is_last(rhs.contracting, rhs.rhs) and not is_last(lhs.contracting, lhs.lhs):
        raise ValueError(
            'the operands seem to be swapped, as jnp.einsum may do: the rhs contracts its last axes, as activations do,'
            f' and the lhs its axes {lhs.contracting} of {len(lhs.batch + lhs.lhs + lhs.contracting)}, as weights;'
            ' use quantized_einsum(spec, x, w, ...), or ordered=True if the lhs are activations'
        )
