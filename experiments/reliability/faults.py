"""What can befall a training, one function a fault: it makes it, starts the same command again, and compares.

Its docstring is what docs/reliability.md says of how the fault was made. It returns what happened and what was lost, in
a line each. It raises Unexpected where something else happened than should have, or the result is not, bit for bit,
that of the training without the fault; and NotTried where this machine can't make the fault.
"""

import os
import pathlib
import re
import shutil
import signal
import time
from typing import NamedTuple

import numpy as np

from experiments.processes.exit_codes import DONE, ERROR, LOST_PROCESS, PREEMPTED, STALLED
from experiments.reliability.trial_results import Unexpected, check_same_result, last_step, learned_metrics, newest_step
from experiments.reliability.trial_runs import CHECKPOINT_EVERY, MIDDLE, Ended, Laboratory, Trial

MOMENTS = 20  # at which the fault of many SIGKILLs strikes
RUN_TRAIN = 'import runpy; runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)'
JUMPING_CLOCK = f"""
import atexit, time
real_time, hours, seen = time.time, (0, 5, -3, 11, -20), set()
def time_of_day():
    jump = hours[int(2 * time.monotonic()) % len(hours)]
    seen.add(jump)
    return real_time() + 3600 * jump
time.time, time.time_ns = time_of_day, lambda: int(1e9 * time_of_day())
atexit.register(lambda: print('jumps', len(seen)))
{RUN_TRAIN}
"""
POISONED_DATA = f"""
import numpy as np
from experiments.data import batching
clean = batching.train_iterator
def poisoned(sources, *others, **sizes):
    for of in sources.values():
        of.read = lambda indices, read=of.read: spoilt(indices, read(indices))
    return clean(sources, *others, **sizes)
def spoilt(indices, found):
    tokens = found['tokens']
    length = tokens.shape[1] - 1
    places = indices[:, None] * length + np.arange(length + 1)
    return found | dict(tokens=np.where(places % 20_000, tokens, 60_000).astype(tokens.dtype))
batching.train_iterator = poisoned
{RUN_TRAIN}
"""


class NotTried(Exception):
    """This machine can't make the fault; why."""


class Observation(NamedTuple):
    """What happened, with the exit code and the line that a user sees, and what was lost."""

    happened: str
    lost: str


def kill_at_random_moments(laboratory: Laboratory) -> Observation:
    """half of them while a checkpoint is being written, the others at a random time after the start or first step"""
    workdir = laboratory.new_workdir()
    trainings, in_saves, repeated = 1, 0, []
    while len(repeated) < MOMENTS:
        saved = newest_step(workdir)
        with laboratory.start(workdir) as trial:
            _wait_for_a_moment(trial, len(repeated), laboratory.generator)
            trial.process.send_signal(signal.SIGKILL)
            ended = trial.wait()
            is_saving = trial.is_saving()
        if ended.continued_from not in (None, saved):
            raise Unexpected(f'it continued from step {ended.continued_from}, not from {saved}')
        if ended.code == DONE:  # before the moment came
            check_same_result(workdir, laboratory.reference)
            workdir, trainings = laboratory.new_workdir(), trainings + 1
            continue
        ended.expect(-signal.SIGKILL)
        in_saves += is_saving
        repeated.append(last_step(workdir) - newest_step(workdir))
        if not 0 <= repeated[-1] <= 2 * CHECKPOINT_EVERY:
            raise Unexpected(f'{repeated[-1]} steps are to be repeated, with a checkpoint every {CHECKPOINT_EVERY}')
    laboratory.run(workdir).expect(DONE)
    check_same_result(workdir, laboratory.reference)
    if not in_saves:
        raise Unexpected('no kill fell into a save')
    count = f'{len(repeated)} of {len(repeated)}'
    return Observation(
        f'{count} continued, in {trainings} training{"s" * (trainings > 1)}; {in_saves} kills fell into a save',
        steps_lost(max(repeated), at_most=True),
    )


def terminate(laboratory: Laboratory) -> Observation:
    """sent in the middle of the training"""
    workdir = laboratory.new_workdir()
    ended = laboratory.stop(workdir, signal.SIGTERM).expect(PREEMPTED, 'preempted')
    return Observation(told(ended), continued(laboratory, workdir).lost)


def terminate_one_of_two(laboratory: Laboratory) -> Observation:
    """sent to the second"""
    workdir = laboratory.new_workdir()
    with laboratory.start_two(workdir) as (first, second):
        first.wait_for_step(MIDDLE)
        second.process.send_signal(signal.SIGTERM)
        (ended, _) = (trial.wait().expect(PREEMPTED) for trial in (first, second))
    return _continued_by_two(laboratory, workdir, f'both processes end with {told(ended)}')


