"""Trainings to be disturbed: started as a user starts them, watched and judged by the files that they write.

A trial is `python -m experiments.train` in a process of its own, on the CPU, with a model of seconds. Nothing of it is
imported here: what is known of it is what it prints, its exit code, and its workdir.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.reliability.trial_results import Unexpected, last_step, saved_steps

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ('-m', 'experiments.train')
STARTS = re.compile(r'^run .*, (?:starting|continuing from step (\d+)), \d+ steps$', re.MULTILINE)
SECONDS = 600  # in which anything that is waited for has to come
STEPS = 200
MIDDLE = STEPS // 3  # has many steps before and after it
CHECKPOINT_EVERY = 5
FLAGS = (  # of the training that is disturbed; its sampled weights show a repeated or lost draw of noise
    '--config=configs/tiny.py:method=gaussws,parts=down,smoke',
    f'--config.total_steps={STEPS}',
    '--config.log_every=1',
    f'--config.eval_every={STEPS // 2}',
    f'--config.checkpoint_every={CHECKPOINT_EVERY}',
)


class Ended(NamedTuple):
    """How a training ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    text: str

    @property
    def message(self) -> str:
        """The last line."""
        return self.text.strip().rpartition('\n')[2]

    @property
    def continued_from(self) -> int | None:
        """The step from which it continued, 0 for the beginning; None if it ended before it could say so."""
        started = re.search(STARTS, self.text)
        return int(started[1] or 0) if started else None

    def expect(self, code: int, message: str = '') -> 'Ended':
        """Itself, if it ended with this code, and this regex is in its last line; else raises Unexpected."""
        if self.code != code or not re.search(message, self.message):
            raise Unexpected(f'exit code {self.code} where {code} was expected: `{self.message}`')
        return self


class Trial:
    """One start of a training, as a context manager: no process is left behind.

    process: the operating system's.

    Args:
      workdir: where its files go.
      flags: of experiments.train.
      devices: virtual ones of the CPU.
      program: what Python runs instead of experiments.train.
      environment: its variables, beside ours; None: not set.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *flags: str,
        devices: int = 1,
        program: tuple[str, ...] = TRAIN,
        environment: Mapping[str, str | None] = types.MappingProxyType({}),
    ):
        self.workdir = workdir
        self._leftovers = _writing(workdir)
        self._output = tempfile.TemporaryFile('w+')  # noqa: SIM115
        variables = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'PYTHONUNBUFFERED': '1',
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, *program, *flags, f'--workdir={workdir}'],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={name: value for name, value in variables.items() if value is not None},
        )

    def __enter__(self) -> 'Trial':
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()

    def text(self) -> str:
        """What it has printed, without what differs from time to time: its workdir, processes, hosts."""
        self._output.seek(0)
        text = self._output.read().replace(str(self.workdir), 'WORKDIR')
        return re.sub(r'process \d+ on [^;\s]+|\b[0-9a-f]{32}\b', '…', text)

    def wait(self) -> Ended:
        """Waits for its end."""
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise Unexpected(f'it did not end within {SECONDS} seconds: `{Ended(0, self.text()).message}`') from None
        return Ended(self.process.returncode, self.text())

    def wait_for(self, condition: Callable[[], Any]) -> bool:
        """Waits until the condition holds: True, or False if the training ended before."""
        until = time.monotonic() + SECONDS
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > until:
                raise Unexpected(f'nothing happened for {SECONDS} seconds: `{Ended(0, self.text()).message}`')
            time.sleep(0.002)
        return True

    def wait_for_step(self, step: int) -> None:
        """Waits until a step is logged and two checkpoints are there, before the training ends."""
        if not self.wait_for(lambda: last_step(self.workdir) >= step and len(saved_steps(self.workdir)) > 1):
            raise Unexpected(f'the training ended before the fault: `{self.wait().message}`')

    def has_trained(self) -> bool:
        """Whether this start has trained a step of its own."""
        return re.search(r'^step ', self.text(), re.MULTILINE) is not None

    def is_saving(self) -> bool:
        """Whether a directory of a save is there that this start has made or changed."""
        return bool(_writing(self.workdir) - self._leftovers)


class Laboratory:
    """A folder of trials with their undisturbed references, each trained when it is first asked for.

    Args:
      folder: an empty directory.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.generator = np.random.default_rng(0)
        self._numbers = itertools.count()
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'compiled'))

    @functools.cached_property
    def reference(self) -> pathlib.Path:
        """The workdir of a training that nothing disturbed."""
        workdir = self.new_workdir()
        self.run(workdir).expect(0)
        return workdir

    @functools.cached_property
    def reference_of_two(self) -> pathlib.Path:
        """The workdir of a training of two processes that nothing disturbed."""
        workdir = self.new_workdir()
        self.complete_by_two(workdir)
        return workdir

    def killed(self, workdir: pathlib.Path | None = None) -> pathlib.Path:
        """The workdir of a training that was killed in its middle, a new copy each time."""
        return shutil.copytree(self._killed, workdir or self.new_workdir())

    @functools.cached_property
    def _killed(self) -> pathlib.Path:
        workdir = self.new_workdir()
        self.stop(workdir, signal.SIGKILL).expect(-signal.SIGKILL)
        return workdir

    def new_workdir(self) -> pathlib.Path:
        return self.folder / f'run{next(self._numbers)}'

    def start(self, workdir: pathlib.Path, *flags: str, **others) -> Trial:
        return Trial(workdir, *FLAGS, *flags, **others)

    @contextlib.contextmanager
    def start_two(self, workdir: pathlib.Path) -> Iterator[tuple[Trial, Trial]]:
        """A training of two processes, with a device each."""
        first_flags, second_flags = self.flags_of_two()
        with self.start(workdir, *first_flags) as first, self.start(workdir, *second_flags) as second:
            yield first, second

    def flags_of_two(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What two processes of one training are started with, the first one of them the coordinator's address."""
        with socket.create_server(('localhost', 0)) as server:
            port = server.getsockname()[1]
        flags = (f'--coordinator_address=localhost:{port}', '--num_processes=2', '--config.mesh.data=2')
        return (*flags, '--process_id=0'), (*flags, '--process_id=1')

    def run(self, workdir: pathlib.Path, *flags: str, **others) -> Ended:
        """Gives the command (again) and waits for the end of the training."""
        with self.start(workdir, *flags, **others) as trial:
            return trial.wait()

    def stop(self, workdir: pathlib.Path, sent: signal.Signals, *flags: str) -> Ended:
        """Gives the command, and sends the training a signal in its middle."""
        with self.start(workdir, *flags) as trial:
            trial.wait_for_step(MIDDLE)
            trial.process.send_signal(sent)
            return trial.wait()

    def complete_by_two(self, workdir: pathlib.Path) -> None:
        with self.start_two(workdir) as trials:
            for trial in trials:
                trial.wait().expect(0)


def _writing(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """The directories of unfinished saves, and when they were last changed."""
    found = set()
    for path in workdir.glob('checkpoints/*.writing'):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # finished since
            continue
    return found
