"""Runs that begin in the middle of another: `config.branch_from`, by which one run of 'wsd' gives many shorter ones.

Until a learning rate of 'wsd' falls, nothing that is learned depends on how many steps there are. So a run goes on from
any checkpoint of another, its stem, that was saved before either's decay, and comes to the same bits as if it had taken
all steps by itself. The newest such checkpoint becomes its first: from there on it is a run like any, which needs its
stem no more.
"""

import pathlib
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from configs import stored as stored_configs
from experiments.checkpoints.checkpointing import Checkpointer, Restored
from experiments.checkpoints.step_directories import all_steps, load_contents
from experiments.data.loading import Data
from experiments.files import json_files, paths
from experiments.training import resuming
from experiments.training.experiment import Experiment
from experiments.training.optimizers import decay_start

OF_DECAY = ('decay_steps', 'final_learning_rate')  # of the optimizer: with total_steps, what is a branch's own


def begin(checkpointer: Checkpointer, experiment: Experiment, data: Data) -> Restored | None:
    """The stem's newest whole checkpoint before both decays, which is now a branch's first; None of a run that is none.

    Args:
      checkpointer: of the branch, which has no checkpoint yet.

    Raises:
      ValueError: the stem has no such checkpoint, or is of another config in more than total_steps and OF_DECAY.
    """
    config = experiment.config
    if not config.branch_from:
        return None
    directory = paths.parse(config.branch_from, 'config.branch_from') / 'checkpoints'
    with json_files.naming(f'config.branch_from={config.branch_from!r}'):
        newest = load_contents(directory)
    present = resuming.stored_config(config, data)
    stem = _config_of_stem(config, present, directory / str(newest['step']), newest['config'])
    ends = {'there': decay_start(stem), 'here': decay_start(config)}
    first = min(ends, key=ends.get)
    with Checkpointer(directory) as of_stem:
        restored = of_stem.restore(experiment.abstract_state, at_most=ends[first])
    if restored is None:
        raise ValueError(
            f'config.branch_from={config.branch_from!r} has checkpoints of the steps'
            f' {", ".join(map(str, reversed(all_steps(directory))))}, and the decay {first} begins at step'
            f' {ends[first]}; one of that step or before has to be there, which config.keep_period keeps'
        )
    logging.info('branching off %s at step %d', config.branch_from, restored.step)
    restored.data_state['divergence']['checkpoint'] = restored.step  # of those to roll back to, the branch has this
    checkpointer.save(restored.step, restored.state, restored.data_state, present)
    checkpointer.wait()
    return restored


def _config_of_stem(
    config: ConfigDict, present: dict[str, Any], directory: pathlib.Path, stored: dict[str, Any]
) -> ConfigDict:
    """As it is stored with a checkpoint; ValueError if it differs in more than how the run ends."""
    with json_files.naming(directory):
        stem = stored_configs.read(stored)
        own = {'total_steps': stem['total_steps'], **{name: stem['optimizer'][name] for name in OF_DECAY}}
    alike = present | {'total_steps': own.pop('total_steps'), 'optimizer': present['optimizer'] | own}
    if lines := resuming.config_differences(alike, directory, stored):
        raise ValueError(
            f'config.branch_from={config.branch_from!r}: a branch may have another total_steps, optimizer.'
            f'{" and optimizer.".join(OF_DECAY)} than its stem, and these differ, too:\n  ' + '\n  '.join(lines)
        )
    return ConfigDict(stem)
