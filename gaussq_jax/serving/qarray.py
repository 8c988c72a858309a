"""Quantized weights as qwix keeps them in memory: numbers of a few bits, and their scales."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.packed import quantize_params
from gaussq_jax.packed.layout import (
    Layout,
    LeafLayout,
    check_layout,
    kept_leaves,
    storable_leaves,
    value_per_weight,
)
from gaussq_jax.packed.quantized_weights import quantized_matrices
from gaussq_jax.param_tree import map_leaves
from gaussq_jax.serving.storages import check_unheld, holds, targets_that_hold

DTYPES = ('float4_e2m1fn', 'float8_e4m3fn', 'float8_e5m2')  # narrowest first


def to_qarray(params: Any, layout: Mapping[str, LeafLayout], *, unheld: str = 'error') -> Any:
    """The weights of a layout as qwix's `QArray`s, with which its `dot_general` multiplies.

        qvalue  float4_e2m1fn, float8_e4m3fn or float8_e5m2, of the leaf's shape    the first that holds all its numbers
        scale   float32, with an entry for each tile

    `qwix.dequantize` of a leaf is `quantize_params` before that rounds to bfloat16. NVFP4's two scales are one here,
    their quotient.

    Args:
      params: pytree of weights.
      layout: of these params, such as `quantize_params` takes, with scales of any kind.
      unheld: what becomes of a leaf that no QArray holds: 'error', or 'bfloat16', as `quantize_params` gives it.

    Returns:
      A tree like params, with all its leaves' axes in their order; those not in the layout are as `quantize_params`
      gives them.

    Raises:
      ImportError: without qwix.
      ValueError: for a leaf with other formats, or whose tiles don't divide its axes; for scales that aren't normal
        float32 numbers, which XLA takes for zero; as `quantize_params`.

    Example:
      >>> import qwix                                                                        # doctest: +SKIP
      >>> params = {'up': {'kernel': np.ones((64, 8), np.float32)}}                          # doctest: +SKIP
      >>> kernel = to_qarray(params, gq.uniform_layout(params, 'e2m1'))['up']['kernel']      # doctest: +SKIP
      >>> kernel.qvalue.dtype.name, kernel.scale.shape                                       # doctest: +SKIP
      ('float4_e2m1fn', (2, 8))
      >>> qwix.dot_general(jnp.ones((1, 64)), kernel, (((1,), (0,)), ((), ()))).shape        # doctest: +SKIP
      (1, 8)

    Source: qwix 0.1.8, qwix.QArray.
    """
    check_unheld(unheld)
    leaves = storable_leaves(params)
    check_layout(leaves, layout)
    reasons = {path: _reason_against(leaves[path].shape, of_leaf) for path, of_leaf in layout.items()}
    if unheld == 'error' and (refused := [path for path, reason in reasons.items() if reason]):
        of_leaf = layout[refused[0]]
        others = targets_that_hold([(of_leaf, of_leaf.rule.matrix_shape(leaves[refused[0]].shape))], but='')
        raise ValueError(f"{refused[0]!r} can't be held exactly as a QArray, {reasons[refused[0]]}{others}")
    try:
        from qwix import QArray
    except ImportError:
        raise ImportError("to_qarray needs qwix, which isn't installed: pip install 'gaussq-jax[peers]'") from None

    def convert(path, leaf):
        if path not in layout or reasons[path]:
            of_leaf = {'leaf': layout[path]} if path in layout else {}
            kept = ['leaf'] if path in kept_leaves(layout) else []
            return quantize_params({'leaf': leaf}, Layout(of_leaf, kept=kept))['leaf']
        return QArray(*_values_and_scales(path, leaf, layout[path]))

    return map_leaves(convert, params)


def _reason_against(shape: tuple[int, ...], of_leaf: LeafLayout) -> str | None:
    if _dtype(of_leaf) is None:
        return f'none of {", ".join(DTYPES)} has all numbers of {", ".join(fmt.name for fmt in _used(of_leaf))}'
    try:
        _scale_shape(shape, of_leaf)
    except ValueError as error:
        return str(error)
    return None


def _dtype(of_leaf: LeafLayout) -> str | None:
    """The narrowest of DTYPES that has the numbers of all formats in use."""
    return next((name for name in DTYPES if all(holds(parse_format(name), fmt) for fmt in _used(of_leaf))), None)


def _used(of_leaf: LeafLayout) -> list[FloatFormat]:
    return [of_leaf.formats[i] for i in np.unique(of_leaf.indices)]


def _scale_shape(shape: tuple[int, ...], of_leaf: LeafLayout) -> tuple[int, ...]:
    """How many tiles there are along each axis of a leaf."""
    rule, counts = of_leaf.rule, list(shape)
    sizes = rule.matrix_shape(shape)[-2:]
    for axes, side, size, what in zip((rule.row_axes, rule.col_axes), of_leaf.tile, sizes, ('inputs', 'outputs')):
        left = min(side, size)  # of the tile's side, in the axes that are left
        for axis in reversed(axes):
            within = min(left, shape[axis])
            if left % within or shape[axis] % within:
                raise ValueError(f'its {what}, {[shape[i] for i in axes]}, are not cut evenly by tiles of {side}')
            counts[axis], left = shape[axis] // within, left // within
    return tuple(counts)


def _values_and_scales(path: str, leaf: Any, of_leaf: LeafLayout) -> tuple[Any, Any]:
    values, scales = [], []
    for matrix in quantized_matrices(path, leaf, of_leaf):
        used = value_per_weight(matrix.factors, of_leaf.tile, matrix.numbers.shape)[matrix.numbers != 0]
        wrong = used[(used < np.finfo(np.float32).tiny) | (used.astype(np.float32) != used)]
        if wrong.size:
            raise ValueError(f'{path!r} has a scale of {wrong.min():.3g}, which is no normal float32 number')
        values.append(matrix.numbers.astype(getattr(jnp, _dtype(of_leaf)).dtype))
        scales.append(matrix.factors.astype(np.float32))
    shape = leaf.shape
    return tuple(
        jnp.asarray(of_leaf.rule.from_matrices(np.stack(parts), of_shape))
        for parts, of_shape in ((values, shape), (scales, _scale_shape(shape, of_leaf)))
    )
