"""A run as a folder of config.json, safetensors and tokenizer files, as servers load it."""

import collections
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

import gaussq_jax as gq
from configs import stored as stored_configs
from experiments import workdirs
from experiments.files import huggingface_folder, paths
from gaussq_jax import models
from gaussq_jax.atomic_files import new_directory
from gaussq_jax.packed import Layout
from gaussq_jax.serving.matrices import module_storages

TRANSFORMERS, BFLOAT16 = 'transformers', 'bfloat16'


def _to_compressed_tensors(*arguments: Any, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, config = gq.to_compressed_tensors(*arguments, **settings)
    return tensors, {'quantization_config': config}


LOW_BITS = {  # target -> its function of (tensors, layout): tensors, and fields of config.json
    'compressed-tensors': _to_compressed_tensors,
    'mlx': gq.to_mlx,
    'deepseek-fp8': gq.to_deepseek_fp8,
    'quark-mxfp6': gq.to_quark_mxfp6,
}


FUSING = ('compressed-tensors', 'deepseek-fp8', 'quark-mxfp6')


def storages(model: Any, params: Any, layout: Layout, target: str, *, unheld: str) -> dict[str, tuple[str, str]]:
    """How each module that is in the layout is stored by a target, and why not in low bits if it isn't.

    Returns:
      {module: (the name of its storage, or 'bfloat16'; a reason, or '')}; {} for `TRANSFORMERS`, where all are that.

    Raises:
      ValueError: for a module that can't be held exactly, unless `unheld` is 'bfloat16'; for a layout in which nothing
        is quantized; for a model whose matrices have no low bits elsewhere.
    """
    if target == TRANSFORMERS:
        return {}
    tensors, _ = models.to_huggingface(model, params)
    of_tensors = models.huggingface_layout(model, layout)
    found = module_storages(tensors, of_tensors, target, fused=fused_modules(model, target), unheld=unheld)
    if not any(storage for storage, _ in found.values()):
        reason = next((f': {reason}' for _, reason in found.values() if reason), '')
        raise ValueError(
            f'--to={target} would have nothing in low bits{reason}; --to={TRANSFORMERS} has all in bfloat16'
        )
    return {name: (storage.name if storage else BFLOAT16, reason) for name, (storage, reason) in found.items()}


def write(
    run: workdirs.Run,
    workdir: pathlib.Path,
    directory: pathlib.Path,
    target: str,
    params: Any,
    layout: Mapping[str, gq.LeafLayout],
    *,
    unheld: str = 'error',
):
    """Writes a folder of the weights that `gq.quantize_params(params, layout)` gives; whole or not at all.

    The tokenizer's files are in it; an imported run has those of its checkpoint.

    Args:
      run: of a family that Hugging Face has.
      workdir: of the run, where its tokenizer's files may be.
      directory: is not there yet, or empty.
      target: `TRANSFORMERS`, all in bfloat16, or of `LOW_BITS`.
      params: the run's weights, or what they are rounded to first.
      layout: how they are quantized.
      unheld: what becomes of modules that the target holds in no low bits: 'error', or 'bfloat16'.

    Raises:
      ValueError: for a directory that has something in it; as `storages`.
    """
    model, tokenizer = run.experiment.model, paths.parse(run.experiment.config.tokenizer, 'tokenizer')
    folder = workdir / 'tokenizer'
    is_imported = (folder / huggingface_folder.CONFIG).is_file()
    with new_directory(directory) as partial, tempfile.TemporaryDirectory() as alone:
        if not folder.is_dir():
            folder = tokenizer.parent if tokenizer.is_file() else None  # of bytes
        if folder and tokenizer.is_file() and tokenizer.name not in huggingface_folder.TOKENIZERS:
            folder = pathlib.Path(alone)  # what lies beside it may be another's
            shutil.copyfile(tokenizer, folder / f'tokenizer{tokenizer.suffix}')
        said = what_files_say(run, folder, is_imported)
        if target == TRANSFORMERS:
            tensors, config = models.to_huggingface(model, gq.quantize_params(params, layout))
            tensors = {name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}
        else:
            tensors, config = models.to_huggingface(model, params)
            of_tensors = models.huggingface_layout(model, layout)
            fused = fused_modules(model, target)
            tensors, told = LOW_BITS[target](tensors, of_tensors, fused=fused, unheld=unheld)
            config |= told
        huggingface_folder.write_files(partial, tensors, config, folder, said=said)


def fused_modules(model: Any, target: str) -> dict[str, str]:
    """`models.fused_modules` where what reads the target makes one matrix of them: MLX and llama.cpp don't."""
    return models.fused_modules(model) if target in FUSING else {}


def summary(of_modules: Mapping[str, tuple[str, str]]) -> list[str]:
    """How many modules have which storage, and which could not be held in low bits, for people.

    Args:
      of_modules: as `storages` gives it.
    """
    counts = collections.Counter(storage for storage, _ in of_modules.values())
    by_reason = collections.defaultdict(list)
    for name, (_, reason) in of_modules.items():
        by_reason[reason].append(name)
    lines = [f'{number} matrices in {storage}' for storage, number in sorted(counts.items())]
    return lines + [f'{", ".join(names)}: {BFLOAT16}, as {reason}' for reason, names in by_reason.items() if reason]


def what_files_say(run: workdirs.Run, folder: pathlib.Path | None, is_imported: bool) -> dict[str, Any]:
    """What the files of a run's folder say that its tokenizer's folder doesn't, by their names."""
    config, special, eos = run.experiment.config, run.tokenizer.special, [*run.tokenizer.special.eos]
    if is_imported and config.special_tokens.to_dict() == stored_configs.MEANT_BEFORE[2]['special_tokens']:
        return {}  # by version 0.1, which knew nothing of them: they are the checkpoint's
    ids = {'bos_token_id': special.bos, 'eos_token_id': eos[0] if len(eos) == 1 else eos}
    own = {'pad_token_id': None}
    family = models.find_family(config.model.family)
    if family.huggingface.longest:
        own[family.huggingface.longest] = config.sequence_length
    said = {huggingface_folder.CONFIG: ids | ({} if is_imported else own)}
    has = lambda *names: folder is not None and any((folder / name).is_file() for name in names)
    is_said = has(huggingface_folder.TOKENIZER_CONFIG) and run.tokenizer.is_said_by(folder)
    if has(*huggingface_folder.TOKENIZERS) and not is_said:
        said |= run.tokenizer.files()
        if has('tokenizer.model') and not family.huggingface.reads_sentencepiece:
            said[huggingface_folder.TOKENIZER_CONFIG]['tokenizer_class'] = 'TokenizersBackend'
        if has(huggingface_folder.GENERATION):
            said[huggingface_folder.GENERATION] = ids
    return said
