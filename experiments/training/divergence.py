"""When a training has diverged: its loss or a gradient isn't finite, or the loss lies far above the ones before it.

    loss > mean + spike_sigmas * standard deviation        both of the last spike_window losses

where spike_sigmas isn't 0, and as soon as there were so many. While the loss falls, what it falls by is part of that
standard deviation, so that the test is lenient at the beginning of a training, and sharp where it matters. The loss of
a step that has diverged never enters the window. Sums are rounded once (math.fsum): any machine decides alike.
"""

import collections
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

FINITE = ('train/loss', 'train/gradient_norm', 'bits/gradient_norm')


class Diverged(FloatingPointError):
    """A step's loss or gradient says that the training has diverged; the message tells which, and when.

    step: the one that diverged.
    loss: its loss.
    """

    def __init__(self, reason: str, step: int, loss: float):
        super().__init__(f'{reason} at step {step}')
        self.step, self.loss = step, loss


class DivergenceDetector:
    """Looks at the metrics of one step after the other, and remembers what the next decision depends on.

    Its state belongs into the checkpoints: a run that continues then decides as if it had never stopped.

    Args:
      config: `config.divergence`: max_rollbacks, spike_sigmas and spike_window.

    Raises:
      ValueError: naming the field, and what is allowed.

    Attributes:
      checkpoint: the step of the last checkpoint that the run would roll back to; None is its beginning.
      rollbacks: how many there were since that was reached.

    Example:
      detector = DivergenceDetector(config.divergence)
      for step, batch in enumerate(batches, start=1):
          state, metrics = train_step(state, batch)
          detector.check(step, metrics)
    """

    def __init__(self, config: ConfigDict):
        if config.max_rollbacks < 0:
            raise ValueError(f'config.divergence.max_rollbacks={config.max_rollbacks}: allowed are 0 and more')
        if not 0 <= config.spike_sigmas < math.inf:
            raise ValueError(
                f'config.divergence.spike_sigmas={config.spike_sigmas:g}: allowed are positive numbers, or 0 for none'
            )
        if config.spike_window < 2:
            raise ValueError(f'config.divergence.spike_window={config.spike_window}: allowed are 2 and more steps')
        self._max_rollbacks = config.max_rollbacks
        self._spike_sigmas = config.spike_sigmas
        self._losses = collections.deque(maxlen=config.spike_window)
        self.set_state({'losses': [], 'checkpoint': None, 'rollbacks': 0})
        self._state_at_the_beginning = self.get_state()

    @property
    def may_roll_back(self) -> bool:
        return self.rollbacks < self._max_rollbacks

    def check(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Waits for the metrics of a step; raises Diverged."""
        loss = float(metrics['train/loss'])
        for name in FINITE:
            if not math.isfinite(value := float(metrics.get(name, 0.0))):
                raise Diverged(f'{name} is {value}', step, loss)
        if not self._spike_sigmas:
            return
        if len(self._losses) == self._losses.maxlen:
            mean = math.fsum(self._losses) / len(self._losses)
            deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in self._losses) / len(self._losses))
            if loss > mean + self._spike_sigmas * deviation:
                window = f'{mean:.4g}, the mean of the {len(self._losses)} losses before (sigma {deviation:.2g})'
                reason = f'train/loss is {loss:.4g}, more than {self._spike_sigmas:g} sigmas above {window}'
                raise Diverged(reason, step, loss)
        self._losses.append(loss)

    def reach_checkpoint(self, step: int) -> None:
        """Nothing before this step will be rolled back to; call it before `get_state`."""
        self.checkpoint, self.rollbacks = step, 0

    def roll_back(self, state: Mapping[str, Any] | None) -> None:
        """Goes back to the state of a checkpoint, or of the beginning, and counts that."""
        rollbacks = self.rollbacks + 1
        self.set_state(state or self._state_at_the_beginning)
        self.rollbacks = rollbacks

    def get_state(self) -> dict[str, Any]:
        """What JSON keeps as it is."""
        return {'losses': list(self._losses), 'checkpoint': self.checkpoint, 'rollbacks': self.rollbacks}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._losses = collections.deque(state['losses'], maxlen=self._losses.maxlen)
        self.checkpoint: int | None = state['checkpoint']
        self.rollbacks: int = state['rollbacks']
