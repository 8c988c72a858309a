"""The mesh, and where each array of the train state, and each activation, lives on it."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gaussq_jax import models
from gaussq_jax.models.layers import Constrain, unconstrained
from gaussq_jax.param_rules import RuleFinder
from gaussq_jax.param_tree import leaf_path

AXES = ('data', 'fsdp', 'tensor')

# (path regex, a mesh axis for each array axis, or by the roles of a weight matrix's axes), first match wins; the path
# may have anything before it, so that an optimizer's moments lie where their parameter lies. Bitwidths lie where their
# blocks do. Stacked layers are never split along the layers.
RULES = (
    (r'params/embed/embedding', ('tensor', 'fsdp')),
    (r'(params|bitwidths|transform_state)/layers/.*/(query|key|value|gate|up)/kernel', {'in': 'fsdp', 'out': 'tensor'}),
    (r'(params|bitwidths|transform_state)/layers/.*/(out|down)/kernel', {'in': 'tensor', 'out': 'fsdp'}),
    (r'params/lm_head/kernel', ('fsdp', 'tensor')),
)
BATCH = ('data', 'fsdp')  # every device sees other text, unless it shares a tensor
ACTIVATIONS = {'batch': BATCH, 'heads': 'tensor', 'mlp': 'tensor', 'vocab': 'tensor'}  # by the names of the models


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


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A NamedSharding for each leaf of a train state (arrays or shapes), by `RULES`; otherwise replicated.

    An axis whose size the mesh's doesn't divide stays whole: a vocabulary of 257, say.
    """

    finder = RuleFinder(models.RULES)

    def roles(name, number_of_axes):
        *_, kind, path = re.split('(params|bitwidths|transform_state)/', name)
        rule = finder.find(path, number_of_axes)
        return rule.roles if kind == 'params' else [rule.roles[axis] for axis in rule.batch_axes] + ['in', 'out']

    def sharding(path, leaf):
        name = leaf_path(path)
        for regex, axes in RULES:
            if not re.fullmatch(f'(.*/)?{regex}', name):
                continue
            if isinstance(axes, dict):
                axes = [axes.get(role) for role in roles(name, leaf.ndim)]
            if len(axes) == leaf.ndim:
                return _fitting(mesh, axes, leaf.shape)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, state)


def of_layers(shardings: Any) -> Any:
    """The shardings of one layer's arrays, from those of stacked ones."""
    return jax.tree.map(lambda sharding: NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:])), shardings)


def constrain_activations(mesh: Mesh) -> Constrain:
    """The models' `constrain`, by `ACTIVATIONS`; an axis whose size the mesh's doesn't divide stays whole."""
    if mesh.size == 1:
        return unconstrained
    return functools.partial(_constrain, mesh)


def with_whole_rows(weights: Any, mesh: Mesh) -> Any:
    """The model's weights, the rows of the embedding gathered: a lookup's result lies where its tokens do.

    From where a lookup in parts of rows would put it, XLA can't always get there but by gathering all activations.
    """
    embedding = weights['embed']['embedding']
    rows = jax.lax.with_sharding_constraint(embedding, _fitting(mesh, ('tensor', None), embedding.shape))
    return {**weights, 'embed': {**weights['embed'], 'embedding': rows}}


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


def _constrain(mesh: Mesh, x: jax.Array, axes: Sequence[str]) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, _fitting(mesh, [ACTIVATIONS.get(axis) for axis in axes], x.shape))


def _fitting(mesh: Mesh, axes: Sequence[str | tuple[str, ...] | None], shape: Sequence[int]) -> NamedSharding:
    """These mesh axes, where their number of devices divides the array's size."""

    def devices(axis):
        return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))

    return NamedSharding(mesh, PartitionSpec(*(a if size % devices(a) == 0 else None for a, size in zip(axes, shape))))
