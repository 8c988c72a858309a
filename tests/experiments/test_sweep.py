"""The sweep: which runs it plans under which names, and that whatever becomes of one, the others' results are right."""

import csv
import fcntl
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types
import urllib.parse

import pytest
from ml_collections import ConfigDict
from programs import import_program

sweep = import_program('sweep')

REPOSITORY = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # of ml_collections

BASE = """
from ml_collections import ConfigDict

def get_config(steps='10'):
    return ConfigDict(
        dict(
            name='base',
            seed=0,
            method='bf16',
            parts='all',
            quantization=dict(format='e4m3', block_size='32', learning_rate=1e-3),
            optimizer=dict(learning_rate=6e-4),
            deterministic=True,
            total_steps=int(steps),
            eval_batches=20,
            log_every=10,
        )
    )
"""

# A training that takes no time. It notes that it was started; `actions` are what a run does before it is done.
TRAIN = """
import json, os, pathlib, signal, sys, time
folder, workdir = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[-1].removeprefix('--workdir='))
plan = json.loads((folder / 'plan.json').read_text())[workdir.name]
with open(folder / 'started', 'a') as file:
    file.write(workdir.name + '\\n')
print('starting', flush=True)
exec(plan['action'])
(workdir / 'config.json').write_text(json.dumps(plan['config']))
(workdir / 'summary.json').write_text(json.dumps({'step': 10, 'seconds': 1.5, 'validation/loss': 2.25, 'list': [1]}))
"""

NOT_A_NUMBER = """
json.dumps = lambda value, dumps=json.dumps: dumps(value | {'validation/loss': 'NaN'} if 'step' in value else value)
"""


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)  # which would hide an edit within the same second
    (tmp_path / 'base.py').write_text(BASE)
    return str(tmp_path / 'base.py')


@pytest.fixture
def run_sweep(tmp_path, base, monkeypatch):
    """Runs a sweep with trainings that take no time; returns which were started, and the rows of the table."""
    (tmp_path / 'train.py').write_text(TRAIN)
    monkeypatch.setattr(sweep, 'TRAIN', (sys.executable, '-S', str(tmp_path / 'train.py'), str(tmp_path)))

    def run(grids, actions=(), jobs=1, base=base, configs=(), dry_run=False):
        workdir = tmp_path / 'sweep'
        planned = {run.name: run.config for run in sweep.make_runs(base, grids, workdir)} | dict(configs)
        plan = {name: {'action': dict(actions).get(name, ''), 'config': config} for name, config in planned.items()}
        (tmp_path / 'plan.json').write_text(json.dumps(plan))
        (tmp_path / 'started').write_text('')
        config = ConfigDict(dict(name='test', config=base, grids=grids))
        for name, value in dict(CONFIG=config, WORKDIR=workdir, JOBS=jobs, DRY_RUN=dry_run).items():
            monkeypatch.setattr(sweep, name, types.SimpleNamespace(value=value))
        try:
            sweep.main(['sweep'])
            status = 0
        except SystemExit as exit:
            status = exit.code
        return status, (tmp_path / 'started').read_text().split(), read_table(workdir)

    return run


def read_table(workdir):
    with open(workdir / 'results.csv', newline='') as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return [row[name] for row in rows]


# Which runs there are.


def test_runs_of_a_sweep(base, tmp_path):
    """Products in the order of the grids, fields set over the base config, names of the last part where only one."""
    grids = [
        {'quantization.format': ('e4m3', 'e2m1'), 'seed': range(2)},
        {'method': ['fqt'], 'optimizer.learning_rate': [1, 3e-4], 'deterministic': [False]},
    ]
    runs = sweep.make_runs(f'{base}:50', grids, tmp_path)
    assert [run.name for run in runs] == [
        'format=e4m3,seed=0',
        'format=e4m3,seed=1',
        'format=e2m1,seed=0',
        'format=e2m1,seed=1',
        'method=fqt,optimizer.learning_rate=1.0,deterministic=False',
        'method=fqt,optimizer.learning_rate=0.0003,deterministic=False',
    ]
    assert [run.workdir for run in runs] == [tmp_path / run.name for run in runs]
    assert runs[3].arguments == [f'--config={base}:50', '--config.quantization.format=e2m1', '--config.seed=1']
    defaults = sweep.resolve([f'--config={base}:50'])
    assert defaults['total_steps'] == 50 and defaults['quantization.format'] == 'e4m3'
    assert runs[3].config == defaults | {'quantization.format': 'e2m1', 'seed': 1}
    assert runs[4].config == defaults | {'method': 'fqt', 'optimizer.learning_rate': 1.0, 'deterministic': False}


