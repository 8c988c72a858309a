"""Weights of a layout: quantized, written to a file, and read from it."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.packed import bit_packing, checked_file, scale_codes
from gaussq_jax.packed.layout import (
    STORABLE,
    Layout,
    LeafLayout,
    check_layout,
    kept_leaves,
    storable_leaves,
    stored_indices,
    value_per_weight,
    weights_of_formats,
)
from gaussq_jax.packed.quantized_weights import each_matrix, quantized_matrices, rounded
from gaussq_jax.packed.size import ModelSize, size_of_leaves
from gaussq_jax.param_rules import MatrixRule
from gaussq_jax.param_tree import is_floating, map_leaves

CHOSEN = {'scale_rounding': 'floor', 'fit': 'absmax'}  # of a leaf's description, which lacks what is as here
UNSCALED = 1  # the version whose leaves say nothing of scales: they are MX scales


class Packed(NamedTuple):
    """What a file of packed weights holds."""

    params: Any  # the weights, as `load_packed` gives them
    layout: Layout
    size: ModelSize
    info: dict[str, Any]  # what `save_packed` was given


def save_packed(
    path: str | os.PathLike, params: Any, layout: Layout, *, info: Mapping[str, Any] | None = None
) -> ModelSize:
    """Writes `quantize_params(params, layout)` to a safetensors file, its codes really packed.

    The file appears under its name when it is whole. It is a function of the arguments: the same weights are the same
    bytes. Besides the weights, the packed bytes are held in memory, and what one matrix takes.

    Args:
      path: of the file; its directory must be there.
      params, layout: as for `quantize_params`.
      info: what else is to be kept, for example the model's configuration: a dict that JSON keeps as it is.

    Returns:
      The size. The file is larger by its header, `gq.packed.header_bytes(path)`.

    Raises:
      ValueError: as `quantize_params`; for info that JSON can't keep; for leaves whose names would clash.
      OSError: where the file can't be written.

    Example:
      >>> import tempfile
      >>> params = {'up': {'kernel': jnp.ones((64, 32))}}
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     size = save_packed(f'{directory}/up.safetensors', params, gq.uniform_layout(params, 'float6_e3m2fn'))
      ...     weights = load_packed(f'{directory}/up.safetensors')
      >>> size.mean_stored_bits, bool(jnp.all(weights['up']['kernel'] == 1))
      (6.25, True)
    """
    leaves = storable_leaves(params)
    check_layout(leaves, layout)
    info = {} if info is None else info
    if not isinstance(info, Mapping) or checked_file.of_json(checked_file.to_json(info)) != info:
        raise ValueError(
            f'info={info!r}: allowed is a dict that JSON keeps as it is: of lists, not tuples; keys are text'
        )
    tensors, described, formats = {}, {}, {}
    for name, leaf in leaves.items():
        if name in layout:
            of_leaf = _pack_leaf(name, leaf, layout[name])
            described[name] = _describe_leaf(leaf, layout[name])
            formats |= {fmt.name: fmt for fmt in layout[name].formats}
        else:
            of_leaf = {name: np.asarray(leaf if name in kept_leaves(layout) else rounded(leaf))}
        if clash := sorted(set(of_leaf) & set(tensors)):
            raise ValueError(f'{clash[0]!r} would be the name of two tensors; rename a leaf')
        tensors |= of_leaf
    contents = {
        'formats': {name: _describe_format(fmt) for name, fmt in formats.items()},
        'leaves': described,
        'other_leaves': [name for name in leaves if name not in layout],
    }
    if kept := sorted(kept_leaves(layout)):
        contents['kept_leaves'] = kept
    checked_file.write(path, tensors, {**contents, 'info': dict(info)})
    return size_of_leaves(leaves, layout)


def load_packed(path: str | os.PathLike, *, like: Any = None) -> Any:
    """The weights in a packed file: bit for bit `quantize_params` of what was saved.

    Args:
      path: of the file.
      like: a pytree of the structure to return, with leaves of the shapes in the file (arrays, or what
        `jax.eval_shape` gives). None for nested dicts, in which a path's parts are the keys.

    Returns:
      NumPy arrays on the host, as the dtypes of `quantize_params`: the caller puts them on devices.

    Raises:
      ValueError: naming the file, if it is damaged, foreign, or of a version that isn't known; if its leaves are not
        those of `like`, by their paths, shapes, and dtypes: one that is floating may be of any, others of the same.
      OSError: if it can't be read.

    Example: see `save_packed`.
    """
    return read_packed(path, like=like).params


def read_packed(path: str | os.PathLike, *, like: Any = None) -> Packed:
    """All that a packed file holds. Arguments and errors are those of `load_packed`.

    Example:
      >>> import tempfile
      >>> params = {'up': {'kernel': jnp.ones((64, 32))}}
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     file, layout = f'{directory}/up.safetensors', gq.uniform_layout(params, 'float6_e3m2fn')
      ...     size = save_packed(file, params, layout, info={'step': 7})
      ...     packed = read_packed(file)
      >>> packed.info, packed.size.total_bytes == size.total_bytes, packed.layout['up/kernel'].tile
      ({'step': 7}, True, (32, 1))
    """
    contents, file = checked_file.open_checked(path)
    try:
        with file:
            leaves, layout = _unpack(contents, file)
        size, info = size_of_leaves(leaves, layout), dict(contents['info'])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(f'{path} is none that save_packed wrote: {reason!s:.500}') from None
    params = _nest(path, leaves) if like is None else _arrange(path, leaves, like)
    return Packed(params, layout, size, info)


def _pack_leaf(path, leaf, of_leaf: LeafLayout) -> dict[str, np.ndarray]:
    """The tensors of a leaf by name: the codes of each format, matrix by matrix; scales; the formats of the tiles."""
    codes, scales, divisors = {fmt: [np.zeros(0, np.uint8)] for fmt in of_leaf.formats}, [], []
    for matrix in quantized_matrices(path, leaf, of_leaf):
        scales.append(scale_codes.encode(matrix.scales, of_leaf.scale, _shifts(of_leaf)[matrix.indices]))
        divisors.append(matrix.divisor)
        for fmt, weights in _weights_by_format(of_leaf, matrix.indices, matrix.numbers.shape):
            codes[fmt].append(bit_packing.pack(bit_packing.encode(matrix.numbers.ravel()[weights], 0, fmt), fmt.bits))
    tensors = {_codes(path, fmt): np.concatenate(streams) for fmt, streams in codes.items()}
    tensors[f'{path}.scales'] = np.reshape(scales, of_leaf.indices.shape)
    if of_leaf.scale == 'nvfp4':
        tensors[f'{path}.divisors'] = np.array(divisors, np.float32).reshape(of_leaf.indices.shape[:-2])
    if len(of_leaf.formats) > 1:
        tensors[f'{path}.formats'] = stored_indices(of_leaf)
    return tensors


def _describe_leaf(leaf, of_leaf: LeafLayout) -> dict[str, Any]:
    rule = of_leaf.rule
    chosen = {name: value for name, default in CHOSEN.items() if (value := getattr(of_leaf, name)) != default}
    return {
        'shape': list(leaf.shape),
        'dtype': of_leaf.dtype.name,
        'batch_axes': list(rule.batch_axes),
        'row_axes': list(rule.row_axes),
        'col_axes': list(rule.col_axes),
        'tile': list(of_leaf.tile),
        'formats': [fmt.name for fmt in of_leaf.formats],
        'scale': of_leaf.scale,
        **chosen,
    }


def _describe_format(fmt: FloatFormat) -> dict[str, Any]:
    return {name: getattr(fmt, name) for name in ('bits', 'exponent_bits', 'mantissa_bits', 'bias', 'max')}


def _unpack(contents, file) -> tuple[dict[str, np.ndarray], Layout]:
    """The leaves, and the layout of those that are packed; raises what it stumbles over where they don't fit."""
    formats = {name: parse_format(name) for name in contents['formats']}
    for name, fmt in formats.items():
        if contents['formats'][name] != _describe_format(fmt):
            raise ValueError(f'its format {name} is not ours')
    leaves, layout, unread = {}, Layout(kept=contents.get('kept_leaves', ())), dict.fromkeys(file.keys())

    def take(name):
        if name not in unread:
            raise ValueError(f'it has no tensor {name!r}')
        del unread[name]
        return file.get_tensor(name)

    for path, described in contents['leaves'].items():
        if contents['version'] == UNSCALED:
            described = {**described, 'scale': 'mx'}
        of_leaf = tuple(formats[name] for name in described['formats'])
        leaves[path], layout[path] = _unpack_leaf(path, described, of_leaf, take)
    if differ := (set(unread) ^ set(contents['other_leaves'])) | (set(unread) & set(leaves)):
        raise ValueError(f'{min(differ)!r} is not the one leaf of its tensor, or not the one tensor of its leaf')
    others = {name: file.get_tensor(name) for name in unread}
    if strange := [name for name, leaf in others.items() if leaf.dtype.name not in STORABLE]:
        raise ValueError(f'{strange[0]!r} is {others[strange[0]].dtype}, which is not stored')
    rounded = {name: leaf for name, leaf in others.items() if is_floating(leaf) and name not in layout.kept}
    if wide := [name for name, leaf in rounded.items() if leaf.dtype != jnp.bfloat16]:
        raise ValueError(f'{wide[0]!r} is {others[wide[0]].dtype}, and not bfloat16')
    return leaves | others, layout


