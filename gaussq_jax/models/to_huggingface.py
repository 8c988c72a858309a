"""A model of ours, its parameters and their layout -> weights and configuration as Hugging Face's models have them."""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from gaussq_jax.models.families import family_of
from gaussq_jax.models.family import HEAD, ModelFamily, tensor_of_leaves
from gaussq_jax.packed import Layout, LeafLayout
from gaussq_jax.packed.layout import kept_leaves
from gaussq_jax.param_rules import MatrixRule


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
    family = _family_with_checkpoints(model)
    theirs = family.huggingface
    config = theirs.describe(model)
    check_params(model, params)

    leaves = {'/'.join(entry.key for entry in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    paths_of = collections.defaultdict(list)
    for path in leaves:
        paths_of[family.tensor_name(path, 0)].append(path)
    state_dict = {}
    for paths in paths_of.values():
        tensors, arrays = [theirs.tensors[path] for path in paths], [np.asarray(leaves[path]) for path in paths]
        stacked = family.is_of_layers(paths[0])
        for layer, name in enumerate(_full_names(family, paths[0], model)):
            tensor = tensor_of_leaves(tensors, [array[layer] if stacked else array for array in arrays])
            state_dict[name] = tensor
    return state_dict, config


def check_params(model: nn.Module, params: Any):
    """ValueError for parameters that are not the model's."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), np.int32))['params']
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, shapes):
        raise ValueError('params are of another model: the shapes or the names of their leaves differ')


def huggingface_layout(model: nn.Module, layout: Mapping[str, LeafLayout]) -> Layout:
    """The layout of a model's parameters, for the tensors of `to_huggingface`: the same weights in the same blocks.

    Args:
      model: as for `to_huggingface`.
      layout: of its parameters, by their paths.

    Returns:
      A layout by the names of tensors (out, in).

    Raises:
      ValueError: for a model whose matrices aren't tensors of their own, (out, in), such as GPT-2's.

    Example:
      >>> import gaussq_jax as gq, jax.numpy as jnp
      >>> from gaussq_jax.models import RULES, Llama
      >>> model = Llama(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
      >>> layout = huggingface_layout(model, gq.uniform_layout(params, 'float4_e2m1fn', rules=RULES))
      >>> layout['model.layers.1.mlp.up_proj.weight'].indices.shape
      (2, 128)
    """
    family = _family_with_checkpoints(model)
    by_name = {}
    for path, of_leaf in layout.items():
        tensor = family.huggingface.tensors[path]
        if not tensor.is_transposed or tensor.parts > 1:
            raise ValueError(
                f'{path} is stored as {family.tensor_name(path, 0)} (in, out) by the models of {family.name}, and other'
                ' software reads low bits as (out, in) only'
            )
        rule = MatrixRule('.*', (), (1,), (0,))
        for layer, name in enumerate(_full_names(family, path, model)):
            indices = of_leaf.indices[layer] if family.is_of_layers(path) else of_leaf.indices
            by_name[name] = dataclasses.replace(of_leaf, rule=rule, indices=indices)
    return Layout(by_name, kept=(name for path in kept_leaves(layout) for name in _full_names(family, path, model)))


def fused_modules(model: nn.Module) -> dict[str, str]:
    """Module name -> a name of those of which servers make one matrix: a layer's queries, keys and values; gate and up.

    Example:
      >>> from gaussq_jax.models import Llama
      >>> fused = fused_modules(Llama(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4))
      >>> fused['model.layers.1.mlp.up_proj'], fused['model.layers.1.mlp.gate_proj']
      ('1.up', '1.up')
    """
    family = _family_with_checkpoints(model)
    return {
        name.removesuffix('.weight'): f'{layer}.{part}'
        for part, regex in zip(family.parts, fused_paths(model))
        for path in family.huggingface.tensors
        if re.fullmatch(regex, path)
        for layer, name in enumerate(_full_names(family, path, model))
    }


def fused_paths(model: nn.Module) -> tuple[str, ...]:
    """The regexes of the paths of leaves of which servers make one matrix a layer, for `served_layout`.

    Example:
      >>> from gaussq_jax.models import Llama
      >>> fused_paths(Llama(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4))[0]
      'layers/attention/(query|key|value)/kernel'
    """
    family = family_of(model)
    return tuple(f'{family.layers}/{regex}/kernel' for regex in family.parts.values())


def _family_with_checkpoints(model: nn.Module) -> ModelFamily:
    family = family_of(model)
    if family.huggingface is None:
        raise ValueError(f'model={type(model).__name__}: there are no checkpoints of {family.name} at Hugging Face')
    return family


def _full_names(family: ModelFamily, path: str, model: Any) -> list[str]:
    """The tensors of a leaf, one a layer if it is one of theirs."""
    names = family.tensor_names(path, model.num_layers)
    return [name if name == HEAD else family.huggingface.prefix + name for name in names]
