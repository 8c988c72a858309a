"""A run and its directory: what data it reads, what it measures, and how it is opened again."""

import json
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import common
from configs import stored as stored_configs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.checkpoints.step_directories import load_contents, newest_step
from experiments.data import loading, tokenizer_files, tokenizers
from experiments.files import json_files, paths
from experiments.methods import quantizes_matmuls
from experiments.training.experiment import Experiment, TrainState, make_experiment, with_fixed_weights
from gaussq_jax.atomic_files import replace_file
from gaussq_jax.packed import Packed, read_packed

# What a packed file keeps of a config: what serving its weights takes, and what evaluating them as in training does.
SERVED = ('model', 'vocab_size', 'dtype', 'sequence_length', 'tokenizer', 'special_tokens')
EVALUATED = (
    *('dataset', 'train_split', 'validation_split', 'held_out', 'text_feature', 'invalid_text', 'packing'),
    *('batch_size', 'microbatches'),
)
MATMULS = ('method', 'quantization')


class Run(NamedTuple):
    """A run opened again, with its newest state."""

    experiment: Experiment
    tokenizer: tokenizers.Tokenizer
    state: TrainState
    packed: Packed | None = None  # the file that it was opened from, if it wasn't from a workdir


def settle_tokenizer(config: ConfigDict, workdir: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a training, whose config then says which tokens begin and end texts: those it began with."""
    spec = config.tokenizer
    if newest_step(workdir / 'checkpoints') is not None:
        if not paths.parse(spec, 'config.tokenizer').is_file():  # but the data's digest tells another
            spec = tokenizer_files.copy_of(spec, workdir) or spec
        config.special_tokens.update(stored_configs.as_begun(config.to_dict(), _begun(workdir))['special_tokens'])
    tokenizer = tokenizers.load_tokenizer(spec, config.special_tokens, vocab_size=config.vocab_size)
    asked = config.special_tokens
    asked.update({name: asked[name] or found for name, found in tokenizer.special.settings.items()})
    return tokenizer


def remarks_on_changes(config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """On what a run goes on with that changes the order of its sums, and so its bits; or what its losses are of."""
    before, told = _begun(workdir), 'other validation losses than before'
    consequences = {'microbatches': 'the same steps, but for rounding', 'validation_split': told, 'eval_batches': told}
    return [
        f'{name}={config[name]}, before {before[name]}: {consequence}'
        for name, consequence in consequences.items()
        if before.get(name, config[name]) != config[name]
    ]


def open_run(workdir: pathlib.Path, **changes: Any) -> Run:
    """Opens a workdir with its newest checkpoint, to look at it; `changes` replace fields of its config.

    Whatever mesh it was trained on, the weights are sharded over the devices that there are. No text is needed.

    Raises:
      ValueError: if there is no whole checkpoint, its config lacks fields that version 0.1.0 had, or the tokenizer's
        file can't be read.
    """
    directory = workdir / 'checkpoints'
    stored = stored_configs.read(load_contents(directory)['config'], workdir)
    config = stored_configs.to_look_at(stored, workdir, changes)
    config.tokenizer = tokenizer_files.copy_of(config.tokenizer, workdir) or config.tokenizer
    with json_files.naming(directory):
        tokenizer = loading.load_tokenizer(config)
        experiment = make_experiment(config, tokenizer.vocab_size)
    with Checkpointer(directory) as checkpointer:
        restored = checkpointer.restore(experiment.abstract_state)
    return Run(experiment.at_step(int(restored.state.step)), tokenizer, restored.state)


def open_packed(path: pathlib.Path, *, tokenizer: str = '', **changes: Any) -> Run:
    """Opens a packed file of `experiments.export`: the run with these weights, as they are. No workdir is needed.

    Args:
      path: of the file.
      tokenizer: the tokenizer's file, if it isn't beside the packed one, or in the folder `tokenizer` there.
      **changes: replace fields of its config, which but for `packed_config` has the defaults.

    Raises:
      ValueError: if the file is damaged, of another origin or of a version before 0.1.0, or if its tokenizer can't be
        read or is another one.
    """
    packed = read_packed(path)
    types = {'config': dict, 'step': int, 'tokenizer': str, 'layout': str, 'report': list}
    wrong = [name for name, kind in types.items() if not json_files.is_a(packed.info.get(name), kind)]
    if wrong or not 0 <= packed.info['step'] < 2**31:
        raise ValueError(
            f'{path} was not written by experiments.export: it lacks {", ".join(wrong) or "step"}, or has another such.'
            ' It can be read, by gaussq_jax.load_packed, and no more'
        )
    with json_files.naming(path):
        config = stored_configs.to_look_at(_unpacked_config(path, packed.info['config']), path, changes)
    named = pathlib.PurePath(config.tokenizer).name  # and which files are opened
    if not tokenizer and named != 'bytes':
        tokenizer = tokenizer_files.copy_of(named, path.parent) or tokenizer_files.of_run(named, path.parent)
        if not tokenizer:
            raise ValueError(
                f'{path} is of the tokenizer {named!r}, which is not beside it: say by --tokenizer where it is'
            )
    config.tokenizer = tokenizer or named
    with json_files.naming(path):
        loaded = loading.load_tokenizer(config)
    if loaded.fingerprint != packed.info['tokenizer']:
        raise ValueError(
            f'tokenizer={config.tokenizer!r} is {loaded.fingerprint}, but {path} was trained with'
            f' {packed.info["tokenizer"]}; say by --tokenizer where that is'
        )
    with json_files.naming(path):
        experiment = make_experiment(config, loaded.vocab_size)
        experiment, state = with_fixed_weights(
            experiment, packed.params, packed.info['step'], are_rounded=bool(packed.layout)
        )
    return Run(experiment, loaded, state, packed._replace(params=state.params))


def packed_config(config: ConfigDict, step: int) -> dict[str, Any]:
    """What a packed file keeps of its run's config: SERVED, EVALUATED, and MATMULS if they are quantized at this step.

    Nothing of it says where files are on this machine.
    """
    kept = [*SERVED, *EVALUATED, *MATMULS * quantizes_matmuls(config, step)]
    fields = {name: value for name, value in stored_configs.write(config.to_dict()).items() if name in kept}
    if 'quantization' in fields:  # whatever the step is that the file says
        fields['quantization'] = fields['quantization'] | {'start_step': 0, 'end_step': 0}
    name = pathlib.PurePath(config.tokenizer).name
    return {stored_configs.VERSION_FIELD: stored_configs.VERSION, **fields, 'tokenizer': name}


def open_either(workdir: str | None, weights: str | None, tokenizer: str | None = None, **changes: Any) -> Run:
    """`open_run(workdir)` or `open_packed(weights)`, whichever is given.

    Raises:
      ValueError: for both or neither, for a tokenizer with a workdir; as they do.
    """
    if workdir and weights:
        raise ValueError(f'workdir={workdir!r}, weights={weights!r}: give one of them')
    if weights:
        return open_packed(paths.parse(weights, 'weights'), tokenizer=tokenizer or '', **changes)
    if tokenizer:
        raise ValueError(f'tokenizer={tokenizer!r} has a meaning only with weights, a packed file')
    if not workdir:
        raise ValueError("give workdir, a run's directory, or weights, a packed file")
    return open_run(paths.parse(workdir, 'workdir'), **changes)


def _begun(workdir: pathlib.Path) -> dict[str, Any]:
    """The config with which a run was last started, from its config.json, or else from its newest checkpoint."""
    path = workdir / 'config.json'
    if path.is_file():
        return stored_configs.read(json_files.read(path), path)
    return stored_configs.read(load_contents(workdir / 'checkpoints')['config'], workdir / 'checkpoints')


def _unpacked_config(path: pathlib.Path, stored: dict[str, Any]) -> dict[str, Any]:
    """A whole config of what a packed file keeps; of one of version 0.1.0, which kept all, what is kept today."""
    stored = stored_configs.read(stored, path)
    if missing := {*SERVED, *EVALUATED} - stored.keys():
        raise stored_configs.of_another_program(path, missing)
    config = {**common.base_config(common.parse('method=bf16', **common.ARGUMENTS)).to_dict(), 'name': path.stem}
    config |= {name: stored[name] for name in (*SERVED, *EVALUATED)}
    if 'method' not in stored:
        return config
    if missing := config['quantization'].keys() - stored.get('quantization', {}).keys():
        raise stored_configs.of_another_program(path, {f'quantization.{name}' for name in missing})
    matmuls = {name: stored[name] for name in MATMULS}
    return config | matmuls if quantizes_matmuls(ConfigDict(config | matmuls)) else config


def write_config(workdir: pathlib.Path, config: ConfigDict):
    """Writes the resolved config to config.json."""
    replace_file(workdir / 'config.json', json.dumps(stored_configs.write(config.to_dict()), indent=2) + '\n')
