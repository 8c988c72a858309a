"""What a run reports: metrics.jsonl, TensorBoard events, a progress bar or plain lines, and summary.json."""

import contextlib
import json
import math
import numbers
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np
import tqdm
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import HistogramProto, Summary
from tensorboardX.record_writer import RecordWriter

from experiments.devices import terminal_bar
from experiments.files import json_files, paths
from gaussq_jax.atomic_files import named_errors, open_own, replace_file

RECORDED_ONLY = re.compile(  # not in lines
    'bits/(min|max|p10|p90|stored|gradient_norm|signal_to_noise|matrix/.*)|(step_seconds|seconds|device_memory)/.*|'
    'validation/.+/bits_per_byte'
)
WAITS = ('data', 'checkpoint', 'metrics')  # what is shown, if it is so much of the time since the last log
LEAST_WAIT = 0.03


class MetricWriter(contextlib.AbstractContextManager):
    """Writes a run's metrics to its workdir, and shows them.

    - `metrics.jsonl` gets a line for each call of `write`: `{"step": 20, "train/loss": 2.31, ...}`. JSON has
      no NaN and no infinity: they are the strings "NaN", "Infinity" and "-Infinity" there, and floats again
      in what `read_metrics` returns. A metric of several numbers, such as one a layer, is a list there.
    - `tensorboard/` gets the same as events; the i-th number of a list has the tag `<name>/<i>`.
    - On a terminal, a `write` with 'train/loss' moves the progress bar, which shows speed and bitwidths too, as
      far as there is room; any other `write` is a line above it. Elsewhere every `write` is a line: what is
      printed, and in which order, is what the caller writes, without the names of `RECORDED_ONLY`. Both tell
      which share of 'seconds/total' was lost to data, to checkpoints and to metrics, where it is large.
    - `summary.json` is there once `summary` was called, and whole; a new writer removes an earlier run's.

    A run that continues from a checkpoint leaves one clean record: lines after the restored step are dropped,
    and so is a last line that was cut off. A run that starts from the beginning drops all lines. A rollback to a
    checkpoint within the run drops those after it, and adds one that tells of it; that one is younger than the
    checkpoint, and so is dropped where a run continues from there.

    What is written is on its way to the disk when a method returns: one that is full is an OSError there.

    Args:
      workdir: the run's directory; made if it isn't there.
      total_steps: the run's last step, for the progress bar.
      resume_step: the step of the restored checkpoint, None for a run that starts from the beginning.
      is_main_process: False writes and shows nothing.
      stream: where the progress goes; None is sys.stdout.

    Raises:
      ValueError: metrics.jsonl has a line that is no JSON object before its last.

    Example:
      with MetricWriter('/runs/tiny', total_steps=1000) as writer:
          writer.write(10, {'train/loss': 3.2, 'tokens_per_second': 41e3, 'bits/mean': 5.9})
          writer.write(10, {'validation/loss': 3.3})
          writer.summary({'validation/loss': 3.3})
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total_steps: int,
        *,
        resume_step: int | None = None,
        is_main_process: bool = True,
        stream: TextIO | None = None,
    ):
        self._is_main_process = is_main_process
        if not is_main_process:
            return
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._metrics_path = workdir / 'metrics.jsonl'
        self._summary_path = workdir / 'summary.json'
        self._summary_path.unlink(missing_ok=True)
        self._total_steps = total_steps
        self._stream = sys.stdout if stream is None else stream

        first_step = 0 if resume_step is None else resume_step + 1
        if resume_step is None:
            self._metrics_path.unlink(missing_ok=True)
        self._keep(lambda line: line['step'] < first_step - ('rollback/from_step' in line))
        self._events = _Events(workdir / 'tensorboard', first_step)
        bar_format = '{n_fmt}/{total_fmt} |{bar}| {desc}{remaining} left'
        self._bar = terminal_bar.open_bar(
            self._stream, total=total_steps, initial=resume_step or 0, bar_format=bar_format
        )

    def write(
        self, step: int, metrics: Mapping[str, Any], histograms: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Records the metrics of a step: Python, NumPy or JAX scalars by name, or lists or 1-d arrays of them.

        TensorBoard gets the histograms, too: by name, pairs of the edges of the bins and of how many there are in each.

        Raises:
          ValueError: a metric is no real number and no list of real numbers, or is named 'step'.
        """
        if not self._is_main_process:
            return
        if 'step' in metrics:
            raise ValueError("metrics: 'step' is the name of the step itself")
        values = {name: _to_numbers(name, value) for name, value in metrics.items()}
        with named_errors(self._metrics_path), open_own(self._metrics_path, 'a') as file:
            file.write(_to_line({'step': int(step), **values}))
        self._events.write(int(step), values, histograms)
        if self._bar is not None and 'train/loss' in values:
            self._bar.ncols = terminal_bar.columns(self._stream)
            room = self._bar.ncols - len(f'{self._total_steps}/{self._total_steps} |123| 100:00:00 left')
            terminal_bar.move(self._bar, step, _bar_text(values, room))
        else:
            position = f'step {step:>{len(str(self._total_steps))}}/{self._total_steps}'
            shown = {name: value for name, value in values.items() if not RECORDED_ONLY.fullmatch(name)}
            texts = [_to_text(name, value) for name, value in _scalars(shown).items()]
            self.show('  '.join([position, *texts, *_waits(values)]))

    def show(self, line: str) -> None:
        """Prints a line; on a terminal, above the progress bar."""
        if self._is_main_process:
            tqdm.tqdm.write(line, file=self._stream)
            self._stream.flush()

    def roll_back(self, step: int, *, from_step: int, loss: float) -> None:
        """Records that the run went back to a step, and so that the batches of `from_step - step` steps are skipped."""
        if not self._is_main_process:
            return
        self._keep(lambda line: line['step'] <= step)
        self._events.purge(step + 1)
        skipped = from_step - step
        self.write(step, {'rollback/from_step': from_step, 'rollback/loss': loss, 'rollback/skipped_batches': skipped})

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: anything JSON-able, with NaN and infinity as in metrics.jsonl."""
        if self._is_main_process:
            json_files.write(self._summary_path, _encode(summary))

    def close(self) -> None:
        """Ends the progress bar and writes the last events."""
        if not self._is_main_process:
            return
        if self._bar is not None:
            self._bar.close()
        self._events.close()

    def _keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        lines = read_metrics(self._metrics_path) if self._metrics_path.exists() else []
        replace_file(self._metrics_path, ''.join(_to_line(line) for line in lines if is_kept(line)))

    def __exit__(self, *_) -> None:
        self.close()


class _Events:
    """A file of TensorBoard events, written at once, by the thread that calls: in its own, an error would be lost."""

    def __init__(self, directory: pathlib.Path, first_step: int):
        directory.mkdir(exist_ok=True)
        number = len(list(directory.iterdir()))  # files are read in the order of their names, whatever the time was
        self._path = directory / f'events.out.tfevents.{number:06}.from_step_{first_step}'
        self._file = RecordWriter(str(self._path))
        self._add(Event(wall_time=time.time(), file_version='brain.Event:2'))
        self.purge(first_step)

    def write(self, step: int, values: Mapping[str, float | list[float]], histograms: Mapping[str, Any]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in _scalars(values).items()]
        present = {name: of_name for name, of_name in histograms.items() if np.any(of_name[1])}  # of NaN there is none
        counted = [Summary.Value(tag=name, histo=_histogram(*of_name)) for name, of_name in present.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars + counted)))

    def purge(self, step: int) -> None:
        """TensorBoard hides earlier events from this step on."""
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=step, session_log=start))

    def close(self) -> None:
        with named_errors(self._path):
            self._file.close()

    def _add(self, event: Event) -> None:
        with named_errors(self._path):
            self._file.write(event.SerializeToString())
            self._file.flush()


def _histogram(edges: Sequence[float], counts: Sequence[float]) -> HistogramProto:
    """With moments as if all that is in a bin was in its middle."""
    counts = np.asarray(counts, float)
    middles, present = (np.asarray(edges[1:], float) + edges[:-1]) / 2, np.flatnonzero(counts)
    return HistogramProto(
        min=edges[present[0]],
        max=edges[present[-1] + 1],
        num=counts.sum(),
        sum=counts @ middles,
        sum_squares=counts @ middles**2,
        bucket_limit=edges[1:],
        bucket=counts,
    )


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order: dicts of numbers and lists of floats. Not a last one that was cut off.

    Raises:
      ValueError: another line is no JSON object of those.

    Example:
      losses = [(line['step'], line['train/loss']) for line in read_metrics(path) if 'train/loss' in line]
    """
    lines = paths.check_file(pathlib.Path(path)).read_bytes().splitlines()
    metrics = []
    for number, line in enumerate(lines, start=1):
        where = f'{path}, line {number}'
        try:
            values = json_files.require(json_files.parse(line, where), where, {'step': int})
            metrics.append({name: _of_line(name, value) for name, value in values.items()})
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f'{where} is no line of metrics, {line[:80]!r}: {error}') from None
    return metrics


