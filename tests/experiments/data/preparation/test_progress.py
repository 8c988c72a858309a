"""How far it is: on a terminal a bar, elsewhere a line at times, and nothing where it is soon done."""

import contextlib
import io
import os
import pty
import sys

from experiments.data.preparation import progress


def test_lines(monkeypatch):
    stream, now = io.StringIO(), 0.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
    with progress.Progress(100_000_000, 10_000_000, stream=stream) as shown:
        shown.update(20_000_000, 1000, 5000)
        assert not stream.getvalue()
        now = 40.0
        shown.update(50_000_000, 3000, 80_000)
    assert stream.getvalue() == '50/100 MB  3,000 documents  2.00k tok/s  00:50 left\n'


def test_a_bar(monkeypatch):
    """Also where a terminal says that it has no columns and no lines, as this one does."""
    now = 0.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
    master, terminal = pty.openpty()
    with os.fdopen(terminal, 'w') as stream:
        monkeypatch.setattr(sys, 'stdout', stream)  # of which alone tqdm asks for its lines
        with progress.Progress(100_000_000) as shown:
            now = 10.0
            shown.update(50_000_000, 3000, 80_000)
        monkeypatch.undo()
    output = b''
    with contextlib.suppress(OSError):  # how Linux tells the end; before, it hands on what is written in pieces
        while chunk := os.read(master, 1 << 16):
            output += chunk
    os.close(master)
    text = output.decode()
    assert '50/100 MB |' in text and '3,000 documents, 8.00k tok/s, ' in text and text.rstrip().endswith('left')
