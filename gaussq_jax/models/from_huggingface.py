"""Weights and configuration of Hugging Face's Llama and GPT-2 -> a model of ours and its parameters."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.models.gpt2 import GPT2
from gaussq_jax.models.llama import Llama


def from_huggingface(state_dict: Mapping[str, Any], config: Mapping[str, Any]):
    """The model and parameters with the logits of `transformers`' LlamaForCausalLM or GPT2LMHeadModel.

    Args:
      state_dict: tensor name -> NumPy array, JAX array or torch tensor of a floating dtype. The prefixes
        `model.` (Llama) and `transformer.` (GPT-2) may be missing; a tied `lm_head.weight` and the buffers of
        old checkpoints (rotary frequencies, causal masks) may be there.
      config: the Hugging Face configuration as a dict: `config.to_dict()`, or config.json parsed.

    Returns:
      (model, params): a `Llama` or `GPT2` that computes in bfloat16 (`model.clone(dtype=...)` for another
      dtype), and its parameters as float32 NumPy arrays on the host, layers stacked: the caller puts them on
      devices.

    Raises:
      ValueError: a model_type other than llama and gpt2; a configuration our models can't follow, naming the
        field; missing, unexpected, misshapen or non-floating tensors, naming them.

    Example:
      >>> from transformers import AutoModelForCausalLM                                      # doctest: +SKIP
      >>> theirs = AutoModelForCausalLM.from_pretrained('openai-community/gpt2')             # doctest: +SKIP
      >>> model, params = from_huggingface(theirs.state_dict(), theirs.config.to_dict())     # doctest: +SKIP
      >>> logits = model.apply({'params': params}, jnp.array([[464, 3616, 286]]))            # doctest: +SKIP

    Source: `modeling_llama.py` and `modeling_gpt2.py` of transformers 5.
    """
    model_type = config.get('model_type')
    if model_type not in _FAMILIES:
        raise ValueError(f'model_type={model_type!r} must be one of {", ".join(_FAMILIES)}')
    build, prefix, layer_prefix, sources = _FAMILIES[model_type]
    model = build(config)
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if not _DERIVED_BUFFERS.search(name)
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']

    def source_names(path):
        name = sources[path][0]
        if path.startswith('layers/'):
            return [f'{layer_prefix}.{i}.{name}' for i in range(model.num_layers)]
        return [name]

    def convert(key_path, leaf):
        path = _join(key_path)
        stacked = path.startswith('layers/')
        arrange = sources[path][1]
        arrays = [arrange(_to_float32(name, tensors[name])) for name in source_names(path)]
        shape = leaf.shape[stacked:]
        for name, array in zip(source_names(path), arrays):
            if array.shape != shape:
                raise ValueError(f'{name}: shape {tensors[name].shape} does not fit {path} {shape}')
        return np.stack(arrays) if stacked else arrays[0]

    paths = [_join(key_path) for key_path, _ in jax.tree.leaves_with_path(shapes)]
    _check_names(tensors, {name for path in paths for name in source_names(path)})
    params = jax.tree.map_with_path(convert, shapes)
    if 'lm_head' not in params and _HEAD in tensors:
        _check_tied(_to_float32(_HEAD, tensors[_HEAD]), params['embed']['embedding'])
    return model, params


def _join(key_path):
    return '/'.join(entry.key for entry in key_path)


def _to_float32(name, tensor):
    """A fresh float32 NumPy array."""
    if hasattr(tensor, 'detach'):  # a torch tensor, cast before it becomes NumPy's, which has no bfloat16
        tensor = tensor.detach().cpu()
        tensor = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f'{name}: dtype {tensor.dtype} must be a floating dtype')
    return np.array(tensor, np.float32)


def _check_tied(head, embedding):
    if not np.array_equal(head, embedding):
        raise ValueError(f'{_HEAD} differs from the embedding, though tie_word_embeddings says they are one')


def _check_names(tensors, expected):
    missing = sorted(expected - tensors.keys())
    unexpected = sorted(tensors.keys() - expected - {_HEAD})
    if missing or unexpected:
        raise ValueError(f'state_dict: missing {_listing(missing)}; unexpected {_listing(unexpected)}')


def _listing(names, most=8):
    more = [f'and {len(names) - most} more'] if len(names) > most else []
    return ', '.join(names[:most] + more) or 'none'


def _build_llama(config):
    _check_fields(
        config,
        hidden_act=('silu', 'swish'),
        attention_bias=(False,),
        mlp_bias=(False,),
        head_dim=(None, _field(config, 'hidden_size') // _field(config, 'num_attention_heads')),
    )
    rope_theta = config.get('rope_theta', 10000.0)
    for name in ('rope_scaling', 'rope_parameters'):  # before transformers 5, and since
        rope = config.get(name) or {}
        rope_type = rope.get('rope_type', rope.get('type', 'default'))
        if rope_type != 'default' or rope.get('partial_rotary_factor', 1) != 1:
            raise ValueError(f'{name}={rope} must be the default: a full rotation by unscaled angles')
        rope_theta = rope.get('rope_theta', rope_theta)
    return Llama(
        vocab_size=_field(config, 'vocab_size'),
        num_layers=_field(config, 'num_hidden_layers'),
        hidden_size=_field(config, 'hidden_size'),
        mlp_size=_field(config, 'intermediate_size'),
        num_heads=_field(config, 'num_attention_heads'),
        num_kv_heads=config.get('num_key_value_heads'),
        rope_theta=rope_theta,
        norm_epsilon=_field(config, 'rms_norm_eps'),
        tie_embeddings=config.get('tie_word_embeddings', False),
    )


def _build_gpt2(config):
    _check_fields(
        config,
        activation_function=('gelu_new', 'gelu_pytorch_tanh'),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
        tie_word_embeddings=(True,),
    )
    return GPT2(
        vocab_size=_field(config, 'vocab_size'),
        max_length=_field(config, 'n_positions'),
        num_layers=_field(config, 'n_layer'),
        hidden_size=_field(config, 'n_embd'),
        num_heads=_field(config, 'n_head'),
        mlp_size=config.get('n_inner'),
        norm_epsilon=_field(config, 'layer_norm_epsilon'),
    )


def _field(config, name):
    if name not in config:
        raise ValueError(f'config lacks the field {name}')
    return config[name]


def _check_fields(config, **allowed):
    for name, values in allowed.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f'{name}={config[name]!r} must be {" or ".join(map(repr, values))}')


def _as_is(tensor):
    return tensor


def _third(index, tensor):
    """GPT-2 keeps query, key and value side by side in the last axis."""
    size = tensor.shape[-1] // 3
    return tensor[..., index * size : (index + 1) * size]


_query, _key, _value = (functools.partial(_third, index) for index in range(3))

_HEAD = 'lm_head.weight'
_DERIVED_BUFFERS = re.compile(r'\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$')

# Our leaf -> (their tensor, named within its layer, and how to rearrange it). torch's Linear keeps (out, in),
# GPT-2's Conv1D (in, out) as we do.
_LLAMA_SOURCES = {
    'embed/embedding': ('embed_tokens.weight', _as_is),
    'layers/attention_norm/scale': ('input_layernorm.weight', _as_is),
    'layers/attention/query/kernel': ('self_attn.q_proj.weight', np.transpose),
    'layers/attention/key/kernel': ('self_attn.k_proj.weight', np.transpose),
    'layers/attention/value/kernel': ('self_attn.v_proj.weight', np.transpose),
    'layers/attention/out/kernel': ('self_attn.o_proj.weight', np.transpose),
    'layers/mlp_norm/scale': ('post_attention_layernorm.weight', _as_is),
    'layers/mlp/gate/kernel': ('mlp.gate_proj.weight', np.transpose),
    'layers/mlp/up/kernel': ('mlp.up_proj.weight', np.transpose),
    'layers/mlp/down/kernel': ('mlp.down_proj.weight', np.transpose),
    'final_norm/scale': ('norm.weight', _as_is),
    'lm_head/kernel': (_HEAD, np.transpose),
}
_GPT2_SOURCES = {
    'embed/embedding': ('wte.weight', _as_is),
    'position_embed/embedding': ('wpe.weight', _as_is),
    'layers/attention_norm/scale': ('ln_1.weight', _as_is),
    'layers/attention_norm/bias': ('ln_1.bias', _as_is),
    'layers/attention/query/kernel': ('attn.c_attn.weight', _query),
    'layers/attention/query/bias': ('attn.c_attn.bias', _query),
    'layers/attention/key/kernel': ('attn.c_attn.weight', _key),
    'layers/attention/key/bias': ('attn.c_attn.bias', _key),
    'layers/attention/value/kernel': ('attn.c_attn.weight', _value),
    'layers/attention/value/bias': ('attn.c_attn.bias', _value),
    'layers/attention/out/kernel': ('attn.c_proj.weight', _as_is),
    'layers/attention/out/bias': ('attn.c_proj.bias', _as_is),
    'layers/mlp_norm/scale': ('ln_2.weight', _as_is),
    'layers/mlp_norm/bias': ('ln_2.bias', _as_is),
    'layers/mlp/up/kernel': ('mlp.c_fc.weight', _as_is),
    'layers/mlp/up/bias': ('mlp.c_fc.bias', _as_is),
    'layers/mlp/down/kernel': ('mlp.c_proj.weight', _as_is),
    'layers/mlp/down/bias': ('mlp.c_proj.bias', _as_is),
    'final_norm/scale': ('ln_f.weight', _as_is),
    'final_norm/bias': ('ln_f.bias', _as_is),
}

# model_type -> model of a config, prefix of all names, prefix of a layer's names, leaves
_FAMILIES = {
    'llama': (_build_llama, 'model.', 'layers', _LLAMA_SOURCES),
    'gpt2': (_build_gpt2, 'transformer.', 'h', _GPT2_SOURCES),
}
