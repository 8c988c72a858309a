"""A model of ours and its parameters -> weights and configuration of a Hugging Face checkpoint."""

import collections
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from gaussq_jax.models.families import family_of
from gaussq_jax.models.family import HEAD, tensor_of_leaves


def to_huggingface(model: nn.Module, params: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the configuration with which `transformers` has the logits of this model.

    The inverse of `from_huggingface`: no value is changed, only where it is.

    Args:
      model: of a family that Hugging Face has, such as `Llama` or `GPT2`. What it computes in, and how, is not in the
        configuration.
      params: its parameters, layers stacked, of any dtypes.

    Returns:
      (state_dict, config): NumPy arrays of the leaves' dtypes, by the names that `save_pretrained` writes, the tied
      head left out; transposed ones are views. And what goes into config.json, but for what our models don't have:
      the longest sequence (but of GPT-2) and the ids of special tokens, of which there are none. Rotary positions are
      written as versions before 5 read them, and since.

    Raises:
      ValueError: another kind of model; parameters that are not the model's; a Llama whose heads don't divide
        hidden_size, which transformers doesn't have.

    Example:
      >>> import jax.numpy as jnp
      >>> from gaussq_jax.models import GPT2
      >>> model = GPT2(vocab_size=256, max_length=16, num_layers=2, hidden_size=64, num_heads=4)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
      >>> tensors, config = to_huggingface(model, params)
      >>> tensors['transformer.h.1.attn.c_attn.weight'].shape, config['n_inner']
      ((64, 192), 256)

    Source: `modeling_llama.py`, `_mistral`, `_qwen2`, `_qwen3` and `_gpt2` of transformers 5.
    """
    family = family_of(model)
    theirs = family.huggingface
    if theirs is None:
        raise ValueError(f'model={type(model).__name__}: there are no checkpoints of {family.name} at Hugging Face')
    config = theirs.describe(model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), np.int32))['params']
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, shapes):
        raise ValueError('params are of another model: the shapes or the names of their leaves differ')

    leaves = {'/'.join(entry.key for entry in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    paths_of = collections.defaultdict(list)
    for path in leaves:
        paths_of[family.tensor_name(path, 0)].append(path)
    state_dict = {}
    for paths in paths_of.values():
        tensors, arrays = [theirs.tensors[path] for path in paths], [np.asarray(leaves[path]) for path in paths]
        stacked = family.is_of_layers(paths[0])
        for layer in range(model.num_layers if stacked else 1):
            name = family.tensor_name(paths[0], layer)
            tensor = tensor_of_leaves(tensors, [array[layer] if stacked else array for array in arrays])
            state_dict[name if name == HEAD else theirs.prefix + name] = tensor
    return state_dict, config