def test_what_is_added_to_a_sweep_renames_nothing(base, tmp_path):
    names = lambda *grids: [run.name for run in sweep.make_runs(base, grids, tmp_path)]
    before = names({'seed': [0]}, {'quantization.format': ['e3m2'], 'optimizer.learning_rate': [1e-3]})
    after = names(
        {'seed': [0, 1]},
        {'quantization.format': ['e3m2', 'e2m1'], 'optimizer.learning_rate': [1e-2, 1e-3]},
        {'quantization.learning_rate': [1e-4], 'parts': ['down']},
    )
    assert len(after) == len(set(after)) == 7 and set(before) < set(after)


def test_names_are_of_one_directory_and_keep_every_value_apart(base, tmp_path):
    values = ['all', '', 'mlp/(gate|up)', 'mlp%2F(gate|up)', 'a,seed=1', 'ü', 'P2+P4', 'p2 P4', '..', "'"]
    runs = sweep.make_runs(base, [{'parts': values}], tmp_path)
    assert [urllib.parse.unquote(run.name).removeprefix('parts=') for run in runs] == values
    assert len({run.name for run in runs}) == len(values)
    assert all(re.fullmatch(r'[\w=%.+~-]+', run.name, re.ASCII) for run in runs)
    assert [run.config['parts'] for run in runs] == values


@pytest.mark.parametrize(
    ('grids', 'message'),
    [
        ([{'seed': [0]}, {'sead': [0]}], r"grids\[1\]: the base config has no field 'sead' to vary; it has .*, seed,"),
        ([{'quantization': [{}]}], r"has no field 'quantization' to vary; .*quantization.format"),
        ([{'name': ['a', 'b']}], "has no field 'name' to vary"),
        ([{'seed': []}], r"grids\[0\]\['seed'\]=\[\] must be a list of values, and not empty"),
        ([{'method': 'fqt'}], r"grids\[0\]\['method'\]='fqt' must be a list of values"),
        ([{'seed': 0}], r"grids\[0\]\['seed'\]=0 must be a list"),
        ([{'seed': [0, 1.0]}], r"grids\[0\]\['seed'\]: 1.0 must be of type int, as 0"),
        ([{'seed': [True]}], r"grids\[0\]\['seed'\]: True must be of type int"),
        ([{'quantization.block_size': [32]}], r"block_size'\]: 32 must be of type str, as '32'"),
        ([{'optimizer.learning_rate': ['1e-3']}], "'1e-3' must be of type float, as 0.0006"),
        ([{'deterministic': [0]}], '0 must be of type bool, as True'),
        ([{'seed': [0, 1, 0]}], r'grids\[0\]: seed=0 is the same run as seed=0'),
        ([{'seed': [1]}, {'method': ['bf16', 'fqt'], 'seed': [1]}], r'grids\[1\]: method=bf16,seed=1 is the same run'),
        ([{'parts': ['a' * 300]}], r'grids\[0\]: parts=a+ is too long for a directory'),
        ([], r'grids=\[\] must be a list'),
        ([{}], r'grids\[0\]=\{\} must map fields to lists'),
        ([[('seed', [0])]], r'grids\[0\]=.* must map fields to lists'),
    ],
)
def test_a_sweep_that_cannot_be(base, tmp_path, grids, message):
    with pytest.raises(ValueError, match=message):
        sweep.make_runs(base, grids, tmp_path / 'sweep')
    assert not (tmp_path / 'sweep').exists()


def test_a_base_config_that_cannot_be(base, tmp_path):
    with pytest.raises(ValueError, match=r'base.py:ten: .*invalid literal for int'):
        sweep.make_runs(f'{base}:ten', [{'seed': [0]}], tmp_path)
    with pytest.raises(OSError, match=r'missing\.py'):
        sweep.make_runs(str(tmp_path / 'missing.py'), [{'seed': [0]}], tmp_path)


