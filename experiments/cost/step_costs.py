"""What a training step needs on each device: memory, collectives and FLOPs, from its compiled program.

No weights are allocated and nothing runs: the devices may be virtual ones of the CPU, or GPUs that are only described.
"""

import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from experiments.cost import collectives
from experiments.data import chats
from experiments.devices import described_gpus
from experiments.training import flops, meshes, steps
from experiments.training.experiment import Experiment

# Of what isn't run only the plan is wanted; buffers are planned before these.
_QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
      weights: the float32 master weights.
      bitwidths: the transform's state.
      optimizer: its state.
      samples: W_hat, the weights that the model multiplies with, of this device's shard: of all layers, or of one at a
        time where they are resampled.
      gradients: of the same shard, in W_hat's dtype; and if there are several microbatches, their float32 sum.
      teacher: its weights.
      rest: what the compiled program takes above these: activations, gathered weights and other temporaries.
    """

    weights: int
    bitwidths: int
    optimizer: int
    samples: int
    gradients: int
    teacher: int = 0
    rest: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """What a training step needs.

    Attributes:
      compiled_for: 'cpu' or 'gpu'.
      memory: of each device.
      collectives: of the step, as each device sees them.
      model_flops: of the global batch, without what is computed again; see `flops.model_flops`.
      hardware_flops: with it, and with those of the optimizer.
    """

    compiled_for: str
    memory: Memory
    collectives: list[collectives.Collective]
    model_flops: int
    hardware_flops: int


def step_costs(experiment: Experiment, *, compile_for: str = 'cpu') -> StepCosts:
    """Compiles the training step and says what it needs.

    Args:
      experiment: on a mesh of CPU devices.
      compile_for: 'cpu', or 'gpu' for as many described H100s, which takes the packages of the extra `compile`.

    Raises:
      described_gpus.CannotCompile: where one of them is missing.
    """
    if compile_for == 'cpu':
        traced = trace(experiment)
        compiled, hlo_text = collectives.compile_partitioned(traced.lower(), **_QUICK)
    else:
        with _on_described_gpus(experiment) as experiment_there:
            traced = trace(experiment_there)
            options = {
                'xla_gpu_deterministic_ops': bool(experiment.config.deterministic),
                'xla_gpu_enable_triton_gemm': False,  # whose tiles are chosen by trying them on a GPU
            }
            compiled = traced.lower().compile(_QUICK | options)  # in which kernels are lowered, too
        hlo_text = compiled.as_text()
    stats = compiled.memory_analysis()
    new_bytes = stats.output_size_in_bytes - stats.alias_size_in_bytes
    known = known_memory(experiment)
    rest = stats.argument_size_in_bytes + new_bytes + stats.temp_size_in_bytes - known.total
    return StepCosts(
        compiled_for=compile_for,
        memory=dataclasses.replace(known, rest=max(rest, 0)),
        collectives=collectives.read(hlo_text),
        model_flops=flops.model_flops(experiment),
        hardware_flops=flops.of_jaxpr(traced.jaxpr.jaxpr),
    )


def trace(experiment: Experiment) -> jax.stages.Traced:
    """The training step for arrays that aren't there; `.lower().compile()` compiles it."""
    config = experiment.config
    of = lambda length, dtype: jax.ShapeDtypeStruct(
        (config.batch_size, length), dtype, sharding=meshes.batch_sharding(experiment.mesh)
    )
    batch = {'tokens': of(config.sequence_length + 1, jnp.int32)}
    if is_chats := config.text_feature in chats.FEATURES:
        batch['mask'] = of(config.sequence_length, jnp.float32)
    if is_chats or config.packing == 'segmented':
        batch['segments'] = of(config.sequence_length, jnp.int32)
    teacher = [experiment.teacher.abstract_weights] if experiment.teacher else []
    return steps.make_train_step(experiment).trace(experiment.abstract_state, batch, *teacher)


def known_memory(experiment: Experiment, mesh: Mesh | AbstractMesh | None = None) -> Memory:
    """What the shapes alone say, all but `rest`; on another mesh than the experiment's, if given."""
    config, state, teacher = experiment.config, experiment.abstract_state, experiment.teacher
    shardings = meshes.state_shardings(mesh or experiment.mesh, state, experiment.family)
    of_teacher = teacher.on(mesh or experiment.mesh).abstract_weights if teacher else {}
    key = jax.eval_shape(lambda: jax.random.key(0))
    weights = jax.eval_shape(experiment.transform.apply, key, state.params, state.transform_state)
    all_samples = samples = _shard_bytes(weights, shardings.params)
    if config.resample_weights:
        layers = experiment.family.layers
        of_layers = _shard_bytes(weights[layers], shardings.params[layers])
        samples += of_layers // config.model.num_layers - of_layers
    params = _shard_bytes(state.params, shardings.params)
    return Memory(
        weights=params,
        bitwidths=_shard_bytes(state.transform_state, shardings.transform_state),
        optimizer=_shard_bytes(state.opt_state, shardings.opt_state),
        samples=samples,
        gradients=all_samples + (params if config.microbatches > 1 else 0),
        teacher=_shard_bytes(of_teacher, jax.tree.map(lambda leaf: leaf.sharding, of_teacher)),
    )


def _shard_bytes(tree: Any, shardings: Any) -> int:
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


@contextlib.contextmanager
def _on_described_gpus(experiment):
    """The experiment on described H100s; in this context its step is traced for them."""
    devices = np.asarray(described_gpus.devices(experiment.mesh.size))
    mesh = Mesh(devices.reshape(experiment.mesh.devices.shape), experiment.mesh.axis_names)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, leaf.sharding.spec)),
        experiment.abstract_state,
    )
    with described_gpus.tracing():
        teacher = experiment.teacher and experiment.teacher.on(mesh)
        yield dataclasses.replace(experiment, mesh=mesh, abstract_state=state, teacher=teacher)
