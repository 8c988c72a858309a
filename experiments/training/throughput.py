"""How fast a training is, and what its time is lost to: tokens/s, MFU, times of steps, waits, and memory."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from experiments.devices import device_specs
from experiments.training import flops
from experiments.training.experiment import Experiment


@dataclasses.dataclass
class StepClock:
    """Times the steps of a training loop that waits for their results; all values are of this process.

    A step lasts from the one before it, or from the end of a wait for anything but data, until `step_done`: waits for
    data are part of it, while checkpoints and evaluations are not. The first step isn't counted, since it compiles.

    Args:
      tokens_per_step: over all devices.
      flops_per_step: floating-point operations of the model, as `flops.model_flops` counts them.
      peak_flops: of all devices together, FLOP/s; None where it isn't known.
      now: a clock that never goes back, in seconds.

    Example:
      clock = StepClock(tokens_per_step=4096, flops_per_step=2e10, peak_flops=None)
      for step in range(1, 101):
          with clock.waiting_for('data', is_lost=state.step.is_ready):
              batch = next(batches)
          state, metrics = train_step(state, batch)
          jax.block_until_ready(metrics)
          clock.step_done()
          if step % 10 == 0:
              print(step, clock.metrics())
              with clock.waiting_for('checkpoint'):
                  save(state)
    """

    tokens_per_step: int
    flops_per_step: float
    peak_flops: float | None
    now: Callable[[], float] = time.perf_counter

    def __post_init__(self):
        self._is_first = True
        self._step_began = self._told = self.now()
        self._steps = []  # seconds of each since `metrics`
        self._waits = collections.Counter()

    @contextlib.contextmanager
    def waiting_for(self, what: str, is_lost: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Around all that keeps the loop from the next step; in a profile, the wait has this name.

        Args:
          what: 'data', or 'checkpoint', 'evaluation', …, for which no step is under way.
          is_lost: asked at its end: whether it counts. One for data doesn't if the devices still work on the step
            before it. If they are idle by then, all of it counts, though they may have worked for a part of it.
        """
        began = self.now()
        try:
            with jax.profiler.TraceAnnotation(f'waiting for {what}'):
                yield
        finally:
            ended = self.now()
            if is_lost():
                self._waits[what] += ended - began
            if what != 'data':
                self._step_began = ended

    def step_done(self) -> None:
        """A step's result is there."""
        now = self.now()
        if not self._is_first:
            self._steps.append(now - self._step_began)
        self._step_began, self._is_first = now, False

    def metrics(self) -> dict[str, float]:
        """What was measured since the last call, times in seconds.

            tokens_per_second = tokens of the counted steps / their time
            mfu               = floating-point operations of the model in them / (their time x peak FLOP/s)

        Returns:
          These, 'mfu' where the peak is known; 'step_seconds/p50', '/p90' and '/max'; all of them absent if no step was
          counted. 'seconds/total', and of that the waits: 'seconds/data', 'seconds/checkpoint', and each other
          that there was.
        """
        now = self.now()
        steps, waits, total = np.array(self._steps), self._waits, now - self._told
        self._steps, self._waits, self._told = [], collections.Counter(), now
        metrics = {}
        if steps.size:
            seconds = float(steps.mean())
            metrics['tokens_per_second'] = self.tokens_per_step / seconds
            if self.peak_flops is not None:
                metrics['mfu'] = self.flops_per_step / (seconds * self.peak_flops)
            p50, p90 = np.percentile(steps, [50, 90])
            times = {'p50': p50, 'p90': p90, 'max': steps.max()}
            metrics |= {f'step_seconds/{name}': float(value) for name, value in times.items()}
        waits = {'data': 0.0, 'checkpoint': 0.0, **waits, 'total': total}
        return metrics | {f'seconds/{name}': value for name, value in waits.items()}


def make_clock(experiment: Experiment) -> StepClock:
    """The clock of an experiment, whose model is traced for its FLOPs; the peak is that of dense bfloat16 products."""
    config, mesh = experiment.config, experiment.mesh
    spec = device_specs.find(mesh.devices.flat[0].device_kind)
    peak_flops = spec and mesh.size * spec.peak_flops
    return StepClock(config.batch_size * config.sequence_length, flops.model_flops(experiment), peak_flops)


def memory_metrics(mesh: jax.sharding.Mesh) -> dict[str, int]:
    """'device_memory/peak_bytes': the most that one of this process's devices has held so far; {} of CPUs."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]  # what they tell depends on the backend
    peaks = [stat['peak_bytes_in_use'] for stat in stats if 'peak_bytes_in_use' in stat]
    return {'device_memory/peak_bytes': max(peaks)} if peaks else {}
