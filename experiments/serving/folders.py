"""A run as a folder of config.json, safetensors and tokenizer files, as servers load it."""

import collections
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import gaussq_jax as gq
from configs import stored as stored_configs
from experiments import workdirs
from experiments.files import huggingface_folder, json_files, paths
from experiments.serving.targets import COMPRESSED_TENSORS, GGUF, TRANSFORMERS, Target
from gaussq_jax import models
from gaussq_jax.atomic_files import new_directory
from gaussq_jax.packed import Layout
from gaussq_jax.serving.matrices import module_storages

BFLOAT16 = 'bfloat16'


def storages(model: Any, params: Any, layout: Layout, target: Target, *, unheld: str) -> dict[str, tuple[str, str]]:
    """How each module that is in the layout is stored by a target, and why not in low bits if it isn't.

    Returns:
      {module: (the name of its storage, or 'bfloat16'; a reason, or '')}; {} for `TRANSFORMERS`, where all are that.

    Raises:
      ValueError: for a module that can't be held exactly, unless `unheld` is 'bfloat16'; for a layout in which nothing
        is quantized, but of GGUF files; for a model whose matrices have no low bits elsewhere.
    """
    if target == TRANSFORMERS:
        if wide := [path for path, of_leaf in layout.items() if of_leaf.dtype != jnp.bfloat16]:
            formats = ', '.join(fmt.name for fmt in layout[wide[0]].formats)
            scales = f' times {layout[wide[0]].scale} scales' * (layout[wide[0]].products == 'float32')
            raise ValueError(f'{wide[0]} has weights in {formats}{scales}, which bfloat16 does not hold exactly')
        return {}
    tensors, _ = models.to_huggingface(model, params)
    of_tensors, fused = models.huggingface_layout(model, layout), fused_modules(model, target)
    held = module_storages(tensors, of_tensors, target.name, fused=fused, unheld=unheld)
    if not any(one.storage for one in held.values()) and (layout or target != GGUF):
        reason = next((f': {one.reason}' for one in held.values() if one.reason), '')
        budget = '--budget chooses formats that it has; ' if target.choices else ''
        raise ValueError(
            f'--to={target.name} would have nothing in low bits{reason}; {budget}--to={TRANSFORMERS.name} has all in'
            ' bfloat16'
        )
    return {name: (one.storage.name if one.storage else BFLOAT16, one.reason) for name, one in held.items()}


def fused_modules(model: Any, target: Target) -> dict[str, str]:
    """`models.fused_modules`, where what reads the target makes one matrix of them."""
    return models.fused_modules(model) if target.fuses else {}


def write(
    run: workdirs.Run,
    workdir: pathlib.Path,
    directory: pathlib.Path,
    target: Target,
    params: Any,
    layout: Mapping[str, gq.LeafLayout],
    *,
    unheld: str = 'error',
) -> list[str]:
    """Writes a folder of the weights that `gq.quantize_params(params, layout)` gives; whole or not at all.

    The tokenizer's files are in it; an imported run has those of its checkpoint.

    Args:
      run: of a family that Hugging Face has.
      workdir: of the run, where its tokenizer's files may be.
      directory: is not there yet, or empty.
      target: `TRANSFORMERS`, all in bfloat16, or one that has `to_tensors`.
      params: the run's weights, or what they are rounded to first.
      layout: how they are quantized.
      unheld: what becomes of modules that the target holds in no low bits: 'error', or 'bfloat16'.

    Returns:
      What who loads it has to know, in lines for people.

    Raises:
      ValueError: for a directory that has something in it; as `storages`.
    """
    model, tokenizer = run.experiment.model, paths.parse(run.experiment.config.tokenizer, 'tokenizer')
    folder, remarks = workdir / 'tokenizer', []
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
            tensors = {name: tensor.astype(jnp.bfloat16, copy=False) for name, tensor in tensors.items()}
        else:
            tensors, config = models.to_huggingface(model, params)
            of_tensors, fused = models.huggingface_layout(model, layout), fused_modules(model, target)
            tensors, config[target.field] = target.to_tensors(tensors, of_tensors, fused=fused, unheld=unheld)
            remarks = remarks_on(tensors, fused) if target == COMPRESSED_TENSORS else []
            if any(of_leaf.dtype == jnp.float32 for of_leaf in layout.values()):
                remarks.append(
                    'training multiplied numbers times scales in float32: what reads them in bfloat16 rounds them'
                )
        huggingface_folder.write_files(partial, tensors, config, folder, said=said)
    return remarks


def remarks_on(tensors: Mapping[str, np.ndarray], fused: Mapping[str, str]) -> list[str]:
    """Where what reads compressed-tensors makes other weights of these tensors than they stand for."""
    remarks, of_groups = [], collections.defaultdict(set)
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition('.')
        if kind == 'weight_global_scale':
            of_groups[fused.get(module, module)].add(tensor.item())
    if any(len(scales) > 1 for scales in of_groups.values()):
        remarks.append(
            'queries, keys and values have global scales of their own, or gate and up: transformers reads these; a'
            ' server that fuses them under one scale has other weights'
        )
    if any(name.endswith('.weight_scale') and tensor.dtype == np.float32 for name, tensor in tensors.items()):
        remarks.append(
            'its scales are float32, which transformers rounds to bfloat16 as it loads, unless it is given'
            ' CompressedTensorsConfig(dequantize=True)'
        )
    return remarks


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


def longest_sequence(run: workdirs.Run, workdir: pathlib.Path) -> int:
    """In tokens: what an imported run's checkpoint says, else that of training."""
    kept, config = workdir / 'tokenizer' / huggingface_folder.CONFIG, run.experiment.config
    field = models.find_family(config.model.family).huggingface.longest
    said = json_files.read(kept).get(field) if kept.is_file() else None
    return said if json_files.is_a(said, int) else config.sequence_length


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
