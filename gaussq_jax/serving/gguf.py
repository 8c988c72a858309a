"""A model as llama.cpp's GGUF files have it: its sizes, and its weights, MXFP4 codes bit for bit."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from gaussq_jax import models
from gaussq_jax.models.families import family_of
from gaussq_jax.models.rope import rope_frequencies
from gaussq_jax.models.to_huggingface import check_params
from gaussq_jax.packed import Layout, scale_codes
from gaussq_jax.serving.matrices import Module, modules
from gaussq_jax.serving.tensors import e8m0_scales

BLOCK = 32  # weights that share a scale
ARCHITECTURES = {models.Llama: 'llama', models.Mistral: 'llama', models.Qwen2: 'qwen2', models.Qwen3: 'qwen3'}
ROTATES_NEIGHBOURS = ('llama',)  # the others rotate halves, as our models do
CARRIED = {  # settings of a model
    *('num_layers', 'hidden_size', 'mlp_size', 'num_heads', 'num_kv_heads', 'head_dim'),
    *('rope_theta', 'rope_factor', 'rope_low_freq_factor', 'rope_high_freq_factor', 'rope_original_length'),
    *('norm_epsilon', 'tie_embeddings', 'attention_bias', 'mlp_bias'),
}
TENSORS = {
    'embed': 'token_embd',
    'layers.attention_norm': 'blk.{}.attn_norm',
    'layers.attention.query': 'blk.{}.attn_q',
    'layers.attention.key': 'blk.{}.attn_k',
    'layers.attention.value': 'blk.{}.attn_v',
    'layers.attention.out': 'blk.{}.attn_output',
    'layers.attention.query_norm': 'blk.{}.attn_q_norm',
    'layers.attention.key_norm': 'blk.{}.attn_k_norm',
    'layers.mlp_norm': 'blk.{}.ffn_norm',
    'layers.mlp.gate': 'blk.{}.ffn_gate',
    'layers.mlp.up': 'blk.{}.ffn_up',
    'layers.mlp.down': 'blk.{}.ffn_down',
    'final_norm': 'output_norm',
    'lm_head': 'output',
}


def to_gguf(model: Any, params: Any, layout: Layout) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of a GGUF file with which llama.cpp has the weights `quantize_params(params, layout)`.

    A layer's matrix whose weights are all E2M1, with one scale for each 32 of them along the input axis, or for a
    multiple of 32, becomes MXFP4: no code and no scale changes. All other matrices become BF16, but those that the
    layout keeps as they are become F32, as norms and biases do. Where llama.cpp rotates pairs of neighbours, as of a
    Llama, and ours are half a head apart, the rows of queries and keys are reordered: those of the first and the second
    half of each head in turns. The scaling of Llama 3's rotary frequencies becomes a tensor of factors.

    Args:
      model: a `Llama`, `Mistral`, `Qwen2` or `Qwen3`.
      params: its parameters, layers stacked.
      layout: as for `quantize_params`.

    Returns:
      {name: (type, array)}: the types are 'MXFP4', with uint8 (out, in / 32 * 17); 'BF16', with bfloat16 (out, in); and
      'F32', with float32 of one or two axes. A tied head is left out.

    Raises:
      ValueError: another model, or one with settings that aren't carried over; parameters that are not the model's; a
        layout of the embedding; weights in formats that bfloat16 does not hold; as `quantize_params`.

    Example:
      >>> import jax
      >>> from gaussq_jax.packed import uniform_layout
      >>> model = models.Llama(vocab_size=64, num_layers=1, hidden_size=32, mlp_size=64, num_heads=2)
      >>> params = model.init(jax.random.key(0), np.zeros((1, 4), np.int32))['params']
      >>> tensors = to_gguf(model, params, uniform_layout(params, 'float4_e2m1fn'))
      >>> kind, blocks = tensors['blk.0.ffn_down.weight']
      >>> kind, blocks.shape, tensors['output.weight'][0]
      ('MXFP4', (32, 34), 'BF16')

    Source: `gguf-py` of llama.cpp, `constants.py` for the names, `quants.py` for the blocks.
    """
    architecture = _architecture(model)
    check_params(model, params)
    heads = {'query': model.num_heads, 'key': model.num_kv_heads or model.num_heads}
    tensors = {}
    for leaf, layer, kind, array in _matrices(params, layout):
        module, _, last = leaf.rpartition('.')
        if (module, last) == ('embed', 'kernel'):
            raise ValueError("the layout has 'embed', which becomes BF16 alone: leave it out")
        rotated = heads.get(module.removeprefix('layers.attention.'))
        if rotated and architecture in ROTATES_NEIGHBOURS:
            array = array[rotary_rows(len(array), rotated)]
        name = f'{TENSORS[module].format(layer)}.{"bias" if last == "bias" else "weight"}'
        tensors[name] = kind, np.ascontiguousarray(array)
    if model.rope_scaling:
        plain, scaled = (
            rope_frequencies(_head_size(model), model.rope_theta, scaling) for scaling in (None, model.rope_scaling)
        )
        tensors['rope_freqs.weight'] = 'F32', np.asarray(plain / scaled)
    return tensors


