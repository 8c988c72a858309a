"""Make a run of a Hugging Face checkpoint in a local folder: to train on, to evaluate, to export.

    python -m experiments.import_hf --checkpoint=DIR --workdir=runs/imported
    python -m experiments.evaluate --workdir=runs/imported
    python -m experiments.train --config=configs/from_run.py:run=runs/imported,method=gaussws

DIR holds config.json and the weights as safetensors, in one file or several with their index. The model is a Llama of
any generation to 3, Mistral, Qwen2, Qwen2.5, Qwen3 (without experts) or GPT-2. A field of config.json that our models
can't follow, such as a window of attention that sequences exceed, is an error that names it. The weights may have few
bits, as compressed-tensors writes them (MXFP4, MXFP6, MXFP8, NVFP4, FP8) or DeepSeek (FP8): they become the numbers
that they stand for.

Tokenizer files are copied to WORKDIR/tokenizer; where DIR has neither tokenizer.json nor tokenizer.model, --tokenizer
names such a file, or is `bytes`. Which tokens begin and end texts is what config.json, generation_config.json,
tokenizer_config.json and the tokenizer say, unless --bos_token_id, --eos_token_id or --add_bos_token say else. The run
is one of method bf16 that has taken no step. Its text is that of every machine, the Python standard library.
"""

import pathlib
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs import common
from configs import stored as stored_configs
from experiments import cli, workdirs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.data import special_tokens, tokenizers, vocabularies
from experiments.files import huggingface_folder, json_files, paths
from experiments.training.experiment import Experiment, init_state, make_experiment
from gaussq_jax import leaves_by_path, models
from gaussq_jax.atomic_files import new_directory

CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'The folder.', required=True)
WORKDIR = flags.DEFINE_string('workdir', None, "Where the run's files go; is not there yet, or empty.", required=True)
TOKENIZER = flags.DEFINE_string('tokenizer', None, "A tokenizer.json or .model instead of the folder's own; or bytes.")
SEQUENCE_LENGTH = flags.DEFINE_integer(
    'sequence_length', None, "Tokens a sequence; else the checkpoint's longest, or 2048 if less.", lower_bound=1
)

BOS = flags.DEFINE_string('bos_token_id', '', "What texts begin with, if not as the checkpoint's files say; or none.")
EOS = flags.DEFINE_string('eos_token_id', '', 'The end of a document, if not as they say; several with commas.')
ADD_BOS = flags.DEFINE_enum(
    'add_bos_token', '', ['', 'true', 'false'], 'Whether texts begin with BOS, if not as they say.'
)

LONGEST = 2048
ADVICE = 'say by --tokenizer=FILE which one it is, or --tokenizer=bytes'


def main(argv):
    del argv
    try:
        with cli.user_errors():
            workdir = paths.parse(WORKDIR.value, '--workdir')
            checkpoint = paths.parse(CHECKPOINT.value, '--checkpoint')
            special = dict(bos_token_id=BOS.value, eos_token_id=EOS.value, add_bos_token=ADD_BOS.value)
            settings = dict(tokenizer=TOKENIZER.value, sequence_length=SEQUENCE_LENGTH.value, special=special)
            experiment, tokenizer, not_finite, remarks = import_checkpoint(checkpoint, workdir, **settings)
    except KeyboardInterrupt:
        sys.exit(f'\ninterrupted; {workdir} was not written')
    config = experiment.config
    print(f'model     {config.model.family}, {experiment.num_params:,} parameters')
    for label, line in zip(('weights', *len(remarks) * ('',)), remarks):
        print(f'{label:9} {line}')
    print(f'tokenizer {config.tokenizer}; the vocabulary of the model is {experiment.vocab_size:,}')
    print('\n'.join(f'          {line}' for line in (tokenizer.describe(), *tokenizer.remarks)))
    for path, count in not_finite.items():
        print(f'NOT FINITE {count:,} values of {path}')
    print(f'run       {workdir}; sequences of {config.sequence_length:,} tokens')
    print(f'          next: python -m experiments.evaluate --workdir={shlex.quote(str(workdir))}')


