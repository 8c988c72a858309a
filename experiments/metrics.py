"""What a run reports: metrics.jsonl, TensorBoard events, a progress bar or plain lines, and summary.json."""

import json
import math
import numbers
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import tensorboardX
import tqdm

SECONDS_BETWEEN_EVENT_FLUSHES = 10


class MetricWriter:
    """Writes a run's metrics to its workdir, and shows them.

    - `metrics.jsonl` gets a line for each call of `write`: `{"step": 20, "train/loss": 2.31, ...}`. JSON has
      no NaN and no infinity: they are the strings "NaN", "Infinity" and "-Infinity" there, and floats again
      in what `read_metrics` returns.
    - `tensorboard/` gets the same as events.
    - On a terminal, a `write` with 'train/loss' moves the progress bar, which shows 'tokens_per_second' and
      'bits/mean' too; any other `write` is a line above it. Elsewhere every `write` is a line: what is
      printed, and in which order, is what the caller writes.
    - `summary.json` is there once `summary` was called, and whole; a new writer removes an earlier run's.

    A run that continues from a checkpoint leaves one clean record: lines after the restored step are dropped,
    and so is a last line that was cut off. A run that starts from the beginning drops all lines.

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
        is_continued = resume_step is not None and self._metrics_path.exists()
        kept = read_metrics(self._metrics_path) if is_continued else []
        replace_file(self._metrics_path, ''.join(_to_line(line) for line in kept if line['step'] < first_step))
        self._events = tensorboardX.SummaryWriter(
            str(workdir / 'tensorboard'),
            purge_step=first_step,  # TensorBoard hides earlier events from there on
            filename_suffix=f'.from_step_{first_step}',  # names go by the second, and opening one empties it
            flush_secs=SECONDS_BETWEEN_EVENT_FLUSHES,
        )
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=resume_step or 0,
                file=self._stream,
                bar_format='{n_fmt}/{total_fmt} |{bar}| {desc}{remaining} left',
                dynamic_ncols=True,
                mininterval=0,
                miniters=1,
            )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of a step: Python, NumPy or JAX scalars by name.

        Raises:
          ValueError: a metric is not a real number, or is named 'step'.
        """
        if not self._is_main_process:
            return
        if 'step' in metrics:
            raise ValueError("metrics: 'step' is the name of the step itself")
        values = {name: _to_number(name, value) for name, value in metrics.items()}
        with open(self._metrics_path, 'a') as file:
            file.write(_to_line({'step': int(step), **values}))
        for name, value in values.items():
            self._events.add_scalar(name, value, int(step))
        if self._bar is not None and 'train/loss' in values:
            self._bar.set_description_str(_bar_text(values), refresh=False)
            self._bar.update(step - self._bar.n)
            self._bar.refresh()
        else:
            position = f'step {step:>{len(str(self._total_steps))}}/{self._total_steps}'
            texts = [_to_text(name, value) for name, value in values.items()]
            tqdm.tqdm.write('  '.join([position, *texts]), file=self._stream)
            self._stream.flush()

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: anything JSON-able, with NaN and infinity as in metrics.jsonl."""
        if self._is_main_process:
            replace_file(self._summary_path, json.dumps(_encode(summary), indent=2, allow_nan=False) + '\n')

    def close(self) -> None:
        """Ends the progress bar and writes the last events."""
        if not self._is_main_process:
            return
        if self._bar is not None:
            self._bar.close()
        self._events.close()

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order, as dicts of numbers; without a last line that was cut off.

    Raises:
      ValueError: another line is no JSON object.

    Example:
      losses = [(line['step'], line['train/loss']) for line in read_metrics(path) if 'train/loss' in line]
    """
    lines = pathlib.Path(path).read_text().splitlines()
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            metrics.append({name: float(v) if isinstance(v, str) else v for name, v in values.items()})
        except (ValueError, AttributeError) as error:
            if number < len(lines):
                raise ValueError(f'{path}, line {number} is no line of metrics: {line!r}') from error
    return metrics


def _to_number(name: str, value: Any) -> int | float:
    number = value.item() if hasattr(value, 'item') and getattr(value, 'ndim', 0) == 0 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise ValueError(f'metrics[{name!r}] = {value!r}: a metric is one real number')
    return int(number) if isinstance(number, numbers.Integral) else float(number)


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


def _bar_text(values: Mapping[str, float]) -> str:
    """The part of the progress bar that fits 80 columns with a bar of its own."""
    parts = [f'loss {values["train/loss"]:.3f}']
    if 'tokens_per_second' in values:
        parts.append(f'{tqdm.tqdm.format_sizeof(values["tokens_per_second"])} tokens/s')
    if 'bits/mean' in values:
        parts.append(f'{values["bits/mean"]:.2f} bits')
    return ', '.join(parts) + ', '


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a file in one step: a reader, or a kill, finds the old text or the new."""
    partial = path.with_name(path.name + '.writing')
    partial.write_text(text)
    partial.replace(path)
