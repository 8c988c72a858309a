"""A run as one file for llama.cpp: weights, sizes and the tokenizer, in the format GGUF."""

import contextlib
import pathlib
from typing import Any

import numpy as np

from experiments.serving.gguf_vocabulary import describe_tokenizer
from experiments.workdirs import Run
from gaussq_jax.atomic_files import new_file
from gaussq_jax.packed import Layout
from gaussq_jax.serving.gguf import describe_model, to_gguf

FILE_TYPES = {'MXFP4': 38, 'BF16': 32, 'F32': 0}  # the first of these that a tensor has names the file's
MAGIC = b'GGUF'


def is_one(file: pathlib.Path) -> bool:
    """Whether a file is a GGUF file, by how it begins."""
    if not file.is_file():
        return False
    with file.open('rb') as opened:
        return opened.read(len(MAGIC)) == MAGIC


def write(run: Run, weights: Any, layout: Layout, file: pathlib.Path, *, longest: int):
    """Writes a GGUF file that llama.cpp loads; whole or not at all.

    Args:
      run: of a model that llama.cpp has; gives it and the tokenizer.
      weights: its parameters, float32 or bfloat16.
      layout: as for `gaussq_jax.serving.gguf.to_gguf`: which of them become MXFP4.
      file: is replaced, if it is there.
      longest: how many tokens the model takes.

    Raises:
      ValueError: a model or a tokenizer that llama.cpp hasn't; the package gguf is missing; as `to_gguf`.
      OSError: where the file can't be written.
    """
    model, config = run.experiment.model, run.experiment.config
    fields = describe_model(model, longest) | describe_tokenizer(run.tokenizer, model.vocab_size)
    try:
        import gguf
    except ImportError:
        raise ValueError("GGUF files take the package gguf: pip install 'gaussq-jax[serving]'") from None
    tensors = to_gguf(model, weights, layout)
    kinds = {kind for kind, _ in tensors.values()}
    fields['general.file_type'] = next(number for kind, number in FILE_TYPES.items() if kind in kinds)
    fields |= {'general.name': config.name, 'general.quantization_version': gguf.GGML_QUANT_VERSION}
    architecture = fields.pop('general.architecture')
    with new_file(file) as partial, contextlib.closing(gguf.GGUFWriter(partial, architecture)) as writer:
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for key, value in fields.items():
            add.get(type(value), writer.add_array)(key, value)
        for name, (kind, array) in tensors.items():
            raw = array if kind == 'F32' else array.view(np.uint8)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
