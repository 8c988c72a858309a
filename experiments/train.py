"""Train a language model in low precision, and show what it does.

    python -m experiments.train                                                  # configs/tiny.py, any machine
    python -m experiments.train --config=configs/llama2.py:size=134m,method=gaussws --workdir=runs/134m
    python -m experiments.train --config.optimizer.learning_rate=1e-3

The same command again continues where it stopped, and ends with the same bits as if it never had. A training whose loss
or gradient isn't finite ends there, and leaves the reason in diverged.txt.
"""

import math
import os
import pathlib
import sys
import time

import jax
from absl import flags
from ml_collections import config_flags

from experiments import input_pipeline, methods, partitioning, runs, tokenizers, training
from experiments.checkpointing import Checkpointer, Restored
from experiments.metrics import MetricWriter, replace_file

DEFAULT_CONFIG = 'configs/tiny.py'
CONFIG = config_flags.DEFINE_config_file('config', None, f'What to train: file.py:name=value,…; else {DEFAULT_CONFIG}')
WORKDIR = flags.DEFINE_string('workdir', None, "Where the run's files go; runs/<name of the config> if not given.")


# What is written at each log, in this order.
SHOWN = (
    *('train/loss', 'bits/mean', 'tokens_per_second', 'learning_rate', 'train/gradient_norm'),
    *('bits/min', 'bits/max', 'bits/gradient_norm'),
)


def main(argv):
    del argv
    config = CONFIG.value
    with runs.user_errors():
        workdir = pathlib.Path(WORKDIR.value or f'runs/{config.name}')
        if config.deterministic:
            os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
        tokenizer = tokenizers.load_tokenizer(config.tokenizer)
        experiment = training.make_experiment(config, tokenizer.vocab_size)
        data = runs.load_data(config, tokenizer)
        checkpointer = Checkpointer(workdir / 'checkpoints', keep=config.keep_checkpoints)
        restored = runs.restore(checkpointer, experiment, data)
        start = restored.step if restored else None
        if start == config.total_steps:
            print(f'{workdir} is complete, with {start} steps: see its summary.json, or give another --workdir.')
            return
        is_main_process = jax.process_index() == 0
        if is_main_process:
            runs.write_config(workdir, config)
            (workdir / 'diverged.txt').unlink(missing_ok=True)
            describe(experiment, data, workdir, start)
    with (
        checkpointer,
        MetricWriter(workdir, config.total_steps, resume_step=start, is_main_process=is_main_process) as writer,
    ):
        try:
            summary = train(experiment, data, checkpointer, restored, writer)
        except FloatingPointError as error:
            if is_main_process:
                replace_file(workdir / 'diverged.txt', f'{error}\n')
            sys.exit(f'error: {error}; the newest checkpoint is of step {checkpointer.latest_step()}')
        except KeyboardInterrupt:
            sys.exit(f'\ninterrupted; the same command continues from step {checkpointer.latest_step()}')
    if is_main_process:
        loss, bits_per_byte = summary['validation/loss'], summary['validation/bits_per_byte']
        print(f'done      validation loss {loss:.3f} nats a token, {bits_per_byte:.3f} bits per byte, without noise')
        if experiment.num_blocks:
            print(f'          with noise {summary["validation/loss_with_noise"]:.3f}; ', end='')
            print(f'bitwidths went from {config.quantization.b_init:g} to {summary["bits/mean"]:.2f} bits on average')
        print(f'          next: python -m experiments.generate --workdir={workdir} --prompt="def "')


