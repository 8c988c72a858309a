"""How far a preparation is: a bar as that of a training on a terminal, elsewhere a line at times."""

import contextlib
import os
import sys
import time
from typing import TextIO

import tqdm

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
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total / 1e6,
                initial=initial / 1e6,
                file=self._stream,
                bar_format='{n:,.0f}/{total:,.0f} MB |{bar}| {desc}{remaining} left',
                ncols=self._columns(),
                nrows=24,  # some pseudo-terminals say 0, and tqdm then shows nothing
                mininterval=0,
                miniters=1,
            )
        self._next = self._start + self._pause

    def update(self, read: int, num_documents: int, num_tokens: int) -> None:
        """Shows, at times, how much there is: bytes of sources in all; documents and tokens since it began."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._pause
        rate = tqdm.tqdm.format_sizeof(num_tokens / (now - self._start))
        if self._bar is not None:
            self._bar.ncols = self._columns()
            self._bar.set_description_str(f'{num_documents:,} documents, {rate} tok/s, ', refresh=False)
            self._bar.update(min(read, self._total) / 1e6 - self._bar.n)
            self._bar.refresh()
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

    def _columns(self) -> int:
        """Of the terminal, which may have changed; but its last, after which some go to the next line."""
        return (os.get_terminal_size(self._stream.fileno()).columns or 80) - 1  # some pseudo-terminals say 0

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
