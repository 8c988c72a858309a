"""How far a preparation is: a bar as that of a training on a terminal, elsewhere a line at times."""

import contextlib
import sys
import time
from typing import TextIO

import tqdm

from experiments.devices import terminal_bar

SECONDS_BAR, SECONDS_LINES = 0.2, 30.0  # between two updates


class Progress(contextlib.AbstractContextManager):
    """Shows documents, MB of the sources, tokens per second, and the time that is left.

    Args:
      total: bytes of all sources.
      initial: bytes of those that were read before, when a preparation is resumed.
      stream: where it goes; None is sys.stdout.
    """

    def __init__(self, total: int, initial: int = 0, stream: TextIO | None = None):
        self._stream = sys.stdout if stream is None else stream
        self._total, self._initial, self._start = total, initial, time.monotonic()
        bar_format = '{n:,.0f}/{total:,.0f} MB |{bar}| {desc}{remaining} left'
        self._bar = terminal_bar.open_bar(self._stream, total=total / 1e6, initial=initial / 1e6, bar_format=bar_format)
        self._next = self._start + self._pause

    def update(self, read: int, num_documents: int, num_tokens: int) -> None:
        """Shows, at times, how much there is: bytes of sources in all; documents and tokens since it began."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._pause
        rate = tqdm.tqdm.format_sizeof(num_tokens / (now - self._start))
        if self._bar is not None:
            self._bar.ncols = terminal_bar.columns(self._stream)
            description = f'{num_documents:,} documents, {rate} tok/s, '
            terminal_bar.move(self._bar, min(read, self._total) / 1e6, description)
            return
        left = (self._total - read) * (now - self._start) / max(1, read - self._initial)
        print(
            f'{read / 1e6:,.0f}/{self._total / 1e6:,.0f} MB  {num_documents:,} documents  {rate} tok/s  '
            f'{tqdm.tqdm.format_interval(max(0, left))} left',
            file=self._stream,
            flush=True,
        )

    @property
    def _pause(self) -> float:
        return SECONDS_LINES if self._bar is None else SECONDS_BAR

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
