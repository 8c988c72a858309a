"""The sweep: whatever becomes of one run, the others' results are right, and none is lost or trained twice."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
import stub_training
from ml_collections import ConfigDict
from programs import import_program
from stub_training import TEN_STEPS, column, read_table

from experiments.sweeps import local_jobs, plans, sweep_runs

sweep = import_program('sweep')

REPOSITORY = pathlib.Path(__file__).parents[2]
STUB_SWEEP = """
import sys
from experiments import cli, sweep
from experiments.sweeps import plans
*plans.TRAIN, end = sys.argv[1:sys.argv.index('end') + 1]
sys.argv[1:] = sys.argv[sys.argv.index('end') + 1:]
cli.start(sweep.main)
"""

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # of ml_collections

NOT_A_NUMBER = """
json.dumps = lambda value, dumps=json.dumps: dumps(value | {'validation/loss': 'NaN'} if 'step' in value else value)
"""
DIVERGED = """
(workdir / 'diverged.txt').write_text('train/loss is nan at step 7\\n')
sys.exit('error: train/loss is nan at step 7; the newest checkpoint is of step 5')
"""


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)  # which would hide an edit within the same second
    monkeypatch.setattr(plans, 'TRAIN', stub_training.write(tmp_path))
    monkeypatch.setattr(sweep, 'SECONDS_BETWEEN_TRIES', 0.1)
    return str(tmp_path / 'base.py')


@pytest.fixture
def run_sweep(tmp_path, base, monkeypatch):
    """Runs a sweep with trainings that take no time; returns which were started, and the rows of the table."""

    def run(grids, actions=(), jobs=None, base=base, configs=(), branches=False, **changed):
        workdir = tmp_path / 'sweep'
        stub_training.write_plan(tmp_path, plans.make_runs(base, grids, workdir), actions, configs)
        config = ConfigDict(dict(name='test', config=base, grids=grids, branches=branches))
        flags = dict(config=config, workdir=workdir, jobs=jobs, dry_run=False, shard='0/1')
        flags |= dict(ray=None, gpus_per_run=None, cpus_per_run=1)
        for name, value in (flags | changed).items():
            monkeypatch.setattr(sweep, name.upper(), types.SimpleNamespace(value=value))
        try:
            sweep.main(['sweep'])
            status = 0
        except SystemExit as exit:
            status = exit.code
        started = (tmp_path / 'started').read_text().split()
        return status, started, read_table(workdir) if (workdir / 'results.csv').exists() else []

    return run


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
    assert column(rows, 'status') == ['failed', 'failed', 'done', 'failed', 'diverged']
    assert column(rows, 'seed') == ['0', '1', '2', '0', '0'] and column(rows, 'method')[2:] == ['bf16', 'fqt', 'qat']
    assert column(rows, 'validation/loss') == ['', '', '2.25', '', 'NaN']
    assert column(rows, 'error') == [
        'ValueError: no format e9m9',
        'ended by SIGKILL, after: starting',
        '',
        'ended without a summary.json, after: starting',
        'validation/loss is nan at the end',
    ]
    assert status.splitlines() == [str(tmp_path / 'sweep' / names[i] / 'log.txt') for i in (0, 1, 3)]
    shown = capsys.readouterr().out
    assert re.search(r'^2/5, --:-- left  seed=1 +\d+ s  failed: ended by SIGKILL', shown, re.MULTILINE)
    assert re.search(r'^3/5, \d\d:\d\d left  seed=2 +\d+ s  loss 2.2500$', shown, re.MULTILINE)
    assert re.search(r'^5/5, 00:00 left  method=qat +\d+ s  diverged: validation/loss is nan', shown, re.MULTILINE)

    run_sweep(grids, dry_run=True)
    shown = capsys.readouterr().out
    assert shown == ''.join(f'{row["status"]:<8}  {row["name"]}\n' for row in rows)

    status, started, rows = run_sweep(grids, {'seed=1': 'sys.exit("error: again")'})
    assert started == ['seed=0', 'seed=1', 'method=fqt'] and status.endswith('seed=1/log.txt')
    assert column(rows, 'status') == ['done', 'failed', 'done', 'done', 'diverged']
    assert rows[1]['error'] == 'error: again'

    assert run_sweep([*grids, {'seed': [7]}])[:2] == (0, ['seed=1', 'seed=7'])
    assert run_sweep([*grids, {'seed': [7]}])[:2] == (0, [])


def test_a_run_that_diverged_has_its_result(run_sweep, tmp_path, capsys):
    """It is told in the table, fails nothing, and isn't tried again; deleted, it is."""
    grids = [{'seed': range(3)}]
    status, started, rows = run_sweep(grids, {'seed=1': DIVERGED})
    assert (status, started) == (0, ['seed=0', 'seed=1', 'seed=2'])
    assert column(rows, 'status') == ['done', 'diverged', 'done']
    assert rows[1]['error'] == 'train/loss is nan at step 7' and rows[1]['validation/loss'] == ''
    shown = capsys.readouterr().out
    assert re.search(r'2/3, .* left  seed=1 +\d+ s  diverged: train/loss is nan at step 7$', shown, re.MULTILINE)
    assert shown.endswith('diverged  1 of 3 runs; the table says when\ndone      3 runs\n')
    assert run_sweep(grids) == (0, [], rows)
    run_sweep(grids, dry_run=True)
    assert 'diverged  seed=1\n' in capsys.readouterr().out

    run = plans.make_runs(sweep.CONFIG.value.config, grids, tmp_path / 'sweep')[1]
    assert re.search('total_steps: stored 10, present 20', run_sweep(grids, base=f'{tmp_path}/base.py:steps=20')[0])
    for path in run.workdir.iterdir():
        path.unlink()
    assert run_sweep(grids)[1] == ['seed=1']


