"""How the weights of a model are stored in few bits: which tiles share a scale, and the format of each."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from gaussq_jax.bitwidths import format_for_bitwidth
from gaussq_jax.formats import FloatFormat
from gaussq_jax.kept_layers import KeptLayers, kept
from gaussq_jax.packed.bit_packing import MOST_BITS
from gaussq_jax.param_reading import KEPT, Reading, checked_readings, sampled_rules, sampled_shapes
from gaussq_jax.param_rules import DEFAULT_RULES, MatrixRule, Rule
from gaussq_jax.param_tree import leaves_by_path
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.weight_sampling import check_block_size, shape_in_blocks

Formats = Callable[[float], FloatFormat]  # b_t -> format

BFLOAT16 = FloatFormat(8, 7, 'ieee')
PRODUCTS = ('bfloat16', 'float32')


@dataclasses.dataclass(frozen=True, eq=False)
class LeafLayout:
    """How a leaf of weight matrices is stored: tiles that share a scale, and the format of each.

    Attributes:
      rule: what the leaf's axes mean; its matrices are (batch.., m, n).
      tile: (rows, columns) of a matrix that share a scale and a format; less at the matrix's edges.
      formats: those that occur, of at most 16 bits each.
      indices: uint8 (batch.., ceil(m / rows), ceil(n / columns)), which of `formats` each tile has.
      scale: the kind of the tiles' scales, as of a `Quantizer`: 'mx', a power of two in a byte; 'absmax', a float32
        number; 'nvfp4', a float8_e4m3fn number, and a float32 number for each matrix. Tiles in bfloat16 are rounded to
        it, whatever the scales of others; with 'nvfp4', a matrix has it in all of its tiles, or in none.
      scale_rounding, fit: how the scales of all other tiles are chosen, as of a `Quantizer`.
      products: what numbers times scales are rounded to, 'bfloat16' or 'float32', unless bfloat16 holds them exactly.

    Raises:
      ValueError: for what is not as it says here.
    """

    rule: MatrixRule
    tile: tuple[int, int]
    formats: tuple[FloatFormat, ...]
    indices: np.ndarray
    scale: str = 'mx'
    scale_rounding: str = 'floor'
    fit: str = 'absmax'
    products: str = 'bfloat16'

    def __post_init__(self):
        object.__setattr__(self, 'tile', tuple(self.tile))
        object.__setattr__(self, 'formats', tuple(self.formats))
        if len(self.tile) != 2 or not all(type(side) is int and side > 0 for side in self.tile):
            raise ValueError(f'tile={self.tile!r}: it must be two positive integers, rows and columns')
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise ValueError(f'formats={self.formats}: there must be some, each once')
        for fmt in self.formats:
            if fmt.bits > MOST_BITS:
                raise ValueError(f'format {fmt} has {fmt.bits} bits; at most {MOST_BITS} can be packed')
        if self.indices.dtype != np.uint8 or np.any(self.indices >= len(self.formats)):
            raise ValueError(f'indices must be uint8, less than {len(self.formats)}, the number of formats')
        if self.products not in PRODUCTS:
            raise ValueError(f'products={self.products!r}: allowed are {", ".join(map(repr, PRODUCTS))}')
        self.quantizers  # noqa: B018 - refuses scales that there aren't
        if self.scale == 'nvfp4' and BFLOAT16 in self.formats:
            in_bfloat16 = self.indices == self.formats.index(BFLOAT16)
            if np.any(in_bfloat16 != in_bfloat16[..., :1, :1]):
                raise ValueError('a matrix with nvfp4 scales has bfloat16 in all of its tiles, or in none')

    @functools.cached_property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Of each format, what quantizes a matrix (m, n) whose tiles all have it, along its last axis."""
        chosen = dict(scale=self.scale, scale_rounding=self.scale_rounding, fit=self.fit)
        of_format = lambda fmt: dict(scale='mx', scale_rounding='rceil') if fmt == BFLOAT16 else chosen
        return tuple(Quantizer(fmt, block_size=self.tile, **of_format(fmt)) for fmt in self.formats)

    @property
    def dtype(self) -> np.dtype:
        """Of the leaf that is read back: bfloat16 if it holds the numbers of all formats, else float32.

        It holds them times a power of two, too; their products with other scales are rounded to it, or to float32 if
        that is what `products` says.
        """
        enough = all(fmt.mantissa_bits <= BFLOAT16.mantissa_bits for fmt in self.formats)
        has_others = self.scale != 'mx' and set(self.formats) != {BFLOAT16}
        is_narrow = enough and not (has_others and self.products == 'float32')
        return np.dtype(jax.numpy.bfloat16 if is_narrow else np.float32)


