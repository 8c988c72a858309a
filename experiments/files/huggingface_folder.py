"""Folders as Hugging Face's `save_pretrained` writes them: config.json, safetensors files, tokenizer files.

What is read is JSON and safetensors, of which nothing is ever executed; weights that are only there as a pickle (.bin)
are refused.
"""

import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from experiments.files import json_files, paths, quantization_config
from experiments.files.huggingface_names import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION,
    INDEX,
    NAMES,
    TOKENIZER_CONFIG,
    TOKENIZERS,
    WEIGHTS,
)
from experiments.files.low_bit_tensors import LowBitTensors
from gaussq_jax import models
from gaussq_jax.atomic_files import new_directory, new_file
from gaussq_jax.packed import save_tensors

TOKENIZER_FILES = (
    *TOKENIZERS,
    *(TOKENIZER_CONFIG, NAMES, ADDED_TOKENS, 'vocab.json', 'merges.txt'),
    *(CHAT_TEMPLATE, GENERATION),
)
# Fields that our models don't have, which are kept beside the tokenizer's files, in a CONFIG of their own.
IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
SHARD_BYTES = 5_000_000_000  # of the largest file, as of transformers


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of safetensors files by name, each read when it is asked for.

    Args:
      files: tensor name -> the file that holds it.

    Attributes:
      remarks: what their reader should know; nothing.

    Raises:
      ValueError: a file that is missing, damaged, or without its tensors; names it.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, files: Mapping[str, pathlib.Path]):
        self._files, self._starts = dict(files), {}
        self._open = {path: _open(path) for path in sorted(set(files.values()))}
        for path, file in self._open.items():
            if lacking := sorted({name for name, where in files.items() if where == path} - set(file.keys())):
                raise ValueError(f'{path} lacks the tensor {lacking[0]}, which {INDEX} says it holds')

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._open[self._files[name]].get_tensor(name)
        except (safetensors.SafetensorError, TypeError, AttributeError) as error:  # the others of dtypes NumPy lacks
            raise ValueError(f"{self._files[name]}: the tensor {name} can't be read: {error}") from None

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The dtype, as safetensors calls it, and the shape."""
        described = self._open[self._files[name]].get_slice(name)
        return described.get_dtype(), tuple(described.get_shape())

    def codes(self, name: str) -> np.ndarray:
        """The bytes of a tensor whose dtype has eight bits, maybe one that NumPy lacks: uint8 of its shape."""
        path, shape = self._files[name], self.kind(name)[1]
        if path not in self._starts:
            self._starts[path] = _starts(path)
        codes = np.fromfile(path, np.uint8, math.prod(shape), offset=self._starts[path][name])
        return codes.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read(directory: pathlib.Path) -> tuple[Tensors | LowBitTensors, dict[str, Any]]:
    """The tensors and the configuration of a folder, which `models.from_huggingface` takes.

    Args:
      directory: holds config.json, and model.safetensors or model.safetensors.index.json with the files it names.

    Returns:
      (tensors, config): of a low-bit checkpoint, whose config says so, the tensors are dequantized when asked for.

    Raises:
      ValueError: a file that is missing or damaged, by its name; weights that are there as a pickle only; a
        quantization that isn't read, or doesn't agree with the tensors.
    """
    if not directory.is_dir():
        raise ValueError(f'{directory} is no folder')
    config = json_files.read(directory / CONFIG)
    with json_files.naming(directory / CONFIG):
        quantization = quantization_config.read(config)
    tensors = Tensors(_files(directory))
    if quantization is None:
        return tensors, config
    with json_files.naming(directory):
        return LowBitTensors(tensors, quantization), config


def sha256(directory: pathlib.Path) -> str:
    """Names what `read` reads: the digest of the digests of its files; ValueError as `read` raises it."""
    digests = {}
    for path in sorted({directory / CONFIG, *_files(directory).values()}):
        with open(paths.check_file(path), 'rb') as file:
            digests[path.name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def find_tokenizer(directory: pathlib.Path, advice: str) -> str:
    """The tokenizer file of a folder; ValueError, which ends with the advice, if there is none that we read."""
    for name in TOKENIZERS:
        if (directory / name).is_file():
            return str(directory / name)
    raise ValueError(f'{directory} has neither {" nor ".join(TOKENIZERS)}: {advice}')


def check_length(config: Mapping[str, Any], sequence_length: int, name: str) -> None:
    """ValueError, which names the sequence_length, if sequences exceed the window of a configuration's attention."""
    window = models.find_family(config['model_type']).huggingface.window(config)
    if window is not None and sequence_length > window:
        raise ValueError(
            f'{name}={sequence_length}: the checkpoint has sliding_window={window}, the most that is allowed, since our'
            ' models attend to all tokens before'
        )


def write(
    directory: pathlib.Path,
    model: Any,
    params: Any,
    tokenizer_directory: pathlib.Path | None = None,
    *,
    said: Mapping[str, Any] | None = None,
) -> list[pathlib.Path]:
    """Writes a folder that `transformers` loads, in bfloat16; whole or not at all.

    Args:
      directory: is not there yet, or empty.
      model: of a family that Hugging Face has, such as `models.Llama`.
      params: its parameters, of any floating dtypes.
      tokenizer_directory, said: as for `write_files`.

    Returns:
      The files.

    Raises:
      ValueError: another model's parameters; a folder that has something in it.
    """
    tensors, config = models.to_huggingface(model, params)
    with new_directory(directory) as partial:
        tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
        write_files(partial, tensors, config, tokenizer_directory, said=said)
    return sorted(directory.iterdir())