def test_another_config_never_passes_for_this_one(run_sweep, base, tmp_path):
    """A finished run of an edited base config stops the sweep at its start; fields without consequence may change."""
    grids = [{'seed': [0, 1]}]
    run_sweep(grids, {'seed=1': 'sys.exit(1)'})
    status, started, _ = run_sweep(grids, base=f'{base}:steps=20')
    assert started == []
    assert re.match(r'error: .*seed=0 holds the finished run of another config:\n  total_steps: .* 10, .* 20', status)

    pathlib.Path(base).write_text(stub_training.BASE.replace('eval_batches=20', 'eval_batches=40'))
    assert re.search('eval_batches: stored 20, present 40', run_sweep(grids)[0])
    pathlib.Path(base).write_text(stub_training.BASE.replace("branch_from=''", "teacher='runs/other'"))
    assert re.search("teacher: stored '', present 'runs/other'", run_sweep(grids)[0])
    pathlib.Path(base).write_text(stub_training.BASE.replace('log_every=10', 'log_every=1'))
    assert run_sweep(grids)[:2] == (0, ['seed=1'])


def test_a_damaged_file_is_named(run_sweep, tmp_path):
    grids = [{'seed': [0]}]
    run_sweep(grids)
    summary = tmp_path / 'sweep' / 'seed=0' / 'summary.json'
    wrong = {'{"loss": ': 'is no JSON', 'null': 'must hold a JSON object, not null', '[]': 'must hold a JSON object'}
    wrong |= {'{}': "lacks 'validation/loss'", '{"validation/loss": "low"}': ": validation/loss is 'low'"}
    for text, error in {**wrong, '{"validation/loss": null}': ": 'validation/loss' must be a number"}.items():
        summary.write_text(text)
        status, started, _ = run_sweep(grids)
        assert started == [] and status.startswith(f'error: {summary} {error}'.replace(' :', ':'))
        assert summary.read_text() == text


def test_a_base_config_edited_while_the_sweep_runs(run_sweep, base, tmp_path):
    """The training reads the file anew: the result of what wasn't planned is none."""
    config = {**plans.resolve([f'--config={base}:steps=30']), 'seed': 0}
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


def test_an_interruption_stops_the_runs_as_ctrl_c_does(run_sweep, tmp_path, monkeypatch, capsys):
    """Each gets one chance to end well, none is left, and none has failed; a failure of before isn't told any more."""
    grids = [{'seed': range(3)}]
    assert column(run_sweep(grids, {'seed=1': 'sys.exit(1)'})[2], 'status') == ['done', 'failed', 'done']
    action = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs start without
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


