"""A program that is stuck ends itself: the training loop has a heartbeat, and a thread that listens to it.

A heartbeat is a finished training step, or a batch of an evaluation. Where none comes for `config.stall_timeout`
seconds, the stacks of all threads go to stderr, so that one sees where it hung, and the process ends with the exit
status STALLED: a collective whose partner is gone, data or metrics on a file system that doesn't answer. It doesn't try
to save. The same command continues from the newest checkpoint.

What takes long for good reasons doesn't count: the first call of each compiled function, since it compiles (what the
device then does is waited for afterwards, and watched), and reading and writing checkpoints, which is as fast as the
disk. Nor does time in which the process itself is stopped, by SIGSTOP or with its machine: what is counted is the
thread's own waits, and no clock's time of day.
"""

import contextlib
import faulthandler
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator

from experiments.processes import exit_codes

LOOKS = 20  # of the listener during one timeout


class Watchdog:
    """Ends the process if, within the context, no heartbeat comes for `timeout` seconds; 0 is never.

    Raises:
      ValueError: a timeout that is negative or no number.

    Example:
      with Watchdog(config.stall_timeout) as watchdog:
          train_step = watchdog.unwatched_first(train_step)
          for batch in batches:
              jax.block_until_ready(train_step(batch))
              watchdog.beat()
    """

    def __init__(self, timeout: float):
        if not 0 <= timeout < math.inf:
            raise ValueError(f'config.stall_timeout={timeout:g}: allowed are seconds, or 0 for no limit')
        self._timeout = timeout
        self._was_heard = False
        self._pauses = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name='watchdog', daemon=True)

    def beat(self) -> None:
        """Something was finished."""
        self._was_heard = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context that may take as long as it needs."""
        self._pauses += 1
        try:
            yield
        finally:
            self._was_heard = True
            self._pauses -= 1

    def unwatched_first(self, function: Callable) -> Callable:
        """The function, its first call paused: it compiles."""
        contexts = itertools.chain([self.paused()], itertools.repeat(contextlib.nullcontext()))

        def call(*args, **kwargs):
            with next(contexts):
                return function(*args, **kwargs)

        return call

    def __enter__(self) -> 'Watchdog':
        if self._timeout:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._timeout:
            self._thread.join()

    def _listen(self) -> None:
        silent = 0
        while silent < LOOKS:
            if self._ended.wait(self._timeout / LOOKS):
                return
            silent = 0 if self._was_heard or self._pauses else silent + 1
            self._was_heard = False
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print(
            f'error: stalled: no step was finished within {self._timeout:g} seconds (config.stall_timeout); above is'
            ' where each thread was. The same command continues from the newest checkpoint',
            file=sys.stderr,
            flush=True,
        )
        os._exit(exit_codes.STALLED)
