"""The weights that a training starts from, where `config.init_from` names another run: of its newest whole checkpoint.

Which checkpoint that was is kept in the run's own ones. It is asked for again only if the run goes back to its
beginning, and then nothing else stands in for it; a run that continues needs it no more (but configs/from_run.py reads
that run's config.json each time).
"""

import pathlib
from typing import Any

from absl import logging

from experiments.checkpoints.checkpointing import load_part
from experiments.checkpoints.contents import describe_leaf
from experiments.checkpoints.step_directories import load_contents
from experiments.files import paths
from experiments.training import resuming
from experiments.training.experiment import Experiment
from gaussq_jax import leaves_by_path, models


def find(experiment: Experiment, workdir: pathlib.Path) -> dict[str, Any] | None:
    """The step and the SHA-256 of the checkpoint that the run in `workdir` starts from; None for random weights.

    A branch has started from where its stem did.

    Raises:
      ValueError: there is no whole checkpoint, or it is of another model.
    """
    init_from = experiment.config.init_from
    if not init_from:
        return None
    if begun := resuming.begun_config(experiment.config, workdir):
        return begun.get('initial_weights')
    contents = load_contents(_directory(init_from))
    if differences := _differences(contents, experiment):
        more = f'; and {len(differences) - 4} more' if len(differences) > 4 else ''
        raise ValueError(f'config.init_from={init_from!r} is of another model: {"; ".join(differences[:4])}{more}')
    return {'step': contents['step'], 'sha256': contents['sha256']}


def load(experiment: Experiment, source: dict[str, Any]) -> Any:
    """The weights that `find` has found, where the experiment has them; ValueError as of `load_part`."""
    logging.info('starting from the weights of %s, %s', experiment.config.init_from, source)
    directory = _directory(experiment.config.init_from)
    return load_part(directory, name='params', abstract_part=experiment.abstract_state.params, **source)


def _directory(init_from):
    return paths.parse(init_from, 'config.init_from') / 'checkpoints'


def _differences(contents, experiment):
    """What of the model is not the same, in words."""
    stored, present = contents['config']['model'], experiment.config.model.to_dict()
    if stored['family'] != present['family']:
        return [f'model.family is {stored["family"]} there, {present["family"]} here']
    there = {
        name.removeprefix('params/'): leaf for name, leaf in contents['leaves'].items() if name.startswith('params/')
    }
    here = {name: describe_leaf(leaf) for name, leaf in leaves_by_path(experiment.abstract_state.params).items()}
    there, here = there | _settings(stored), here | _settings(present)
    return [
        f'{name} is {there.get(name, "absent")} there, {here.get(name, "absent")} here'
        for name in dict.fromkeys([*here, *there])
        if there.get(name) != here.get(name)
    ]


def _settings(model):
    """What the shapes of weights need not tell; a size that may be None, for one that follows from others, they do."""
    family = models.find_family(model['family'])
    built = family.module(vocab_size=1, **{name: value for name, value in model.items() if name != 'family'})
    return {f'model.{name}': getattr(built, name) for name, kind in family.settings.items() if kind != (int | None)}
