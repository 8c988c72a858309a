"""A sweep on a Ray cluster of two nodes, both on this machine: what a node's death costs, and what an interruption."""

import collections
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest
import stub_training
from programs import import_program
from stub_training import TEN_STEPS, column, read_table

from experiments.sweeps import plans, sweep_runs

os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
ray = pytest.importorskip('ray')
cluster_utils = pytest.importorskip('ray.cluster_utils')
ray_cluster = importlib.import_module('experiments.sweeps.ray_cluster')
sweep = import_program('sweep')

pytestmark = [
    pytest.mark.slow,  # a cluster takes ten seconds to start, and a node's death as long to be noticed
    pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),  # of ml_collections
    pytest.mark.filterwarnings('ignore::ResourceWarning'),  # files that Ray leaves open
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]

WAIT_FOR_TWO = """
deadline = time.monotonic() + 60
while len((folder / 'started').read_text().split()) < 2:
    assert time.monotonic() < deadline, 'nothing ran beside it'
    time.sleep(0.01)
"""


@pytest.fixture(scope='module')
def cluster():
    """A head without CPUs, and two nodes with a CPU and, so they say, a GPU each."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def jobs(cluster):
    jobs = ray_cluster.RayJobs(cluster.address, None, 1)
    yield jobs
    ray.shutdown()


@pytest.fixture
def make_runs(tmp_path, monkeypatch):
    """Runs of trainings that take no time, or do these actions."""
    monkeypatch.setattr(plans, 'TRAIN', stub_training.write(tmp_path))

    def make(*actions):
        runs = plans.make_runs(f'{tmp_path}/base.py', [{'seed': range(len(actions))}], tmp_path / 'sweep')
        stub_training.write_plan(tmp_path, runs, {run.name: action for run, action in zip(runs, actions)})
        return runs

    return make


def run_all(runs, jobs):
    workdir = runs[0].workdir.parent
    workdir.mkdir(exist_ok=True)
    results = {run.name: sweep_runs.read_outcome(run) for run in runs}
    sweep.run_all(runs, runs, results, workdir / 'results.csv', jobs)
    return read_table(workdir)


def started(runs):
    return (runs[0].workdir.parents[1] / 'started').read_text().split()


def test_a_sweep_on_two_nodes(make_runs, jobs):
    """Two at a time; a failure, a divergence and a kill are rows, and nothing is tried twice, until the next sweep."""
    diverge = "(workdir / 'diverged.txt').write_text('train/loss is nan at step 7'); sys.exit(1)"
    kill = 'os.kill(os.getpid(), signal.SIGKILL)'
    device = "assert os.environ['CUDA_VISIBLE_DEVICES'] == '0' and 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in os.environ"
    runs = make_runs(WAIT_FOR_TWO, WAIT_FOR_TWO, 'raise ValueError("no format e9m9")', diverge, kill, device)
    assert (jobs.num_slots, jobs.place) == (2, ' on 2 node(s) of a Ray cluster')
    rows = run_all(runs, jobs)
    assert column(rows, 'status') == ['done', 'done', 'failed', 'diverged', 'failed', 'done']
    assert column(rows, 'error')[2:5] == [
        'ValueError: no format e9m9',
        'train/loss is nan at step 7',
        'ended by SIGKILL, after: starting',
    ]
    assert sorted(started(runs)) == [run.name for run in runs]
    assert column(rows, 'validation/loss') == ['2.25', '2.25', '', '', '', '2.25']
    assert column(run_all(runs, jobs), 'status') == column(rows, 'status')
    assert sorted(started(runs)[6:]) == ['seed=2', 'seed=4']


def test_several_runs_share_a_gpu(make_runs, cluster):
    """Each has its part of the memory that JAX takes."""
    jobs = ray_cluster.RayJobs(cluster.address, 0.25, 0.25)
    try:
        assert jobs.num_slots == 8
        runs = make_runs("assert os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.188'")
        assert column(run_all(runs, jobs), 'error') == ['']
    finally:
        ray.shutdown()


def test_an_interruption_lets_trainings_save(make_runs, jobs, tmp_path, monkeypatch):
    """Those that run get Ctrl-C's signal and end before the sweep does; those that wait never start."""
    action = """
try:
    (workdir / 'ready').touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    (workdir / 'saved').touch()
"""
    runs = make_runs(action, action, action)

    def sleep(_):
        if len(list((tmp_path / 'sweep').glob('*/ready'))) == 2:
            raise KeyboardInterrupt
        time.sleep(0.1)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(sweep, 'time', types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        run_all(runs, jobs)
    assert len(list((tmp_path / 'sweep').glob('*/saved'))) == len(started(runs)) == 2


def test_a_training_ends_with_its_worker(tmp_path, make_runs):
    """Even by SIGKILL, which leaves a worker no time: no GPU is left in use behind Ray's back."""
    (run,) = make_runs("(workdir / 'pid').write_text(str(os.getpid())); time.sleep(60)")
    command = (
        f'import sys; from experiments.sweeps import ray_cluster as r; r.train(r.{run!r}, {{}}, {str(tmp_path)!r})'
    )
    command = command.replace('PosixPath', '__import__("pathlib").Path')
    environment = os.environ | {'PYTHONPATH': str(pathlib.Path.cwd())}
    worker = subprocess.Popen([sys.executable, '-c', command], env=environment)
    while not (path := run.workdir / 'pid').exists() or not path.read_text():
        assert worker.poll() is None
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 10
    while stub_training.is_alive(path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = sweep_runs.start(run, {})  # its lock is free
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ('gpus', 'cpus', 'message'),
    [
        (2.0, 1, '--gpus_per_run=2, --cpus_per_run=1: no node of the Ray cluster has so many'),
        (None, 2, '--gpus_per_run=1, --cpus_per_run=2: no node of the Ray cluster has so many'),
        (1.5, 1, '--gpus_per_run=1.5, --cpus_per_run=1: allowed are a whole number of GPUs or a part of one'),
        (0.0, 0, '--gpus_per_run=0, --cpus_per_run=0: .* not none of both'),
    ],
)
def test_resources_that_the_cluster_does_not_have(cluster, gpus, cpus, message):
    with pytest.raises(ValueError, match=message):
        ray_cluster.RayJobs(cluster.address, gpus, cpus)
    ray.shutdown()


@pytest.mark.parametrize('address', ['127.0.0.1:1', 'here', 'no-such-host.invalid:6379'])
def test_no_cluster_at_the_address(address):
    with pytest.raises(ConnectionError, match=f'--ray={address}: no cluster answers there; give the host:port'):
        ray_cluster.RayJobs(address, None, 1)


def test_a_node_that_dies_costs_a_retry(make_runs, cluster, jobs, monkeypatch, tmp_path):
    """Its run continues elsewhere, where it stopped, and no other run notices."""
    runs = make_runs(*[TEN_STEPS] * 4)
    steps = lambda: [len(path.read_text()) for path in (tmp_path / 'sweep').glob('*/steps')]
    pids = lambda: [int(path.read_text()) for path in (tmp_path / 'sweep').glob('*/pid')]
    released = tmp_path / 'released'
    nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]

    def sleep(_):
        if len(nodes) == 2 and steps() == [3, 3]:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        if len(nodes) == 1 and not released.exists() and not all(map(stub_training.is_alive, pids())):
            released.touch()
        time.sleep(0.1)

    with monkeypatch.context() as context:
        context.setattr(sweep, 'time', types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        rows = run_all(runs, jobs)
    assert len(nodes) == 1 and column(rows, 'status') == ['done'] * 4
    assert steps() == [10] * 4
    assert sorted(collections.Counter(started(runs)).values()) == [1, 1, 1, 2]