def test_a_run_that_another_process_is_at(run_sweep, base, tmp_path):
    """It is left to that, as the training that a killed sweep leaves behind; meanwhile the others are trained."""
    grids = [{'seed': [0, 1]}]
    runs = plans.make_runs(base, grids, tmp_path / 'sweep')
    action = "while not (folder / 'released').exists(): time.sleep(0.01)"
    stub_training.write_plan(tmp_path, runs, {'seed=0': action})
    process = sweep_runs.start(runs[0], {})
    while not (tmp_path / 'started').read_text():
        assert process.poll() is None
        time.sleep(0.01)
    assert sweep_runs.start(runs[0], {}) is None
    status, started, rows = run_sweep(grids, {'seed=0': action, 'seed=1': "(folder / 'released').touch()"})
    assert (status, started) == (0, ['seed=1']) and column(rows, 'status') == ['done', 'done']
    assert process.wait() == 0
    assert sweep_runs.start(runs[0], {}) is None  # nor is it trained again by who finds its lock free only now


@pytest.mark.parametrize('with_its_trainings', [False, True])
def test_a_killed_sweep_started_again(run_sweep, base, tmp_path, with_its_trainings):
    """Nothing is lost and nothing is repeated: no step of any run is taken twice."""
    grids = [{'seed': range(4)}]
    actions = {'seed=2': TEN_STEPS, 'seed=3': TEN_STEPS}
    runs = plans.make_runs(base, grids, tmp_path / 'sweep')
    stub_training.write_plan(tmp_path, runs, actions)
    config = f'dict(name="test", config={base!r}, grids=[dict(seed=range(4))])'
    (tmp_path / 'test.py').write_text(
        f'from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config})\n'
    )
    arguments = [f'--config={tmp_path}/test.py', f'--workdir={tmp_path}/sweep', '--jobs=2']
    command = [sys.executable, '-c', STUB_SWEEP, *plans.TRAIN, 'end', *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    steps = lambda: [len(path.read_text()) for path in (tmp_path / 'sweep').glob('*/steps')]
    while steps() != [3, 3]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = (tmp_path / 'started').read_text().split()
    assert sorted(before) == [run.name for run in runs]
    assert [row['name'] for row in read_table(tmp_path / 'sweep') if row['status'] == 'done'] == ['seed=0', 'seed=1']
    if with_its_trainings:
        for path in (tmp_path / 'sweep').glob('*/pid'):
            os.kill(pid := int(path.read_text()), signal.SIGKILL)
            while stub_training.is_alive(pid):
                time.sleep(0.01)
    (tmp_path / 'released').touch()

    status, after, rows = run_sweep(grids, actions, jobs=2)
    assert status == 0 and column(rows, 'status') == ['done'] * 4
    assert steps() == [10, 10] and sorted(after) == (['seed=2', 'seed=3'] if with_its_trainings else [])


def test_shards(run_sweep, capsys):
    """Each has every n-th run, the table has all."""
    grids = [{'seed': range(5)}]
    status, started, rows = run_sweep(grids, {'seed=3': 'sys.exit(1)'}, shard='1/2')
    assert started == ['seed=1', 'seed=3'] and status.endswith('seed=3/log.txt')
    assert column(rows, 'status') == ['missing', 'done', 'missing', 'failed', 'missing']
    assert 'sweep     test, 2 of 5 runs, shard 1/2, of' in capsys.readouterr().out
    status, started, rows = run_sweep(grids, shard='0/2')
    assert (status, started) == (0, ['seed=0', 'seed=2', 'seed=4'])
    assert column(rows, 'status') == ['done', 'done', 'done', 'failed', 'done']
    assert run_sweep(grids, shard='5/6')[:2] == (0, [])
    capsys.readouterr()
    run_sweep(grids, shard='1/2', dry_run=True)
    assert capsys.readouterr().out == 'done    seed=1\nfailed  seed=3\n'
    assert run_sweep(grids)[:2] == (0, ['seed=3'])


def test_branches_wait_for_their_stem(run_sweep, capsys):
    """However it ends, in the same shard; the others don't wait."""
    settings = {'optimizer.schedule': ['wsd'], 'keep_period': [2], 'seed': [0, 1]}
    grids = [{'total_steps': [10, 20, 30], **settings}]
    name = lambda steps, seed: f'total_steps={steps},schedule=wsd,keep_period=2,seed={seed}'
    order = [name(30, 0), name(10, 0), name(20, 0)]
    status, started, rows = run_sweep(grids, {order[0]: 'time.sleep(0.3)'}, branches=True, shard='0/2', jobs=2)
    assert status == 0 and started[0] == order[0] and sorted(started) == sorted(order)
    assert 'stem' not in rows[0] and 'branch_from' not in rows[0]
    started = run_sweep(grids, {name(30, 1): 'sys.exit(1)'}, branches=True)[1]
    assert started == [name(30, 1), name(10, 1), name(20, 1)]
    assert run_sweep(grids, branches=True)[1] == [name(30, 1)]
    assert run_sweep(grids)[:2] == (0, [])


def test_shards_at_the_same_time(base, tmp_path, capsys):
    """Three at once, each waiting for the others in its runs: the last to end writes the whole table."""
    grids = [{'seed': range(6)}]
    runs = plans.make_runs(base, grids, tmp_path / 'sweep')
    action = """
deadline = time.monotonic() + 20
while len((folder / 'started').read_text().split()) < 3:
    assert time.monotonic() < deadline, 'nothing ran beside it'
    time.sleep(0.01)
"""
    stub_training.write_plan(tmp_path, runs, {run.name: action for run in runs})

    def run_shard(index):
        results = {run.name: sweep_runs.read_outcome(run) for run in runs}
        sweep.run_all(runs, runs[index::3], results, tmp_path / 'sweep' / 'results.csv', local_jobs.LocalJobs(1))

    (tmp_path / 'sweep').mkdir()
    threads = [threading.Thread(target=run_shard, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = read_table(tmp_path / 'sweep')
    assert column(rows, 'name') == [run.name for run in runs] and column(rows, 'status') == ['done'] * 6
    assert sorted((tmp_path / 'started').read_text().split()) == column(rows, 'name')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (dict(shard='8/8'), r'--shard=8/8 must be i/n with 0 <= i < n, as 0/8'),
        (dict(shard='0/0'), '--shard=0/0 must be'),
        (dict(shard='-1/8'), '--shard=-1/8 must be'),
        (dict(shard='1'), '--shard=1 must be'),
        (dict(gpus_per_run=1.0), '--gpus_per_run=1 is for --ray; on one machine there is --jobs'),
        (dict(ray='auto', jobs=2), '--jobs=2 is for one machine; with --ray'),
    ],
)
def test_flags_that_cannot_be(run_sweep, tmp_path, flags, message):
    status, started, _ = run_sweep([{'seed': [0]}], **flags)
    assert re.match(f'error: {message}', status) and started == [] and not (tmp_path / 'sweep').exists()


def test_without_ray(run_sweep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    monkeypatch.delitem(sys.modules, 'experiments.sweeps.ray_cluster', raising=False)
    status, _, _ = run_sweep([{'seed': [0]}], ray='auto')
    assert status == "error: --ray needs Ray, which isn't installed: pip install -e '.[cluster]'"
    assert not (tmp_path / 'sweep').exists()


def test_time_left(monkeypatch):
    """Runs of 10 seconds (the median), the hands of a clock counted by hand."""
    monkeypatch.setattr(sweep, 'time', types.SimpleNamespace(monotonic=lambda: 100.0))
    left = lambda starts, waiting, jobs: sweep.time_left([10.0, 2.0, 900.0], starts, waiting, jobs)
    assert left([], 3, 1) == '00:30 left'
    assert left([96.0], 3, 1) == '00:36 left'
    assert left([96.0, 99.0], 0, 2) == '00:09 left'
    assert left([96.0, 99.0], 2, 2) == '00:19 left'  # 6 + 10, 9 + 10
    assert left([96.0, 99.0], 3, 2) == '00:26 left'
    assert left([0.0], 0, 2) == '00:00 left'
    assert sweep.time_left([], [], 3, 1) == '--:-- left'


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
