"""Weights and configuration of a Hugging Face checkpoint -> a model of ours and its parameters."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gaussq_jax.models.families import FAMILIES
from gaussq_jax.models.family import HEAD
from gaussq_jax.models.huggingface_config import size_or_none


def from_huggingface(state_dict: Mapping[str, Any], config: Mapping[str, Any]):
    """The model and parameters with the logits of `transformers`' model, of a `model_type` in `FAMILIES`.

    These are llama (1 to 3, Llama 3's scaling of rotary positions included), mistral, qwen2 (2.5, too), qwen3 (without
    experts) and gpt2, and what `register_family` adds. All attend to all tokens before: a window that sequences of
    `max_position_embeddings` exceed is refused, as are scalings of rotary positions other than Llama 3's.

    Args:
      state_dict: tensor name -> NumPy array, JAX array or torch tensor of a floating dtype. The prefixes
        `model.` and (GPT-2's) `transformer.` may be missing; a tied `lm_head.weight` and the buffers of
        old checkpoints (rotary frequencies, causal masks) may be there.
      config: the Hugging Face configuration as a dict: `config.to_dict()`, or config.json parsed.

    Returns:
      (model, params): a `Llama`, say, that computes in bfloat16 (`model.clone(dtype=...)` for another
      dtype), and its parameters as float32 NumPy arrays on the host, layers stacked: the caller puts them on
      devices.

    Raises:
      ValueError: a model_type of no family that is registered; a configuration our models can't follow, naming the
        field; missing, unexpected, misshapen or non-floating tensors, one that is there by two names, and values
        that are finite in float64 only, naming them.

    Example:
      >>> from transformers import AutoModelForCausalLM                                      # doctest: +SKIP
      >>> theirs = AutoModelForCausalLM.from_pretrained('openai-community/gpt2')             # doctest: +SKIP
      >>> model, params = from_huggingface(theirs.state_dict(), theirs.config.to_dict())     # doctest: +SKIP
      >>> logits = model.apply({'params': params}, jnp.array([[464, 3616, 286]]))            # doctest: +SKIP

    Source: `modeling_llama.py`, `_mistral`, `_qwen2`, `_qwen3` and `_gpt2` of transformers 5.
    """
    model = model_from_huggingface(config)
    family = FAMILIES[config['model_type']]
    theirs = family.huggingface
    names = _by_short_name(theirs.prefix, state_dict)
    if model.num_layers > len(names):
        raise ValueError(f'the config has {model.num_layers:,} layers, and state_dict {len(names)} tensors')
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']

    def convert(key_path, leaf):
        path = _join(key_path)
        stacked = family.is_of_layers(path)
        shape, params = leaf.shape[stacked:], None
        for layer, name in enumerate(family.tensor_names(path, model.num_layers)):
            tensor = _to_numpy(name, state_dict[names[name]])
            array = theirs.tensors[path].leaf(tensor) if tensor.ndim else tensor
            if array.shape != shape:
                raise ValueError(f'{name}: shape {tensor.shape} does not fit {path} {shape}')
            if params is None:  # what the config says has been seen to fit a tensor, before it is made
                params = np.empty(leaf.shape, np.float32)
            target = params[layer] if stacked else params
            with np.errstate(over='ignore'):
                target[...] = array
            if array.dtype.itemsize > 4 and np.sum(np.isfinite(target)) != np.sum(np.isfinite(array)):
                raise ValueError(f'{name}: some of its values, of {tensor.dtype}, are infinite in float32')
        return params

    paths = [_join(key_path) for key_path, _ in jax.tree.leaves_with_path(shapes)]
    expected = {name for path in paths for name in family.tensor_names(path, model.num_layers)}
    _check_names(names, expected)
    params = jax.tree.map_with_path(convert, shapes)
    if HEAD in names.keys() - expected:
        tables = [leaf for key_path, leaf in jax.tree.leaves_with_path(params) if family.is_lookup(_join(key_path))]
        if not tables:
            raise ValueError(f'state_dict: unexpected {HEAD}')
        _check_tied(_to_numpy(HEAD, state_dict[names[HEAD]]), tables[0])
    return model, params


def model_from_huggingface(config: Mapping[str, Any]) -> nn.Module:
    """The model of a Hugging Face configuration; takes it, and refuses it, as `from_huggingface` does."""
    model_type = config.get('model_type')
    allowed = [name for name, family in FAMILIES.items() if family.huggingface]
    if model_type not in allowed:
        raise ValueError(f'model_type={model_type!r:.80} must be one of {", ".join(allowed)}')
    theirs = FAMILIES[model_type].huggingface
    if theirs.longest:
        size_or_none(config, theirs.longest)
    return theirs.build(config)


def _by_short_name(prefix, state_dict):
    """The names of tensors by what follows the prefix, which may be missing."""
    names = {}
    for name in state_dict:
        short = name.removeprefix(prefix)
        if not _DERIVED_BUFFERS.search(name) and names.setdefault(short, name) != name:
            raise ValueError(f'state_dict: {names[short]} and {name} are the same tensor by two names')
    return names


def _join(key_path):
    return '/'.join(entry.key for entry in key_path)


def _to_numpy(name, tensor):
    """A NumPy array, of a floating dtype."""
    if hasattr(tensor, 'detach'):  # a torch tensor, cast before it becomes NumPy's, which has no bfloat16
        tensor = tensor.detach().cpu()
        tensor = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f'{name}: dtype {tensor.dtype} must be a floating dtype')
    return np.asarray(tensor)


def _check_tied(head, embedding):
    if not np.array_equal(head, embedding):
        raise ValueError(f'{HEAD} differs from the embedding, though tie_word_embeddings says they are one')


def _check_names(tensors, expected):
    missing = sorted(expected - tensors.keys())
    unexpected = sorted(tensors.keys() - expected - {HEAD})
    if missing or unexpected:
        raise ValueError(f'state_dict: missing {_listing(missing)}; unexpected {_listing(unexpected)}')


def _listing(names, most=8):
    more = [f'and {len(names) - most} more'] if len(names) > most else []
    return ', '.join(names[:most] + more) or 'none'


_DERIVED_BUFFERS = re.compile(r'\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$')
