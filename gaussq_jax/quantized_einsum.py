"""An einsum of activations and weights that quantizes any of the six operands, and knows which is which."""

from typing import Any

import jax
import jax.numpy as jnp

from gaussq_jax.quantized_dot_general import quantized_dot_general
from gaussq_jax.quantizer import Quantizer


def quantized_einsum(
    spec: str,
    x: jax.Array,
    w: jax.Array,
    *,
    P1: Quantizer | None = None,
    P2: Quantizer | None = None,
    P3: Quantizer | None = None,
    P4: Quantizer | None = None,
    P5: Quantizer | None = None,
    P6: Quantizer | None = None,
    precision: Any = None,
    preferred_element_type: Any = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """jnp.einsum(spec, x, w) as `quantized_dot_general` multiplies, x the activations and w the weights.

    `jnp.einsum` with `_dot_general=` may swap its operands, and P1 would quantize the weights; this doesn't.

    Args:
      spec: as of `jnp.einsum`, of two operands and with an output, such as 'btd,dnh->btnh'; '...' in the activations
        and the output stands for axes that are there in both.
      x: activations, and w: weights, float32, bfloat16 or float16. Axes in both and in the output are batch axes,
        experts for example; axes in both alone are contracted.
      P1, P2, P3, P4, P5, P6, key: as for `quantized_dot_general` and what it returns; scales run along the axes that
        each GEMM contracts, all of them read as one.
      precision, preferred_element_type: as for `jax.lax.dot_general`.

    Returns:
      An array with the axes of the output.

    Raises:
      ValueError: for a spec that isn't such, for shapes that don't fit it; as `quantized_dot_general`.

    Example:
      >>> w = jnp.ones((8, 2, 4))  # (d, heads, head_dim)
      >>> quantized_einsum('btd,dnh->btnh', jnp.ones((1, 3, 8)), w, P2=Quantizer('e2m1', block_size='channel')).shape
      (1, 3, 2, 4)

    Source: arXiv 2501.02423, section 3.1.
    """
    of_x, of_w, of_y = _parse(spec, x.ndim, w.ndim)
    batch = [letter for letter in of_x if letter in of_w and letter in of_y]
    contracted = [letter for letter in of_x if letter in of_w and letter not in of_y]
    for letter in (*batch, *contracted):
        sizes = x.shape[of_x.index(letter)], w.shape[of_w.index(letter)]
        if sizes[0] != sizes[1]:
            raise ValueError(f'spec={spec!r}: {letter!r} is {sizes[0]} of x, {x.shape}, and {sizes[1]} of w, {w.shape}')
    axes = lambda letters, of: tuple(of.index(letter) for letter in letters)
    dimension_numbers = (
        (axes(contracted, of_x), axes(contracted, of_w)),
        (axes(batch, of_x), axes(batch, of_w)),
    )
    dot_general = quantized_dot_general(P1=P1, P2=P2, P3=P3, P4=P4, P5=P5, P6=P6, ordered=True)
    y = dot_general(x, w, dimension_numbers, precision, preferred_element_type, key=key)
    order = [*batch, *(letter for of in (of_x, of_w) for letter in of if letter not in (*batch, *contracted))]
    return jnp.transpose(y, [order.index(letter) for letter in of_y])


def _parse(spec: str, x_ndim: int, w_ndim: int) -> tuple[str, str, str]:
    """The letters of activations, weights and output; those of '...' are numbers."""
    wrong = f"spec={spec!r}: it must be of two operands and an output, such as 'btd,dnh->btnh'"
    operands, arrow, of_y = spec.replace(' ', '').partition('->')
    parts = operands.split(',')
    if not arrow or len(parts) != 2:
        raise ValueError(wrong)
    of_x, of_w = parts
    if '...' in of_x and '...' in of_y:
        more = ''.join(map(chr, range(0x2460, 0x2460 + x_ndim - len(of_x) + 3)))
        of_x, of_y = of_x.replace('...', more), of_y.replace('...', more)
    letters = (of_x, of_w, of_y)
    if any(not part.isalnum() or len(set(part)) < len(part) for part in (of_x, of_w)) or len(set(of_y)) < len(of_y):
        raise ValueError(f'{wrong}; a letter can be once in each')
    if (len(of_x), len(of_w)) != (x_ndim, w_ndim):
        raise ValueError(f'spec={spec!r} has {len(of_x)} and {len(of_w)} axes, x and w have {x_ndim} and {w_ndim}')
    if unknown := sorted(set(of_y) - set(of_x) - set(of_w)):
        raise ValueError(f'{wrong}; {unknown[0]!r} is in the output alone')
    if alone := sorted((set(of_x) ^ set(of_w)) - set(of_y)):
        raise ValueError(f'{wrong}; {alone[0]!r} is in one operand alone, and would be summed: sum it before')
    return letters
