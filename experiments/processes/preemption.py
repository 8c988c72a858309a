"""Preemption: at SIGTERM, the step under way is finished and saved, and the process ends with the status PREEMPTED.

What is going on then decides what "finished" means:

- nothing was trained yet, data is loaded, a checkpoint restored, the step compiled: the process ends as soon as Python
  is back from what it does, with nothing to save;
- a step: it is finished, and saved; an evaluation is finished, too, and the step after it;
- the last save: it is finished, and so is the run, with status 0.

A second SIGTERM changes nothing. With several processes, JAX's preemption service carries the news from any of them to
all, and they stop after the same step, the first one of theirs at the earliest.
"""

import signal

import jax
from jax.experimental import multihost_utils


class Preempted(BaseException):
    """The process was asked to end, and what it has trained is saved."""


class Preemption:
    """Within the context, SIGTERM raises Preempted, until `defer` leaves it to the caller to look at `is_requested`.

    Example:
      with Preemption() as preemption:
          prepare()
          for batch in batches:
              state = train_step(state, batch)
              preemption.defer()
              if preemption.is_requested():
                  save(state)
                  raise Preempted
    """

    def __init__(self):
        self._was_requested = False
        self._is_deferred = False
        self._looks = 0

    def defer(self) -> None:
        """From here on, there is something to save."""
        self._is_deferred = True

    def is_requested(self) -> bool:
        """Whether to save and to end now; all processes have to ask equally often, and get the same answer."""
        if not self._was_requested and jax.process_count() > 1:
            self._looks += 1
            self._was_requested = multihost_utils.reached_preemption_sync_point(self._looks)
        return self._was_requested

    def __enter__(self) -> 'Preemption':
        if jax.process_count() == 1:  # else SIGTERM is JAX's, which tells all processes
            self._handler_before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._handler_before)

    def _handle(self, *_) -> None:
        is_first, self._was_requested = not self._was_requested, True
        if is_first and not self._is_deferred:
            raise Preempted
