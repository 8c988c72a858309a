"""A profile of some steps of a training, for XProf or TensorBoard: `experiments.train --profile=START:STOP`."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax


class Steps(NamedTuple):
    """The first and the last step of a profile."""

    first: int
    last: int


def parse_steps(text: str | None, start: int, total_steps: int) -> Steps | None:
    """The steps that 'START:STOP' names, both included; None stays None.

    Args:
      text: of the flag.
      start: the step that the run continues from; 0 at its beginning.
      total_steps: the run's last step.

    Raises:
      ValueError: if it is something else, or not all of them are steps that the run is about to take.

    Example:
      >>> parse_steps('10:12', 0, 900)
      Steps(first=10, last=12)
    """
    if text is None:
        return None
    if not (match := re.fullmatch(r'(\d+):(\d+)', text)):
        raise ValueError(f'--profile={text}: allowed are two steps START:STOP, such as --profile=10:12')
    steps = Steps(int(match[1]), int(match[2]))
    if not start < steps.first <= steps.last <= total_steps:
        beginning = f'{start + 1}, where this run continues,' if start else '1'
        raise ValueError(f'--profile={text}: allowed are START <= STOP, steps from {beginning} to {total_steps}')
    return steps


@dataclasses.dataclass
class Profile(contextlib.AbstractContextManager):
    """Traces some steps of a training loop, from before the first one until the last one's result is there.

    The trace is of this process alone: of what its host and its devices do, collectives included. Of several
    processes, which all run one program, the main one traces; the others wait for the same steps. It is written to
    `directory`, as XProf and TensorBoard have it: plugins/profile/<date>/<host>.xplane.pb. One under way when the
    context ends is written as far as it came.

    Args:
      directory: made if it isn't there.
      steps: None traces nothing.
      show: is told where the trace is, and how to open it.
      traces: whether this process is the one that does.

    Example:
      with Profile(pathlib.Path('/runs/tiny/profile'), Steps(10, 12)) as profile:
          for step in range(1, 101):
              if profile.begins_with(step):
                  profile.start()
              with jax.profiler.StepTraceAnnotation('train', step_num=step):
                  state, metrics = train_step(state, next(batches))
              if profile.awaits(step):
                  jax.block_until_ready(metrics)
              if profile.ends_with(step):
                  profile.stop(is_whole=True)
    """

    directory: pathlib.Path
    steps: Steps | None
    show: Callable[[str], None] = print
    traces: bool = dataclasses.field(default=True, kw_only=True)
    _is_tracing: bool = dataclasses.field(default=False, init=False)

    def awaits(self, step: int) -> bool:
        """Whether this step's result is to be waited for before the next step: the trace begins after it, or ends."""
        return self.steps is not None and step in (self.steps.first - 1, self.steps.last)

    def begins_with(self, step: int) -> bool:
        """Whether to start before this step."""
        return self.traces and self.steps is not None and step == self.steps.first and not self._is_tracing

    def ends_with(self, step: int) -> bool:
        """Whether to stop when this step's result is there."""
        return self._is_tracing and step == self.steps.last

    def start(self) -> None:
        """Starts the trace."""
        jax.profiler.start_trace(self.directory)
        self._is_tracing = True

    def stop(self, *, is_whole: bool = False) -> None:
        """Writes the trace, if one is under way; where that fails, the training goes on without."""
        if not self._is_tracing:
            return
        self._is_tracing = False
        first, last = self.steps
        try:
            jax.profiler.stop_trace()
            told = f'to see it: pip install xprof, xprof --logdir={self.directory}'
        except jax.errors.JaxRuntimeError as error:
            told = f'could not be written: {error}'
            self.traces = False  # some versions of JAX then take it for still under way, and start no other
        steps = f'of steps {first} to {last}' if is_whole else f'from step {first}, cut short'
        self.show(f'profile   {steps}; {told}')

    def __exit__(self, *_) -> None:
        self.stop()
