"""Weights of a layout: quantized, written to a file, and read from it."""

import functools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.block_scaling import Quantizer, fake_quantize, scale_exponents
from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.packed import bit_packing, checked_file
from gaussq_jax.packed.layout import (
    STORABLE,
    Layout,
    LeafLayout,
    check_layout,
    kept_leaves,
    storable_leaves,
    value_per_weight,
    weights_of_formats,
)
from gaussq_jax.packed.size import ModelSize, size_of_leaves
from gaussq_jax.param_rules import MatrixRule
from gaussq_jax.param_tree import is_floating, map_leaves
from kernels_pallas.rounding_on_bits import round_to_dtype

SCALE_BIAS = 127  # of E8M0: code c is the scale 2^(c - 127), and 255 none
MOST_SCALE = 254


class Packed(NamedTuple):
    """What a file of packed weights holds."""

    params: Any  # the weights, as `load_packed` gives them
    layout: Layout
    size: ModelSize
    info: dict[str, Any]  # what `save_packed` was given


def quantize_params(params: Any, layout: Layout) -> Any:
    """The weights that a packed file of this layout holds: what to evaluate before saving, and what will be served.

        W_hat = s round(W / s)    by tiles of the layout, in each tile's format, with the MX scale s

    Args:
      params: pytree of weights, float32 or bfloat16.
      layout: as `uniform_layout` or `learned_layout` made it from these params.

    Returns:
      A tree like params, on the same devices: bfloat16, but for leaves with a format of more than 7 mantissa bits,
      which are float32. Floating leaves that are not in the layout are rounded to bfloat16; those of `layout.kept`, and
      leaves that aren't floating, are untouched.
      Call it outside of `jax.jit` where a mesh has explicit axes.

    Raises:
      ValueError: if the layout is not of these params; for infinite and NaN weights, but under `jax.jit`.

    Example:
      >>> params = {'up': {'kernel': jnp.array([[6.0], [2.2], [0.8]])}}
      >>> quantize_params(params, gq.uniform_layout(params, 'float4_e2m1fn'))['up']['kernel'].ravel()
      Array([6, 2, 1], dtype=bfloat16)

    Source: OCP Microscaling Formats v1.0, section 6.3.
    """
    check_layout(storable_leaves(params), layout)

    def quantize(path, leaf):
        if path not in layout:
            return leaf if path in kept_leaves(layout) else _rounded(leaf)
        of_leaf = layout[path]
        matrices = [values.astype(of_leaf.dtype) for values, _, _ in quantized_matrices(path, leaf, of_leaf)]
        quantized = of_leaf.rule.from_matrices(jnp.stack(matrices), leaf.shape)
        return jax.device_put(quantized, leaf.sharding) if _is_concrete(leaf) and leaf.committed else quantized

    return map_leaves(quantize, params)


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
            of_leaf = {name: np.asarray(leaf if name in kept_leaves(layout) else _rounded(leaf))}
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


def _rounded(leaf):
    return _round(leaf, jnp.bfloat16) if is_floating(leaf) else leaf


_round = jax.jit(round_to_dtype, static_argnums=1)  # in one go, without a float32 array in between


def quantized_matrices(path, leaf, of_leaf: LeafLayout) -> Iterator[tuple[jax.Array, jax.Array, np.ndarray]]:
    """Of each matrix of a leaf: its weights quantized (m, n) float32, the log2 of the tiles' scales, their formats."""
    # One at a time is taken from the host, wherever the parts of the leaf lie: no sharding of it is of account.
    leaf = np.asarray(leaf) if _is_concrete(leaf) else leaf
    matrices = _each_matrix(of_leaf.rule.to_matrices(leaf))
    for i, indices in enumerate(_each_matrix(of_leaf.indices)):
        values, exponents, is_finite = _quantize_matrix(matrices[i], indices, of_leaf.tile, of_leaf.formats)
        if not isinstance(is_finite, jax.core.Tracer) and not is_finite:
            raise ValueError(f'{path!r} has infinite or NaN weights, for which a packed format has no codes')
        yield values, exponents, indices


@functools.partial(jax.jit, static_argnums=(2, 3))
def _quantize_matrix(weights, indices, tile, formats):
    wide = weights.astype(jnp.float32)
    values, exponents = jnp.zeros_like(wide), jnp.zeros(indices.shape, jnp.int32)
    for i, fmt in enumerate(formats):
        quantizer = Quantizer(fmt, block_size=tile, scale='mx')
        values = jnp.where(value_per_weight(indices == i, tile, wide.shape), fake_quantize(wide, quantizer), values)
        exponents = jnp.where(indices == i, scale_exponents(wide, quantizer), exponents)
    return values, exponents, jnp.all(jnp.isfinite(wide))


def _is_concrete(leaf) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def _pack_leaf(path, leaf, of_leaf: LeafLayout) -> dict[str, np.ndarray]:
    """The tensors of a leaf by name: the codes of each format, matrix by matrix; scales; the formats of the tiles."""
    codes, scales = {fmt: [np.zeros(0, np.uint8)] for fmt in of_leaf.formats}, []
    for values, exponents, indices in quantized_matrices(path, leaf, of_leaf):
        values, exponents = np.asarray(values), np.asarray(exponents)
        scales.append((exponents + SCALE_BIAS).astype(np.uint8))
        exponents = value_per_weight(exponents, of_leaf.tile, values.shape).ravel()
        for fmt, weights in _weights_by_format(of_leaf, indices, values.shape):
            of_format = bit_packing.encode(values.ravel()[weights], exponents[weights], fmt)
            codes[fmt].append(bit_packing.pack(of_format, fmt.bits))
    tensors = [*map(np.concatenate, codes.values()), np.array(scales, np.uint8).reshape(of_leaf.indices.shape)]
    return dict(zip(_tensor_names(path, of_leaf.formats), [*tensors, of_leaf.indices]))


