"""Runs of a sweep on one machine: which GPU is whose."""

from experiments.sweeps import local_jobs


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
