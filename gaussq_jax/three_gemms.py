"""The three GEMMs of a linear layer, as one function with a backward pass of its own, each operand quantized or not."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax import explicit_sharding, hadamard
from gaussq_jax.block_scaling import clip, quantize_values, to_dtype
from gaussq_jax.hardware_dot_general import hardware_dot_general
from gaussq_jax.quantizer import Quantizer
from kernels_pallas.partitioning import varying

Flag = bool | jax.Array


class Roles(NamedTuple):
    """The axes of one array: those in both operands and the output, those in the lhs and those in the rhs alone."""

    batch: tuple[int, ...]
    lhs: tuple[int, ...] = ()
    rhs: tuple[int, ...] = ()
    contracting: tuple[int, ...] = ()


class Saved(NamedTuple):
    """What the backward pass starts from.

    Attributes:
      lhs, rhs: the operands, or what the forward pass made of them.
      lhs_held, rhs_held: which of their values the scales of P1 and P2 hold; None where no gradient is clipped.
    """

    lhs: jax.Array
    rhs: jax.Array
    lhs_held: jax.Array | None
    rhs_held: jax.Array | None


@dataclasses.dataclass(frozen=True)
class ThreeGemms:
    """Y = P1(X) P2(W), dX = P3(dY) P4(W)^T and dW = P6(X)^T P5(dY), of the axes that one use has.

    Attributes:
      quantizers: P1 to P6, each a Quantizer or None.
      reuses_quantized: whether P4 and P6 are given P2(W) and P1(X) instead of W and X.
      roles: of lhs, rhs and output.
      multiply: (lhs, rhs, preferred_element_type=) -> output, without quantization: a partial `jax.lax.dot_general`.
      out_dtype, weight_gradient_dtype: of results; None as `jax.lax.dot_general` has it.
      on_hardware: whether GEMMs are those of FP8 units, see `hardware_dot_general`.
    """

    quantizers: tuple[Quantizer | None, ...]
    reuses_quantized: bool
    roles: tuple[Roles, Roles, Roles]
    multiply: Callable[..., jax.Array]
    out_dtype: Any
    weight_gradient_dtype: Any
    on_hardware: bool = False

    def __call__(self, key: jax.Array | None, when: tuple[Flag, Flag], lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """The output; `when` says of the forward and of the backward pass whether they quantize."""
        flags = when[:1] if when[0] is when[1] else when  # one stays one: both passes then share what they decide
        traced = tuple(None if isinstance(flag, bool) else flag for flag in flags)

        def both(traced):
            restored = [known if flag is None else flag for flag, known in zip(traced, flags)]
            return restored[0], restored[-1]

        def product(key, traced, lhs, rhs):
            return self._forward(key, both(traced), lhs, rhs)[0]

        def forward(key, traced, lhs, rhs):  # not by `gemms`, which hides its matmul from checkpoint policies
            out, saved = self._forward(key, both(traced), lhs, rhs)
            return out, (key, traced, saved)

        def backward(residuals, d_out):
            key, traced, saved = residuals
            d_lhs, d_rhs = self._backward(key, both(traced), saved, d_out.astype(_common(lhs.dtype, rhs.dtype)))
            return None, None, d_lhs, d_rhs.astype(rhs.dtype)

        gemms = jax.custom_vjp(product)
        gemms.defvjp(forward, backward)
        return gemms(key, traced, lhs, rhs)

    def _forward(self, key, when, lhs, rhs):
        shared = rhs
        if self._shares_weight:
            shared = _either(_or(*when), lambda w: self._quantize(2, key, w)[0], lambda w: w, rhs)

        def quantized(lhs, rhs):
            if self.on_hardware:
                return self._fp8_product(lhs, rhs), (None, None), ()
            x, x_held = self._quantize(1, key, lhs)
            w, w_held = (shared, None) if self._shares_weight else self._quantize(2, key, rhs)
            return product(x, w, x_held, w_held)

        def plain(lhs, rhs):
            all_held = (
                jnp.ones(x.shape, bool) if of and of.clips_gradient else None
                for of, x in zip(self.quantizers, (lhs, rhs))
            )
            return product(lhs, rhs, *all_held)

        def product(x, w, *held):
            return self.multiply(x, w, preferred_element_type=self.out_dtype), held, (x, w) * self.reuses_quantized

        out, held, reused = _either(when[0], quantized, plain, lhs, rhs)
        x, w = reused or (lhs, rhs)
        if self._shares_weight:  # as the backward pass wants it, whatever the forward pass did
            w = shared if when[0] is when[1] else _either(when[1], lambda w, _: w, lambda _, w: w, shared, w)
        return out, Saved(x, w, *held)

    def _backward(self, key, when, saved: Saved, d_out):
        d_lhs, d_rhs = _either(
            when[1],
            lambda saved, d_out: self._gradients(key, saved, d_out),
            lambda saved, d_out: dataclasses.replace(self, quantizers=(None,) * 6)._gradients(key, saved, d_out),
            saved,
            d_out,
        )
        d_lhs, d_rhs = _either(
            when[0],
            lambda *d: (self._pull_back(1, key, d[0], saved.lhs_held), self._pull_back(2, key, d[1], saved.rhs_held)),
            lambda *d: d,
            d_lhs,
            d_rhs,
        )
        if parts := tuple(varying(d_rhs) - varying(saved.rhs)):  # of the devices, inside `jax.shard_map`
            d_rhs = jax.lax.psum(d_rhs, parts)
        return d_lhs, d_rhs

    def _gradients(self, key, saved: Saved, d_out):
        """dX and dW; of what P1 and P2 made of them, if that was saved."""
        if self.on_hardware and any(self.quantizers):
            return self._fp8_gradients(saved, d_out)
        dy = self._quantize(3, key, d_out)[0]
        w = saved.rhs if self._shares_weight else self._quantize(4, key, saved.rhs)[0]
        (d_lhs,) = jax.linear_transpose(lambda lhs: self.multiply(lhs, w), saved.lhs)(dy)
        dy = self._quantize(5, key, d_out)[0]
        x = self._quantize(6, key, saved.lhs)[0]
        return d_lhs, explicit_sharding.like(saved.rhs, self._weight_gradient)(x, dy)

    def _fp8_product(self, lhs, rhs):
        p1, p2 = self.quantizers[:2]
        settings = {'preferred_element_type': self.out_dtype, **self.multiply.keywords}
        return hardware_dot_general(lhs, rhs, p1, p2, **settings)

    def _fp8_gradients(self, saved: Saved, d_out):
        of_lhs, of_rhs, of_out = self.roles
        _, _, p3, p4, p5, p6 = self.quantizers
        precision = self.multiply.keywords['precision']

        def input_gradient(d_out, rhs):
            dimension_numbers = (of_out.rhs, of_rhs.rhs), (of_out.batch, of_rhs.batch)
            d_lhs = hardware_dot_general(d_out, rhs, p3, p4, dimension_numbers, precision=precision)
            contracting = sorted(zip(of_rhs.contracting, of_lhs.contracting))  # the axes are in the order of the rhs
            order = (*of_lhs.batch, *of_lhs.lhs, *(axis for _, axis in contracting))
            return jnp.transpose(d_lhs, np.argsort(order))

        def weight_gradient(lhs, d_out):
            dimension_numbers = (of_lhs.lhs, of_out.lhs), (of_lhs.batch, of_out.batch)
            settings = {'precision': precision, 'preferred_element_type': self.weight_gradient_dtype}
            return self._in_order_of_rhs(hardware_dot_general(lhs, d_out, p6, p5, dimension_numbers, **settings))

        d_lhs = explicit_sharding.like(saved.lhs, input_gradient)(d_out, saved.rhs)
        return d_lhs, explicit_sharding.like(saved.rhs, weight_gradient)(saved.lhs, d_out)

    def _weight_gradient(self, x, dy):
        """X^T dY, and not the transpose of dY^T X, as JAX has it: XLA:CPU copies the first operand, transposed."""
        of_lhs, _, of_out = self.roles
        d_rhs = jax.lax.dot_general(
            x,
            dy,
            ((of_lhs.lhs, of_out.lhs), (of_lhs.batch, of_out.batch)),
            precision=self.multiply.keywords['precision'],
            preferred_element_type=self.weight_gradient_dtype,
        )
        return self._in_order_of_rhs(d_rhs)

    def _in_order_of_rhs(self, d_rhs):
        of_lhs, of_rhs, _ = self.roles
        contracting = sorted(zip(of_lhs.contracting, of_rhs.contracting))  # the axes are in the order of the lhs
        order = (*of_rhs.batch, *(axis for _, axis in contracting), *of_rhs.rhs)
        if list(order) != sorted(order):  # XLA:CPU has no matmul for the transposition that it would fold into this one
            d_rhs = jnp.transpose(jax.lax.optimization_barrier(d_rhs), np.argsort(order))
        return d_rhs

    def _quantize(self, number: int, key, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """What Pi makes of x, transformed if the other operand of its GEMM is, alike; and which values are held."""
        quantizer = self.quantizers[number - 1]
        if quantizer is None:
            return x, None
        along, across = self._axes(number)
        matrix = self._matrix(number, key)
        rounding_key = jax.random.fold_in(key, number) if quantizer.needs_key else None

        def quantize(x, key, matrix):
            y, held = _in_tiles(x, quantizer, along, across, key, matrix)
            if matrix is not None and not self._is_transformed(number):
                y = hadamard.transform(y, along, matrix.T)
            return to_dtype(y, x.dtype), held

        return explicit_sharding.like(x, quantize)(x, rounding_key, matrix)

    def _pull_back(self, number: int, key, d: jax.Array, held: jax.Array | None) -> jax.Array:
        """The gradient of an operand of the forward pass, of that of what its quantizer made of it."""
        matrix = None if self.quantizers[number - 1] is None else self._matrix(number, key)
        axes = self._axes(number)[0]
        if not (self.reuses_quantized and self._is_transformed(number)):
            return d if held is None else clip(d, axes, held, matrix)
        of_held = d if held is None else jnp.where(held, d, jnp.zeros((), d.dtype))
        return hadamard.transform(of_held.astype(jnp.float32), axes, matrix.T).astype(d.dtype)

    def _axes(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the array that Pi quantizes: those that its GEMM contracts, and the free ones."""
        of_lhs, of_rhs, of_out = self.roles
        return {
            1: (of_lhs.contracting, of_lhs.lhs),
            2: (of_rhs.contracting, of_rhs.rhs),
            3: (of_out.rhs, of_out.lhs),
            4: (of_rhs.rhs, of_rhs.contracting),
            5: (of_out.lhs, of_out.rhs),
            6: (of_lhs.lhs, of_lhs.contracting),
        }[number]

    def _is_transformed(self, number: int) -> bool:
        """Whether both operands of its GEMM have the same Hadamard transform, which is then not undone."""
        first = (number - 1) // 2 * 2
        pair = [quantizer and quantizer.hadamard for quantizer in self.quantizers[first : first + 2]]
        return pair[0] is not None and pair[0] == pair[1]

    def _matrix(self, number: int, key) -> jax.Array | None:
        """The Hadamard transform of Pi's array; its random signs are those of the GEMM's other operand."""
        transform = self.quantizers[number - 1].hadamard
        if transform is None:
            return None
        return transform.matrix(jax.random.fold_in(key, 7 + (number - 1) // 2) if transform.is_random else None)

    @property
    def _shares_weight(self) -> bool:
        """Whether P4 makes of W what P2 does, which is then made once: in tiles that look alike from both sides."""
        _, p2, _, p4, _, _ = self.quantizers
        if p2 is None or p2 != p4 or p2.needs_key or p2.hadamard or p2.clips_gradient:
            return False
        if self.on_hardware:
            return False
        return p2.block_size == 'tensor' or (isinstance(p2.block_size, tuple) and len(set(p2.block_size)) == 1)


def _either(flag: Flag, function: Callable, other: Callable, *operands: Any) -> Any:
    """function(*operands) or other(*operands): of a traced flag both are compiled, and one runs."""
    if isinstance(flag, bool):
        return (function if flag else other)(*operands)
    return jax.lax.cond(flag, function, other, *operands)


def _or(flag: Flag, other: Flag) -> Flag:
    if flag is other:
        return flag
    return flag or other if isinstance(flag, bool) and isinstance(other, bool) else jnp.logical_or(flag, other)


def _common(dtype: Any, other: Any) -> Any:
    return dtype if dtype == other else jnp.float32


def _in_tiles(x, quantizer: Quantizer, along, across, key, matrix):
    """`quantize_values` with scales along some axes; tiles have their rows across, both read as one axis."""
    if not isinstance(quantizer.block_size, tuple):
        return quantize_values(x, quantizer, along, key, matrix)
    order = (*(axis for axis in range(x.ndim) if axis not in (*across, *along)), *across, *along)
    ordered = jnp.transpose(x, order)
    rows, columns = (math.prod(x.shape[axis] for axis in axes) for axes in (across, along))
    matrices = ordered.reshape(*ordered.shape[: x.ndim - len(across) - len(along)], rows, columns)
    values = quantize_values(matrices, quantizer, (matrices.ndim - 1,), key, matrix)
    return jax.tree.map(lambda y: jnp.transpose(y.reshape(ordered.shape), np.argsort(order)), values)