# What becomes of them.


def test_a_failed_run_stops_no_other_and_is_tried_again(run_sweep, tmp_path, capsys):
    """A crash, a kill, and an exit without results are told in the table; the next start runs just these."""
    grids = [{'seed': range(3)}, {'method': ['fqt', 'qat']}]
    actions = {
        'seed=0': 'raise ValueError("no format e9m9")',
        'seed=1': 'os.kill(os.getpid(), signal.SIGKILL)',
        'method=fqt': 'sys.exit()',
        'method=qat': NOT_A_NUMBER,
    }
    status, started, rows = run_sweep(grids, actions)
    names = ['seed=0', 'seed=1', 'seed=2', 'method=fqt', 'method=qat']
    assert started == column(rows, 'name') == names
    assert list(rows[0]) == ['name', 'status', 'seed', 'method', 'seconds', 'step', 'validation/loss', 'error']
    assert column(rows, 'status') == ['failed', 'failed', 'done', 'failed', 'done']
    assert column(rows, 'seed') == ['0', '1', '2', '0', '0'] and column(rows, 'method')[2:] == ['bf16', 'fqt', 'qat']
    assert column(rows, 'validation/loss') == ['', '', '2.25', '', 'NaN']
    assert column(rows, 'error') == [
        'ValueError: no format e9m9',
        'ended by SIGKILL, after: starting',
        '',
        'ended without a summary.json, after: starting',
        '',
    ]
    assert status.splitlines() == [str(tmp_path / 'sweep' / names[i] / 'log.txt') for i in (0, 1, 3)]
    shown = capsys.readouterr().out
    assert re.search(r'^2/5, --:-- left  seed=1 +\d+ s  failed: ended by SIGKILL', shown, re.MULTILINE)
    assert re.search(r'^3/5, \d\d:\d\d left  seed=2 +\d+ s  loss 2.2500$', shown, re.MULTILINE)
    assert re.search(r'^5/5, 00:00 left  method=qat +\d+ s  loss nan$', shown, re.MULTILINE)

    run_sweep(grids, dry_run=True)
    shown = capsys.readouterr().out
    assert shown == ''.join(f'{row["status"]:<8}{row["name"]}\n' for row in rows)

    status, started, rows = run_sweep(grids, {'seed=1': 'sys.exit("error: again")'})
    assert started == ['seed=0', 'seed=1', 'method=fqt'] and status.endswith('seed=1/log.txt')
    assert column(rows, 'status') == ['done', 'failed', 'done', 'done', 'done'] and rows[1]['error'] == 'error: again'

    assert run_sweep([*grids, {'seed': [7]}])[:2] == (0, ['seed=1', 'seed=7'])
    assert run_sweep([*grids, {'seed': [7]}])[:2] == (0, [])


def test_another_config_never_passes_for_this_one(run_sweep, base, tmp_path):
    """A finished run of an edited base config stops the sweep at its start; fields without consequence may change."""
    grids = [{'seed': [0, 1]}]
    run_sweep(grids, {'seed=1': 'sys.exit(1)'})
    status, started, _ = run_sweep(grids, base=f'{base}:20')
    assert started == []
    assert re.match(r'error: .*seed=0 holds the finished run of another config:\n  total_steps: .* 10, .* 20', status)

    pathlib.Path(base).write_text(BASE.replace('eval_batches=20', 'eval_batches=40'))
    assert re.search('eval_batches: stored 20, present 40', run_sweep(grids)[0])
    pathlib.Path(base).write_text(BASE.replace('log_every=10', 'log_every=1'))
    assert run_sweep(grids)[:2] == (0, ['seed=1'])


def test_a_damaged_file_is_named(run_sweep, tmp_path):
    grids = [{'seed': [0]}]
    run_sweep(grids)
    summary = tmp_path / 'sweep' / 'seed=0' / 'summary.json'
    summary.write_text('{"loss": ')
    status, started, _ = run_sweep(grids)
    assert started == [] and status.startswith(f'error: {summary} is damaged') and summary.read_text() == '{"loss": '


