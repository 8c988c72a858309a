"""A run's record reads as one clean run, however often it was stopped; and the progress fits its terminal."""

import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import termios

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.metrics import MetricWriter, read_metrics


def write_run(workdir, steps, resume_step=None):
    with MetricWriter(workdir, 100, resume_step=resume_step, stream=io.StringIO()) as writer:
        for step in steps:
            writer.write(step, {'train/loss': 10 / step})


def read_events(workdir):
    """All events in tensorboard/, by the framing of TFRecord: length, its CRC, the data, their CRC."""
    events = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from('<Q', data)
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return events


def test_lines_are_json_objects_of_exact_numbers(tmp_path):
    """Anyone's JSON reader gets the numbers that were measured, whatever array they came in."""
    metrics = {
        'train/loss': np.float32(0.1),
        'bits/mean': jnp.bfloat16(5.5),
        'tokens_per_second': 41234.5,
        'tokens': np.int64(2**40 + 1),
        'learning_rate': jnp.float32(3e-4),
    }
    with MetricWriter(tmp_path, 100, stream=io.StringIO()) as writer:
        writer.write(7, metrics)
        assert (tmp_path / 'metrics.jsonl').read_text().endswith('}\n'), 'a killed run has its last line too'
    [line] = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    expected = {
        'step': 7,
        'train/loss': float(np.float32(0.1)),
        'bits/mean': 5.5,
        'tokens_per_second': 41234.5,
        'tokens': 2**40 + 1,
        'learning_rate': float(np.float32(3e-4)),
    }
    assert json.loads(line) == expected
    assert read_metrics(tmp_path / 'metrics.jsonl') == [expected]


def test_nan_and_infinity_are_valid_json(tmp_path):
    """A diverged run is what people look at most: its record must parse, and say how it diverged."""

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    with MetricWriter(tmp_path, 100, stream=io.StringIO()) as writer:
        writer.write(1, {'a': math.nan, 'b': np.float32(np.inf), 'c': -jnp.inf})
        writer.summary({'loss': math.nan, 'nested': {'list': [1.5, math.inf]}, 'method': 'gaussws'})
    path = tmp_path / 'metrics.jsonl'
    assert json.loads(path.read_text(), parse_constant=refuse) == {
        'step': 1,
        'a': 'NaN',
        'b': 'Infinity',
        'c': '-Infinity',
    }
    [line] = read_metrics(path)
    assert math.isnan(line['a'])
    assert (line['b'], line['c']) == (math.inf, -math.inf)
    summary = json.loads((tmp_path / 'summary.json').read_text(), parse_constant=refuse)
    assert summary == {'loss': 'NaN', 'nested': {'list': [1.5, 'Infinity']}, 'method': 'gaussws'}


@pytest.mark.parametrize('torn', ['', '{"step": 60, "train/lo', '{"step": 60, "train/loss": 0.5}', '{"step": 2'])
def test_resumed_run_reads_as_one_run(tmp_path, torn):
    """Lines after the restored step are written again by the resumed run: none is there twice, none is lost."""
    write_run(tmp_path, range(10, 60, 10))
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write(torn)
    write_run(tmp_path, range(40, 101, 10), resume_step=30)
    write_run(tmp_path / 'never_stopped', range(10, 101, 10))
    expected = (tmp_path / 'never_stopped' / 'metrics.jsonl').read_text()
    assert (tmp_path / 'metrics.jsonl').read_text() == expected


def test_torn_last_line_after_the_restored_step_is_whole_again(tmp_path):
    """A last line without its newline must not swallow the next one."""
    write_run(tmp_path, [10])
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 20, "train/loss": 0.5}')
    write_run(tmp_path, [30], resume_step=20)
    assert [line['step'] for line in read_metrics(tmp_path / 'metrics.jsonl')] == [10, 20, 30]


