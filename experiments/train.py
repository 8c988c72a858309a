"""Train a language model in low precision, and show what it does.

    python -m experiments.train                                                  # configs/tiny.py, any machine
    python -m experiments.train --config=configs/llama2.py:size=134m,method=gaussws --workdir=runs/134m
    python -m experiments.train --config.optimizer.learning_rate=1e-3
    python -m experiments.train --config=configs/llama2.py:size=1b --dry_run --devices=8      # what it would need

The same command again continues where it stopped, and ends with the same bits as if it never had. A training whose loss
or gradient isn't finite ends there, and leaves the reason in diverged.txt; or it goes back to its last checkpoint and
skips the batches since, if `config.divergence` says so. At SIGTERM it saves, and ends; it ends itself, too, if it is
stuck. What its exit code then asks for is in experiments/processes/exit_codes.py.
"""

import contextlib
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator

from absl import flags, logging
from ml_collections import config_flags

import gaussq_jax as gq
from experiments import cli, methods, workdirs
from experiments.checkpoints import checkpointing, workdir_lock
from experiments.checkpoints.checkpointing import Checkpointer, SaveError
from experiments.cost import dry_run
from experiments.data import loading, tokenizer_files
from experiments.data.input_pipeline import TokenData
from experiments.data.tokenizers import Tokenizer
from experiments.devices import device_specs
from experiments.files import paths
from experiments.files.atomic_files import replace_file
from experiments.processes import distributed, exit_codes
from experiments.processes.preemption import Preempted, Preemption
from experiments.training import initial_weights, loop, profiling, resuming
from experiments.training.divergence import Diverged
from experiments.training.experiment import Experiment, make_experiment
from experiments.training.metrics import MetricWriter
from experiments.training.profiling import Profile

DEFAULT_CONFIG = 'configs/tiny.py'
CONFIG = config_flags.DEFINE_config_file('config', None, f'What to train: file.py:name=value,…; else {DEFAULT_CONFIG}')
WORKDIR = flags.DEFINE_string('workdir', None, "Where the run's files go; runs/<name of the config> if not given.")
PROFILE = flags.DEFINE_string('profile', None, 'START:STOP: the steps of which workdir/profile gets a trace for XProf.')

COORDINATOR_ADDRESS = flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT of process 0, of several processes started by hand.'
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are, started by hand.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is: 0, 1, …')
COORDINATOR_BIND_ADDRESS = flags.DEFINE_string(
    'coordinator_bind_address',
    None,
    'IP address at which process 0 listens, 0.0.0.0 or :: for all of its host; that of the coordinator if not given.',
)

DRY_RUN = flags.DEFINE_bool(
    'dry_run', False, 'Say what the training will need on --devices of --device; train nothing.'
)
DEVICES = flags.DEFINE_integer('devices', 8, 'dry_run: how many devices there are.', lower_bound=1)
DEVICE = flags.DEFINE_string('device', 'h100', f'dry_run: of what kind; {", ".join(device_specs.names())}.')
VOCAB_SIZE = flags.DEFINE_integer(
    'vocab_size', None, "dry_run: tokens there are, 32000 for Llama 2; else the tokenizer's.", lower_bound=1
)
MFU = flags.DEFINE_float(
    'mfu', 0.4, 'dry_run: the fraction of its peak that a device reaches.', lower_bound=0.01, upper_bound=1.0
)


