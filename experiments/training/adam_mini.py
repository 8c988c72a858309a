"""Adam-mini: Adam with one second moment for a whole block of weights, and so with half of Adam's memory."""

import functools
import re

import jax
import jax.numpy as jnp
import optax

from gaussq_jax import models
from gaussq_jax.param_tree import map_leaves

WHOLE, HEAD = 'whole', 'head'
# By the last name of a leaf's path, the size of a block along its axes: 1, HEAD, or WHOLE for all of the axis. Stacked
# layers never share.
BLOCKS = {
    'embedding': (1, WHOLE),  # a token, a position
    'kernel': (WHOLE, 1),  # an output neuron; of the head, a token
    'scale': (WHOLE,),
    'bias': (1,),
}
HEADS = (WHOLE, HEAD)  # of a kernel whose outputs are 'heads', those of queries and keys


def scale_by_adam_mini(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, family: models.ModelFamily, head_size: int | None = None
) -> optax.GradientTransformation:
    """Rescales the gradients of a model by Adam-mini.

        m = b1 m + (1 - b1) g                          for each weight
        v = b2 v + (1 - b2) mean over the block(g^2)   for each block
        update = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    A block is a head of the queries or of the keys, an output neuron of the other linear layers, a token of the
    embedding and of the output head, or a norm's scale; each number of a bias has a v of its own. So it is in the
    authors' code, but for GPT-2's positions: by the usual name, `wpe`, they share one v there; here each has its own.

    Args:
      b1, b2: decay of the first and the second moment.
      eps: added to the root.
      family: of the model; the outputs of a head lie together along an axis 'heads'.
      head_size: outputs of a head, if it has heads; divides those of the queries and of the keys.

    Returns:
      An optimizer whose state is `optax.ScaleByAdamState`, `nu` with as many axes as the weights, each as long as there
      are blocks along it.

    Raises:
      ValueError: from `init`, for a leaf of another name than those of `BLOCKS`, or that heads don't divide.

    Example:
      >>> params = {'layers': {'attention': {'query': {'kernel': jnp.zeros((2, 64, 48))}}}}
      >>> adam_mini = scale_by_adam_mini(family=models.find_family('llama'), head_size=16)
      >>> adam_mini.init(params).nu['layers']['attention']['query']['kernel'].shape
      (2, 1, 3)

    Source: Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More (arXiv 2406.16793); the blocks of
    version 1.1.1 of the authors' package `adam-mini`.
    """

    def init(params):
        num_blocks = functools.partial(_num_blocks, family, head_size)
        nu = map_leaves(lambda path, leaf: jnp.zeros(num_blocks(path, leaf.shape), leaf.dtype), params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), nu)

    def update(gradients, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mean_squares = jax.tree.map(lambda g, v: _block_means(jnp.square(g), v.shape), gradients, state.nu)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(mean_squares, state.nu, b2, 1)
        updates = jax.tree.map(
            lambda m, v: m / _at_all_weights(jnp.sqrt(v) + eps, m.shape),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _num_blocks(
    family: models.ModelFamily, head_size: int | None, path: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """How many blocks there are along each axis of a leaf."""
    path = re.sub('^(.*/)?params/', '', path)  # of an optimizer for more than the params
    kind = path.rpartition('/')[2]
    block = BLOCKS.get(kind)
    if kind == 'kernel' and (family.axis_names(path) or ('',))[-1] == 'heads':
        if head_size is None:
            raise ValueError(f'{path!r} has heads, and the family {family.name} no head_size')
        block = HEADS
    if block and family.is_of_layers(path):
        block = (1, *block)
    if not block or len(block) != len(shape):
        raise ValueError(
            f'no rule of Adam-mini says which weights of {path!r}, of shape {shape}, share a second moment; there are'
            f' rules for {", ".join(BLOCKS)}, of a layer or not'
        )
    sizes = [{WHOLE: length, HEAD: head_size}.get(size, size) for size, length in zip(block, shape)]
    if any(length % size for size, length in zip(sizes, shape)):
        raise ValueError(f'{path!r} of shape {shape} has no whole number of heads of head_size={head_size}')
    return tuple(length // size for size, length in zip(sizes, shape))


def _block_means(x: jax.Array, num_blocks: tuple[int, ...]) -> jax.Array:
    split = [size for length, blocks in zip(x.shape, num_blocks) for size in (blocks, length // blocks)]
    return jnp.mean(x.reshape(split), axis=range(1, len(split), 2))


def _at_all_weights(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An array of this shape, with each block's number at all of its weights."""
    for axis, length in enumerate(shape):
        blocks = jnp.repeat(blocks, length // blocks.shape[axis], axis)
    return blocks
