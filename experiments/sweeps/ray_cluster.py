"""The runs of a sweep as tasks of a Ray cluster: `python -m experiments.sweep … --ray=auto`.

Every node sees this checkout, its Python and the sweep's WORKDIR under the same paths, on a filesystem that locks files
for all of them; what else a training finds in its environment is that of the node's `ray start`. Ray gives each run
its GPUs and CPUs, and where a node dies, gives it to another: the run continues from its newest checkpoint. A training
that fails has its outcome, which Ray doesn't try again.
"""

import math
import os
import pathlib
import signal
import socket
import sys
import time

from experiments.sweeps import sweep_runs
from experiments.sweeps.plans import SweepRun
from experiments.sweeps.sweep_runs import Outcome

try:
    import ray
except ModuleNotFoundError as error:
    raise ValueError("--ray needs Ray, which isn't installed: pip install -e '.[cluster]'") from error

RETRIES = 10  # of a run whose node died
SECONDS_BETWEEN_LOOKS = 0.2

# A training ends with the worker that started it, should that be killed, as Ray gives its GPU to another; and it hears
# Ctrl-C's signal, which a worker blocks.
START = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
os.execv(sys.argv[1], sys.argv[1:])
"""


class RayJobs:
    """Runs as tasks of a cluster that is there; all are its to queue.

    Args:
      address: of the cluster's head, 'host:port', or 'auto' on one of its nodes.
      gpus_per_run: a whole number, or a part of one GPU; None is 1 if the cluster has any, else 0.
      cpus_per_run: what Ray sets aside; a training takes what cores there are.

    Raises:
      ConnectionError: there is no cluster.
      ValueError: no node of it has so many.
    """

    is_full = False
    starts = ()

    def __init__(self, address: str, gpus_per_run: float | None, cpus_per_run: float):
        if address != 'auto':
            host, _, port = address.rpartition(':')
            try:  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, ValueError):
                where = 'the host:port of its head, or auto on one of its nodes'
                raise ConnectionError(f'--ray={address}: no cluster answers there; give {where}') from None
        at_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address, log_to_driver=False, logging_level='ERROR')
        signal.signal(signal.SIGTERM, at_sigterm)  # which Ray has made an exit without our own end
        nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
        if gpus_per_run is None:
            gpus_per_run = float(any('GPU' in node for node in nodes))
        needs = {name: number for name, number in (('GPU', gpus_per_run), ('CPU', cpus_per_run)) if number}
        asked = f'--gpus_per_run={gpus_per_run:g}, --cpus_per_run={cpus_per_run:g}'
        if not needs or 1 < gpus_per_run != int(gpus_per_run):
            raise ValueError(f'{asked}: allowed are a whole number of GPUs or a part of one, and not none of both')
        slots = [min(int(node.get(name, 0) / number) for name, number in needs.items()) for node in nodes]
        if not any(slots):
            raise ValueError(f'{asked}: no node of the Ray cluster has so many')
        self.num_slots = sum(slots)
        self.place = f' on {sum(map(bool, slots))} node(s) of a Ray cluster'
        self.running = {}  # of each task its run
        self._environment = {}
        if 0 < gpus_per_run < 1:  # JAX takes 0.75 of a GPU's memory if nothing else is said
            self._environment['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.75 * gpus_per_run:.3f}'
        self._train = ray.remote(num_gpus=gpus_per_run, num_cpus=cpus_per_run, max_retries=RETRIES)(train)

    def start(self, run: SweepRun) -> bool:
        task = self._train.options(name=run.name).remote(run, self._environment, pathlib.Path.cwd())
        self.running[task] = run
        return True

    def ended(self) -> list[tuple[SweepRun, Outcome, float]]:
        tasks, outcomes = list(self.running), []
        for task in ray.wait(tasks, num_returns=len(tasks), timeout=0)[0] if tasks else ():
            run = self.running.pop(task)
            try:
                outcome, seconds = ray.get(task)
            except ray.exceptions.RayError as error:  # not of the training, but of its node or of the task around it
                error = getattr(error, 'cause', None) or error
                run.workdir.mkdir(parents=True, exist_ok=True)
                outcome = sweep_runs.fail(run, f'{type(error).__name__}: {" ".join(str(error).split())}')
                seconds = math.nan
            outcomes.append((run, outcome, seconds))
        return outcomes

    def stop(self):
        tasks = list(self.running)
        try:
            for task in tasks:
                ray.cancel(task)
            ray.wait(tasks, num_returns=len(tasks))
        except KeyboardInterrupt:
            for task in tasks:
                ray.cancel(task, force=True)


def train(run: SweepRun, environment: dict[str, str], directory: pathlib.Path) -> tuple[Outcome, float]:
    """The task: trains a run, or continues it, on the node where this is called; its outcome, and after what seconds.

    Where another process is at the run, as one may be that a lost node has not ended yet, it waits.
    """
    os.chdir(directory)
    started = time.monotonic()
    run = run._replace(command=[sys.executable, '-c', START, *run.command])
    while not (outcome := sweep_runs.look(run)).is_final:
        if not (process := sweep_runs.start(run, environment)):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        try:
            while process.poll() is None:  # not wait, which Ray can't interrupt
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:  # the task is cancelled
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        outcome = sweep_runs.finish(run, process.returncode)
        break
    return outcome, time.monotonic() - started
