"""A run as one file for llama.cpp: weights, sizes and the tokenizer, in the format GGUF."""

import contextlib
import pathlib
from typing import Any

import numpy as np

from experiments.serving.gguf_vocabulary import describe_tokenizer
from experiments.workdirs import Run
from gaussq_jax import models
from gaussq_jax.atomic_files import new_file
from gaussq_jax.packed import Layout
from gaussq_jax.serving.gguf import to_gguf

FILE_TYPES = {'MXFP4': 38, 'BF16': 32, 'F32': 0}  # of what most weights are


def write(run: Run, weights: Any, layout: Layout, file: pathlib.Path):
    """Writes a GGUF file that llama.cpp loads; whole or not at all.

    Args:
      run: of a Llama; gives the model, the tokenizer and the longest sequence.
      weights: its parameters, float32 or bfloat16.
      layout: as for `gaussq_jax.serving.gguf.to_gguf`: which of them become MXFP4.
      file: is replaced, if it is there.

    Raises:
      ValueError: another family than Llama; a tokenizer that llama.cpp has no counterpart of; the package gguf is
        missing; as `to_gguf`.
      OSError: where the file can't be written.
    """
    model, config = run.experiment.model, run.experiment.config
    fields = describe_model(model, config.sequence_length) | describe_tokenizer(run.tokenizer, model.vocab_size)
    try:
        import gguf
    except ImportError:
        raise ValueError("GGUF files take the package gguf: pip install 'gaussq-jax[serving]'") from None
    tensors = to_gguf(model, weights, layout)
    kinds = {kind for kind, _ in tensors.values()}
    fields['general.file_type'] = next(number for kind, number in FILE_TYPES.items() if kind in kinds)
    fields |= {'general.name': config.name, 'general.quantization_version': gguf.GGML_QUANT_VERSION}
    with new_file(file) as partial, contextlib.closing(gguf.GGUFWriter(partial, 'llama')) as writer:
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for key, value in fields.items():
            add.get(type(value), writer.add_array)(key, value)
        for name, (kind, array) in tensors.items():
            raw = array if kind == 'F32' else array.view(np.uint8)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def describe_model(model: Any, longest: int) -> dict[str, int | float]:
    """The fields of a GGUF file that say what a Llama is.

    Args:
      model: a `Llama`.
      longest: the longest sequence, in tokens.

    Returns:
      {key: a number}.

    Raises:
      ValueError: another model.

    Example:
      >>> model = models.Llama(vocab_size=64, num_layers=1, hidden_size=32, mlp_size=48, num_heads=2)
      >>> describe_model(model, 128)['llama.rope.dimension_count']
      16
    """
    if not isinstance(model, models.Llama):
        raise ValueError(f'model={type(model).__name__}: a GGUF file is written of a Llama alone')
    head_size = model.hidden_size // model.num_heads
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
    return {f'llama.{name}': value for name, value in fields.items()}
