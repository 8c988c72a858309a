"""Hadamard transforms of blocks along an axis: they spread outliers over a block; their transpose undoes them."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

SIGNS = ('none', 'random')


@dataclasses.dataclass(frozen=True)
class Hadamard:
    """An orthogonal transform of blocks of `size` values along an axis: y = x diag(signs) H / sqrt(size).

    H is Sylvester's Hadamard matrix, H[i, j] = (-1)^popcount(i & j). Where both operands of a GEMM are transformed
    along the axis that it contracts, the product is the same without undoing it. Sums are float32: of a block that lies
    on several devices XLA adds the parts, and the last bit may differ from one device's.

    Attributes:
      size: a power of two, from 2 to 1024; the length of the axis must be a multiple of it.
      signs: of the values before they are transformed, one for each place in a block, the same in all blocks.
        'none': they stay as they are.
        'random': drawn anew from the key of each use; the same for both operands of a GEMM.
        a sequence of `size` numbers 1 and -1: fixed.

    Raises:
      ValueError: naming the argument, for a value other than these.

    Example:
      >>> Hadamard(2).matrix(None) * 2**0.5
      Array([[ 0.99999994,  0.99999994],
             [ 0.99999994, -0.99999994]], dtype=float32)

    Source: QuIP#, arXiv 2402.04396, section 3; arXiv 2509.25149, section 4.2.
    """

    size: int = 16
    signs: str | tuple[int, ...] = 'none'

    def __post_init__(self):
        size = self.size
        if isinstance(size, bool) or not hasattr(size, '__index__') or not 2 <= size <= 1024 or size & (size - 1):
            raise ValueError(f'size={size!r} of a Hadamard transform: allowed are powers of two from 2 to 1024')
        if isinstance(self.signs, Sequence) and not isinstance(self.signs, str):
            object.__setattr__(self, 'signs', tuple(self.signs))
        is_fixed = isinstance(self.signs, tuple) and len(self.signs) == size and set(self.signs) <= {1, -1}
        is_allowed = is_fixed or self.signs in SIGNS
        if not is_allowed:
            raise ValueError(
                f"signs={self.signs!r} of a Hadamard transform of size {size}: allowed are 'none', 'random', and {size}"
                ' numbers 1 and -1'
            )

    @property
    def is_random(self) -> bool:
        """Whether it takes a key."""
        return self.signs == 'random'

    def matrix(self, key: jax.Array | None) -> jax.Array:
        """diag(signs) H / sqrt(size), float32; the key is of random signs, and of no use to others."""
        if self.is_random:
            is_plus = jax.random.bernoulli(key, jnp.float32(0.5), (self.size,))  # the same where 64 bits are enabled
            signs = jnp.where(is_plus, jnp.float32(1), jnp.float32(-1))
        else:
            signs = jnp.array((1,) * self.size if self.signs == 'none' else self.signs, jnp.float32)
        return signs[:, None] * _sylvester(self.size) * np.float32(self.size**-0.5)


def transform(x: jax.Array, axes: Sequence[int], matrix: jax.Array) -> jax.Array:
    """x with each block along `axes`, read as one axis, multiplied by the matrix from the right.

    Args:
      x: float32, of any shape.
      axes: of x, not negative.
      matrix: (size, size), orthogonal; its transpose undoes it.

    Returns:
      float32, of x's shape.

    Raises:
      ValueError: if the length of the axes, taken together, is no multiple of the size.

    Example:
      >>> x = jnp.arange(8.0).reshape(2, 4)
      >>> rotated = transform(x, (1,), Hadamard(4).matrix(None))
      >>> rotated, transform(rotated, (1,), Hadamard(4).matrix(None).T)
      (Array([[ 3., -1., -2.,  0.],
             [11., -1., -2.,  0.]], dtype=float32), Array([[0., 1., 2., 3.],
             [4., 5., 6., 7.]], dtype=float32))
    """
    size = len(matrix)
    length = int(np.prod([x.shape[axis] for axis in axes]))
    if length % size:
        raise ValueError(
            f'a Hadamard transform of size {size} takes an axis whose length is a multiple of that, and not {length}'
        )
    inner = x.shape[axes[-1]]
    if inner % size == 0:  # blocks lie within the last of the axes
        at = axes[-1]
        blocked = x.reshape(*x.shape[:at], inner // size, size, *x.shape[at + 1 :])
        return _multiply(blocked, at + 1, matrix).reshape(x.shape)
    order = (*(axis for axis in range(x.ndim) if axis not in axes), *axes)
    moved = jnp.transpose(x, order)
    blocked = moved.reshape(-1, size)
    return jnp.transpose(_multiply(blocked, 1, matrix).reshape(moved.shape), np.argsort(order))


def _multiply(x, axis, matrix):
    """x with the axis multiplied by the matrix, which stays where it is; the products are exact, their sums float32."""
    product = jax.lax.dot_general(x, matrix, (((axis,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, -1, axis)


@functools.cache
def _sylvester(size: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