def test_a_base_config_edited_while_the_sweep_runs(run_sweep, base, tmp_path):
    """The training reads the file anew: the result of what wasn't planned is none."""
    config = {**sweep.resolve([f'--config={base}:30']), 'seed': 0}
    status, _, rows = run_sweep([{'seed': [0]}], configs={'seed=0': config})
    assert status and column(rows, 'status') == ['failed']
    assert re.search('holds the finished run of another config: total_steps: stored 30, present 10', rows[0]['error'])


def test_jobs(run_sweep):
    """Two of three runs at a time: the first two wait for one another, and none ever sees two others."""
    action = """
active = folder / f'active-{workdir.name}'
active.touch()
deadline = time.monotonic() + 20
while len((folder / 'started').read_text().split()) < 2:
    assert time.monotonic() < deadline, 'nothing ran beside it'
    time.sleep(0.01)
time.sleep(0.3)
assert len(list(folder.glob('active-*'))) <= 2, 'too many at a time'
active.unlink()
"""
    status, started, rows = run_sweep([{'seed': range(3)}], {f'seed={seed}': action for seed in range(3)}, jobs=2)
    assert (status, sorted(started)) == (0, ['seed=0', 'seed=1', 'seed=2']), column(rows, 'error')


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
    devices = lambda jobs: [environment.get('CUDA_VISIBLE_DEVICES') for environment in sweep.job_environments(jobs)]
    assert devices(1) == [None] and devices(2) == ['4', '6'] and devices(3) == ['4', '6', '4']
    memory = [float(environment['XLA_PYTHON_CLIENT_MEM_FRACTION']) for environment in sweep.job_environments(4)]
    assert sum(memory) / 2 <= 0.9
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert sweep.job_environments(2) == [{}, {}]