def kill_one_of_two(laboratory: Laboratory) -> Observation:
    """first of the second, later of the first"""
    workdir, waited, messages = laboratory.new_workdir(), [], []
    for part, lost in ((1, 1), (2, 0)):
        with laboratory.start_two(workdir) as trials:
            trials[0].wait_for_step(part * MIDDLE)
            trials[lost].process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            ended = trials[1 - lost].wait().expect(LOST_PROCESS, f'process {lost} of 2 was lost')
            waited.append(time.monotonic() - killed)
            messages.append(told(ended))
    if max(waited) > 60:
        raise Unexpected(f'the other process ended after {max(waited):.0f} seconds')
    happened = f'either way, the other ends within {max(1, round(max(waited) + 0.5))} s, with {messages[0]}'
    return _continued_by_two(laboratory, workdir, happened)


def start_twice(laboratory: Laboratory) -> Observation:
    """started while the first, held by SIGSTOP, is in its middle"""
    workdir = laboratory.new_workdir()
    with laboratory.start(workdir) as first:
        first.wait_for_step(MIDDLE)
        first.process.send_signal(signal.SIGSTOP)  # or it is done when the second has started
        ended = laboratory.run(workdir).expect(ERROR, 'in use by another training')
        first.process.send_signal(signal.SIGCONT)
        first.wait().expect(DONE)
    if len(ended.text.splitlines()) > 1:
        raise Unexpected('the second training said more than one line')
    check_same_result(workdir, laboratory.reference)
    return Observation(f'{told(ended)}; the first trains on', steps_lost(0))


def let_the_clock_jump(laboratory: Laboratory) -> Observation:
    """twice a second, `time.time()` changes by hours, forth or back (5, -3, 11, -20, 0 from the true time): the
    function is replaced in the process
    """
    workdir = laboratory.new_workdir()
    ended = laboratory.run(workdir, program=('-c', JUMPING_CLOCK)).expect(DONE)
    jumps = int(re.search(r'^jumps (\d+)$', ended.text, re.MULTILINE)[1])
    if jumps < 2:
        raise Unexpected('the clock did not jump')
    check_same_result(workdir, laboratory.reference)
    return Observation(f'exit code 0; the clock was seen with {jumps} different offsets', steps_lost(0))


def change_the_mesh(laboratory: Laboratory) -> Observation:
    """saved on 8x1x1 (data, fsdp, tensor), resumed on 8x1x1 and on 2x4x1; with 60 steps and a learning rate of 6e-4,
    since the rounding errors of another order of summation grow with both
    """
    optimizer = ('--config.optimizer.learning_rate=6e-4', '--config.optimizer.final_learning_rate=6e-5')
    saved = ('--config.total_steps=60', *optimizer, '--config.mesh.data=8')
    other = (*saved, '--config.mesh.data=2', '--config.mesh.fsdp=4')
    reference, workdir = laboratory.new_workdir(), laboratory.new_workdir()
    laboratory.run(reference, *saved, devices=8).expect(DONE)
    with laboratory.start(workdir, *saved, devices=8) as trial:
        trial.wait_for_step(20)
        trial.process.send_signal(signal.SIGTERM)
        trial.wait().expect(PREEMPTED)
    step, resumed = newest_step(workdir), shutil.copytree(workdir, laboratory.new_workdir())
    laboratory.run(workdir, *saved, devices=8).expect(DONE)
    check_same_result(workdir, reference)
    laboratory.run(resumed, *other, devices=8).expect(DONE)
    errors = [
        abs(line[name] - expected[name]) / abs(expected[name])
        for line, expected in zip(learned_metrics(resumed), learned_metrics(reference), strict=True)
        for name in expected
        if name.endswith(('/loss', '/loss_with_noise')) and line['step'] > step
    ]
    if not max(errors) <= 1e-5:
        raise Unexpected(f'on the other mesh, losses differ by up to {max(errors):.1e}, relatively')
    return Observation(
        f'stopped at step {step}, resumed on 8x1x1: the same bits; on 2x4x1: the {len(errors)} losses after it are the'
        f' same to {max(errors):.1e}, relatively',
        steps_lost(0),
    )


def diverge(laboratory: Laboratory) -> Observation:
    """every 20,000th token of the text is one that the vocabulary does not have, as if memory were faulty"""
    stopped = laboratory.new_workdir()
    ended = laboratory.run(stopped, program=('-c', POISONED_DATA)).expect(ERROR, 'error: train/loss is nan')
    if not (stopped / 'diverged.txt').exists():
        raise Unexpected('there is no diverged.txt')
    return _rolled_back(
        laboratory,
        f'without `max_rollbacks`, {told(ended)}; with it, ',
        '--config.divergence.max_rollbacks=5',
        program=('-c', POISONED_DATA),
    )


