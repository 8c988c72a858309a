"""Runs of a sweep on one machine: which GPU is whose, and real trainings."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from compilation import xla_flags
from stub_training import column, read_table

from experiments.sweeps import local_jobs

REPOSITORY = pathlib.Path(__file__).parents[3]
SWEEP = """
from ml_collections import ConfigDict

def get_config():
    grids = [{'method': ['bf16', 'fp4'], 'optimizer.learning_rate': [3e-4], 'total_steps': [6]}]
    return ConfigDict(dict(name='real', config='configs/tiny.py:smoke', grids=grids))
"""


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
    devices = lambda jobs: [
        environment.get('CUDA_VISIBLE_DEVICES') for environment in local_jobs.job_environments(jobs)
    ]
    assert devices(1) == [None] and devices(2) == ['4', '6'] and devices(3) == ['4', '6', '4']
    memory = [float(environment['XLA_PYTHON_CLIENT_MEM_FRACTION']) for environment in local_jobs.job_environments(4)]
    assert sum(memory) / 2 <= 0.9
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert local_jobs.job_environments(2) == [{}, {}]


@pytest.mark.slow
def test_a_sweep_of_trainings(tmp_path):
    """One run trains, the other's method isn't known; again, the one is left alone, and the other tried."""
    (tmp_path / 'real.py').write_text(SWEEP)
    workdir, environment = tmp_path / 'runs', os.environ | {'XLA_FLAGS': xla_flags(devices=1)}
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
