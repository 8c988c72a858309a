"""The mesh, and where each array of the train state, and each activation, lives on it."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gaussq_jax import models
from gaussq_jax.models.layers import Constrain, unconstrained
from gaussq_jax.param_rules import MatrixRule, RuleFinder
from gaussq_jax.param_tree import map_leaves

AXES = ('data', 'fsdp', 'tensor')

BATCH = ('data', 'fsdp')  # every device sees other text, unless it shares a tensor
# By the names of axes: of parameters in `ModelFamily.axes`, of activations in the models. Layers are never split.
PARAMETERS = {'vocab': 'tensor', 'hidden': 'fsdp', 'heads': 'tensor', 'values': 'tensor', 'mlp': 'tensor'}
ACTIVATIONS = {'batch': BATCH, 'heads': 'tensor', 'mlp': 'tensor', 'vocab': 'tensor'}


def make_mesh(sizes: ConfigDict) -> Mesh:
    """A mesh with axes data, fsdp and tensor over all devices.

    Args:
      sizes: devices along each axis; one of them may be -1, what remains.

    Raises:
      ValueError: if the sizes don't multiply to the number of devices.
    """
    shape = [sizes[axis] for axis in AXES]
    devices = jax.device_count()
    if shape.count(-1) == 1 and (rest := -math.prod(shape)) > 0 and devices % rest == 0:
        shape[shape.index(-1)] = devices // rest
    if math.prod(shape) != devices or min(shape) < 1:
        raise ValueError(
            f'config.mesh={sizes.to_dict()} does not fit {devices} device(s): the sizes must multiply to'
            ' that number, and at most one may be -1, which is what remains'
        )
    return jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def state_shardings(mesh: Mesh, state: Any, family: models.ModelFamily) -> Any:
    """A NamedSharding for each leaf of a train state (arrays or shapes), by its family's `axes`; otherwise replicated.

    Moments lie where their parameter does, bitwidths where their blocks do. An axis whose size the mesh's doesn't
    divide stays whole: a vocabulary of 257, say.
    """
    finder = RuleFinder(family.rules)

    def axis_names(path, number_of_axes):
        found = re.fullmatch('(?:.*/)?(params|bitwidths|transform_state)/(.*)', path)  # the last of them, of moments
        names = found and family.axis_names(found[2])
        if names and found[1] != 'params':
            rule = finder.find(found[2], len(names))  # of what blocks there are of another method, nothing is known
            axes = (*rule.batch_axes, rule.row_axes[0], rule.col_axes[0]) if isinstance(rule, MatrixRule) else ()
            names = [names[axis] for axis in axes]
        return names if names and len(names) == number_of_axes else ()

    def sharding(path, leaf):
        return _fitting(mesh, [PARAMETERS.get(name) for name in axis_names(path, leaf.ndim)], leaf.shape)

    return map_leaves(sharding, state)


def of_layers(shardings: Any) -> Any:
    """The shardings of one layer's arrays, from those of stacked ones."""
    return jax.tree.map(lambda sharding: NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:])), shardings)


def constrain_activations(mesh: Mesh) -> Constrain:
    """The models' `constrain`, by `ACTIVATIONS`; an axis whose size the mesh's doesn't divide stays whole."""
    if mesh.size == 1:
        return unconstrained

    def constrain(x: jax.Array, axes: Sequence[str]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, _fitting(mesh, [ACTIVATIONS.get(axis) for axis in axes], x.shape))

    return constrain


def with_whole_rows(weights: Any, mesh: Mesh, family: models.ModelFamily) -> Any:
    """The model's weights, the rows of the embedding gathered: a lookup's result lies where its tokens do.

    From where a lookup in parts of rows would put it, XLA can't always get there but by gathering all activations.
    """

    def gathered(path, leaf):
        if not family.is_lookup(path):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, _fitting(mesh, (PARAMETERS['vocab'], None), leaf.shape))

    return map_leaves(gathered, weights)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of sequences."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


class Part(NamedTuple):
    """One of `count` equal parts."""

    index: int
    count: int


def part_of_batch(mesh: Mesh) -> Part:
    """Which rows of each batch this process reads. Processes whose devices share a tensor read the same ones.

    Raises:
      ValueError: if its devices' rows don't lie together.
    """
    shards = num_batch_shards(mesh)
    slices = batch_sharding(mesh).addressable_devices_indices_map((shards,)).values()
    mine = sorted({rows.indices(shards)[0] for (rows,) in slices})
    if len(mine) != mine[-1] - mine[0] + 1 or shards % len(mine) or mine[0] % len(mine):
        raise ValueError(
            f'config.mesh={dict(mesh.shape)} gives this process the parts {mine} of {shards} of a batch, which do not'
            ' lie together: tensor must divide the number of devices that a process has, or be a multiple of it'
        )
    return Part(mine[0] // len(mine), shards // len(mine))


def to_devices(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> the global arrays, sharded over the mesh."""
    sharding, part = batch_sharding(mesh), part_of_batch(mesh)

    def to_global(rows):
        shape = (len(rows) * part.count, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return {name: to_global(rows) for name, rows in batch.items()}


def _fitting(mesh: Mesh, axes: Sequence[str | tuple[str, ...] | None], shape: Sequence[int]) -> NamedSharding:
    """These mesh axes, where their number of devices divides the array's size."""

    def devices(axis):
        return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))

    return NamedSharding(mesh, PartitionSpec(*(a if size % devices(a) == 0 else None for a, size in zip(axes, shape))))