class Layout(dict[str, LeafLayout]):
    """Leaf path -> how it is stored. A leaf that isn't there is stored in bfloat16, or as it is if it isn't floating.

    Attributes:
      kept: the paths of floating leaves that are stored as they are, too.
    """

    def __init__(self, leaves: Mapping[str, LeafLayout] = MappingProxyType({}), *, kept: Iterable[str] = ()):
        super().__init__(leaves)
        self.kept = frozenset(kept) | getattr(leaves, 'kept', frozenset())

    def copy(self) -> 'Layout':
        return Layout(self)

    def __or__(self, other: Mapping[str, LeafLayout]) -> 'Layout':
        return Layout({**self, **other}, kept=self.kept | kept_leaves(other))

    def __ior__(self, other: Mapping[str, LeafLayout]) -> 'Layout':
        self.update(other)
        self.kept |= kept_leaves(other)
        return self


STORABLE = (
    *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
    *('bfloat16', 'float16', 'float32', 'float64'),
)


def uniform_layout(
    params: Any,
    fmt: FloatFormat | str,
    *,
    block_size: int | str | tuple[int, int] = 32,
    scale: str = 'mx',
    scale_rounding: str = 'floor',
    fit: str = 'absmax',
    products: str = 'bfloat16',
    full_precision: Sequence[KeptLayers] = (),
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
) -> Layout:
    """All weight matrices in one format, with scales of so many weights along their rows, the contracted axis.

    With MX scales, 32 and one of OCP's formats these are MXFP8, MXFP6 and MXFP4. The weights are those of
    `quantization_aware` with these fields of a `Quantizer` and these layers in full precision, and those that fully
    quantized training multiplies with if they are rounded to what it computes in before.

    Args:
      params: pytree of weights.
      fmt: a FloatFormat of at most 16 bits, or its name; bfloat16 means that nothing is quantized: the layout is empty.
      block_size, scale, scale_rounding, fit: as of a `Quantizer`, of a matrix along its rows: what shares a scale, the
        scales' kind, and how they are chosen.
      products: as of a `LeafLayout`: float32 for training that multiplies in float32 what it quantizes there.
      full_precision: rules for matrices in bfloat16, as for `quantization_aware`.
      rules, unnamed: how the weights are read, as for `gaussian_weight_sampling`.

    Raises:
      ValueError: for a format or block size that isn't allowed; for `full_precision` that leaves nothing to quantize;
        as `gaussian_weight_sampling(...).init`.

    Example:
      >>> layout = uniform_layout({'up': {'kernel': jnp.ones((64, 128))}}, 'float6_e3m2fn')
      >>> layout['up/kernel'].tile, layout['up/kernel'].indices.shape
      ((32, 1), (2, 128))

    Source: OCP Microscaling Formats v1.0, section 5.
    """
    quantizer = Quantizer(fmt, block_size=block_size, scale=scale, scale_rounding=scale_rounding, fit=fit)
    fmt = quantizer.fmt
    readings = checked_readings(params, rules, unnamed=unnamed)
    layout = _empty_layout(readings)
    if fmt == BFLOAT16:
        return layout
    sampled = sampled_rules(readings)
    shapes = {path: shape for path, shape in sampled_shapes(readings).items() if math.prod(shape)}
    for path, shape in shapes.items():
        rule, tile = sampled[path], tile_of_blocks(quantizer.block_size, shape[-2:])
        is_kept = kept_matrices(full_precision, path, rule, shape)
        if is_kept.all():
            continue
        indices = np.zeros(_shape_in_tiles(shape, tile), np.uint8)
        indices[is_kept] = 1
        formats = (fmt, BFLOAT16) if is_kept.any() else (fmt,)
        layout[path] = LeafLayout(rule, tile, formats, indices, scale, scale_rounding, fit, products)
    if shapes and not layout:
        raise ValueError(f'full_precision={"; ".join(map(str, full_precision))!r} leaves nothing to quantize')
    return layout


def kept_matrices(
    full_precision: Sequence[KeptLayers], path: str, rule: MatrixRule, shape: Sequence[int]
) -> np.ndarray:
    """Which matrices of a leaf of a shape (batch.., m, n) these rules keep, bool (batch..).

    Example:
      >>> rule = MatrixRule('.*', batch_axes=(0,), row_axes=(1,), col_axes=(2,))
      >>> kept_matrices([KeptLayers(last=1)], 'layers/up/kernel', rule, (3, 64, 32)).tolist()
      [False, False, True]
    """
    of_layers = kept(full_precision, path.rpartition('/')[0], shape[0] if rule.layer_axes else None)
    return np.broadcast_to(of_layers.reshape(-1, *[1] * (len(shape) - 3)) if of_layers.ndim else of_layers, shape[:-2])