def train(
    experiment: training.Experiment,
    data: runs.Data,
    checkpointer: Checkpointer,
    restored: Restored | None,
    writer: MetricWriter,
) -> dict[str, float]:
    """Trains from the restored state, or from the beginning, to the last step; evaluates and saves on the way."""
    config = experiment.config
    started = time.perf_counter()
    with runs.user_errors():
        validate = runs.make_validation(experiment, data)
        batches = input_pipeline.train_iterator(
            data.train.tokens,
            global_batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    train_step = training.make_train_step(experiment)
    state = restored.state if restored else training.init_state(experiment)
    if restored:
        batches.set_state(restored.data_state)
    first_step = int(state.step) + 1
    clock, clocked_steps, unchecked = time.perf_counter(), 0, []

    for step in range(first_step, config.total_steps + 1):
        state, metrics = train_step(state, partitioning.to_devices(next(batches), experiment.mesh))
        unchecked.append((step, metrics))
        clocked_steps += 1
        is_last = step == config.total_steps
        is_log, is_evaluation, is_checkpoint = (
            is_last or step % every == 0 for every in (config.log_every, config.eval_every, config.checkpoint_every)
        )
        if is_log or is_checkpoint:
            check_finite(unchecked)
        if is_log:
            tokens = clocked_steps * config.batch_size * config.sequence_length
            metrics['tokens_per_second'] = tokens / (time.perf_counter() - clock)
            writer.write(step, {name: metrics[name] for name in SHOWN if name in metrics})
        if is_evaluation:
            results = validate(state)
            writer.write(step, results)
        if is_last:  # before the last checkpoint: a run that has that one has its summary
            summary = {name: float(value) for name, value in {**metrics, **results}.items()}
            seconds = time.perf_counter() - started
            sizes = {'parameters': experiment.num_params, 'N': experiment.num_linear_params, 'D': experiment.num_tokens}
            writer.summary({'step': step, 'seconds': seconds, **sizes, **summary})
        if is_checkpoint:
            checkpointer.save(step, state, batches.get_state(), runs.stored_config(config, data))
        if is_log or is_evaluation or is_checkpoint or step == first_step:  # without the compilation, too
            jax.block_until_ready(state)
            clock, clocked_steps = time.perf_counter(), 0
    batches.close()
    checkpointer.wait()
    return summary


def check_finite(unchecked: list[tuple[int, dict[str, jax.Array]]]):
    """Empties the list of steps and their metrics; FloatingPointError if a loss or a gradient isn't finite."""
    for step, metrics in unchecked:
        for name in ('train/loss', 'train/gradient_norm', 'bits/gradient_norm'):
            if not math.isfinite(value := float(metrics.get(name, 0.0))):
                raise FloatingPointError(f'{name} is {value} at step {step}')
    unchecked.clear()


def describe(experiment: training.Experiment, data: runs.Data, workdir: pathlib.Path, start: int | None):
    """Prints what is about to be trained, on what, and where."""
    config, mesh = experiment.config, experiment.mesh
    blocks = experiment.num_blocks
    leaves = len(experiment.abstract_state.bitwidths)
    blocks_of = f'; {blocks:,} blocks in {leaves} leaves' if blocks else ''
    print(
        f'model     {config.model.family}, {experiment.num_params:,} parameters,'
        f' N = {experiment.num_linear_params:,} in linear layers'
    )
    print(f'method    {config.method}: {methods.describe(config)}{blocks_of}')
    print(
        f'data      {config.dataset}, {data.train.num_tokens:,} tokens to train on; tokenizer {config.tokenizer},'
        f' vocabulary {experiment.vocab_size}; D = {experiment.num_tokens:,} tokens in all steps'
    )
    device = mesh.devices.flat[0].device_kind
    print(f'devices   {mesh.size} x {device}: ' + ', '.join(f'{name} {size}' for name, size in mesh.shape.items()))
    if config.deterministic and mesh.devices.flat[0].platform == 'gpu':
        print('          deterministic operations are on, so that a resumed run is exact (config.deterministic)')
    action = 'starting' if start is None else f'continuing from step {start}'
    print(f'run       {workdir}, {action}, {config.total_steps} steps', flush=True)


if __name__ == '__main__':
    runs.start(main, default_config=DEFAULT_CONFIG)
