"""Weights made layer by layer, where a scanned model needs them, instead of all before it runs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gaussq_jax.matrix_transforms import Params, State, flat_state
from gaussq_jax.param_reading import read_params, sampled_rules
from gaussq_jax.param_rules import Rule
from gaussq_jax.param_transforms import ParamTransform
from gaussq_jax.param_tree import map_leaves, read_leaves


def layerwise(
    transform: ParamTransform, key: jax.Array | None, params: Params, state: State, *, path: Sequence[str] = ('layers',)
) -> tuple[Params, Callable[[Params, jax.Array], Params]]:
    """`transform.apply(key, params, state)`, of which the stacked layers exist one at a time.

        weights, layer_transform = layerwise(transform, key, params, state)
        model.clone(layer_transform=layer_transform).apply({'params': weights}, x)
            == model.apply({'params': transform.apply(key, params, state)}, x)

    In a model that rematerialises its layers, a layer's W_hat is made again in the backward pass, from the same bits:
    in place of 2 bytes a parameter, the method takes one layer's worth. The gradient with respect to `weights` is
    dW_hat, as it is with respect to `transform.apply(...)`: it is dW, too, since transforms are straight-through, and
    `jax.vjp(lambda state: transform.apply(key, params, state), state)[1]` pulls it back to the state.

    Args:
      transform: of `params`.
      key, params, state: as for `transform.apply`, of the whole tree of nested dicts. No gradient reaches them.
      path: where the stacked layers are. Which axis of a weight matrix counts them is what the transform reads; it is
        the same of the other leaves, from the first axis or from the last.

    Returns:
      weights: a tree like params, of the transform's dtypes. Under `path` it holds zeros, which no computation reads:
        they stand for the gradient.
      layer_transform: a function (layer of weights, layer index) -> the layer's W_hat, for the model's attribute of
        that name, or for the body of another model's scan.

    Raises:
      ValueError: if `path` is not in `params`, or the leaves under it are not stacked alike; as `transform.apply` does.

    Example:
      >>> from gaussq_jax import gaussian_weight_sampling
      >>> transform, key = gaussian_weight_sampling(), jax.random.key(0)
      >>> params = {'layers': {'up': {'kernel': jnp.ones((4, 32, 64)), 'bias': jnp.ones((4, 64))}}}
      >>> state = transform.init(params)
      >>> weights, layer_transform = layerwise(transform, key, params, state)
      >>> one = layer_transform(jax.tree.map(lambda w: w[3], weights['layers']), 3)['up']['kernel']
      >>> bool((one == transform.apply(key, params, state)['layers']['up']['kernel'][3]).all())
      True

    Source: arXiv 2505.11170 draws the noise again in the backward pass; to draw W_hat again is ours.
    """
    path = tuple(path)
    params, state = jax.lax.stop_gradient((params, flat_state(state)))
    layers = _get(params, path)
    axes = _layer_axes(params, path, transform.rules)
    if transform.resolve is not None:
        transform = transform.resolve(params)
    prefix = ''.join(f'{name}/' for name in path)
    state_of_rest = {name: b_i for name, b_i in state.items() if not name.startswith(prefix)}
    rest = transform.apply(key, _replace(params, path, {}), state_of_rest)
    shapes = jax.eval_shape(lambda params, state: _get(transform.apply(key, params, state), path), params, state)
    weights = _replace(rest, path, jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes))

    def layer_transform(gradient_of, index):
        one = lambda name, leaf: jax.lax.dynamic_index_in_dim(leaf, index, axes[name], keepdims=False)
        layer = transform.apply(key, map_leaves(one, layers), state, path=path, layer=index)
        values = {name: leaf.value for name, leaf in read_leaves(layer).items()}  # whatever boxes say of their axes
        return map_leaves(lambda name, leaf: _with_gradient_of(values[name], leaf), gradient_of)

    return weights, layer_transform


def _layer_axes(params: Params, path: tuple[str, ...], rules: Sequence[Rule]) -> dict[str, int]:
    """The axis of each leaf under the path that counts layers: of weight matrices as they are read, of others alike."""
    prefix = ''.join(f'{name}/' for name in path)
    readings = read_params(params, rules, unnamed='cast')
    layers = {name.removeprefix(prefix): reading for name, reading in readings.items() if name.startswith(prefix)}
    sampled = sampled_rules(layers)
    axes = {name: rule.layer_axes[0] for name, rule in sampled.items() if rule.layer_axes}
    if not axes or len(axes) < len(sampled):
        raise ValueError(f'path={path}: not all weight matrices under it have an axis that counts layers, but {axes}')
    sizes = {layers[name].shape[axis] for name, axis in axes.items()}
    from_end = {axis - len(layers[name].shape) for name, axis in axes.items()}
    others = {name: reading.shape for name, reading in layers.items() if name not in axes}
    for places in (set(axes.values()), from_end):
        axis = min(places)
        if len(places) == len(sizes) == 1 and all({*shape[axis:][:1]} == sizes for shape in others.values()):
            return axes | dict.fromkeys(others, axis)
    raise ValueError(
        f'path={path}: its leaves are not stacked alike; weight matrices along {axes}, and other leaves are {others}'
    )


@jax.custom_vjp
def _with_gradient_of(value: jax.Array, other: jax.Array) -> jax.Array:
    """The value, whose gradient goes to the other array."""
    return value


_with_gradient_of.defvjp(lambda value, other: (value, None), lambda _, d: (None, d))


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for i, name in enumerate(path):
        if name not in tree:
            raise ValueError(f'path={path}: params has {sorted(tree)} under {path[:i]}')
        tree = tree[name]
    return tree


def _replace(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    return {**tree, path[0]: _replace(tree[path[0]], path[1:], value)}
