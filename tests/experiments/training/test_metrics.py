"""A run's record reads as one clean run, however often it was stopped; and the progress fits its terminal."""

import contextlib
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

from experiments.training.metrics import MetricWriter, read_metrics


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


@pytest.mark.parametrize('numbers', [[4, 3.5], (4.0, 3.5), np.float32([4, 3.5]), jnp.array([4, 3.5])])
def test_a_metric_of_several_numbers(tmp_path, capsys, numbers):
    """One a layer, say: a JSON list, floats when it is read; for TensorBoard, a scalar each; NaN is itself."""
    with MetricWriter(tmp_path, 100) as writer:
        writer.write(7, {'bits/matrix/query': numbers, 'layers': numbers})
        writer.write(8, {'bits/matrix/query': [math.nan, 1]})
    assert capsys.readouterr().out.splitlines() == ['step   7/100  layers/0 4  layers/1 3.5', 'step   8/100']
    first, second = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert json.loads(first) == {'step': 7, 'bits/matrix/query': [4.0, 3.5], 'layers': [4.0, 3.5]}
    assert json.loads(second) == {'step': 8, 'bits/matrix/query': ['NaN', 1.0]}
    lines = read_metrics(tmp_path / 'metrics.jsonl')
    assert lines[0] == json.loads(first) and {type(value) for value in lines[0]['layers']} == {float}
    assert math.isnan(lines[1]['bits/matrix/query'][0])
    scalars = [(value.tag, value.simple_value) for event in read_events(tmp_path) for value in event.summary.value]
    names = [f'{name}/{i}' for name in ('bits/matrix/query', 'layers') for i in (0, 1)]
    assert scalars[:4] == list(zip(names, [4.0, 3.5, 4.0, 3.5]))


def test_histograms_are_for_tensorboard(tmp_path):
    """By the edges and counts of their bins; one of nothing, as of NaN bitwidths, is left out."""
    with MetricWriter(tmp_path, 100, stream=io.StringIO()) as writer:
        writer.write(7, {'a': 1}, {'bits': ([3.0, 3.5, 4.0, 4.5], [0, 3, 1]), 'nothing': ([3.0, 4.0], [0])})
    values = {value.tag: value for event in read_events(tmp_path) for value in event.summary.value}
    histogram = values['bits'].histo
    assert 'nothing' not in values and read_metrics(tmp_path / 'metrics.jsonl') == [{'step': 7, 'a': 1}]
    assert (list(histogram.bucket_limit), list(histogram.bucket)) == ([3.5, 4.0, 4.5], [0, 3, 1])
    assert (histogram.min, histogram.max, histogram.num) == (3.5, 4.5, 4)
    assert (histogram.sum, histogram.sum_squares) == (3 * 3.75 + 4.25, 3 * 3.75**2 + 4.25**2)