def write_files(
    directory: pathlib.Path,
    tensors: dict[str, np.ndarray],
    config: Mapping[str, Any],
    tokenizer_directory: pathlib.Path | None = None,
    *,
    said: Mapping[str, Any] | None = None,
):
    """Writes the files of a folder that is there and empty, such as that of `atomic_files.new_directory`.

    Args:
      directory: the folder.
      tensors: by name, of dtypes that safetensors has; used up.
      config: what config.json says, with a `model_type` of a family that is there.
      tokenizer_directory: whose tokenizer files are copied, and whose config.json, if of the same family, gives the
        longest sequence and the ids of special tokens.
      said: what the files of this one say beside or instead, by their names: fields of JSON, or a text.

    Raises:
      ValueError: a tokenizer's file that can't be copied.
      OSError: where it can't be written.
    """
    config = {**config, 'torch_dtype': 'bfloat16'}
    if tokenizer_directory is not None and (tokenizer_directory / CONFIG).is_file():
        theirs = json_files.read(tokenizer_directory / CONFIG)
        if theirs.get('model_type') == config['model_type']:
            config |= kept_fields(theirs)
    json_files.write(directory / CONFIG, config)
    _write_tensors(directory, tensors)
    if tokenizer_directory is not None:
        copy_tokenizer(tokenizer_directory, directory)
    for name, contents in (said or {}).items():
        if isinstance(contents, str):
            (directory / name).write_text(contents, encoding='utf-8')
        else:
            before = json_files.read(directory / name) if (directory / name).exists() else {}
            json_files.write(directory / name, before | contents)


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path):
    """Copies the tokenizer files that there are.

    Raises:
      ValueError: for one that is a link out of the folder, to what nobody meant to copy, and maybe to publish. Those of
        the hub's cache, `snapshots/REVISION`, may lead to its `blobs`.
    """
    for name in TOKENIZER_FILES:
        if os.path.lexists(source / name):
            copy_own_file(source / name, target)


def copy_own_file(file: pathlib.Path, target: pathlib.Path):
    """Copies a file of a folder; ValueError, as of `copy_tokenizer`, for a link out of it."""
    root, path = file.parent.resolve(), paths.check_file(file.resolve())
    allowed = [root, *[root.parent.parent / 'blobs'] * (root.parent.name == 'snapshots')]
    if not any(path.is_relative_to(directory) for directory in allowed):
        raise ValueError(f'{file} is a link to {path}, out of its folder: put the file itself there')
    with new_file(target / file.name) as partial:
        shutil.copyfile(path, partial)


def kept_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says that our models don't know: what `write` looks for beside the tokenizer's files."""
    names = (models.find_family(config['model_type']).huggingface.longest, *IDS)
    is_kept = lambda value: json_files.is_a(value, int) or json_files.is_a(value, list)
    return {name: config[name] for name in names if is_kept(config.get(name))}


def _files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor name -> the file that holds it."""
    if (directory / WEIGHTS).is_file():
        return dict.fromkeys(_open(directory / WEIGHTS).keys(), directory / WEIGHTS)
    if (directory / INDEX).is_file():
        files = json_files.read(directory / INDEX).get('weight_map')
        if not isinstance(files, dict) or not files or not all(map(_is_file_name, files.values())):
            raise ValueError(f'{directory / INDEX} has no weight_map of tensor names to files of this folder')
        return {name: directory / file for name, file in files.items()}
    if pickles := sorted(directory.glob('*.bin')):
        raise ValueError(
            f'{directory} has its weights in {pickles[0].name} only, a pickle, which can run code when it is read: have'
            ' transformers write it as safetensors, by AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)'
        )
    raise ValueError(f'{directory} has neither {WEIGHTS} nor {INDEX}')


def _write_tensors(directory, tensors):
    """One file, or as many as it takes for none to be larger than SHARD_BYTES, if no tensor is; uses up the tensors."""
    shards, size = [[]], 0
    total = sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    files = [f'model-{i:05}-of-{len(shards):05}.safetensors' for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [WEIGHTS]
    for file, names in zip(files, shards):
        save_tensors(directory / file, {name: tensors.pop(name) for name in names}, {'format': 'pt'})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards) for name in names}
        json_files.write(directory / INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map})


def _open(path):
    try:
        return safetensors.safe_open(paths.check_file(path), framework='np')
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except (safetensors.SafetensorError, OSError) as error:
        said = ' '.join(str(error).split())  # which quotes the file
        raise ValueError(f'{path} is no whole safetensors file: {said}') from None


def _starts(path):
    """Where each tensor of a file begins, in bytes."""
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = json_files.parse(file.read(length), path)
    return {name: 8 + length + entry['data_offsets'][0] for name, entry in header.items() if name != '__metadata__'}


def _is_file_name(name):
    return (
        isinstance(name, str) and name.isprintable() and len(name) < 256 and pathlib.PurePath(name).name == name != ''
    )
