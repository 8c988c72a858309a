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
    """

    settings: dict[str, Any]
    total: int

    def __str__(self):
        flag = lambda name: name if name == 'devices' else f'config.{name}'
        return ' '.join(f'--{flag(name)}={value}' for name, value in self.settings.items())


def single_changes(experiment: Experiment, memory: Memory) -> list[Advice]:
    """Changes that help, each by itself, those first that cost least time.

    Of these estimates, all but `rest` is exact. The rest is taken to be proportional to the sequences that a device has
    at a time; where nothing of a layer is kept any more, to be one layer's, and all layers' inputs.
    """
    changes = [Advice(settings, estimate.total) for settings, _, estimate in _changes(experiment, memory)]
    return [advice for advice in changes if advice.total < 0.99 * memory.total]


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
    while tried < MOST_COMPILATIONS:
        helpful = (found for found in _changes(current, memory) if found[-1].total < memory.total)
        change, current, memory = next(helpful, (None, None, memory))
        if change is None:
            return None
        settings |= change
        if memory.total <= limit:
            memory, tried = measure(current), tried + 1
            if memory.total <= limit:
                return Advice(settings, memory.total)
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


def _changes(experiment, memory) -> Iterator[tuple[dict[str, Any], Experiment, Memory]]:
    """Settings, the experiment with them, and an estimate of what it takes; none that can't be, as half a sequence."""
    for settings in _settings(experiment):
        config = ConfigDict(experiment.config.to_dict())
        config.update_from_flattened_dict(settings)
        try:
            changed = make_experiment(config, experiment.vocab_size)
        except ValueError:
            continue
        teacher = experiment.teacher and experiment.teacher.on(changed.mesh)
        changed = dataclasses.replace(changed, teacher=teacher)
        yield settings, changed, dataclasses.replace(known_memory(changed), rest=_rest(experiment, memory, changed))


def _settings(experiment) -> Iterator[dict[str, Any]]:
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
    if config.optimizer.name == 'adamw':
        yield {'optimizer.name': 'adam_mini'}


def _rest(experiment, memory, changed) -> int:
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
