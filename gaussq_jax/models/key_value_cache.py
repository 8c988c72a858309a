"""The keys and values of the tokens that a model has seen, so that one token more costs the model one token."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Flax's collections: what is read, and what is written of the tokens at hand. What a scan over layers writes it copies.
KEPT, NEW = COLLECTIONS = ('cache', 'new_in_cache')
LENGTH_AXIS = 2  # of (layer, batch, length, kv_heads, head_dim)

Cache = dict[str, Any]


def read_prompts(
    model: nn.Module, weights: Any, tokens: jax.Array, length: int, logits_at: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """The logits of whole sequences, which are those of `model.apply` without a cache, and the cache of them.

    Sequences of several lengths are padded after their ends. What the cache then holds of the padding is never seen:
    a token sees the positions up to its own, each of which `read_next` has written by then.

    Args:
      model: one that `keeps_cache`.
      weights: its parameters.
      tokens: (batch, number) integers, at the positions 0, 1, 2, ...
      length: how many positions the cache has: at least `number`.
      logits_at: (batch, n) indices of the tokens whose logits are wanted; None for all.

    Returns:
      logits (batch, number or n, vocab_size), float32; and the cache, in which each attention has `key` and `value`
      (num_layers, batch, length, kv_heads, head_dim) in the model's dtype, keys already rotated.

    Raises:
      ValueError: a length below the number of tokens.

    Example:
      >>> from gaussq_jax.models import Llama
      >>> model = Llama(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4, num_kv_heads=2)
      >>> tokens = jnp.array([[1, 2, 3]])
      >>> weights = model.init(jax.random.key(0), tokens)['params']
      >>> logits, cache = read_prompts(model, weights, tokens, length=16)
      >>> cache['layers']['attention']['key'].shape
      (2, 1, 16, 2, 16)
      >>> logits, cache = read_next(model, weights, cache, logits[:, -1:].argmax(-1), jnp.array([[3]]))
      >>> logits.shape
      (1, 1, 256)
    """
    room = length - tokens.shape[1]
    if room < 0:
        raise ValueError(f'length={length} must be at least {tokens.shape[1]}, the tokens that there are')
    logits, variables = model.apply({'params': weights}, tokens, logits_at=logits_at, mutable=[NEW])
    pad = lambda leaf: jnp.pad(leaf, [(0, room if axis == LENGTH_AXIS else 0) for axis in range(leaf.ndim)])
    return logits, jax.tree.map(pad, variables[NEW])


def read_next(
    model: nn.Module, weights: Any, cache: Cache, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, Cache]:
    """The logits of tokens that follow on what a cache holds, and the cache with them.

    They are those of the whole sequences, but for rounding: sums are taken in another order, and XLA fuses other
    operations. Where matmuls quantize activations by a scale that spans tokens (block_size='tensor', tiles of several
    rows, or NVFP4's scale of the tensor), the scale differs, because it is of other tokens.

    Args:
      model, weights: as for `read_prompts`.
      cache: what `read_prompts` or this function returned.
      tokens: (batch, number) integers.
      positions: (batch, number) int32, where each of them stands; below the cache's length.

    Returns:
      logits (batch, number, vocab_size), float32; and the cache, of the same shapes.
    """
    logits, variables = model.apply({'params': weights, KEPT: cache}, tokens, positions, mutable=[NEW])
    rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
    return logits, jax.tree.map(lambda kept, new: kept.at[:, rows, positions].set(new), cache, variables[NEW])


def keeps_cache(model: Any) -> bool:
    """Whether these functions take a model: its `__call__` has `positions` and `logits_at` beside the tokens."""
    if not isinstance(model, nn.Module):
        return False
    return {'positions', 'logits_at'} <= inspect.signature(type(model).__call__).parameters.keys()


def seen(module: nn.Module, key: jax.Array, value: jax.Array, positions: jax.Array | None):
    """The keys and values that the queries of an attention see; its own are told to whoever keeps a cache.

    Args:
      module: the attention, while it is applied.
      key, value: (batch, number, kv_heads, head_dim) of its tokens.
      positions: (batch, number) of them; None for 0, 1, 2, ...

    Returns:
      Without positions, key and value as they are. With positions, those of the cache (batch, length, kv_heads,
      head_dim), these at their positions.

    Raises:
      ValueError: positions without a cache, or a cache without positions.
    """
    if module.has_variable(KEPT, 'key') != (positions is not None):
        raise ValueError('positions belong to a cache, which read_prompts makes: give both or neither')
    if module.is_mutable_collection(NEW) and not module.is_initializing():
        module.put_variable(NEW, 'key', key)
        module.put_variable(NEW, 'value', value)
    if positions is None:
        return key, value
    rows = jnp.arange(key.shape[0], dtype=jnp.int32)[:, None]
    own = (('key', key), ('value', value))
    return tuple(module.get_variable(KEPT, name).at[rows, positions].set(new) for name, new in own)
