"""The runs of a sweep as processes of this machine."""

import os
import pathlib
import signal
import time

from experiments.sweeps import sweep_runs
from experiments.sweeps.plans import SweepRun
from experiments.sweeps.sweep_runs import Outcome


class LocalJobs:
    """Runs as processes of this machine."""

    place = ''

    def __init__(self, num_jobs: int):
        self.num_slots = num_jobs
        self.running = {}  # of each job: its run, its process, when it began
        self._environments = job_environments(num_jobs)

    @property
    def is_full(self) -> bool:
        return len(self.running) == self.num_slots

    @property
    def starts(self) -> list[float]:
        return [started for _, _, started in self.running.values()]

    def start(self, run: SweepRun) -> bool:
        job = min(set(range(self.num_slots)) - set(self.running))
        process = sweep_runs.start(run, self._environments[job])
        if process:
            self.running[job] = run, process, time.monotonic()
        return process is not None

    def ended(self) -> list[tuple[SweepRun, Outcome, float]]:
        outcomes = []
        for job, (run, process, started) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[job]
                outcomes.append((run, sweep_runs.finish(run, process.returncode), time.monotonic() - started))
        return outcomes

    def stop(self):
        processes = [process for _, process, _ in self.running.values()]
        try:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
                process.wait()


def job_environments(jobs: int) -> list[dict[str, str]]:
    """What each job's environment has of its own: with several, a GPU, or its part of a GPU's memory.

    Cores are left to the operating system. With a share of its own a job was no faster, and its sums came out in
    another order: a run's bits would depend on the number of jobs.
    """
    devices = os.environ.get('CUDA_VISIBLE_DEVICES')
    if devices is None:
        devices = ','.join(str(i) for i, _ in enumerate(pathlib.Path('/dev').glob('nvidia[0-9]*')))
    if jobs == 1 or not devices:
        return [{}] * jobs
    devices = devices.split(',')
    memory = 0.75 / -(-jobs // len(devices))  # JAX takes 0.75 of it if nothing else is said
    return [
        {'CUDA_VISIBLE_DEVICES': devices[job % len(devices)], 'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{memory:.3f}'}
        for job in range(jobs)
    ]
