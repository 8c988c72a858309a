"""Adam-mini: Adam with one second moment for a whole block of weights, and so with half of Adam's memory."""

import re

import jax
import jax.numpy as jnp
import optax

from gaussq_jax.param_tree import leaf_path

WHOLE, HEAD = 'whole', 'head'

# (path regex, the size of a block along each axis: 1, HEAD, or WHOLE for all of the axis), first match wins; the path
# may have anything before it. Stacked layers never share.
RULES = (
    (r'(embed|position_embed)/embedding', (1, WHOLE)),  # a token, a position
    (r'layers/attention/(query|key)/kernel', (1, WHOLE, HEAD)),  # a head
    (r'layers/(attention|mlp)/(value|out|gate|up|down)/kernel', (1, WHOLE, 1)),  # an output neuron
    (r'lm_head/kernel', (WHOLE, 1)),  # a token
    (r'layers/\w+_norm/scale', (1, WHOLE)),
    (r'final_norm/scale', (WHOLE,)),
    (r'layers/.*bias', (1, 1)),
    (r'final_norm/bias', (1,)),
)


def scale_by_adam_mini(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, head_size: int
) -> optax.GradientTransformation:
    """Rescales the gradients of a Llama or GPT-2 by Adam-mini.

        m = b1 m + (1 - b1) g                          for each weight
        v = b2 v + (1 - b2) mean over the block(g^2)   for each block of `RULES`
        update = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    A block is a head of the queries or of the keys, an output neuron of the other linear layers, a token of the
    embedding and of the output head, or a norm's scale; each number of a bias has a v of its own. So it is in the
    authors' code, but for GPT-2's positions: by the usual name, `wpe`, they share one v there; here each has its own.

    Args:
      b1, b2: decay of the first and the second moment.
      eps: added to the root.
      head_size: outputs of a head; divides those of the queries and of the keys.

    Returns:
      An optimizer whose state is `optax.ScaleByAdamState`, `nu` with as many axes as the weights, each as long as there
      are blocks along it.

    Raises:
      ValueError: from `init`, for a leaf that no rule names with its number of axes, or that heads don't divide.

    Example:
      >>> params = {'layers': {'attention': {'query': {'kernel': jnp.zeros((2, 64, 48))}}}}
      >>> scale_by_adam_mini(head_size=16).init(params).nu['layers']['attention']['query']['kernel'].shape
      (2, 1, 3)

    Source: Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More (arXiv 2406.16793); the blocks of
    version 1.1.1 of the authors' package `adam-mini`.
    """

    def init(params):
        nu = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.zeros(_num_blocks(leaf_path(path), leaf.shape, head_size), leaf.dtype), params
        )
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), nu)

    def update(gradients, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mean_squares = jax.tree.map(lambda g, v: _block_means(jnp.square(g), v.shape), gradients, state.nu)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(mean_squares, state.nu, b2, 1)
        updates = jax.tree.map(
            lambda m, v: m / _spread(jnp.sqrt(v) + eps, m.shape),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _num_blocks(path: str, shape: tuple[int, ...], head_size: int) -> tuple[int, ...]:
    """How many blocks there are along each axis of a leaf."""
    for regex, block in RULES:
        if re.fullmatch(f'(.*/)?{regex}', path) and len(block) == len(shape):
            sizes = [{WHOLE: length, HEAD: head_size}.get(size, size) for size, length in zip(block, shape)]
            if any(length % size for size, length in zip(sizes, shape)):
                raise ValueError(f'{path!r} of shape {shape} has no whole number of heads of head_size={head_size}')
            return tuple(length // size for size, length in zip(sizes, shape))
    raise ValueError(
        f'no rule of Adam-mini says which weights of {path!r}, of shape {shape}, share a second moment; the rules are'
        f' for {", ".join(regex for regex, _ in RULES)}'
    )


def _block_means(x: jax.Array, num_blocks: tuple[int, ...]) -> jax.Array:
    split = [size for length, blocks in zip(x.shape, num_blocks) for size in (blocks, length // blocks)]
    return jnp.mean(x.reshape(split), axis=range(1, len(split), 2))


def _spread(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An array of this shape, with each block's number at all of its weights."""
    for axis, length in enumerate(shape):
        blocks = jnp.repeat(blocks, length // blocks.shape[axis], axis)
    return blocks