def test_an_interruption_stops_the_runs_as_ctrl_c_does(run_sweep, tmp_path, monkeypatch, capsys):
    """Each gets one chance to end well, none is left, and none has failed; a failure of before isn't told any more."""
    grids = [{'seed': range(3)}]
    assert column(run_sweep(grids, {'seed=1': 'sys.exit(1)'})[2], 'status') == ['done', 'failed', 'done']
    action = """
try:
    (folder / 'ready').touch()
    time.sleep(60)
except KeyboardInterrupt:
    (folder / 'saved').touch()
    sys.exit('interrupted')
"""

    def sleep(_):
        if (tmp_path / 'ready').exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(sweep, 'time', types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        status, started, rows = run_sweep(grids, {'seed=1': action})
    assert (status, started) == ('\ninterrupted; the same command continues', ['seed=1'])
    assert (tmp_path / 'saved').exists() and 'stopping 1 run(s)' in capsys.readouterr().out
    assert column(rows, 'status') == ['done', 'missing', 'done'] and rows[1]['error'] == ''
    assert run_sweep(grids)[:2] == (0, ['seed=1'])


def test_two_sweeps_in_one_workdir(run_sweep, tmp_path):
    """While one is at work no other starts, nor beside a run that a killed sweep has left behind."""
    grids, action = [{'seed': [0]}], "(folder / 'ready').touch(); time.sleep(60)"
    run_sweep(grids, {'seed=0': 'sys.exit(1)'})
    (run,) = sweep.make_runs(sweep.CONFIG.value.config, grids, tmp_path / 'sweep')
    (tmp_path / 'plan.json').write_text(json.dumps({run.name: {'action': action, 'config': run.config}}))
    with open(run.workdir.parent / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = sweep.start(run, {}, lock.fileno())
    while not (tmp_path / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.01)
    status, started, _ = run_sweep(grids)
    assert re.match('error: another sweep, or a run that one left behind, is at work in .*sweep', status)
    assert started == []
    process.kill()
    process.wait()
    assert run_sweep(grids)[:2] == (0, ['seed=0'])


def test_time_left(monkeypatch):
    """Runs of 10 seconds (the median), the hands of a clock counted by hand."""
    monkeypatch.setattr(sweep, 'time', types.SimpleNamespace(monotonic=lambda: 100.0))
    left = lambda starts, waiting, jobs: sweep.time_left(
        [10.0, 2.0, 900.0], {i: (None, None, s) for i, s in enumerate(starts)}, waiting, jobs
    )
    assert left([], 3, 1) == '00:30 left'
    assert left([96.0], 3, 1) == '00:36 left'
    assert left([96.0, 99.0], 0, 2) == '00:09 left'
    assert left([96.0, 99.0], 2, 2) == '00:19 left'  # 6 + 10, 9 + 10
    assert left([96.0, 99.0], 3, 2) == '00:26 left'
    assert left([0.0], 0, 2) == '00:00 left'
    assert sweep.time_left([], {}, 3, 1) == '--:-- left'


def test_the_bar_of_a_terminal(run_sweep, monkeypatch, capsys):
    """It counts what was done before, and the lines of the runs stand above it."""
    grids = [{'seed': range(4)}]
    run_sweep(grids, {'seed=2': 'sys.exit(1)', 'seed=3': 'sys.exit(1)'})
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    run_sweep(grids, {'seed=3': 'time.sleep(0.5)'})
    shown = capsys.readouterr().out
    assert shown.rstrip().splitlines()[-2].endswith('loss 2.2500, 00:00 left')
    assert '2/4 |' in shown and re.search(r'3/4 \|.*loss 2.2500, \d\d:\d\d left', shown)
    assert re.search(r'(^|[\r\n])seed=2 +\d+ s  loss 2.2500\n', shown)


@pytest.mark.parametrize(
    ('exit_status', 'output', 'error'),
    [
        (1, 'run\nerror: another config:\n  seed: 0\nUse another.\n\n', 'error: another config: seed: 0 Use another.'),
        (1, 'ValueError: a\nTraceback\njax.errors.JaxRuntimeError: OUT\n---\n', 'jax.errors.JaxRuntimeError: OUT ---'),
        (2, 'no format\n', 'no format'),
        (3, '', 'no output'),
        (-6, 'F0000 check failed\n', 'ended by SIGABRT, after: F0000 check failed'),
    ],
)
def test_why_a_run_failed(exit_status, output, error):
    assert sweep.describe_failure(exit_status, output) == error


# Real trainings.

SWEEP = """
from ml_collections import ConfigDict

def get_config():
    grids = [{'method': ['bf16', 'fp4'], 'optimizer.learning_rate': [3e-4], 'total_steps': [6]}]
    return ConfigDict(dict(name='real', config='configs/tiny.py:smoke', grids=grids))
"""


def test_a_sweep_of_trainings(tmp_path):
    """One run trains, the other's method isn't known; again, the one is left alone, and the other tried."""
    (tmp_path / 'real.py').write_text(SWEEP)
    workdir, environment = tmp_path / 'runs', os.environ | {'XLA_FLAGS': '', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
    command = [sys.executable, '-m', 'experiments.sweep', f'--config={tmp_path / "real.py"}', f'--workdir={workdir}']
    start = lambda *arguments: subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    process = start('--jobs=2')
    done, failed = (workdir / f'method={name},optimizer.learning_rate=0.0003,total_steps=6' for name in ('bf16', 'fp4'))
    assert (process.returncode, process.stderr) == (1, f'{failed}/log.txt\n'), process.stdout
    rows = read_table(workdir)
    assert column(rows, 'status') == ['done', 'failed'] and column(rows, 'name') == [done.name, failed.name]
    assert "error: config.method='fp4'" in rows[1]['error'] and 'bf16' in rows[1]['error']
    summary = json.loads((done / 'summary.json').read_text())
    assert summary['step'] == 6
    assert all(float(rows[0][name]) == value for name, value in summary.items())
    config = json.loads((done / 'config.json').read_text())
    assert (config['method'], config['optimizer']['learning_rate'], config['total_steps']) == ('bf16', 3e-4, 6)

    before = {path: path.stat().st_mtime_ns for path in done.rglob('*')}
    tried = (failed / 'error.txt').stat().st_mtime_ns
    process = start()
    assert process.returncode == 1 and '2 runs of configs/tiny.py:smoke: 1 to do' in process.stdout
    assert {path: path.stat().st_mtime_ns for path in done.rglob('*')} == before
    assert (failed / 'error.txt').stat().st_mtime_ns > tried and read_table(workdir) == rows