def tile_of_blocks(block_size: int | str | tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of a matrix (m, n) that share a scale if a `Quantizer` has blocks along its rows.

    Example:
      >>> [tile_of_blocks(size, (64, 128)) for size in (32, 'channel', 'tensor', (1, 16))]
      [(32, 1), (64, 1), (64, 128), (16, 1)]
    """
    if isinstance(block_size, tuple):
        return block_size[::-1]
    sizes = {'channel': (shape[0], 1), 'tensor': tuple(shape)}
    return sizes[block_size] if isinstance(block_size, str) else (block_size, 1)


def learned_layout(
    params: Any,
    bitwidths: Mapping[str, jax.Array],
    *,
    formats: Formats = format_for_bitwidth,
    block_size: int = 32,
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
) -> Layout:
    """Each square block of the weight matrices in the format of its learned bitwidth.

    Args:
      params: pytree of weights.
      bitwidths: {leaf path: b_t (batch.., ceil(m / block_size), ceil(n / block_size))}, in bits, as
        `ParamTransform.bitwidths` gives them.
      formats: a function b_t -> FloatFormat: what each bitwidth is stored in; such as that of `formats_within_budget`.
        It is asked for multiples of 2^-10, as bitwidths act.
      block_size: side of the blocks; it, `rules` and `unnamed` are those of the transform that learned the bitwidths,
        of which `ParamTransform.learned_layout` reminds itself.

    Raises:
      ValueError: if there are no bitwidths, or they are not of these params, rules and blocks; if one isn't finite.

    Example:
      >>> params = {'up': {'kernel': jnp.ones((64, 32))}}
      >>> layout = learned_layout(params, {'up/kernel': jnp.array([[3.0], [4.5]])})
      >>> [fmt.name for fmt in layout['up/kernel'].formats], layout['up/kernel'].indices.tolist()
      (['e2m1', 'e3m3'], [[0], [1]])

    Source: arXiv 2505.11170, section 3.
    """
    block_size = check_block_size(block_size)
    readings = checked_readings(params, rules, unnamed=unnamed)
    check_bitwidths(readings, bitwidths, block_size)
    return layout_of_bitwidths(readings, bitwidths, formats, block_size)


def stored_indices(of_leaf: LeafLayout) -> np.ndarray:
    """Which format each tile has, or one for each matrix, (batch.., 1, 1), where all tiles of each have the same.

    Example:
      >>> layout = uniform_layout({'up': {'kernel': np.ones((64, 32), np.float32)}}, 'e2m1')['up/kernel']
      >>> layout.indices.shape, stored_indices(layout).shape
      ((2, 32), (1, 1))
    """
    of_matrices = of_leaf.indices[..., :1, :1]
    return of_matrices if np.all(of_leaf.indices == of_matrices) else of_leaf.indices


def storable_leaves(params: Any) -> dict[str, Any]:
    """`leaves_by_path`; ValueError as there, and for a leaf that can't be stored."""
    leaves = leaves_by_path(params)
    for path, leaf in leaves.items():
        dtype = str(leaf.dtype) if hasattr(leaf, 'dtype') else f'a {type(leaf).__name__} of Python'
        if dtype not in STORABLE:
            raise ValueError(f'{path!r} is {dtype}; allowed are arrays of {", ".join(STORABLE)}')
    return leaves


def kept_leaves(layout: Layout | Mapping[str, LeafLayout]) -> frozenset[str]:
    """The paths of floating leaves that a layout stores as they are; none in a plain dict."""
    return getattr(layout, 'kept', frozenset())


def check_layout(leaves: Mapping[str, Any], layout: Layout):
    """ValueError for a layout that is not of these leaves, which are given by path."""
    if unknown := [path for path in (*layout, *sorted(kept_leaves(layout))) if path not in leaves]:
        raise ValueError(f'the layout is of other params: they have no leaf {unknown[0]!r}')
    for path, stored in layout.items():
        shape = leaves[path].shape
        fits = len(shape) == len(stored.rule.axes)
        if not fits or stored.indices.shape != _shape_in_tiles(stored.rule.matrix_shape(shape), stored.tile):
            raise ValueError(f'the layout of {path!r} is of a leaf of another shape than {shape}')
        if not math.prod(shape):
            raise ValueError(f'{path!r} is empty, {shape}: there is nothing to quantize, and no layout of it')


def weights_of_formats(leaf: Any, layout: LeafLayout) -> np.ndarray:
    """How many weights of each matrix have each format.

    Args:
      leaf: an array, or what has its shape alone.
      layout: of this leaf.

    Returns:
      int (batch.., formats), in the order of `layout.formats`.

    Example:
      >>> params = {'up': {'kernel': jax.numpy.ones((40, 32))}}
      >>> layout = learned_layout(params, {'up/kernel': np.array([[3.0], [4.5]])})
      >>> weights_of_formats(params['up']['kernel'], layout['up/kernel']).tolist()
      [1024, 256]
    """
    weights = weights_of_tiles(layout.rule.matrix_shape(leaf.shape), layout.tile)
    counts = [np.sum(weights * (layout.indices == i), axis=(-2, -1)) for i in range(len(layout.formats))]
    return np.stack(counts, axis=-1)


def value_per_weight(of_tiles: np.ndarray, tile: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A value a tile -> a value a weight.

    Args:
      of_tiles: (.., ceil(m / rows), ceil(n / columns)).
      tile: (rows, columns) that have one value; less at the edges.
      shape: (m, n) of a matrix.

    Returns:
      (.., m, n), of the dtype of `of_tiles`.

    Example:
      >>> value_per_weight(np.array([[1, 2]]), (2, 2), (1, 3))
      array([[1, 1, 2]])
    """
    for axis, side, size in zip((-2, -1), tile, shape):
        of_tiles = of_tiles.repeat(min(side, size), axis=axis)
    return of_tiles[..., : shape[0], : shape[1]]


def _empty_layout(readings: Mapping[str, Reading]) -> Layout:
    """A layout in which no leaf is quantized."""
    floating = lambda reading: reading.dtype is not None and jax.numpy.issubdtype(reading.dtype, jax.numpy.floating)
    return Layout(kept=(path for path, reading in readings.items() if reading.action == KEPT and floating(reading)))


def layout_of_bitwidths(
    readings: Mapping[str, Reading], bitwidths: Mapping[str, Any], formats: Formats, block_size: int
) -> Layout:
    """`learned_layout` of bitwidths that `check_bitwidths` has found good."""
    layout, sampled = _empty_layout(readings), sampled_rules(readings)
    for path, shape in sampled_shapes(readings).items():
        if not math.prod(shape):
            continue
        levels, indices = np.unique(as_they_act(bitwidths[path]), return_inverse=True)
        of_levels = [formats(float(level)) for level in levels]
        found = tuple(sorted(set(of_levels), key=lambda fmt: (fmt.bits, fmt.mantissa_bits, fmt.name)))
        numbers = np.array([found.index(fmt) for fmt in of_levels], np.uint8)
        indices = numbers[indices].reshape(shape_in_blocks(shape, block_size))
        layout[path] = LeafLayout(sampled[path], (block_size, block_size), found, indices)
    return layout


def check_bitwidths(readings: Mapping[str, Reading], bitwidths: Mapping[str, Any], block_size: int):
    """ValueError for bitwidths that are not of these leaves and blocks, or not finite."""
    if not bitwidths:
        raise ValueError('bitwidths has no entry: nothing was learned that could choose formats; choose one for all')
    shapes = sampled_shapes(readings)
    lacking, unexpected = sorted(set(shapes) - set(bitwidths)), sorted(set(bitwidths) - set(shapes))
    if lacking or unexpected:
        raise ValueError(
            f'bitwidths is not of these params and rules: it lacks {lacking or "nothing"} and has'
            f' {unexpected or "nothing"} besides'
        )
    for path, shape in shapes.items():
        expected = shape_in_blocks(shape, block_size)
        if np.shape(bitwidths[path]) != expected:
            raise ValueError(
                f'bitwidths[{path!r}] has the shape {np.shape(bitwidths[path])}, but blocks of {block_size} x'
                f' {block_size} are {expected}'
            )
        if not np.all(np.isfinite(np.asarray(bitwidths[path], np.float32))):
            raise ValueError(f'bitwidths[{path!r}] has NaN or infinity in it')


def as_they_act(bitwidths: Any) -> np.ndarray:
    """Bitwidths rounded to multiples of 2^-10, float64."""
    return np.round(np.asarray(bitwidths, np.float64) * 1024) / 1024


def _shape_in_tiles(shape, tile) -> tuple[int, ...]:
    return (*shape[:-2], *(-(-size // side) for size, side in zip(shape[-2:], tile)))


def weights_of_tiles(shape, tile) -> np.ndarray:
    """How many weights each tile of a matrix has: int (ceil(m / rows), ceil(n / columns))."""
    sides = [np.minimum(side, size - side * np.arange(-(-size // side))) for size, side in zip(shape[-2:], tile)]
    return np.multiply.outer(*sides)