def import_checkpoint(
    checkpoint: pathlib.Path,
    workdir: pathlib.Path,
    *,
    tokenizer: str | None = None,
    sequence_length: int | None = None,
    special: Mapping[str, str] = special_tokens.ASK,
) -> tuple[Experiment, tokenizers.Tokenizer, dict[str, int], tuple[str, ...]]:
    """Writes the workdir, whole or not at all; what its config means, its tokenizer, leaves not finite, remarks.

    Raises:
      ValueError: a checkpoint, or a tokenizer, that can't be read or that we can't follow; a workdir in use.
      OSError: the workdir could not be written.
    """
    with new_directory(workdir) as partial:
        tensors, theirs = huggingface_folder.read(checkpoint)
        with json_files.naming(checkpoint / huggingface_folder.CONFIG):
            model = models.model_from_huggingface(theirs)
        source = tokenizer or huggingface_folder.find_tokenizer(checkpoint, ADVICE)
        vocab_size = vocabularies.load_vocabulary(source).vocab_size
        if model.vocab_size < vocab_size:
            raise ValueError(
                f'vocab_size={model.vocab_size} in {checkpoint / huggingface_folder.CONFIG} is less than the'
                f' {vocab_size} ids of the tokenizer {source}'
            )
        folder = None if source == 'bytes' else checkpoint  # whose ids are not of bytes
        loaded = tokenizers.load_tokenizer(source, special, folder=folder, vocab_size=model.vocab_size, is_given=True)
        config = make_config(workdir, model, theirs, sequence_length)
        config.special_tokens.update(loaded.special.settings)
        name = copy_tokenizer(source, checkpoint, partial / 'tokenizer', is_carried=not tokenizer)
        config.tokenizer = name if name == 'bytes' else str(workdir.absolute() / 'tokenizer' / name)
        kept = {'model_type': theirs['model_type'], **huggingface_folder.kept_fields(theirs)}
        json_files.write(partial / 'tokenizer' / huggingface_folder.CONFIG, kept)
        workdirs.write_config(partial, config)
        with json_files.naming(checkpoint):
            experiment = make_experiment(config, loaded.vocab_size)
            _, params = models.from_huggingface(tensors, theirs)
        not_finite = {path: int(np.sum(~np.isfinite(leaf))) for path, leaf in leaves_by_path(params).items()}
        state = init_state(experiment, jax.device_put(params, experiment.shardings.params))
        with Checkpointer(partial / 'checkpoints') as checkpointer:
            checkpointer.save(0, state, {}, {**stored_configs.write(config.to_dict()), 'corpus': ''})
    return experiment, loaded, {path: count for path, count in not_finite.items() if count}, tensors.remarks


def copy_tokenizer(source: str, checkpoint: pathlib.Path, directory: pathlib.Path, *, is_carried: bool) -> str:
    """Copies the tokenizer's file, with those around it if it is the checkpoint's; its name there, or bytes."""
    directory.mkdir()
    if is_carried:
        huggingface_folder.copy_tokenizer(checkpoint, directory)
        return pathlib.Path(source).name
    if source == 'bytes':
        return source
    path = paths.parse(source, '--tokenizer')
    name = f'tokenizer{path.suffix}'
    shutil.copyfile(path, directory / name)
    return name


def make_config(workdir: pathlib.Path, model: Any, theirs: dict[str, Any], sequence_length: int | None) -> ConfigDict:
    """The config of a run of this model, which nothing has been said about but what its checkpoint does."""
    config = common.base_config(common.parse('method=bf16', **common.ARGUMENTS))
    config.name = workdir.absolute().name
    family = models.family_of(model)
    config.model = ConfigDict({'family': family.name, **{name: getattr(model, name) for name in family.settings}})
    config.vocab_size = model.vocab_size
    longest = getattr(model, 'max_length', theirs.get(family.huggingface.longest))
    config.sequence_length = sequence_length or min(longest or LONGEST, LONGEST)
    huggingface_folder.check_length(theirs, config.sequence_length, '--sequence_length')
    config.batch_size = 8
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


if __name__ == '__main__':
    cli.start(main)
