"""The training loop: steps, what is written, measured and saved between them, and how it goes back after a divergence.

A step is dispatched before the one before it is looked at: the devices always have something to do, and never more
than one step ahead. What is logged, evaluated or saved is looked at first, so that no checkpoint holds a state that
has diverged.
"""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.checkpoints.checkpointing import Checkpointer, Restored
from experiments.data import batching
from experiments.data.loading import Data
from experiments.data.rows import Rows
from experiments.processes.preemption import Preempted, Preemption
from experiments.processes.watchdog import Watchdog
from experiments.training import bitwidth_metrics, evaluation, initial_weights, meshes, resuming, steps, throughput
from experiments.training.divergence import Diverged, DivergenceDetector
from experiments.training.experiment import Experiment, TrainState, init_state
from experiments.training.metrics import MetricWriter
from experiments.training.profiling import Profile

# What is written first at each log, in this order; then the other times.
SHOWN = (
    *('train/loss', 'train/kl', 'bits/mean', 'tokens_per_second', 'mfu', 'learning_rate', 'train/gradient_norm'),
    *('bits/min', 'bits/max', 'bits/gradient_norm'),
)


class RollbackError(RuntimeError):
    """The state to go back to can't be had; the message says why."""


class Training:
    """A training, from the restored state, or where that is None from the beginning, to the last step.

    It saves where the config says, and at a preemption, which ends it. `train_rows` are of `data`, as
    `loading.train_rows` makes them.

    Raises:
      ValueError: of the config, the text and the batches, what doesn't fit; the weights to begin with, or the
        teacher's, aren't there.

    Example:
      rows = loading.train_rows(data, config)
      summary = Training(experiment, data, rows, checkpointer, restored, writer, preemption, profile).run()
    """

    def __init__(
        self,
        experiment: Experiment,
        data: Data,
        train_rows: tuple[Mapping[str, Rows], Mapping[str, Fraction]],
        checkpointer: Checkpointer,
        restored: Restored | None,
        writer: MetricWriter,
        preemption: Preemption,
        profile: Profile,
    ):
        config = experiment.config
        self._began = time.perf_counter()
        self._experiment, self._data = experiment, data
        self._checkpointer, self._writer = checkpointer, writer
        self._preemption, self._profile = preemption, profile
        self._watchdog = Watchdog(config.stall_timeout)
        self._detector = DivergenceDetector(config.divergence)
        self._validate = self._watchdog.unwatched_first(
            evaluation.make_validation(experiment, data, self._watchdog.beat)
        )
        part = meshes.part_of_batch(experiment.mesh)
        self._batches = batching.train_iterator(
            *train_rows,
            global_batch_size=config.batch_size,
            seed=config.seed,
            process_index=part.index,
            process_count=part.count,
        )
        self._train_step = self._watchdog.unwatched_first(steps.make_train_step(experiment))
        self._teacher_weights = [experiment.teacher.weights] if experiment.teacher else []
        if restored:
            self._step, self._state = restored.step, restored.state
            self._batches.set_state(restored.data_state['batches'])
            self._detector.set_state(restored.data_state['divergence'])
        else:
            self._step, self._state = 0, initial_state(experiment, data)
        self._clock = throughput.make_clock(experiment)
        self._bitwidths = self._watchdog.unwatched_first(bitwidth_metrics.make_report(experiment))
        self._unchecked = collections.deque()  # steps: number, metrics, and the data iterator's state after it
        self._checked_batches = self._batches.get_state()  # the same of the newest step that was looked at
        self._is_first = True

    def run(self) -> dict[str, float]:
        """Trains, and evaluates and saves on the way; what the last step came to.

        Raises:
          Diverged: after as many rollbacks as the config allows.
          RollbackError: before that.
          Preempted: with the last step saved.
          OSError: a checkpoint, or another of the run's files, could not be written; a file of tokens is damaged.
        """
        config = self._experiment.config
        with self._watchdog:
            while self._step < config.total_steps:
                self._step += 1
                metrics = self._dispatch()
                self._preemption.defer()
                profile, preempted = self._profile.awaits(self._step), self._preemption.is_requested()
                due = due_at(self._step, config, profile=profile, preempted=preempted)
                try:
                    self._check(all_of_them=any(due))
                    self._checkpointer.raise_if_failed()
                    self._data.raise_if_damaged()
                except Diverged as diverged:
                    if not self._detector.may_roll_back:
                        raise
                    self._roll_back(diverged)
                    continue
                if self._profile.ends_with(self._step):
                    with self._unwatched('profile'):
                        self._profile.stop(is_whole=True)
                if due.log:
                    logged = self._log(metrics)
                if due.evaluation:
                    evaluated = self._evaluate()
                if due.last:  # before the last checkpoint: a run that has that one has its summary
                    summary = self._summarize(logged | evaluated)
                if due.checkpoint:
                    self._detector.reach_checkpoint(self._step)
                if due.checkpoint or due.preempted:
                    self._save(wait=due.preempted)
                if due.preempted and not due.last:
                    raise Preempted
        self._batches.close()
        self._checkpointer.wait()
        return summary

    def _dispatch(self) -> dict[str, Any]:
        """Gives the step to the devices; its metrics, which they have yet to compute."""
        if self._profile.begins_with(self._step):
            with self._unwatched('profile'):
                self._profile.start()
        with jax.profiler.StepTraceAnnotation('train', step_num=self._step):
            with self._clock.waiting_for('data', is_lost=self._state.step.is_ready):
                batch = meshes.to_devices(next(self._batches), self._experiment.mesh)
            self._state, metrics = self._train_step(self._state, batch, *self._teacher_weights)
        self._unchecked.append((self._step, metrics, self._batches.get_state()))
        return metrics

    def _check(self, *, all_of_them: bool) -> None:
        """Looks at all steps but the newest, or at all, as at the very first, which compiles; raises Diverged.

        Looking at one waits for its result, which is a heartbeat, and the end of its time.
        """
        while len(self._unchecked) > (0 if all_of_them or self._is_first else 1):
            step, metrics, self._checked_batches = self._unchecked.popleft()
            self._detector.check(step, metrics)
            self._clock.step_done()
            self._watchdog.beat()
        self._is_first = False

    def _log(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Writes the metrics of the step, and how fast it was; the former, and of the latter what is shown."""
        times = self._clock.metrics() | throughput.memory_metrics(self._experiment.mesh)
        with self._clock.waiting_for('metrics'):
            bitwidths, histograms = self._bitwidths(self._state)
        measured = metrics | bitwidths | times
        shown = {name: measured[name] for name in SHOWN if name in measured}
        self._writer.write(self._step, shown | bitwidths | times, histograms)
        return {name: value for name, value in (metrics | bitwidths | shown).items() if np.ndim(value) == 0}

    def _evaluate(self) -> dict[str, float]:
        with self._clock.waiting_for('evaluation'):
            metrics = self._validate(self._state)
        self._writer.write(self._step, metrics)
        return metrics

    def _summarize(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes what the training came to; the metrics as numbers."""
        of = self._experiment
        sizes = {'parameters': of.num_params, 'N': of.num_linear_params, 'D': of.num_tokens}
        summary = {name: float(value) for name, value in metrics.items()}
        seconds = time.perf_counter() - self._began
        self._writer.summary({'step': self._step, 'seconds': seconds, **sizes, **summary})
        return summary

    def _save(self, *, wait: bool) -> None:
        data_state = {'batches': self._batches.get_state(), 'divergence': self._detector.get_state()}
        config = resuming.stored_config(self._experiment.config, self._data)
        with self._unwatched('checkpoint'):
            self._checkpointer.save(self._step, self._state, data_state, config, protected=self._detector.checkpoint)
            if wait:
                self._checkpointer.wait()

    def _roll_back(self, diverged: Diverged) -> None:
        """Goes back to the last checkpoint that was due, or to the beginning, and on with the batch after the bad one.

        What was saved since, at a preemption, is discarded: how often a run was stopped changes nothing.
        """
        self._state = None  # its memory is the restored one's
        with self._unwatched('checkpoint'):
            self._profile.stop()
            self._checkpointer.wait()
            try:
                self._step, self._state, detector_state = self._state_to_go_back_to()
            except (ValueError, OSError) as error:
                raise RollbackError(str(error)) from error
            self._checkpointer.discard_after(self._step)
            self._detector.roll_back(detector_state)
        self._unchecked.clear()
        self._batches.set_state(self._checked_batches)
        self._writer.roll_back(self._step, from_step=diverged.step, loss=diverged.loss)

    def _state_to_go_back_to(self) -> tuple[int, TrainState, dict[str, Any] | None]:
        """The step, the state, and that of the detector; None of the beginning's."""
        step = self._detector.checkpoint
        if step is None:
            return 0, initial_state(self._experiment, self._data), None
        restored = resuming.restore(self._checkpointer, self._experiment, self._data, at_most=step)
        if restored is None:
            raise ValueError(f'the checkpoint of step {step} to go back to is not there any more')
        return restored.step, restored.state, restored.data_state['divergence']

    @contextlib.contextmanager
    def _unwatched(self, what: str) -> Iterator[None]:
        """Around what may take as long as it needs, and counts as a wait."""
        with self._watchdog.paused(), self._clock.waiting_for(what):
            yield


class Due(NamedTuple):
    """What follows a step; all of it has to wait for the step's result."""

    log: bool
    evaluation: bool
    checkpoint: bool
    profile: bool  # begins after this step, or ends with it
    preempted: bool
    last: bool


def due_at(step: int, config: ConfigDict, *, profile: bool, preempted: bool) -> Due:
    """What follows a step: what the config says, all of it at the last one; and what comes unasked."""
    last = step == config.total_steps
    intervals = dict(log=config.log_every, evaluation=config.eval_every, checkpoint=config.checkpoint_every)
    every = {what: last or step % interval == 0 for what, interval in intervals.items()}
    return Due(**every, profile=profile, preempted=preempted, last=last)


def initial_state(experiment: Experiment, data: Data) -> TrainState:
    """The state before the first step: of random weights, or of another run's; ValueError if these aren't there."""
    weights = data.initial_weights and initial_weights.load(experiment, data.initial_weights)
    return init_state(experiment, weights)
