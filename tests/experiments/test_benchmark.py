"""The benchmarks run, print what they measured, and write it as JSON."""

import json
import re
import types

import pytest
from programs import import_program
from small_experiments import ONE_DEVICE, on_mesh

from configs import tiny
from experiments.benchmarks import cast_times, kernel_times

benchmark = import_program('benchmark')
WHAT = (
    'error: say what to measure: kernel or compile or gemms or step or depth or cast or export or checkpoint'
    ' or generate or prepare or data'
)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the program with these flags; returns what it prints and what it writes."""

    def run(*arguments, **values):
        monkeypatch.setattr(benchmark, 'OUTPUT', flag(str(tmp_path / 'results.json')))
        given = {name: flag(value) for name, value in values.items()}
        monkeypatch.setattr(benchmark, 'flags', types.SimpleNamespace(FLAGS=given))
        benchmark.main(['benchmark', *arguments])
        return capsys.readouterr().out, json.loads((tmp_path / 'results.json').read_text())

    return run


def flag(value):
    return types.SimpleNamespace(value=value)


def cells(line):
    """What stands in the columns of a line of a table."""
    return re.split(r'  +', line)


def test_kernel(run, monkeypatch):
    """A table for each shape, a line for each row of the results; what can't run or fails here is told."""
    monkeypatch.setattr(kernel_times, 'implementations', lambda: {'xla': None, 'triton': 'there is no GPU'})
    time_shape = kernel_times.time_shape

    def with_failure(*arguments, **options):
        failure = {'shape': 'x', 'operation': 'forward', 'implementation': 'triton', 'error': 'ValueError: no'}
        return [*time_shape(*arguments, **options), failure]

    monkeypatch.setattr(kernel_times, 'time_shape', with_failure)
    printed, results = run('kernel', shapes='^ragged/(one|row)', turns=1, clock=None)
    assert (results['clock'], results['turns']) == ('host', 1)
    assert results['implementations'] == {'xla': None, 'triton': 'there is no GPU'}
    first, not_measured, *tables = printed.splitlines()
    assert first == f"{results['device']}, by the host's clock"
    assert not_measured == 'triton is not measured: there is no GPU'
    assert [line for line in tables if line.startswith('ragged')] == ['ragged/one, 1 x 1', 'ragged/row, 1 x 700']
    lines = [line for line in tables if line and not line.startswith(('ragged', 'operation'))]
    assert len(lines) == len(results['rows']) > 20
    for line, row in zip(lines, results['rows']):
        shown = cells(line)
        assert shown[:2] == [row['operation'], row['implementation']]
        if 'error' in row:
            assert shown[2] == 'ValueError: no'
        else:
            bandwidth = row['bytes_per_second'] * 1e-9
            expected = [f'{row["seconds"] * 1e6:,.1f} µs', f'{bandwidth:,.1f} GB/s', f'{row["copy_fraction"]:.0%}']
            assert shown[2:] == expected


def test_step(run):
    """The naive method trains too; bf16 comes first, wherever it was asked for."""
    with on_mesh(ONE_DEVICE):
        printed, results = run(
            'step', config=tiny.get_config('smoke'), methods=['naive', 'bf16'], turns=1, clock='profiler', vocab_size=99
        )
    assert list(results['methods']) == ['bf16', 'naive']
    assert results['methods']['bf16']['ratio'] == 1
    assert results['parameters'] - results['sampled'] == 2 * 99 * 64 + 5 * 64  # embedding, head, norms
    title, _, *lines = printed.splitlines()
    assert f'{results["parameters"]:,} parameters, 512 tokens' in title and "the profiler's clock" in title
    for line, (name, row) in zip(lines, results['methods'].items(), strict=True):
        times = (f'{row[key] * 1e3:.1f} ms' for key in ('seconds', 'base_seconds'))
        low, high = row['ratio_quartiles']
        launches = str(row['launches'])
        assert cells(line) == [name, *times, f'{row["ratio"]:.3f}', f'{low:.3f} .. {high:.3f}', launches]


def test_cast(run, monkeypatch):
    """A line for each row of the results, those not installed included."""
    monkeypatch.setattr(cast_times, '_installed', lambda package: False)
    printed, results = run('cast', shape='128x256', turns=1)
    assert results['shape'] == [128, 256]
    rows = [(what, by, row) for what, by_name in results['operations'].items() for by, row in by_name.items()]
    lines = printed.splitlines()[2:]
    assert len(lines) == len(rows) > 20
    for line, (what, by, row) in zip(lines, rows):
        measured = 'not installed' if row == 'not installed' else f'{row["nanoseconds_per_value"]:.3f} ns'
        assert cells(line)[:3] == [what, by, measured]


@pytest.mark.parametrize(
    ('arguments', 'shape', 'message'),
    [
        (
            [],
            '128x128',
            f"{WHAT} (not '')",
        ),
        (
            ['cast', 'st'],
            '128x128',
            f"{WHAT} (not 'cast st')",
        ),
        (['cast'], '128', "error: shape='128' is not ROWSxCOLUMNS, such as 4096x4096"),
        (['cast'], '128x100', 'error: shape=128x100: both lengths must be multiples of 128'),
    ],
)
def test_errors_are_one_line(run, arguments, shape, message):
    with pytest.raises(SystemExit) as error:
        run(*arguments, shape=shape, turns=1)
    assert str(error.value) == message


def test_a_package_that_is_missing_is_named(run, monkeypatch):
    """One of ours is a fault of ours."""

    def measure(name):
        raise ModuleNotFoundError(name=missing)

    monkeypatch.setattr(benchmark, 'measure', measure)
    missing = 'ml_collections.config_flags'
    with pytest.raises(SystemExit, match=r'^error: depth needs the package ml_collections.config_flags, which is not'):
        run('depth')
    missing = 'experiments.cost.step_costs'
    with pytest.raises(ModuleNotFoundError):
        run('depth')


def test_an_unknown_shape_is_one_line(run):
    with pytest.raises(SystemExit, match=r"^error: 'bert' is in the name of no shape; there are ragged/one, .*"):
        run('kernel', shapes='bert', clock=None, turns=1)