def spike(laboratory: Laboratory) -> Observation:
    """`spike_sigmas=2` over 20 steps, which the noise of small batches exceeds now and then"""
    flags = (f'--config.divergence.{name}' for name in ('max_rollbacks=5', 'spike_sigmas=2', 'spike_window=20'))
    return _rolled_back(laboratory, '', *flags)


def stall(laboratory: Laboratory) -> Observation:
    """`stall_timeout=10`; metrics.jsonl becomes a pipe that nobody reads, as on a file system that does not answer"""
    workdir, flag = laboratory.new_workdir(), '--config.stall_timeout=10'
    metrics, aside, pipe = (workdir / name for name in ('metrics.jsonl', 'aside', 'pipe'))
    with laboratory.start(workdir, flag) as trial:
        trial.wait_for_step(MIDDLE)
        os.link(metrics, aside)
        os.mkfifo(pipe)
        pipe.replace(metrics)
        ended = trial.wait().expect(STALLED, 'error: stalled')
    aside.replace(metrics)
    return Observation(told(ended), continued(laboratory, workdir, flag).lost)


def continued(
    laboratory: Laboratory, workdir: pathlib.Path, *flags: str, reference: pathlib.Path | None = None, **others
) -> Observation:
    """The same command completes a training, from its newest checkpoint, with the bits of the reference."""
    trained, saved = last_step(workdir), newest_step(workdir)
    ended = laboratory.run(workdir, *flags, **others).expect(DONE)
    if ended.continued_from != saved:
        raise Unexpected(f'it continued from step {ended.continued_from}, not from {saved}')
    check_same_result(workdir, reference or laboratory.reference)
    return Observation(f'exit code 0; it continues from step {saved}', steps_lost(trained - saved))


def told(ended: Ended) -> str:
    """The exit code, and the line that a user sees."""
    return f'exit code {ended.code}: `{ended.message}`'


def steps_lost(steps: int, *, at_most: bool = False) -> str:
    """What was lost of a training with the same result: only time."""
    repeated = f'; {"at most " * at_most}{steps} step{"s" * (steps != 1)} trained again'
    return f'nothing{repeated if steps else ""}'


def _wait_for_a_moment(trial: Trial, number: int, generator: np.random.Generator) -> None:
    """Waits for a random moment: every second time within a save, else while it trains or starts."""
    if number % 2 == 0:
        after = newest_step(trial.workdir) + CHECKPOINT_EVERY * int(generator.integers(4))
        trial.wait_for(lambda: trial.is_saving() and newest_step(trial.workdir) >= after)
        time.sleep(generator.uniform(0, 0.03))
    elif number % 4 == 1:
        trial.wait_for(trial.has_trained)
        time.sleep(generator.uniform(0, 1))
    else:
        time.sleep(generator.uniform(0, 8))


def _continued_by_two(laboratory: Laboratory, workdir: pathlib.Path, happened: str) -> Observation:
    trained, saved = last_step(workdir), newest_step(workdir)
    laboratory.complete_by_two(workdir)
    check_same_result(workdir, laboratory.reference_of_two)
    return Observation(happened, steps_lost(trained - saved))


def _rolled_back(laboratory: Laboratory, happened: str, *flags: str, **others) -> Observation:
    """A training that goes back by itself, and ends with the same bits if it is killed after it has."""
    reference, workdir = laboratory.new_workdir(), laboratory.new_workdir()
    laboratory.run(reference, *flags, **others).expect(DONE)
    rollbacks = [line for line in learned_metrics(reference) if 'rollback/from_step' in line]
    if not rollbacks:
        raise Unexpected('no step diverged')
    with laboratory.start(workdir, *flags, **others) as trial:
        trial.wait_for(lambda: 'rollback/from_step' in trial.text())
        trial.process.send_signal(signal.SIGKILL)
        trial.wait().expect(-signal.SIGKILL)
    laboratory.run(workdir, *flags, **others).expect(DONE)
    check_same_result(workdir, reference)
    steps = ', '.join(str(line['rollback/from_step']) for line in rollbacks)
    skipped = sum(line['rollback/skipped_batches'] for line in rollbacks)
    return Observation(
        f'{happened}exit code 0: at step {steps} it went back to the last checkpoint; killed after the first time, it'
        ' ends with the same bits',
        f'nothing of the last checkpoint; {skipped} batches were skipped, as is meant',
    )
