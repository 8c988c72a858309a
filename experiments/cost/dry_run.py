"""What a training will need, before there is the cluster for it: memory, collectives, FLOPs, time.

    python -m experiments.train --config=configs/llama2.py:size=1b --config.mesh.fsdp=8 --dry_run
    python -m experiments.train --config=configs/capybara.py:size=70b --config.mesh.fsdp=64 --dry_run --devices=64

The training step is compiled for as many devices, and nothing runs: no data is read, no weights are made; a
teacher's are verified. For NVIDIA's
GPUs, XLA compiles it for H100s where the packages of the extra `compile` are installed (pip install -e .[compile]).
Elsewhere a compilation for CPUs stands in: weights, optimizer's state and collectives are the same, but CPUs keep and
multiply bfloat16 as float32 and fuse less, so that activations and other temporaries take more.
"""

import dataclasses
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from experiments import methods
from experiments.cost import collectives, memory_advice, step_costs
from experiments.data import loading
from experiments.devices import described_gpus, device_specs
from experiments.training import distillation, meshes, quantized_layers
from experiments.training.experiment import Experiment, make_experiment
from gaussq_jax.text_table import text_table

USABLE = 0.9  # of a device's memory; the rest is for the runtime, communication buffers and fragmentation
JAX_DEFAULT = 0.75  # of a GPU's memory, which JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


def run(config: ConfigDict, *, device: str, devices: int, vocab_size: int | None, mfu: float):
    """Prints what a training of this config needs. To be called before JAX looks for devices.

    Args:
      config: of the training.
      device: of what kind, as `device_specs` names it.
      devices: how many there are.
      vocab_size: tokens there are; None for those of the config's tokenizer.
      mfu: the fraction of its peak that a device reaches.

    Raises:
      ValueError: for a config that can't be trained, on so many devices, and for an unknown device.
    """
    spec = device_specs.find(device)
    if spec is None:
        raise ValueError(f'device={device!r} is unknown; allowed are {", ".join(device_specs.names())}')
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', devices)
    if vocab_size and config.vocab_size:
        raise ValueError(f'--vocab_size={vocab_size}: the config says already that vocab_size={config.vocab_size}')
    tokenizer = None if vocab_size else loading.load_tokenizer(config)
    experiment = make_experiment(config, vocab_size or tokenizer.vocab_size)
    report(dataclasses.replace(experiment, teacher=distillation.find(experiment, tokenizer)), spec, mfu)


def report(experiment: Experiment, device: device_specs.DeviceSpec, mfu: float):
    """Compiles the experiment's training step, on a mesh of virtual devices, and prints what it needs."""
    describe(experiment, device)
    costs = _step_costs(experiment, device)
    print_memory(experiment, costs, device)
    print_collectives(costs)
    print_time(experiment, costs, device, mfu)


def describe(experiment: Experiment, device: device_specs.DeviceSpec):
    """Prints what would be trained, on what."""
    config, mesh = experiment.config, experiment.mesh
    sequences = config.batch_size // (config.microbatches * meshes.num_batch_shards(mesh))
    _print('model', f'{config.name}, {experiment.num_params:,} parameters, vocabulary {experiment.vocab_size:,}')
    _print('', f'N = {experiment.num_linear_params:,} in linear layers')
    for i, line in enumerate(quantized_layers.describe(experiment)):
        _print('' if i else 'matmuls', line)
    if experiment.teacher:
        _print('teacher', experiment.teacher.describe())
    mesh_sizes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items())
    _print('devices', f'{mesh.size} x {device.name}, which need not be there: {mesh_sizes}')
    _print('', f'each {_gb(device.memory_bytes)}, {device.peak_flops / 1e12:,.0f} TFLOP/s ({device.source})')
    _print(
        'batch',
        f'{config.batch_size:,} sequences of {config.sequence_length:,} tokens in {config.microbatches} microbatch(es)',
    )
    _print('', f'{sequences} sequence(s) a device at a time')


