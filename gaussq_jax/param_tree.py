"""The leaves of a parameter tree, whatever framework made it: linen, NNX, Equinox, haliax, Haiku.

A leaf's path is its key names joined by '/', such as 'layers/mlp/up/kernel'. Linen's boxes, NNX's variables and
haliax's named arrays hold one array each: they count as that array, what they say of its axes is kept, and they add
nothing to the path.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SHARDING_NAMES = ('out_sharding', 'sharding_names', 'sharding')  # of NNX's variables, the newest of its releases first
HAIKU = 'haiku'  # in the place of a module: its trees are dicts


class Leaf(NamedTuple):
    """An array of a parameter tree (or its shape and dtype), and what its framework says of it."""

    path: str
    value: Any
    axis_names: tuple[str, ...] | None = None  # where each axis of it has a name
    is_param: bool = True  # False for NNX variables that aren't `nnx.Param`: batch statistics, counters
    module: Any = None  # the Equinox or haliax module that it is an attribute of; HAIKU in a tree of Haiku's


def leaf_path(path: Sequence[Any], above: Sequence[Any] = ()) -> str:
    """A leaf's path by name, such as 'layers/up/kernel', from a JAX key path.

    Args:
      path: keys, as `jax.tree_util.tree_leaves_with_path` gives them.
      above: names from the root, where the key path is one in a part of the tree.

    Example:
      >>> params = {'up': {'kernel': jnp.ones(3), 'bias': jnp.ones(3)}}
      >>> [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
      ['up/bias', 'up/kernel']
    """
    name = jax.tree_util.keystr(tuple(path), simple=True, separator='/')
    return '/'.join((*map(str, above), *filter(None, [name])))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """A short name for each path: without '/kernel' at its end, as many of its last parts as keep all of them apart.

    Args:
      paths: of leaves; one that is given twice counts once.

    Returns:
      {path: short name}, in the order of the paths.

    Example:
      >>> short_names(['layers/attention/query/kernel', 'layers/mlp/up/kernel'])
      {'layers/attention/query/kernel': 'query', 'layers/mlp/up/kernel': 'up'}
    """
    paths = list(dict.fromkeys(paths))
    without_kernel = [path.removesuffix('/kernel') for path in paths]
    parts = [path.split('/') for path in (without_kernel if len(set(without_kernel)) == len(paths) else paths)]
    for depth in itertools.count(1):
        names = ['/'.join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return dict(zip(paths, names))


def path_hash(path: str) -> int:
    """32 bits that name a leaf in `jax.random.fold_in`: the first four bytes of SHA-256, little-endian.

    Example:
      >>> path_hash('up/kernel')
      1099992685
    """
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], 'little')


def read_leaves(tree: Any, above: Sequence[Any] = ()) -> dict[str, Leaf]:
    """The leaves by path; `above` as for `leaf_path`.

    Raises:
      ValueError: for two leaves of one path, and for an NNX module.
    """
    leaves, haiku = {}, HAIKU if _is_haiku(tree) else None
    for key_path, value in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_whole):
        leaf = _leaf(leaf_path(key_path, above), value, haiku or _holder(tree, key_path))
        if leaf.path in leaves:
            raise ValueError(f'two leaves have the path {leaf.path!r}; rename one: it is what their noise comes from')
        leaves[leaf.path] = leaf
    return leaves


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by path, out of what they are boxed in.

    Raises:
      ValueError: for two leaves of one path, and for an NNX module.

    Example:
      >>> leaves_by_path({'up': {'kernel': jnp.ones(3), 'bias': jnp.int32(1)}})
      {'up/bias': Array(1, dtype=int32), 'up/kernel': Array([1., 1., 1.], dtype=float32)}
    """
    return {path: leaf.value for path, leaf in read_leaves(tree).items()}


def map_leaves(function: Callable[[str, Any], Any], tree: Any, above: Sequence[Any] = ()) -> Any:
    """A tree like `tree` of function(path, array); boxes, variables and named arrays stay around their arrays.

    `above` as for `leaf_path`.

    Raises:
      ValueError: for an NNX module.
    """

    def map_leaf(key_path, value):
        boxed, structure = jax.tree_util.tree_flatten(value)
        return jax.tree_util.tree_unflatten(structure, [function(leaf_path(key_path, above), array) for array in boxed])

    return jax.tree_util.tree_map_with_path(map_leaf, tree, is_leaf=_is_whole)


def is_floating(leaf: Any) -> bool:
    """Whether the leaf is an array (or an array's shape and dtype) of floating-point numbers.

    Example:
      >>> is_floating(jnp.bfloat16(1)), is_floating(jnp.int32(1)), is_floating(1.0)
      (True, False, False)
    """
    return hasattr(leaf, 'dtype') and hasattr(leaf, 'ndim') and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_class(instance: Any, package: str, *names: str) -> bool:
    """Whether it is of a class of this name in that package, without importing it."""
    return any(cls.__name__ in names and cls.__module__.partition('.')[0] == package for cls in type(instance).__mro__)


def _is_whole(node: Any) -> bool:
    """Whether the node is one array in a box. NNX modules are refused: their ties and side effects would be lost."""
    if is_class(node, 'flax', 'Module') and hasattr(node, 'sow') and not hasattr(node, 'apply'):
        raise ValueError(
            f'{type(node).__name__} is an NNX module: give its parameters, graph, params, rest = nnx.split(model,'
            ' nnx.Param, ...), and use nnx.merge(graph, transform.apply(key, params, state), rest). So tied weights'
            ' stay tied, and what a call changes (batch statistics, dropout counters) stays in the merged model'
        )
    is_box = is_class(node, 'flax', 'AxisMetadata', 'Variable') or is_class(node, 'haliax', 'NamedArray')
    return is_box and len(jax.tree_util.tree_leaves(node)) == 1


def _leaf(path: str, value: Any, module: Any) -> Leaf:
    if not _is_whole(value):
        return Leaf(path, value, module=module)
    (array,) = jax.tree_util.tree_leaves(value)
    names = _axis_names(value, getattr(array, 'ndim', None))
    if is_class(value, 'haliax', 'NamedArray') and module is None:
        names = None  # which of them are inputs, its layer knows
    is_param = is_class(value, 'flax', 'Param') or not is_class(value, 'flax', 'Variable')
    return Leaf(path, array, names, is_param, module)


def _axis_names(box: Any, ndim: int | None) -> tuple[str, ...] | None:
    """The names of all axes; None where one has none, or where there are more or fewer names than axes."""
    if is_class(box, 'haliax', 'NamedArray'):
        return tuple(axis.name for axis in box.axes)
    if is_class(box, 'flax', 'Variable'):
        metadata = box.get_metadata()
        names = next((metadata[name] for name in SHARDING_NAMES if metadata.get(name) is not None), ())
        names = getattr(names, 'spec', names)  # of a NamedSharding
    else:
        names = getattr(box, 'names', ())
    names = tuple(names)
    return names if len(names) == ndim and all(isinstance(name, str) for name in names) else None


def _is_haiku(tree: Any) -> bool:
    """Whether the tree is {module path: {name: array}}, module paths having parts."""
    if not isinstance(tree, Mapping) or not all(isinstance(of_module, Mapping) for of_module in tree.values()):
        return False
    arrays = all(hasattr(value, 'shape') for of_module in tree.values() for value in of_module.values())
    return arrays and any('/' in str(module) for module in tree)


def _holder(tree: Any, key_path: Sequence[Any]) -> Any:
    """The Equinox or haliax module that the leaf is an attribute of, or None."""
    if not key_path or not isinstance(key_path[-1], jax.tree_util.GetAttrKey):
        return None
    try:
        node = functools.reduce(_child, key_path[:-1], tree)
    except (AttributeError, LookupError, TypeError):  # a node whose keys don't lead to its children
        return None
    return node if type(node).__module__.partition('.')[0] in ('equinox', 'haliax') else None


def _child(node: Any, key: Any) -> Any:
    if isinstance(key, jax.tree_util.GetAttrKey):
        return getattr(node, key.name)
    return node[key.key if isinstance(key, jax.tree_util.DictKey) else key.idx]
