"""The leaves of a tree as the modules of other software: matrices (out, in), by name, in codes and scales."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gaussq_jax.packed import bit_packing
from gaussq_jax.packed.layout import BFLOAT16, LeafLayout, check_layout, kept_leaves, storable_leaves, value_per_weight
from gaussq_jax.packed.quantized_weights import QuantizedMatrix, quantized_matrices, rounded
from gaussq_jax.serving.storages import Storage, check_unheld, storages_that_hold, targets_that_hold

OCTAVES = range(-9, 9)  # log2 of the powers of two that float8_e4m3fn has
NOTHING_FUSED: Mapping[str, str] = {}


class Held(NamedTuple):
    """How a target stores a module.

    Attributes:
      storage: what holds it exactly; None for bfloat16.
      reason: why not in low bits, unless the layout itself has bfloat16.
      shift: log2 of the global scale by which NVFP4's scales are divided that stand for powers of two; one for all
        modules that are fused.
    """

    storage: Storage | None
    reason: str = ''
    shift: int = 0


class Module(NamedTuple):
    """A linear layer by its name, and how it is stored.

    Attributes:
      name: of the layer; its tensors are f'{name}.weight' and so on.
      matrix: (in, out), as `packed.quantized_matrices` gives it.
      layout: of this one matrix.
      held: how.
    """

    name: str
    matrix: QuantizedMatrix
    layout: LeafLayout
    held: Held

    @property
    def storage(self) -> Storage | None:
        return self.held.storage

    def weights(self) -> np.ndarray:
        """The numbers that it stands for, (out, in), of the layout's dtype."""
        factors = value_per_weight(self.matrix.factors, self.layout.tile, self.matrix.numbers.shape)
        return np.ascontiguousarray((self.matrix.numbers * factors).astype(np.float32).astype(self.layout.dtype).T)

    def codes(self) -> np.ndarray:
        """The code of each weight in the storage's format, uint8 (out, in)."""
        numbers = np.ascontiguousarray(self.matrix.numbers.T)
        return bit_packing.encode(numbers, 0, self.storage.fmt).astype(np.uint8)

    def scales(self) -> tuple[np.ndarray, np.float32 | None]:
        """The scale of each of the storage's tiles, float64 (ceil(out / columns), ceil(in / rows)), and its divisor.

        Tiles of zeros alone may have other scales than those of the layout.
        """
        shape, divisor = self.matrix.numbers.shape, self.matrix.divisor
        starts = [np.arange(0, size, side or size) for side, size in zip(self.storage.tile, shape)]
        scales = self.matrix.scales[np.ix_(*(start // side for start, side in zip(starts, self.layout.tile)))]
        if self.layout.scale == 'mx' and self.storage.scale == 'nvfp4':
            scales, divisor = np.ldexp(scales, self.held.shift), np.ldexp(np.float32(1), self.held.shift)
        if self.storage.scale != 'mx':
            scales = np.where(_largest(self.matrix.numbers, starts) == 0, 1.0, scales)
        return np.ascontiguousarray(scales.T), divisor


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
    leaves = storable_leaves(params)
    held = module_storages(params, layout, target, fused=fused, unheld=unheld)
    for path, leaf in leaves.items():
        if path not in layout:
            yield path.replace('/', '.'), np.asarray(leaf if path in kept_leaves(layout) else rounded(leaf))
            continue
        for (name, (of_matrix, _)), matrix in zip(
            _matrices(path, leaf, layout[path]).items(), quantized_matrices(path, leaf, layout[path])
        ):
            yield Module(name, matrix._replace(indices=of_matrix.indices), of_matrix, held[name])


def module_storages(
    params: Any,
    layout: Mapping[str, LeafLayout],
    target: str,
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> dict[str, Held]:
    """How each module that `modules` gives is stored.

    Args and Raises: as for `modules`.
    """
    check_unheld(unheld)
    leaves = storable_leaves(params)
    check_layout(leaves, layout)
    of_leaves = {path: _matrices(path, leaves[path], of_leaf) for path, of_leaf in layout.items()}
    groups = defaultdict(dict)
    for named in of_leaves.values():
        for name, matrix in named.items():
            groups[fused.get(name, name)][name] = matrix
    scales = {}  # of modules, those of tiles that aren't all zeros

    def scales_of(name):
        if name not in scales:
            path = next(path for path, named in of_leaves.items() if name in named)
            found = quantized_matrices(path, leaves[path], layout[path])
            scales.update(zip(of_leaves[path], (_used_scales(matrix, layout[path].tile) for matrix in found)))
        return scales[name]

    left_out = _fused_and_left_out(leaves, fused, groups)
    held = {}
    for label, matrices in groups.items():
        if all(of_matrix.formats == (BFLOAT16,) for of_matrix, _ in matrices.values()):
            held[label] = Held(None)
            continue
        held[label] = Held(None, left_out[label]) if label in left_out else _hold(matrices, target, scales_of)
        if held[label].storage is None:
            if unheld == 'error':
                raise ValueError(held[label].reason + targets_that_hold(matrices.values(), but=target))
            _check_bfloat16(matrices)
    return {name: held[label] for label, matrices in groups.items() for name in matrices}


def _fused_and_left_out(leaves, fused: Mapping[str, str], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of fused modules that are in the layout in part: why they can't be stored alike."""
    names = {path.replace('/', '.') for path in leaves}
    left_out = {}
    for name, label in fused.items():
        if label in groups and name not in groups[label] and f'{name}.weight' in names:
            left_out[label] = (
                f'{name} is not in the layout, and servers make one matrix of it and {next(iter(groups[label]))}'
            )
    return left_out


def _hold(matrices: Mapping[str, Any], target: str, scales_of: Callable[[str], np.ndarray]) -> Held:
    """By the first storage that has the formats, the tiles and the scales."""
    storages, reason = storages_that_hold(matrices, target)
    for storage in storages:
        held = Held(storage)
        if storage.scale != 'mx':
            held = _with_scales(held, {name: scales_of(name) for name in matrices}, matrices)
        if held.storage:
            return held
        reason = reason or held.reason
    return Held(None, reason)


def _check_bfloat16(matrices: Mapping[str, Any]):
    """ValueError for modules that can't be in bfloat16."""
    for name, (of_matrix, _) in matrices.items():
        if of_matrix.dtype != jnp.bfloat16:
            wide = [fmt.name for fmt in of_matrix.formats if fmt.mantissa_bits > BFLOAT16.mantissa_bits]
            what = wide[0] if wide else f'{of_matrix.formats[0].name} times {of_matrix.scale} scales'
            raise ValueError(f'{name} has weights in {what}, which bfloat16 does not hold exactly')


def _with_scales(held: Held, scales: Mapping[str, np.ndarray], matrices: Mapping[str, Any]) -> Held:
    """The same, if the storage has these scales, with the shift that brings powers of two into its range."""
    if held.storage.scale == 'absmax':
        for name, of_module in scales.items():
            if np.any(of_module.astype(np.float32) != of_module):
                lost = of_module[of_module.astype(np.float32) != of_module].min()
                return Held(None, f'{name} has a scale of {lost:.3g}, which float32 does not hold exactly')
        return held
    powers = {name: scales[name] for name, (of_matrix, _) in matrices.items() if of_matrix.scale == 'mx'}
    used = np.concatenate([np.zeros(0), *powers.values()])
    if not used.size:
        return held
    low, high = (int(np.log2(scale)) for scale in (used.min(), used.max()))
    shift = min(OCTAVES[-1] - high, 127)
    if low + shift < OCTAVES[0]:
        names = ', '.join(powers)
        return Held(
            None,
            f'{names} has scales of 2^{low} to 2^{high}: {held.storage.name} holds powers of two that are at most'
            f' {len(OCTAVES) - 1} octaves apart',
        )
    return held._replace(shift=shift)


def _used_scales(matrix: QuantizedMatrix, tile: tuple[int, int]) -> np.ndarray:
    """The scales of a layout's tiles that have a number other than zero."""
    starts = [np.arange(0, size, side) for size, side in zip(matrix.numbers.shape, tile)]
    return matrix.scales[_largest(matrix.numbers, starts) > 0]


def _largest(numbers: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    """The largest magnitude of each tile, by where the tiles start along both axes."""
    largest = np.abs(numbers)
    for axis, start in enumerate(starts):
        largest = np.maximum.reduceat(largest, start, axis=axis)
    return largest


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
