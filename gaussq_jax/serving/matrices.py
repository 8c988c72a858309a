"""The leaves of a tree as the modules of other software: matrices (out, in), by name, in codes and scales."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gaussq_jax.packed import bit_packing
from gaussq_jax.packed.layout import BFLOAT16, LeafLayout, check_layout, kept_leaves, storable_leaves, value_per_weight
from gaussq_jax.packed.quantized_weights import QuantizedMatrix, quantized_matrices, rounded
from gaussq_jax.serving.storages import Storage, check_unheld, choose_storage

OCTAVES = range(-9, 9)  # log2 of the powers of two that float8_e4m3fn has
NOTHING_FUSED: Mapping[str, str] = {}


class Module(NamedTuple):
    """A linear layer by its name, and how it is stored.

    Attributes:
      name: of the layer; its tensors are f'{name}.weight' and so on.
      matrix: (in, out), as `packed.quantized_matrices` gives it.
      layout: of this one matrix.
      storage: what holds it exactly; None for bfloat16.
    """

    name: str
    matrix: QuantizedMatrix
    layout: LeafLayout
    storage: Storage | None

    def weights(self) -> np.ndarray:
        """The numbers that it stands for, (out, in), of the layout's dtype."""
        matrix, shape = self.matrix, self.matrix.numbers.shape
        factors = matrix.scales
        if matrix.divisor is not None:
            factors = factors.astype(np.float32) / matrix.divisor
        product = matrix.numbers * value_per_weight(factors, self.layout.tile, shape)
        return np.ascontiguousarray(product.astype(np.float32).astype(self.layout.dtype).T)

    def codes(self) -> np.ndarray:
        """The code of each weight in the storage's format, uint8 (out, in)."""
        numbers = np.ascontiguousarray(self.matrix.numbers.T)
        return bit_packing.encode(numbers, 0, self.storage.fmt).astype(np.uint8)

    def scales(self) -> tuple[np.ndarray, np.float32 | None]:
        """The scale of each of the storage's tiles, float64 (ceil(out / columns), ceil(in / rows)), and its divisor.

        Tiles of zeros alone may have other scales than those of the layout.

        Raises:
          ValueError: for scales that the storage can't have.
        """
        shape = self.matrix.numbers.shape
        starts = [np.arange(0, size, side or size) for side, size in zip(self.storage.tile, shape)]
        scales = self.matrix.scales[np.ix_(*(start // side for start, side in zip(starts, self.layout.tile)))]
        largest = np.abs(self.matrix.numbers)
        for axis, start in enumerate(starts):
            largest = np.maximum.reduceat(largest, start, axis=axis)
        divisor = self.matrix.divisor
        if self.storage.scale == 'absmax':
            scales = np.where(largest == 0, 1.0, scales)
            if np.any(scales.astype(np.float32) != scales):
                raise ValueError(
                    f'{self.name} has a scale of {np.min(scales):.3g}, which float32 does not hold exactly'
                )
        elif self.storage.scale == 'nvfp4' and divisor is None:
            scales, divisor = self._in_two_levels(scales, largest == 0)
        return np.ascontiguousarray(scales.T), divisor

    def _in_two_levels(self, scales: np.ndarray, are_zero: np.ndarray) -> tuple[np.ndarray, np.float32]:
        """Powers of two as numbers of float8_e4m3fn that are divided by another one."""
        exponents = np.log2(scales).astype(int)
        used = exponents[~are_zero] if not are_zero.all() else np.zeros(1, int)
        shift = min(OCTAVES[-1] - used.max(), 127)
        if used.min() + shift < OCTAVES[0]:
            raise ValueError(
                f'{self.name} has scales of 2^{used.min()} to 2^{used.max()}: {self.storage.name} holds powers of two'
                f' that are at most {len(OCTAVES) - 1} octaves apart'
            )
        return np.where(are_zero, 1.0, np.ldexp(1.0, exponents + shift)), np.float32(2.0) ** np.float32(shift)


def modules(
    params: Any,
    layout: Mapping[str, LeafLayout],
    target: str,
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> Iterator[Module | tuple[str, np.ndarray]]:
    """The modules of a tree whose leaves are in a layout, and all other leaves as (name, array), in the tree's order.

    A leaf's name is its path with '.' for '/', a module's that without its last part: of 'layers/up/kernel',
    'layers.up', and of several matrices 'layers.up.0' and so on.

    Args:
      params: pytree of weights.
      layout: of these params, such as `quantize_params` takes.
      target: of `storages.TARGETS`; each module gets the smallest of its storages that holds it exactly.
      fused: module name -> a name of those that are stored alike, since servers make one matrix of them.
      unheld: what becomes of a module that none holds: 'error', or 'bfloat16'.

    Raises:
      ValueError: for a module that can't be held, saying why and what would; for a leaf that isn't a matrix; as
        `quantize_params`.

    Example:
      >>> import gaussq_jax as gq
      >>> params = {'up': {'kernel': np.ones((64, 32), np.float32), 'bias': np.ones(32, np.float32)}}
      >>> for module in modules(params, gq.uniform_layout(params, 'float4_e2m1fn'), 'mlx'):
      ...     print(module[0], module.storage.name if isinstance(module, Module) else module[1].dtype)
      up.bias bfloat16
      up MXFP4
    """
    check_unheld(unheld)
    leaves = storable_leaves(params)
    storages = module_storages(params, layout, target, fused=fused, unheld=unheld)
    for path, leaf in leaves.items():
        if path not in layout:
            yield path.replace('/', '.'), np.asarray(leaf if path in kept_leaves(layout) else rounded(leaf))
            continue
        of_leaf = _matrices(path, leaf, layout[path])
        for (name, (of_matrix, _)), matrix in zip(of_leaf.items(), quantized_matrices(path, leaf, layout[path])):
            matrix = matrix._replace(indices=of_matrix.indices)
            yield Module(name, matrix, of_matrix, storages[name][0])


def module_storages(
    params: Any,
    layout: Mapping[str, LeafLayout],
    target: str,
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> dict[str, tuple[Storage | None, str]]:
    """The storage of each module that `modules` gives; None for bfloat16, and then why, unless the layout has that.

    Args and Raises: as for `modules`.
    """
    leaves = storable_leaves(params)
    check_layout(leaves, layout)
    groups = defaultdict(dict)
    for path, of_leaf in layout.items():
        for name, matrix in _matrices(path, leaves[path], of_leaf).items():
            groups[fused.get(name, name)][name] = matrix
    storages = {}
    for matrices in groups.values():
        storage, reason = choose_storage(matrices, target)
        if all(of_matrix.formats == (BFLOAT16,) for of_matrix, _ in matrices.values()):
            reason = ''
        elif storage is None and unheld == 'error':
            raise ValueError(reason)
        for name, (of_matrix, _) in matrices.items():
            if storage is None and of_matrix.dtype != jnp.bfloat16:
                wide = [fmt.name for fmt in of_matrix.formats if fmt.mantissa_bits > BFLOAT16.mantissa_bits]
                raise ValueError(f'{name} has weights in {wide[0]}, which bfloat16 does not hold exactly')
            storages[name] = storage, reason
    return storages


def _matrices(path: str, leaf: Any, of_leaf: LeafLayout) -> dict[str, tuple[LeafLayout, tuple[int, int]]]:
    """The layout and the shape (in, out) of each matrix of a leaf, by the name of its module."""
    *batch, m, n = of_leaf.rule.matrix_shape(leaf.shape)
    name = path.replace('/', '.').rpartition('.')[0] or path
    rule = dataclasses.replace(of_leaf.rule, batch_axes=(), row_axes=(0,), col_axes=(1,), expert_axes=(), head_axes=())
    matrices = {}
    for index in np.ndindex(*batch):
        used, indices = np.unique(of_leaf.indices[index], return_inverse=True)
        indices = indices.reshape(of_leaf.indices[index].shape).astype(np.uint8)
        formats = tuple(of_leaf.formats[i] for i in used)
        of_matrix = dataclasses.replace(of_leaf, rule=rule, formats=formats, indices=indices)
        matrices['.'.join([name, *map(str, index)])] = of_matrix, (m, n)
    return matrices
