"""The training loop: steps, what is written, measured and saved between them, and how it goes back after a divergence.

A step is dispatched before the one before it is looked at: the devices always have something to do, and never more
than one step ahead. What is logged, evaluated or saved is looked at first, so that no checkpoint holds a state that
has diverged.
"""

import collections
import time

import jax

from experiments import cli
from experiments.checkpoints.checkpointing import Checkpointer, Restored
from experiments.data import input_pipeline, loading
from experiments.processes.preemption import Preempted, Preemption
from experiments.processes.watchdog import Watchdog
from experiments.training import evaluation, initial_weights, meshes, resuming, steps, throughput
from experiments.training.divergence import Diverged, DivergenceDetector
from experiments.training.experiment import Experiment, TrainState, init_state
from experiments.training.metrics import MetricWriter
from experiments.training.profiling import Profile

# What is written first at each log, in this order; then the other times.
SHOWN = (
    *('train/loss', 'bits/mean', 'tokens_per_second', 'mfu', 'learning_rate', 'train/gradient_norm'),
    *('bits/min', 'bits/max', 'bits/gradient_norm'),
)


def train(
    experiment: Experiment,
    data: loading.Data,
    checkpointer: Checkpointer,
    restored: Restored | None,
    writer: MetricWriter,
    preemption: Preemption,
    profile: Profile,
) -> dict[str, float]:
    """Trains from the restored state, or from the beginning, to the last step; evaluates and saves on the way.

    Raises:
      Diverged: after as many rollbacks as the config allows.
      Preempted: with the last step saved.
      SaveError, OSError: a checkpoint, or another of the run's files, could not be written.
    """
    config = experiment.config
    started = time.perf_counter()
    with cli.user_errors():
        watchdog = Watchdog(config.stall_timeout)
        detector = DivergenceDetector(config.divergence)
        validate = watchdog.unwatched_first(evaluation.make_validation(experiment, data, watchdog.beat))
        part = meshes.part_of_batch(experiment.mesh)
        batches = input_pipeline.train_iterator(
            data.train.tokens,
            global_batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
            process_index=part.index,
            process_count=part.count,
        )
    train_step = watchdog.unwatched_first(steps.make_train_step(experiment))
    if restored:
        step, state = restored.step, restored.state
        batches.set_state(restored.data_state['batches'])
        detector.set_state(restored.data_state['divergence'])
    else:
        step, state = 0, initial_state(experiment, data)
    unchecked = collections.deque()  # of each step that was dispatched: its number, metrics, and data iterator's state
    clock, is_first = throughput.make_clock(experiment), True

    with watchdog:
        while step < config.total_steps:
            step += 1
            if profile.begins_with(step):
                with watchdog.paused(), clock.waiting_for('profile'):
                    profile.start()
            with jax.profiler.StepTraceAnnotation('train', step_num=step):
                with clock.waiting_for('data', is_lost=state.step.is_ready):
                    batch = meshes.to_devices(next(batches), experiment.mesh)
                state, metrics = train_step(state, batch)
            unchecked.append((step, metrics, batches.get_state()))
            preemption.defer()
            is_last = step == config.total_steps
            is_log, is_evaluation, is_checkpoint = (
                is_last or step % every == 0 for every in (config.log_every, config.eval_every, config.checkpoint_every)
            )
            is_preempted = preemption.is_requested()
            is_awaited = is_log or is_evaluation or is_checkpoint or is_preempted or is_first or profile.awaits(step)
            try:
                while len(unchecked) > (0 if is_awaited else 1):
                    checked_step, checked_metrics, batches_state = unchecked.popleft()
                    detector.check(checked_step, checked_metrics)
                    clock.step_done()
                    watchdog.beat()
                checkpointer.raise_if_failed()
            except Diverged as diverged:
                if not detector.may_roll_back:
                    raise
                unchecked.clear()
                state = None  # its memory is the restored one's
                with watchdog.paused(), clock.waiting_for('checkpoint'):
                    profile.stop()
                    step, state = roll_back(experiment, data, checkpointer, detector)
                batches.set_state(batches_state)  # after the batch that diverged
                writer.roll_back(step, from_step=diverged.step, loss=diverged.loss)
                continue

            is_first = False
            if profile.ends_with(step):
                with watchdog.paused(), clock.waiting_for('profile'):
                    profile.stop(is_whole=True)
            if is_log:
                times = clock.metrics() | throughput.memory_metrics(experiment.mesh)
                metrics |= {name: times.pop(name) for name in ('tokens_per_second', 'mfu') if name in times}
                writer.write(step, {name: metrics[name] for name in SHOWN if name in metrics} | times)
            if is_evaluation:
                with clock.waiting_for('evaluation'):
                    results = validate(state)
                writer.write(step, results)
            if is_last:  # before the last checkpoint: a run that has that one has its summary
                summary = {name: float(value) for name, value in {**metrics, **results}.items()}
                sizes = dict(parameters=experiment.num_params, N=experiment.num_linear_params, D=experiment.num_tokens)
                writer.summary({'step': step, 'seconds': time.perf_counter() - started, **sizes, **summary})
            if is_checkpoint:
                detector.reach_checkpoint(step)
            if is_checkpoint or is_preempted:
                data_state = {'batches': batches.get_state(), 'divergence': detector.get_state()}
                with watchdog.paused(), clock.waiting_for('checkpoint'):
                    stored_config = resuming.stored_config(config, data)
                    checkpointer.save(step, state, data_state, stored_config, protected=detector.checkpoint)
                    if is_preempted:
                        checkpointer.wait()
            if is_preempted and not is_last:
                raise Preempted
    batches.close()
    checkpointer.wait()
    return summary


def roll_back(
    experiment: Experiment, data: loading.Data, checkpointer: Checkpointer, detector: DivergenceDetector
) -> tuple[int, TrainState]:
    """The step and the state of the last checkpoint that was due, or of the run's beginning.

    What was saved after it, at a preemption, is discarded: how often a run was stopped changes nothing.
    """
    step, state, detector_state = 0, None, None
    if detector.checkpoint is not None:
        with cli.user_errors():
            restored = resuming.restore(checkpointer, experiment, data, at_most=detector.checkpoint)
            if restored is None:
                raise ValueError(f'the checkpoint of step {detector.checkpoint} to go back to is not there any more')
        step, state, data_state = restored
        detector_state = data_state['divergence']
    checkpointer.discard_after(step)
    detector.roll_back(detector_state)
    return step, initial_state(experiment, data) if state is None else state


def initial_state(experiment: Experiment, data: loading.Data) -> TrainState:
    """The state before the first step: of random weights, or of those of another run."""
    if data.initial_weights is None:
        return init_state(experiment)
    with cli.user_errors():
        return init_state(experiment, initial_weights.load(experiment, data.initial_weights))
