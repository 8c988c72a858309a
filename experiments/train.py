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
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, workdirs
from experiments.checkpoints import workdir_lock
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.checkpoints.step_directories import newest_step
from experiments.cost import dry_run
from experiments.data import loading, tokenizer_files
from experiments.data.preparation.verification import DamagedFile
from experiments.devices import device_specs
from experiments.files import paths
from experiments.processes import distributed, exit_codes
from experiments.processes.preemption import Preempted, Preemption
from experiments.training import branches, description, distillation, initial_weights, loop, profiling, resuming, starts
from experiments.training.divergence import Diverged
from experiments.training.experiment import Experiment, make_experiment
from experiments.training.loop import RollbackError
from experiments.training.metrics import MetricWriter
from experiments.training.profiling import Profile
from experiments.training.starts import Start
from gaussq_jax.atomic_files import replace_file

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
    with distributed.lost_process_errors(), exit_codes_of(workdir):
        told = train(config, workdir, profiled=PROFILE.value)
    if told:
        print(told)


def train(config: ConfigDict, workdir: pathlib.Path, *, profiled: str | None) -> str | None:
    """Trains to the last step, from the newest checkpoint of the workdir, or from the beginning; what to say of it."""
    with Preemption() as preemption, contextlib.ExitStack() as resources:
        with cli.user_errors():
            tokenizer = workdirs.settle_tokenizer(config, workdir)
            experiment = make_experiment(config, tokenizer.vocab_size)
            with distributed.first_then_others():
                data = loading.load_data(config, tokenizer)
                teacher = distillation.find(experiment, tokenizer, workdir)
                experiment = dataclasses.replace(experiment, teacher=teacher)
                identities = dict(
                    initial_weights=initial_weights.find(experiment, workdir),
                    teacher_weights=teacher and teacher.source,
                )
                data = data._replace(**identities)
            distributed.check_same('the config or the text', resuming.in_all_processes(config, data))
            is_main = distributed.is_main_process()
            lock = resources.enter_context(workdir_lock.acquire(workdir)) if is_main else None
            kept = dict(keep=config.keep_checkpoints, keep_period=config.keep_period)
            checkpointer = resources.enter_context(Checkpointer(workdir / 'checkpoints', **kept))
            restored = resuming.restore(checkpointer, experiment, data)
            restored = restored or branches.begin(checkpointer, experiment, data)
            start = restored.step if restored else None
            if start == config.total_steps:
                if is_main:
                    told = f'{workdir} is complete, with {start} steps: see summary.json, or give another --workdir.'
                    print(told, *tokenizer_files.keep_if_missing(config.tokenizer, workdir), sep='\n')
                return None
            steps = profiling.parse_steps(profiled, start or 0, config.total_steps)
            train_rows = loading.train_rows(data, config)
            if is_main:
                workdir_lock.sign(lock)
                remarks = prepare_workdir(workdir, experiment, start)
                how = dict(rows=train_rows[0], start=start, remarks=remarks)
                print(description.beginning(experiment, data, tokenizer, workdir, **how), flush=True)
            writer = MetricWriter(workdir, config.total_steps, resume_step=start, is_main_process=is_main)
            resources.enter_context(writer)
            profile = Profile(workdir / 'profile', steps, writer.show, traces=is_main)
            resources.enter_context(profile)
            training = loop.Training(experiment, data, train_rows, checkpointer, restored, writer, preemption, profile)
        try:
            summary = training.run()
        except Diverged as error:
            with distributed.first_then_others():  # none ends before what is being saved is on the disk
                if is_main:
                    checkpointer.wait()
                    replace_file(workdir / 'diverged.txt', f'{error}\n')
            raise
    return description.end(experiment, summary, workdir, data) if is_main else None


def prepare_workdir(workdir: pathlib.Path, experiment: Experiment, start: int | None) -> list[str]:
    """Writes what a run has in its workdir beside what it comes to; remarks on that.

    Raises:
      ValueError, OSError: the tokenizer's file can't be kept, of a run that starts; something can't be written, or
        what is to be continued can't be read.
    """
    config = experiment.config
    if start is None:
        remarks = tokenizer_files.keep(config.tokenizer, workdir)
    else:
        remarks = workdirs.remarks_on_changes(config, workdir)
        remarks += tokenizer_files.keep_if_missing(config.tokenizer, workdir)
    remarks += starts.add(workdir, Start(start or 0, sys.argv[1:], description.devices(experiment)))
    workdirs.write_config(workdir, config)
    (workdir / 'diverged.txt').unlink(missing_ok=True)
    return remarks


@contextlib.contextmanager
def exit_codes_of(workdir: pathlib.Path) -> Iterator[None]:
    """Where a training ends before its last step, one line says why, and from where the same command continues."""

    begun_at = newest_step(workdir / 'checkpoints')

    def newest() -> str:
        step = newest_step(workdir / 'checkpoints')
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
        cli.fail(error, f'; the newest checkpoint is of {newest()}')
    except RollbackError as error:
        cli.fail(error)
    except DamagedFile as error:
        cli.fail(error, f'; {after_damage(workdir / "checkpoints", begun_at)}')
    except OSError as error:
        cli.fail(error, f'; once that is mended, the same command continues from {newest()}')


def after_damage(checkpoints: pathlib.Path, begun_at: int | None) -> str:
    """What to do where a run was trained on what may be damaged, since the step that it was started from."""
    if begun_at is None:
        told, advice = 'its beginning', f'delete {checkpoints}: the same command then starts again'
    elif (checkpoints / str(begun_at)).exists():
        told = f'step {begun_at}'
        advice = f'delete the later steps in {checkpoints}: the same command then continues from there'
    else:
        told, advice = f'step {begun_at}, which is not kept', 'start again, in another --workdir'
    return f'what was trained since {told} may have seen it. Bring back the file or prepare the data anew, and {advice}'


if __name__ == '__main__':
    cli.start(main, default_config=DEFAULT_CONFIG)