def _of_line(name: str, value: Any) -> int | float | list[float]:
    if isinstance(value, list) and not any(isinstance(inner, list) for inner in value):
        return [float(_of_line(name, inner)) for inner in value]
    if json_files.is_a(value, str):
        value = float(value)
    if not json_files.is_a(value, float):
        raise ValueError(f'{name[:80]!r} must be a number, or a list of numbers')
    return value


def _to_numbers(name: str, value: Any) -> int | float | list[float]:
    if isinstance(value, list | tuple) or getattr(value, 'ndim', 0) == 1:
        return [float(_to_number(name, inner)) for inner in value]
    return _to_number(name, value)


def _to_number(name: str, value: Any) -> int | float:
    number = value.item() if hasattr(value, 'item') and getattr(value, 'ndim', 0) == 0 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise ValueError(f'metrics[{name!r}] = {value!r}: a metric is one real number, or a list of them')
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def _scalars(values: Mapping[str, float | list[float]]) -> dict[str, float]:
    """Each number under a name of its own: that of its list, and its place there."""
    scalars = {}
    for name, value in values.items():
        of_name = {f'{name}/{i}': inner for i, inner in enumerate(value)} if isinstance(value, list) else {name: value}
        scalars.update(of_name)
    return scalars


def _encode(value: Any) -> Any:
    """A value with its numbers as JSON has them."""
    if isinstance(value, Mapping):
        return {name: _encode(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(inner) for inner in value]
    value = value.item() if hasattr(value, 'item') else value
    if isinstance(value, float) and not math.isfinite(value):
        return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
    return value


def _to_line(values: Mapping[str, Any]) -> str:
    return json.dumps(_encode(values), allow_nan=False) + '\n'


def _to_text(name: str, value: int | float) -> str:
    large = isinstance(value, int) or 1000 <= abs(value) < math.inf
    return f'{name} {value:,.0f}' if large else f'{name} {value:.4g}'


def _bar_text(values: Mapping[str, float], room: int) -> str:
    """The loss, and of the rest, in this order, what there is room for."""
    parts = [f'loss {values["train/loss"]:.3f}']
    if 'tokens_per_second' in values:
        parts.append(f'{tqdm.tqdm.format_sizeof(values["tokens_per_second"])} tok/s')
    parts += _waits(values)
    if 'mfu' in values:
        parts.append(f'MFU {100 * values["mfu"]:.2g}%')
    if 'bits/mean' in values:
        parts.append(f'{values["bits/mean"]:.2f} bits')
    if 'step_seconds/p90' in values:
        parts.append(f'p90 {values["step_seconds/p90"]:.3g} s')
    if 'device_memory/peak_bytes' in values:
        parts.append(f'{tqdm.tqdm.format_sizeof(values["device_memory/peak_bytes"])}B')
    while len(parts) > 1 and len(', '.join(parts)) + 2 > room:
        parts.pop()
    return ', '.join(parts) + ', '


def _waits(values: Mapping[str, float]) -> list[str]:
    """Which shares of the time since the last log the loop has waited, if they are large."""
    shares = {name: values.get(f'seconds/{name}', 0) / values.get('seconds/total', math.inf) for name in WAITS}
    return [f'{name} wait {share:.0%}' for name, share in shares.items() if share >= LEAST_WAIT]