def _unpack_leaf(path, described, formats, take) -> tuple[np.ndarray, LeafLayout]:
    """A leaf and its layout from its tensors, each taken by its name; ValueError where they are not as described."""
    codes, scales = [take(_codes(path, fmt)) for fmt in formats], take(f'{path}.scales')
    indices = take(f'{path}.formats') if len(formats) > 1 else np.zeros(scales.shape, np.uint8)
    if indices.shape == (*scales.shape[:-2], 1, 1):
        indices = np.broadcast_to(indices, scales.shape)
    rule = MatrixRule('.*', *(tuple(described[name]) for name in ('batch_axes', 'row_axes', 'col_axes')))
    chosen = {name: described.get(name, default) for name, default in CHOSEN.items()}
    tile, scale, products = tuple(described['tile']), described['scale'], described['dtype']
    of_leaf = LeafLayout(rule, tile, formats, indices, scale, **chosen, products=products)
    leaf = jax.ShapeDtypeStruct(tuple(described['shape']), of_leaf.dtype)
    check_layout({path: leaf}, {path: of_leaf})
    counts = weights_of_formats(leaf, of_leaf).reshape(-1, len(formats))
    ends = [
        np.cumsum([bit_packing.packed_bytes(int(n), fmt.bits) for n in of_fmt])
        for of_fmt, fmt in zip(counts.T, formats)
    ]
    if (
        any(stream.dtype != np.uint8 for stream in codes)
        or [stream.shape for stream in codes] != [(int(end[-1]),) for end in ends]
        or scales.shape != indices.shape
        or described != _describe_leaf(leaf, of_leaf)
    ):
        raise ValueError(f'the tensors of {path!r} are not of the types and sizes that its description makes them')
    factors = scale_codes.decode(scales, of_leaf.scale, _shifts(of_leaf)[indices])
    if of_leaf.scale != 'absmax':
        factors = factors.astype(np.float32)
    if of_leaf.scale == 'nvfp4':
        divisors = take(f'{path}.divisors')
        if divisors.shape != scales.shape[:-2]:
            raise ValueError(f'{path}.divisors has the shape {divisors.shape}, and not {scales.shape[:-2]}')
        with np.errstate(over='ignore', under='ignore'):
            factors /= scale_codes.decode(divisors, 'absmax').astype(np.float32)[..., None, None]
    *_, m, n = rule.matrix_shape(leaf.shape)
    matrices = np.empty((*scales.shape[:-2], m, n), leaf.dtype)
    streams = zip(*(np.split(stream, end[:-1]) for stream, end in zip(codes, ends)))
    for matrix, of_tiles, which, parts in zip(*map(each_matrix, (matrices, factors, indices)), streams):
        of_weights = value_per_weight(of_tiles, of_leaf.tile, (m, n)).ravel()
        for (fmt, weights), part in zip(_weights_by_format(of_leaf, which, (m, n)), parts):
            values = of_weights[weights]
            with np.errstate(over='ignore', invalid='ignore'):
                values = values * bit_packing.decoded(fmt)[bit_packing.unpack(part, fmt.bits, values.size)]
                values = values.astype(np.float32)  # of absmax scales; their products are exact in float64
            if not np.all(np.isfinite(values)):
                raise ValueError(f'{path!r} has codes that stand for no number')
            matrix.reshape(-1)[weights] = values
    return rule.from_matrices(matrices, leaf.shape), of_leaf


