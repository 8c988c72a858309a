"""What would make a training step fit into its devices' memory, in settings of the config."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from experiments.cost.step_costs import Memory, known_memory
from experiments.training import meshes
from experiments.training.experiment import Experiment, make_experiment

MOST_DEVICES = 4096
MOST_COMPILATIONS = 2


@dataclasses.dataclass(frozen=True)
class Advice:
    """Settings, and what each device would then hold.

    Attributes:
      settings: fields of the config; 'devices' is how many there are.
      total: bytes.
      compiled: whether a compiler says so; otherwise it is an estimate.
    """

    settings: dict[str, Any]
    total: int
    compiled: bool = False

    def __str__(self):
        flags = (f'--{"" if name == "devices" else "config."}{name}={value}' for name, value in self.settings.items())
        return ' '.join(flags)


def single_changes(experiment: Experiment, memory: Memory) -> list[Advice]:
    """Changes that help, each by itself, those first that cost least time.

    Of these estimates, all but `rest` is exact. The rest is taken to be proportional to the sequences that a device has
    at a time; where nothing of a layer is kept any more, to be one layer's, and all layers' inputs.
    """
    found = []
    for settings in _changes(experiment):
        changed = _changed(experiment, settings)
        if changed and (total := _estimate(experiment, memory, changed)) < 0.99 * memory.total:
            found.append(Advice(settings, total))
    return found


def combined_changes(
    experiment: Experiment, memory: Memory, limit: float, measure: Callable[[Experiment], Memory]
) -> Advice | None:
    """Changes that together make it fit on as many devices; None if none are found.

    Args:
      experiment: one that doesn't fit.
      memory: what it needs.
      limit: bytes that a device has.
      measure: compiles another experiment, and says what that needs.
    """
    settings, current, tried = {}, experiment, 0
    while True:
        changes = ((change, _changed(current, change)) for change in _changes(current))
        change, changed = next(
            ((c, e) for c, e in changes if e and _estimate(current, memory, e) < memory.total), 2 * [None]
        )
        if changed is None:
            return None
        memory = dataclasses.replace(known_memory(changed), rest=_estimated_rest(current, memory, changed))
        settings, current = settings | change, changed
        if memory.total <= limit:
            memory, tried = measure(current), tried + 1
            if memory.total <= limit:
                return Advice(settings, memory.total, compiled=True)
            if tried == MOST_COMPILATIONS:
                return None


def more_devices(experiment: Experiment, memory: Memory, limit: float) -> Advice | None:
    """Twice as many devices, or four times, …, among which the weights are shared; None if that can't be enough."""
    config, sizes = experiment.config, dict(experiment.mesh.shape)
    sequences = _sequences_at_a_time(experiment)
    sizes['fsdp'], sizes['data'] = sizes['fsdp'] * sizes['data'], 1
    devices = experiment.mesh.size
    while 2 * devices <= MOST_DEVICES and config.batch_size % (2 * sizes['fsdp']) == 0:
        devices, sizes['fsdp'] = 2 * devices, 2 * sizes['fsdp']
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        microbatches = max(1, config.batch_size // (sizes['fsdp'] * sequences))
        rest = memory.rest * config.batch_size // (sizes['fsdp'] * microbatches) // sequences
        if (total := known_memory(experiment, mesh).total + rest) <= limit:
            settings = {'devices': devices, 'mesh.data': 1, 'mesh.fsdp': sizes['fsdp'], 'microbatches': microbatches}
            return Advice(settings, total)
    return None


def _changes(experiment) -> Iterator[dict[str, Any]]:
    config, mesh = experiment.config, experiment.mesh.shape
    if mesh['data'] > 1:
        yield {'mesh.data': 1, 'mesh.fsdp': mesh['data'] * mesh['fsdp']}
    if not _keeps_nothing(config):
        yield {'remat_policy': 'full'}
    yield {'microbatches': 2 * config.microbatches}
    if not config.resample_weights:
        yield {'resample_weights': True, 'remat_policy': config.remat_policy or 'full'}
    if config.optimizer.state_dtype != 'bfloat16':
        yield {'optimizer.state_dtype': 'bfloat16'}
    if config.optimizer.name != 'adam_mini':
        yield {'optimizer.name': 'adam_mini'}


def _changed(experiment, settings) -> Experiment | None:
    """The experiment with these settings; None if they can't be, such as a microbatch of half a sequence."""
    config = ConfigDict(experiment.config.to_dict())
    config.update_from_flattened_dict(settings)
    try:
        return make_experiment(config, experiment.vocab_size)
    except ValueError:
        return None


def _estimate(experiment, memory, changed) -> int:
    return known_memory(changed).total + _estimated_rest(experiment, memory, changed)


def _estimated_rest(experiment, memory, changed) -> int:
    config = changed.config
    sequences = _sequences_at_a_time(changed)
    rest = memory.rest * sequences // _sequences_at_a_time(experiment)
    if _keeps_nothing(config) and not _keeps_nothing(experiment.config):
        layers, itemsize = config.model.num_layers, jax.numpy.dtype(config.dtype).itemsize
        inputs = layers * sequences * config.sequence_length * config.model.hidden_size * itemsize
        rest = rest // layers + inputs
    return rest


def _keeps_nothing(config) -> bool:
    return config.remat_policy in ('full', 'nothing_saveable')


def _sequences_at_a_time(experiment) -> int:
    """Those of a microbatch that a device has."""
    sizes = meshes.batch_sharding(experiment.mesh).shard_shape((experiment.config.batch_size,))
    return sizes[0] // experiment.config.microbatches
