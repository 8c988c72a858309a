"""The progress bar of programs, on a terminal."""

import os
from typing import TextIO

import tqdm


def open_bar(stream: TextIO, *, total: float, initial: float, bar_format: str) -> tqdm.tqdm | None:
    """A bar that shows only what `move` tells it; None where the stream is no terminal."""
    if not stream.isatty():
        return None
    return tqdm.tqdm(
        total=total,
        initial=initial,
        file=stream,
        bar_format=bar_format,
        ncols=columns(stream),
        nrows=24,  # some pseudo-terminals say 0, and tqdm then shows nothing
        mininterval=0,
        miniters=1,
    )


def columns(stream: TextIO) -> int:
    """Of the terminal, which may have changed; but its last, after which some go to the next line."""
    return (os.get_terminal_size(stream.fileno()).columns or 80) - 1  # some pseudo-terminals say 0


def move(bar: tqdm.tqdm, position: float, description: str) -> None:
    """Shows the bar there, with this description."""
    bar.set_description_str(description, refresh=False)
    bar.update(position - bar.n)
    bar.refresh()