def describe_model(model: Any, longest: int) -> dict[str, int | float | str]:
    """The fields of a GGUF file that say what a model is.

    Args:
      model: a `Llama`, `Mistral`, `Qwen2` or `Qwen3`.
      longest: the longest sequence, in tokens.

    Returns:
      {key: a number, or a text}.

    Raises:
      ValueError: another model, or one with settings that aren't carried over.

    Example:
      >>> model = models.Llama(vocab_size=64, num_layers=1, hidden_size=32, mlp_size=48, num_heads=2)
      >>> describe_model(model, longest=128)['llama.rope.dimension_count']
      16

    Source: `gguf-py` of llama.cpp, `constants.py`.
    """
    architecture, head_size = _architecture(model), _head_size(model)
    fields = {
        'context_length': longest,
        'vocab_size': model.vocab_size,
        'block_count': model.num_layers,
        'embedding_length': model.hidden_size,
        'feed_forward_length': model.mlp_size,
        'attention.head_count': model.num_heads,
        'attention.head_count_kv': model.num_kv_heads or model.num_heads,
        'attention.key_length': head_size,
        'attention.value_length': head_size,
        'attention.layer_norm_rms_epsilon': float(model.norm_epsilon),
        'rope.dimension_count': head_size,
        'rope.freq_base': float(model.rope_theta),
    }
    said = {f'{architecture}.{name}': value for name, value in fields.items()}
    return {'general.architecture': architecture, **said}


def mxfp4_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes of E2M1 and their scales, in the bytes of ggml's type MXFP4.

    Each 32 weights along the input axis take 17 bytes: the scale's code e, of 2^(e - 127), then 16 bytes, of which byte
    j has the code of weight j in its low half and that of weight j + 16 in its high half.

    Args:
      codes: uint8 (out, in), each below 16: the sign, two bits of exponent, one of mantissa. in is a multiple of 32.
      scales: uint8 (out, in / 32), of E8M0; 255 stands for no number.

    Returns:
      uint8 (out, in / 32 * 17). ggml reads -0 as 0, all else as it is.

    Raises:
      ValueError: other dtypes, shapes and codes.

    Example:
      >>> codes = np.arange(32, dtype=np.uint8)[None] % 16
      >>> mxfp4_blocks(codes, np.uint8([[127]])).tobytes().hex()
      '7f00112233445566778899aabbccddeeff'

    Source: `block_mxfp4` in llama.cpp's ggml-common.h; OCP Microscaling Formats v1.0, sections 5.3 and 5.4.
    """
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] % BLOCK or np.any(codes > 15):
        raise ValueError(
            f'codes is {codes.dtype} {codes.shape}, with {codes.max(initial=0)} as its largest; allowed is uint8'
            f' (out, a multiple of {BLOCK}), each below 16'
        )
    expected = codes.shape[0], codes.shape[1] // BLOCK
    if scales.dtype != np.uint8 or scales.shape != expected or np.any(scales > scale_codes.LARGEST_CODE):
        raise ValueError(
            f'scales is {scales.dtype} {scales.shape}, with {scales.max(initial=0)} as its largest; allowed is uint8'
            f' {expected}, at most {scale_codes.LARGEST_CODE}'
        )
    low, high = np.moveaxis(codes.reshape(*expected, 2, BLOCK // 2), 2, 0)
    return np.concatenate([scales[..., None], low | high << 4], axis=-1).reshape(len(codes), -1)


def rotary_rows(count: int, heads: int) -> np.ndarray:
    """Which of our rows of a query's or key's (out, in) matrix is each of llama.cpp's, (out,) integers.

    Row 2 i of a head of d rows is our row i, row 2 i + 1 our row i + d / 2.

    Example:
      >>> rotary_rows(8, heads=2).tolist()
      [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return np.arange(count).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def _architecture(model: Any) -> str:
    """llama.cpp's name of a model; ValueError for one that it hasn't, or with settings that aren't carried over."""
    if type(model) not in ARCHITECTURES:
        allowed = ', '.join(kind.__name__ for kind in ARCHITECTURES)
        raise ValueError(f'model={type(model).__name__}: a GGUF file is written of {allowed}')
    architecture = ARCHITECTURES[type(model)]
    carried = CARRIED if architecture == 'llama' else CARRIED - {'rope_factor', 'attention_bias'}
    defaults = {field.name: field.default for field in dataclasses.fields(model)}
    for name in family_of(model).settings.keys() - carried:
        if (value := getattr(model, name)) != defaults[name]:
            raise ValueError(
                f'{name}={value!r}: a GGUF file is written of a {type(model).__name__} with {defaults[name]!r} alone'
            )
    return architecture


def _head_size(model: Any) -> int:
    return model.head_dim or model.hidden_size // model.num_heads


def _matrices(params: Any, layout: Layout) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """Of each layer of each leaf: the leaf's name, the layer, the type, and the array, with matrices as (out, in)."""
    for module in modules(params, layout, 'gguf', unheld='bfloat16'):
        if isinstance(module, Module):
            is_of_layers = module.name.startswith('layers.')
            name, _, layer = module.name.rpartition('.') if is_of_layers else (module.name, '', 0)
            if module.storage is None:
                yield f'{name}.kernel', int(layer), 'BF16', module.weights()
            else:
                scales = e8m0_scales(module)
                yield f'{name}.kernel', int(layer), 'MXFP4', mxfp4_blocks(module.codes(), scales)
            continue
        name, stack = module
        for layer, array in enumerate(stack if name.startswith('layers.') else stack[None]):
            is_plain = array.ndim == 2 and array.dtype == jnp.bfloat16
            kind, array = ('BF16', array) if is_plain else ('F32', array.astype(np.float32))
            yield name, layer, kind, array.T if name.endswith('kernel') else array