def print_memory(experiment: Experiment, costs: step_costs.StepCosts, device: device_specs.DeviceSpec):
    """Prints what each device holds, whether that fits, and if it doesn't, what would."""
    config, memory = experiment.config, costs.memory
    compiler = {
        'gpu': f'compiled for {experiment.mesh.size} described H100s',
        'cpu': f'compiled for CPUs, which stand in for {device.name} and take more for activations and the rest',
    }[costs.compiled_for]
    kept = "one layer's at a time" if config.resample_weights else "all layers'"
    limit = USABLE * device.memory_bytes
    fits = memory.total <= limit
    rows = (
        ('weights, float32', _gb(memory.weights)),
        ('bitwidths, float32', _gb(memory.bitwidths)),
        (f"optimizer's state, {config.optimizer.name}", _gb(memory.optimizer)),
        (f'W_hat, bfloat16, {kept}', _gb(memory.samples)),
        ('gradients', _gb(memory.gradients)),
        *([('weights of the teacher', _gb(memory.teacher))] if experiment.teacher else []),
        ('activations, gathered weights and the rest', _gb(memory.rest)),
        ('in all', _gb(memory.total), f'of {_gb(device.memory_bytes)}: {"fits" if fits else "DOES NOT FIT"}'),
    )
    _print('memory', f'on each device, {compiler}')
    _print_table(rows, left=(0, 2))
    is_gpu = not device.name.startswith('tpu')
    if fits and is_gpu and memory.total > JAX_DEFAULT * device.memory_bytes:
        _print('', f'with XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE + 0.02:.2f}: by itself, JAX takes {JAX_DEFAULT:.0%}')
    if not fits:
        print_advice(experiment, costs, limit)


def print_advice(experiment: Experiment, costs: step_costs.StepCosts, limit: float):
    """Prints what would make it fit into `limit` bytes."""
    memory = costs.memory
    measure = lambda changed: step_costs.step_costs(changed, compile_for=costs.compiled_for).memory
    _print('to fit', f'a device may hold {_gb(limit)}; by themselves, as estimates:')
    changes = memory_advice.single_changes(experiment, memory)
    _print_table([(_gb(advice.total), str(advice)) for advice in changes], left=(1,))
    if together := memory_advice.combined_changes(experiment, memory, limit, measure):
        _print('', f'together, compiled like the above:\n{"":<10}{_gb(together.total):>12}  {together}')
    elif more := memory_advice.more_devices(experiment, memory, limit):
        _print('', f'on more devices, an estimate:\n{"":<10}{_gb(more.total):>12}  {more}')
    else:
        _print('', 'nothing that is known here makes it fit: a smaller model or shorter sequences would')


def print_collectives(costs: step_costs.StepCosts):
    """Prints what devices send to each other."""
    where = {'gpu': 'of the compiled program', 'cpu': 'of the program after partitioning'}[costs.compiled_for]
    _print('sent', f'by each device in a step, {where}')
    rows = [
        (row['kind'], row['dtype'], f'{row["number"]:,}', _gb(row['bytes']), _gb(row['sent_bytes']))
        for row in collectives.summary(costs.collectives)
    ]
    _print_table([('', 'dtype', 'number', 'whole arrays', 'sent, in rings'), *(rows or [('nothing',)])], left=(0, 1))


def print_time(experiment: Experiment, costs: step_costs.StepCosts, device, mfu: float):
    """Prints FLOPs, and how long a step and the training take."""
    config, devices = experiment.config, experiment.mesh.size
    seconds = costs.model_flops / (devices * device.peak_flops * mfu)
    total = seconds * config.total_steps
    again = costs.hardware_flops / costs.model_flops
    _print('FLOPs', f'{costs.model_flops:.3e} a step in matrix products, the masked half of attention included')
    more = ['what is computed again', *["Muon's iterations"] * (config.optimizer.name == 'muon')]
    recipe = methods.matmul_recipe(config)
    transforms = recipe is not None and any(quantizer.hadamard for quantizer in recipe.operands.values())
    more += ['Hadamard transforms'] * transforms
    _print('', f'{costs.hardware_flops:.3e} with {" and ".join(more)}, {again:.2f} times as many')
    tokens = config.batch_size * config.sequence_length
    _print('time', f'at an MFU of {mfu:.0%}: {seconds:,.3g} s a step, {tokens / seconds:,.0f} tokens a second')
    duration = f'{total / 86400:,.1f} days' if total > 86400 else f'{total / 3600:,.2f} hours'
    hours = f'{devices * total / 3600:,.0f} device hours'
    _print('', f'{duration} for {config.total_steps:,} steps, D = {experiment.num_tokens:,} tokens; {hours}')


def _step_costs(experiment, device) -> step_costs.StepCosts:
    """By the compiler for NVIDIA's GPUs, where it is one of these and the packages are there."""
    if device.source.startswith('NVIDIA'):
        try:
            return step_costs.step_costs(experiment, compile_for='gpu')
        except described_gpus.CannotCompile:
            pass
    return step_costs.step_costs(experiment, compile_for='cpu')


def _print(label: str, text: str):
    print(f'{label:<10}{text}', flush=True)


def _print_table(rows: Sequence[Sequence[str]], left: Sequence[int]):
    for line in text_table(rows, left=left).splitlines():
        _print('', line)


def _gb(size: float) -> str:
    """Bytes in units of 10^9, 10^6 or 10^3."""
    for unit, name in ((1e9, 'GB'), (1e6, 'MB')):
        if size >= unit:
            return f'{size / unit:,.2f} {name}'
    return f'{size / 1e3:,.1f} kB'
