"""A model of ours and its parameters -> weights and configuration of Hugging Face's Llama and GPT-2."""

import collections
from typing import Any

import jax
import numpy as np

from gaussq_jax.models.gpt2 import GPT2
from gaussq_jax.models.huggingface_tensors import FAMILIES, HEAD, tensor_of_leaves
from gaussq_jax.models.llama import Llama


def to_huggingface(model: Llama | GPT2, params: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the configuration with which `transformers` has the logits of this model.

    The inverse of `from_huggingface`: no value is changed, only where it is.

    Args:
      model: a `Llama` or `GPT2`. What it computes in, and how, is not in the configuration.
      params: its parameters, layers stacked, of any dtypes.

    Returns:
      (state_dict, config): NumPy arrays of the leaves' dtypes, by the names that `save_pretrained` writes, the tied
      head left out; transposed ones are views. And what goes into config.json, but for what our models don't have:
      a Llama's longest sequence and the ids of special tokens, of which there are none.

    Raises:
      ValueError: another kind of model; parameters that are not the model's.

    Example:
      >>> import jax.numpy as jnp
      >>> model = GPT2(vocab_size=256, max_length=16, num_layers=2, hidden_size=64, num_heads=4)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
      >>> tensors, config = to_huggingface(model, params)
      >>> tensors['transformer.h.1.attn.c_attn.weight'].shape, config['n_inner']
      ((64, 192), 256)

    Source: `modeling_llama.py` and `modeling_gpt2.py` of transformers 5.
    """
    describe = {Llama: _describe_llama, GPT2: _describe_gpt2}.get(type(model))
    if describe is None:
        raise ValueError(f'model={type(model).__name__} must be a Llama or a GPT2')
    config = describe(model)
    family = FAMILIES[config['model_type']]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), np.int32))['params']
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, shapes):
        raise ValueError('params are of another model: the shapes or the names of their leaves differ')

    leaves = {'/'.join(entry.key for entry in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    paths_of = collections.defaultdict(list)
    for path in leaves:
        paths_of[family.tensor_name(path, 0)].append(path)
    state_dict = {}
    for paths in paths_of.values():
        sources, arrays = [family.sources[path] for path in paths], [np.asarray(leaves[path]) for path in paths]
        stacked = paths[0].startswith('layers/')
        for layer in range(model.num_layers if stacked else 1):
            name = family.tensor_name(paths[0], layer)
            tensor = tensor_of_leaves(sources, [array[layer] if stacked else array for array in arrays])
            state_dict[name if name == HEAD else family.prefix + name] = tensor
    return state_dict, config


def _describe_llama(model):
    return dict(
        architectures=['LlamaForCausalLM'],
        model_type='llama',
        vocab_size=model.vocab_size,
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.mlp_size,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads if model.num_kv_heads is None else model.num_kv_heads,
        head_dim=model.hidden_size // model.num_heads,
        hidden_act='silu',
        attention_bias=False,
        mlp_bias=False,
        rope_theta=model.rope_theta,  # before transformers 5, and since
        rope_parameters={'rope_type': 'default', 'rope_theta': model.rope_theta},
        rms_norm_eps=model.norm_epsilon,
        tie_word_embeddings=model.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )


def _describe_gpt2(model):
    return dict(
        architectures=['GPT2LMHeadModel'],
        model_type='gpt2',
        vocab_size=model.vocab_size,
        n_positions=model.max_length,
        n_layer=model.num_layers,
        n_embd=model.hidden_size,
        n_inner=4 * model.hidden_size if model.mlp_size is None else model.mlp_size,
        n_head=model.num_heads,
        activation_function='gelu_new',
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
        layer_norm_epsilon=model.norm_epsilon,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