def _shifts(of_leaf: LeafLayout) -> np.ndarray:
    return np.array([scale_codes.shift(fmt) for fmt in of_leaf.formats])


def _weights_by_format(of_leaf: LeafLayout, indices, shape) -> Iterator[tuple[FloatFormat, Any]]:
    """Of one matrix: each format, and which of the flattened weights have it."""
    if len(of_leaf.formats) == 1:
        yield of_leaf.formats[0], slice(None)
        return
    of_weights = value_per_weight(indices, of_leaf.tile, shape).ravel()
    for i, fmt in enumerate(of_leaf.formats):
        yield fmt, of_weights == i


def _codes(path, fmt: FloatFormat) -> str:
    """The tensor of all codes of a format."""
    return f'{path}.codes.{fmt.name}'


def _nest(file, leaves):
    tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or name in node:
            raise ValueError(
                f'{file}: its leaf {path!r} has no place in nested dicts; give like=, a tree to arrange in'
            )
        node[name] = leaf
    return tree


def _arrange(file, leaves, like):
    wanted = storable_leaves(like)
    kind = lambda leaf: 'floating' if is_floating(leaf) else leaf.dtype.name
    differences = [
        f'{path}: {np.shape(leaves.get(path)) if path in leaves else "not there"} in the file,'
        f' {wanted[path].shape if path in wanted else "not there"} in `like`'
        for path in {**wanted, **leaves}
        if path not in leaves or path not in wanted or leaves[path].shape != wanted[path].shape
    ]
    differences = differences or [
        f'{path}: {leaves[path].dtype} in the file, {wanted[path].dtype} in `like`'
        for path in wanted
        if kind(leaves[path]) != kind(wanted[path])
    ]
    if differences:
        raise ValueError(f'{file} holds other leaves than `like`: ' + '; '.join(differences[:5]))
    return map_leaves(lambda path, _: leaves[path], like)