@pytest.mark.parametrize('value', ['[[1.0]]', '[null]', '[true]', '{}', '["x"]'])
def test_other_lists_are_no_metrics(tmp_path, value):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(f'{{"step": 1, "bits": {value}}}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match='line 1 is no line of metrics'):
        read_metrics(path)


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


def test_a_rollback_within_a_run(tmp_path):
    """What came after the step is gone, and a line tells why; one more for each further rollback to it."""
    with MetricWriter(tmp_path, 100, resume_step=None, stream=io.StringIO()) as writer:
        for step in range(10, 60, 10):
            writer.write(step, {'train/loss': 10 / step})
        writer.roll_back(30, from_step=57, loss=math.nan)
        writer.write(40, {'train/loss': 1.0})
        writer.roll_back(30, from_step=46, loss=99.5)
        writer.write(50, {'train/loss': 2.0})
    lines = read_metrics(tmp_path / 'metrics.jsonl')
    assert [line['step'] for line in lines] == [10, 20, 30, 30, 30, 50]
    first, second = lines[3:5]
    assert math.isnan(first.pop('rollback/loss'))
    assert first == {'step': 30, 'rollback/from_step': 57, 'rollback/skipped_batches': 27}
    assert second == {
        'step': 30,
        'rollback/from_step': 46,
        'rollback/loss': 99.5,
        'rollback/skipped_batches': 16,
    }
    purges = [event.step for event in read_events(tmp_path) if event.HasField('session_log')]
    assert purges == [0, 31, 31]


def test_a_run_that_continues_from_where_it_rolled_back_to_comes_to_it_again(tmp_path):
    """The line of the rollback is younger than the checkpoint; that of one to an earlier step is older."""
    with MetricWriter(tmp_path, 100, stream=io.StringIO()) as writer:
        writer.roll_back(0, from_step=3, loss=math.nan)
        writer.write(10, {'train/loss': 1.0})
        writer.roll_back(10, from_step=12, loss=math.nan)
    write_run(tmp_path, [20], resume_step=10)
    names = [sorted(line) for line in read_metrics(tmp_path / 'metrics.jsonl')]
    rollback = ['rollback/from_step', 'rollback/loss', 'rollback/skipped_batches', 'step']
    assert names == [rollback, ['step', 'train/loss'], ['step', 'train/loss']]


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


LOG = {
    'train/loss': 10.987654,
    'bits/mean': 5.987,
    'tokens_per_second': 123_456.7,
    'mfu': 0.41234,
    'learning_rate': 3e-4,
    'train/gradient_norm': 0.4321,
    'bits/min': 4.5,
    'bits/max': 6.0,
    'bits/gradient_norm': 0.001,
    'bits/p10': 4.75,
    'bits/p90': 5.9,
    'bits/stored': 7.0,
    'bits/signal_to_noise': 0.5,
    'bits/matrix/query': [5.5, 6.0],
    'step_seconds/p50': 1.9,
    'step_seconds/p90': 2.13456,
    'step_seconds/max': 3.0,
    'seconds/data': 2.0,
    'seconds/checkpoint': 0.5,
    'seconds/total': 100.0,
    'device_memory/peak_bytes': 63_100_000_000,
}
LATE = LOG | {'seconds/data': 12.0, 'seconds/checkpoint': 31.0}


def test_a_plain_line_has_what_one_looks_at(tmp_path, capsys):
    """All is in the files; the line has what is worth one, and waits only if they took more than a few percent."""
    with MetricWriter(tmp_path, 900) as writer:
        writer.write(10, LOG)
        writer.write(20, LATE)
    line = 'train/loss 10.99  bits/mean 5.987  tokens_per_second 123,457  mfu 0.4123  learning_rate 0.0003'
    line += '  train/gradient_norm 0.4321'
    waits = 'data wait 12%  checkpoint wait 31%'
    assert capsys.readouterr().out.splitlines() == [f'step  10/900  {line}', f'step  20/900  {line}  {waits}']
    assert read_metrics(tmp_path / 'metrics.jsonl') == [{'step': 10, **LOG}, {'step': 20, **LATE}]
    tags = {value.tag for event in read_events(tmp_path) for value in event.summary.value}
    assert tags == {*LOG, 'bits/matrix/query/0', 'bits/matrix/query/1'} - {'bits/matrix/query'}


def show(workdir, columns, total_steps, resume_step, logs):
    """What a terminal of so many columns is sent, frame by frame: the last is the whole bar."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    with (
        os.fdopen(terminal, 'w') as stream,
        MetricWriter(workdir, total_steps, resume_step=resume_step, stream=stream) as writer,
    ):
        for number, metrics in enumerate(logs, start=1):
            writer.write(resume_step + 100 * number, metrics)
    output = b''
    with contextlib.suppress(OSError):  # how Linux tells the end
        while chunk := os.read(control, 1 << 16):
            output += chunk
    os.close(control)
    frames = [frame for frame in re.split(r'[\r\n]+|\x1b\[\w', output.decode()) if frame.strip()]
    assert max(map(len, frames)) <= (columns or 80)
    return frames


def bar_of(frames):
    return [frame for frame in frames if re.match(r'\d+/\d+ \|', frame)][-1]


def test_progress_bar_fits_a_terminal_of_80_columns(tmp_path):
    """The longest values a run shows: no frame wraps, and each part is there; other writes are lines above."""
    frames = show(tmp_path, 80, 143_000, 100_000, [LOG, LOG, LOG, {'validation/loss': 2.5}])
    bar = bar_of(frames)
    assert re.fullmatch(
        r'100300/143000 \|[^|]{4,}\| loss 10\.988, 123k tok/s, MFU 41%, 5\.99 bits, [\d:]+ left', bar.strip()
    )
    assert 'step 100400/143000  validation/loss 2.5' in frames


@pytest.mark.parametrize(
    'columns, log, parts',
    [
        (0, LOG, 'loss 10.988, 123k tok/s, MFU 41%, 5.99 bits'),  # as some pseudo-terminals have it: taken for 80
        (60, LOG, 'loss 10.988, 123k tok/s'),
        (120, LOG, 'loss 10.988, 123k tok/s, MFU 41%, 5.99 bits, p90 2.13 s, 63.1GB'),
        (80, LATE, 'loss 10.988, 123k tok/s, data wait 12%'),
        (120, LATE, 'loss 10.988, 123k tok/s, data wait 12%, checkpoint wait 31%, MFU 41%, 5.99 bits'),
        (80, {'train/loss': math.nan}, 'loss nan'),
        (80, {'train/loss': 1.5, 'mfu': 0.0041}, 'loss 1.500, MFU 0.41%'),
        (50, LOG, 'loss 10.988'),
    ],
)
def test_progress_bar_shows_what_there_is_room_for(tmp_path, columns, log, parts):
    """What matters most comes first, and time that is lost before what is merely good to know."""
    bar = bar_of(show(tmp_path, columns, 143_000, 100_000, [log] * 3))
    assert re.fullmatch(r'100300/143000 \|[^|]{3,}\| ' + re.escape(parts) + r', [\d:]+ left', bar.strip())


def test_a_line_is_shown_above_the_bar(tmp_path, capsys):
    with MetricWriter(tmp_path, 900) as writer:
        writer.show('profile   there')
    with MetricWriter(tmp_path, 900, is_main_process=False) as writer:
        writer.show('another')
    assert capsys.readouterr().out == 'profile   there\n'


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
        ({'loss': np.ones((2, 2))}, 'loss'),
        ({'loss': [1.0, '2.0']}, 'loss'),
        ({'loss': [1.0, [2.0]]}, 'loss'),
        ({'loss': None}, 'loss'),
    ],
)
def test_only_numbers_and_lists_of_them_are_metrics(tmp_path, metrics, name):
    with MetricWriter(tmp_path, 100, stream=io.StringIO()) as writer, pytest.raises(ValueError, match=name):
        writer.write(1, metrics)
    assert read_metrics(tmp_path / 'metrics.jsonl') == []