def _describe_leaf(leaf, of_leaf: LeafLayout) -> dict[str, Any]:
    rule = of_leaf.rule
    return {
        'shape': list(leaf.shape),
        'dtype': of_leaf.dtype.name,
        'batch_axes': list(rule.batch_axes),
        'row_axes': list(rule.row_axes),
        'col_axes': list(rule.col_axes),
        'tile': list(of_leaf.tile),
        'formats': [fmt.name for fmt in of_leaf.formats],
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
    for path, described in contents['leaves'].items():
        of_leaf = tuple(formats[name] for name in described['formats'])
        names = _tensor_names(path, of_leaf)
        if missing := [name for name in names if name not in unread]:
            raise ValueError(f'it has no tensor {missing[0]!r}')
        leaves[path], layout[path] = _unpack_leaf(path, described, of_leaf, [file.get_tensor(name) for name in names])
        unread = {name: None for name in unread if name not in names}
    if differ := (set(unread) ^ set(contents['other_leaves'])) | (set(unread) & set(leaves)):
        raise ValueError(f'{min(differ)!r} is not the one leaf of its tensor, or not the one tensor of its leaf')
    others = {name: file.get_tensor(name) for name in unread}
    if strange := [name for name, leaf in others.items() if leaf.dtype.name not in STORABLE]:
        raise ValueError(f'{strange[0]!r} is {others[strange[0]].dtype}, which is not stored')
    rounded = {name: leaf for name, leaf in others.items() if is_floating(leaf) and name not in layout.kept}
    if wide := [name for name, leaf in rounded.items() if leaf.dtype != jnp.bfloat16]:
        raise ValueError(f'{wide[0]!r} is {others[wide[0]].dtype}, and not bfloat16')
    return leaves | others, layout


def _unpack_leaf(path, described, formats, tensors) -> tuple[np.ndarray, LeafLayout]:
    """A leaf and its layout from its tensors; ValueError where they are not as described."""
    codes, (scales, *indices) = tensors[: len(formats)], tensors[len(formats) :]
    rule = MatrixRule('.*', *(tuple(described[name]) for name in ('batch_axes', 'row_axes', 'col_axes')))
    indices = indices[0] if indices else np.zeros(scales.shape, np.uint8)
    of_leaf = LeafLayout(rule, tuple(described['tile']), formats, indices)
    leaf = jax.ShapeDtypeStruct(tuple(described['shape']), of_leaf.dtype)
    check_layout({path: leaf}, {path: of_leaf})
    counts = weights_of_formats(leaf, of_leaf).reshape(-1, len(formats))
    ends = [
        np.cumsum([bit_packing.packed_bytes(int(n), fmt.bits) for n in of_fmt])
        for of_fmt, fmt in zip(counts.T, formats)
    ]
    if (
        any(tensor.dtype != np.uint8 for tensor in tensors)
        or [stream.shape for stream in codes] != [(int(end[-1]),) for end in ends]
        or scales.shape != indices.shape
        or np.any(scales > MOST_SCALE)
        or described != _describe_leaf(leaf, of_leaf)
    ):
        raise ValueError(f'the tensors of {path!r} are not of the types and sizes that its description makes them')
    *_, m, n = rule.matrix_shape(leaf.shape)
    matrices = np.empty((*scales.shape[:-2], m, n), leaf.dtype)
    streams = zip(*(np.split(stream, end[:-1]) for stream, end in zip(codes, ends)))
    for matrix, of_tiles, which, parts in zip(*map(_each_matrix, (matrices, scales, indices)), streams):
        factors = np.ldexp(np.float32(1), of_tiles.astype(np.int32) - SCALE_BIAS)
        factors = value_per_weight(factors, of_leaf.tile, (m, n)).ravel()
        for (fmt, weights), part in zip(_weights_by_format(of_leaf, which, (m, n)), parts):
            values = factors[weights]
            with np.errstate(over='ignore'):
                values = values * bit_packing.decoded(fmt)[bit_packing.unpack(part, fmt.bits, values.size)]
            if not np.all(np.isfinite(values)):
                raise ValueError(f'{path!r} has codes that stand for no number')
            matrix.reshape(-1)[weights] = values
    return rule.from_matrices(matrices, leaf.shape), of_leaf


def _weights_by_format(of_leaf: LeafLayout, indices, shape) -> Iterator[tuple[FloatFormat, Any]]:
    """Of one matrix: each format, and which of the flattened weights have it."""
    if len(of_leaf.formats) == 1:
        yield of_leaf.formats[0], slice(None)
        return
    of_weights = value_per_weight(indices, of_leaf.tile, shape).ravel()
    for i, fmt in enumerate(of_leaf.formats):
        yield fmt, of_weights == i


def _each_matrix(stack: np.ndarray) -> np.ndarray:
    """(batch.., rows, columns) -> (matrices, rows, columns)."""
    return stack.reshape(math.prod(stack.shape[:-2]), *stack.shape[-2:])


def _tensor_names(path, formats) -> list[str]:
    """The tensors of a packed leaf: a stream of codes a format, scales, and which format each tile has, of several."""
    names = [*(f'{path}.codes.{fmt.name}' for fmt in formats), f'{path}.scales']
    return [*names, f'{path}.formats'] if len(formats) > 1 else names


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