def main(argv):
    del argv
    config = CONFIG.value
    with cli.user_errors():
        if DRY_RUN.value:
            asked = dict(device=DEVICE.value, devices=DEVICES.value, vocab_size=VOCAB_SIZE.value, mfu=MFU.value)
            dry_run.run(config, **asked)
            return
        workdir = paths.parse(WORKDIR.value or f'runs/{config.name}', '--workdir')
        if config.deterministic:
            os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
        distributed.initialize(
            COORDINATOR_ADDRESS.value,
            NUM_PROCESSES.value,
            PROCESS_ID.value,
            workdir=workdir,
            coordinator_bind_address=COORDINATOR_BIND_ADDRESS.value,
        )
    with (
        distributed.lost_process_errors(),
        exit_codes_of(workdir),
        Preemption() as preemption,
        contextlib.ExitStack() as resources,
    ):
        with cli.user_errors():
            tokenizer = workdirs.settle_tokenizer(config, workdir)
            experiment = make_experiment(config, tokenizer.vocab_size)
            with distributed.first_then_others():
                data = loading.load_data(config, tokenizer)
                data = data._replace(initial_weights=initial_weights.find(experiment, workdir))
            distributed.check_same('the config or the text', resuming.in_all_processes(config, data))
            is_main_process = distributed.is_main_process()
            lock = resources.enter_context(workdir_lock.acquire(workdir)) if is_main_process else None
            checkpointer = resources.enter_context(Checkpointer(workdir / 'checkpoints', keep=config.keep_checkpoints))
            restored = resuming.restore(checkpointer, experiment, data)
            start = restored.step if restored else None
            if start == config.total_steps:
                if is_main_process:
                    told = f'{workdir} is complete, with {start} steps: see summary.json, or give another --workdir.'
                    print(told, *tokenizer_files.keep_if_missing(config.tokenizer, workdir), sep='\n')
                return
            profile_steps = profiling.parse_steps(PROFILE.value, start or 0, config.total_steps)
            if is_main_process:
                workdir_lock.sign(lock)
                rounding = '' if start is None else workdirs.of_other_rounding(config, workdir)
                keep = tokenizer_files.keep if start is None else tokenizer_files.keep_if_missing
                remarks = [rounding, *keep(config.tokenizer, workdir)]
                workdirs.write_config(workdir, config)
                (workdir / 'diverged.txt').unlink(missing_ok=True)
                describe(experiment, data, tokenizer, workdir, start)
                print(''.join(f'          {remark}\n' for remark in remarks if remark), end='', flush=True)
            writer = resources.enter_context(
                MetricWriter(workdir, config.total_steps, resume_step=start, is_main_process=is_main_process)
            )
            profile = resources.enter_context(
                Profile(workdir / 'profile', profile_steps, writer.show, traces=is_main_process)
            )
        try:
            summary = loop.train(experiment, data, checkpointer, restored, writer, preemption, profile)
        except Diverged as error:
            with distributed.first_then_others():  # none ends before what is being saved is on the disk
                if is_main_process:
                    checkpointer.wait()
                    replace_file(workdir / 'diverged.txt', f'{error}\n')
            raise
    if is_main_process:
        loss, bits_per_byte = summary['validation/loss'], summary['validation/bits_per_byte']
        print(f'done      validation loss {loss:.3f} nats a token, {bits_per_byte:.3f} bits per byte, without noise')
        if experiment.num_blocks:
            print(f'          with noise {summary["validation/loss_with_noise"]:.3f}; ', end='')
            print(f'bitwidths went from {config.quantization.b_init:g} to {summary["bits/mean"]:.2f} bits on average')
        print(f'          next: python -m experiments.generate --workdir={shlex.quote(str(workdir))} --prompt="def "')


@contextlib.contextmanager
def exit_codes_of(workdir: pathlib.Path) -> Iterator[None]:
    """Where a training ends before its last step, one line says why, and from where the same command continues."""

    def newest() -> str:
        step = checkpointing.newest_step(workdir / 'checkpoints')
        return 'its beginning' if step is None else f'step {step}'

    try:
        yield
    except BrokenPipeError:
        raise
    except Preempted:
        print(f'preempted; the same command continues from {newest()}', file=sys.stderr)
        sys.exit(exit_codes.PREEMPTED)
    except KeyboardInterrupt:
        sys.exit(f'\ninterrupted; the same command continues from {newest()}')
    except Diverged as error:
        sys.exit(f'error: {error}; the newest checkpoint is of {newest()}')
    except (SaveError, OSError) as error:
        logging.info('raised here:', exc_info=True)
        sys.exit(f'error: {error}; once that is mended, the same command continues from {newest()}')


def describe(
    experiment: Experiment, data: loading.Data, tokenizer: Tokenizer, workdir: pathlib.Path, start: int | None
):
    """Prints what is about to be trained, on what, and where."""
    config, mesh = experiment.config, experiment.mesh
    blocks = experiment.num_blocks
    leaves = len(experiment.abstract_state.transform_state)
    blocks_of = f'; {blocks:,} blocks in {leaves} leaves' if blocks else ''
    print(
        f'model     {config.model.family}, {experiment.num_params:,} parameters,'
        f' N = {experiment.num_linear_params:,} in linear layers'
    )
    print(f'method    {config.method}: {methods.describe(config)}{blocks_of}')
    print(f'weights   {gq.describe(experiment.abstract_state.params, experiment.transform).summary}')
    print(
        f'data      {config.dataset}, {data.train.num_tokens:,} tokens to train on{_unusual(data.train)};'
        f' tokenizer {config.tokenizer},'
        f' vocabulary {experiment.vocab_size}; D = {experiment.num_tokens:,} tokens in all steps'
    )
    print('\n'.join(f'          {line}' for line in (tokenizer.describe(), *tokenizer.remarks)))
    device = mesh.devices.flat[0].device_kind
    print(f'devices   {mesh.size} x {device}: ' + ', '.join(f'{name} {size}' for name, size in mesh.shape.items()))
    if config.deterministic and mesh.devices.flat[0].platform == 'gpu':
        print('          deterministic operations are on, so that a resumed run is exact (config.deterministic)')
    origin = data.initial_weights and f' from the weights of {config.init_from}, step {data.initial_weights["step"]}'
    action = f'starting{origin or ""}' if start is None else f'continuing from step {start}'
    print(f'run       {workdir}, {action}, {config.total_steps} steps', flush=True)


def _unusual(tokens: TokenData) -> str:
    """How many documents are empty, or are not UTF-8."""
    counts = {'empty': tokens.num_empty, 'not UTF-8': tokens.num_invalid}
    told = ' and '.join(f'{count:,} {what}' for what, count in counts.items() if count)
    return f' ({told}, of {tokens.num_documents:,} documents)' if told else ''


if __name__ == '__main__':
    cli.start(main, default_config=DEFAULT_CONFIG)
