"""The benchmarks run, print what they measured, and write it as JSON."""

import json

import pytest
from programs import import_program
from small_experiments import ONE_DEVICE, on_mesh

from configs import tiny
from experiments import cast_benchmark

benchmark = import_program('benchmark')

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the program with these flags; returns what it prints and what it writes."""

    def run(*arguments, **flags):
        monkeypatch.setattr(benchmark, 'OUTPUT', flag(str(tmp_path / 'results.json')))
        for name, value in flags.items():
            monkeypatch.setattr(benchmark, name, flag(value))
        benchmark.main(['benchmark', *arguments])
        return capsys.readouterr().out, json.loads((tmp_path / 'results.json').read_text())

    return run


def flag(value):
    return type('Flag', (), {'value': value})


def test_step(run):
    """The naive method trains too; bf16 comes first, wherever it was asked for."""
    with on_mesh(ONE_DEVICE):
        printed, results = run('step', CONFIG=tiny.get_config('smoke'), METHODS=['naive', 'bf16'], TURNS=1)
    assert list(results['methods']) == ['bf16', 'naive']
    assert results['methods']['bf16']['ratio'] == 1
    assert f'{results["parameters"]:,} parameters' in printed
    for name, row in results['methods'].items():
        assert f'{name:<10}{row["seconds"] * 1e3:>11.1f} ms{row["ratio"]:>28.3f}' in printed


def test_cast(run, monkeypatch):
    """A line for each row of the results, those not installed included."""
    monkeypatch.setattr(cast_benchmark, '_installed', lambda package: False)
    printed, results = run('cast', SHAPE='128x256', TURNS=1)
    assert results['shape'] == [128, 256]
    rows = [(what, by, row) for what, by_name in results['operations'].items() for by, row in by_name.items()]
    lines = printed.splitlines()[2:]
    assert len(lines) == len(rows) > 20
    for line, (what, by, row) in zip(lines, rows):
        assert line.startswith(what) and f' {by} ' in line
        assert ('not installed' if row == 'not installed' else f'{row["nanoseconds_per_value"]:.3f} ns') in line


@pytest.mark.parametrize(
    ('arguments', 'shape', 'message'),
    [
        ([], '128x128', "error: say what to measure: step or cast (not '')"),
        (['cast', 'step'], '128x128', "error: say what to measure: step or cast (not 'cast step')"),
        (['cast'], '128', "error: shape='128' is not ROWSxCOLUMNS, such as 4096x4096"),
        (['cast'], '128x100', 'error: shape=128x100: both lengths must be multiples of 128'),
    ],
)
def test_errors_are_one_line(run, arguments, shape, message):
    with pytest.raises(SystemExit) as error:
        run(*arguments, SHAPE=shape, TURNS=1)
    assert str(error.value) == message