def test_run_from_the_beginning_starts_a_new_record(tmp_path):
    """A run killed before its first checkpoint starts again at step 0, and so does its record."""
    write_run(tmp_path, [10, 20])
    with MetricWriter(tmp_path, 100, stream=io.StringIO()) as writer:
        writer.summary({'validation/loss': 1})
    write_run(tmp_path, [10])
    assert [line['step'] for line in read_metrics(tmp_path / 'metrics.jsonl')] == [10]
    assert not (tmp_path / 'summary.json').exists(), 'the summary of another run'


def test_damaged_line_in_the_middle_is_an_error(tmp_path):
    write_run(tmp_path, [10])
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1, "tr\n' + path.read_text())
    with pytest.raises(ValueError, match='line 1'):
        read_metrics(path)


def test_tensorboard_events(tmp_path):
    """TensorBoard shows the same values, and hides what a resumed run writes again."""
    write_run(tmp_path, [10, 20, 30])
    write_run(tmp_path, [20, 30], resume_step=10)
    events = read_events(tmp_path)
    scalars = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert scalars == [(step, 'train/loss', float(np.float32(10 / step))) for step in (10, 20, 30, 20, 30)]
    restarts = [event.step for event in events if event.HasField('session_log')]
    assert restarts == [0, 11]  # TensorBoard drops earlier events from that step on


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    """Logs of a batch system: a line a write, nothing overwritten, no control characters."""
    with MetricWriter(tmp_path, 1000) as writer:
        writer.write(20, {'train/loss': 2.34567, 'tokens_per_second': 41234.5, 'learning_rate': 3e-4})
        writer.write(1000, {'validation/loss': math.nan, 'tokens': 2_000_000})
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        'step   20/1000  train/loss 2.346  tokens_per_second 41,234  learning_rate 0.0003',
        'step 1000/1000  validation/loss nan  tokens 2,000,000',
    ]
    assert captured.err == ''


def test_progress_bar_fits_a_terminal_of_80_columns(tmp_path):
    """The longest values a run shows: no frame wraps, and each part is there; other writes are lines above."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    with os.fdopen(terminal, 'w') as stream:
        with MetricWriter(tmp_path, 143_000, resume_step=100_000, stream=stream) as writer:
            for step in range(100_100, 100_600, 100):
                metrics = {'train/loss': 10.987654, 'tokens_per_second': 123_456.7, 'bits/mean': 5.987}
                writer.write(step, metrics)
            writer.write(100_500, {'validation/loss': 2.5})
        stream.flush()
        output = os.read(control, 1 << 16).decode()
    os.close(control)
    frames = [frame for frame in re.split(r'[\r\n]+|\x1b\[\w', output) if frame.strip()]
    assert max(map(len, frames)) <= 80
    bar = [frame for frame in frames if frame.startswith('100500/143000 |')][-1]
    for part in ('loss 10.988', '123k tokens/s', '5.99 bits', 'left'):
        assert part in bar
    assert re.search(r'\|[^|]{8,}\|', bar), 'there is room for the bar itself'
    assert 'step 100500/143000  validation/loss 2.5' in frames


def test_other_processes_write_nothing(tmp_path, capsys):
    with MetricWriter(tmp_path / 'run', 100, is_main_process=False) as writer:
        writer.write(1, {'train/loss': 1.0})
        writer.summary({'loss': 1.0})
    assert not (tmp_path / 'run').exists()
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(
    'metrics, name',
    [
        ({'step': 1}, 'step'),
        ({'loss': '1.0'}, 'loss'),
        ({'done': True}, 'done'),
        ({'loss': np.ones(2)}, 'loss'),
        ({'loss': None}, 'loss'),
    ],
)
def test_only_numbers_are_metrics(tmp_path, metrics, name):
    with MetricWriter(tmp_path, 100, stream=io.StringIO()) as writer, pytest.raises(ValueError, match=name):
        writer.write(1, metrics)
    assert read_metrics(tmp_path / 'metrics.jsonl') == []
