"""Which run a checkpoint is of: the config that is stored with it, and what of that has to be the same to go on."""

import functools
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from configs import stored as stored_configs
from experiments.checkpoints.checkpointing import Checkpointer, Restored
from experiments.checkpoints.contents import CONTENTS, differences
from experiments.checkpoints.step_directories import load_contents, newest_step
from experiments.data.loading import Data
from experiments.files import json_files, paths
from experiments.methods import METHODS
from experiments.methods.settings import OF_BITWIDTHS
from experiments.training.experiment import Experiment

# Every field of a config is in one of these three.
LEARNED_FROM = (  # what has to be the same for a run to go on
    *('seed', 'method', 'quantization', 'model', 'vocab_size', 'dtype', 'gradient_reduction', 'optimizer'),
    *('batch_size', 'sequence_length', 'total_steps', 'packing', 'init_from', 'distillation'),
)
TEXT = (
    'dataset',
    'train_split',
    'held_out',
    'text_feature',
    'invalid_text',
    'special_tokens',
)  # for which its digest stands
FREE_FIELDS = (  # change nothing of what is learned, unless it diverges; but for `microbatches` the rounding of sums
    *('name', 'validation_split', 'branch_from'),
    *('mesh', 'microbatches', 'remat_policy', 'scan_unroll', 'resample_weights', 'deterministic', 'stall_timeout'),
    *('data_dir', 'cache_dir', 'tokenizer', 'teacher', 'eval_batches'),  # for `teacher` stands what it was read from
    *('log_every', 'eval_every', 'checkpoint_every', 'keep_checkpoints', 'keep_period', 'divergence'),
)

FILES = ('data_dir', 'cache_dir', 'tokenizer', 'teacher')  # fields that say where files are: each host may have its own


def stored_config(config: ConfigDict, data: Data) -> dict[str, Any]:
    """The resolved config as checkpoints keep it, with what identifies the text, the initial weights, the teacher's."""
    identities = zip(stored_configs.IDENTITIES, (data.sha256, data.initial_weights, data.teacher_weights))
    return stored_configs.write(config.to_dict()) | {name: value for name, value in identities if value is not None}


def in_all_processes(config: ConfigDict, data: Data) -> str:
    """What has to be the same in all processes of a training: the config, and the text."""
    fields = {name: value for name, value in stored_config(config, data).items() if name not in FILES}
    return json.dumps({**fields, 'validation corpus': data.validation_sha256})


def begun_config(config: ConfigDict, workdir: pathlib.Path | None) -> dict[str, Any] | None:
    """What the checkpoint that a run goes on from keeps of its config, its own or that of its stem; None of no run.

    Raises:
      ValueError: there are checkpoints, and none is whole.
    """
    stem = paths.parse(config.branch_from, 'config.branch_from') if config.branch_from else None
    directories = (of / 'checkpoints' for of in (workdir, stem) if of)
    begun = next((of for of in directories if newest_step(of) is not None), None)
    return begun and load_contents(begun)['config']


def restore(
    checkpointer: Checkpointer, experiment: Experiment, data: Data, *, at_most: int | None = None
) -> Restored | None:
    """The newest whole checkpoint of this very run, of step `at_most` or before; None if there is none yet.

    Raises:
      ValueError: if the checkpoint is of another run: another model, method, data or optimizer.
    """
    check = functools.partial(check_config, stored_config(experiment.config, data))
    return checkpointer.restore(experiment.abstract_state, check, at_most=at_most)


def check_config(present: dict[str, Any], directory: pathlib.Path, config: dict[str, Any]) -> None:
    """ValueError, naming the fields, if the config that is stored with a checkpoint is another run's.

    Args: as of `config_differences`.
    """
    if lines := config_differences(present, directory, config):
        raise ValueError(
            f'the checkpoint {directory} was saved by a run with another config:\n  '
            + '\n  '.join(lines)
            + '\nUse another --workdir for this config, or give the stored values to continue that run.'
        )


def config_differences(present: dict[str, Any], directory: pathlib.Path, config: dict[str, Any]) -> list[str]:
    """A line for each field by which the config that is stored with a checkpoint is another run's.

    With them are those of TEXT that differ, which may be why the corpus does.

    Args:
      present: of this run, as `stored_config` gives it.
      directory: of the checkpoint.
      config: as it is stored there, by any version.
    """
    with json_files.naming(directory / CONTENTS):
        stored = _without_unused(stored_configs.read(config))
    present = _without_unused(present)
    of = lambda config, fields: {field: config[field] for field in fields if field in config}
    differing = lambda fields: list(differences(of(stored, fields), of(present, fields)))
    if lines := differing([*LEARNED_FROM, 'corpus', 'teacher_weights', *present.keys() & {'initial_weights'}]):
        lines += differing(TEXT)
    return lines


def _without_unused(config: dict[str, Any]) -> dict[str, Any]:
    """Without the fields for bitwidths, where the method learns none: another version may have other defaults."""
    method = METHODS.get(config.get('method'))
    if method is None or method.learns_bitwidths or not isinstance(config.get('quantization'), dict):
        return config
    fields = {name: value for name, value in config['quantization'].items() if name not in OF_BITWIDTHS}
    return config | {'quantization': fields}
