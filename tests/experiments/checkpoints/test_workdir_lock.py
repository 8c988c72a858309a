"""Two trainings never write to one workdir; the lock ends with the process that holds it, however that ends."""

import errno
import fcntl
import os
import re
import subprocess
import sys

import pytest
from small_runs import run_config, start

from experiments.checkpoints import workdir_lock

# Takes the lock, says so, and waits.
HOLD = """
import pathlib, sys
from experiments.checkpoints import workdir_lock
lock = workdir_lock.acquire(pathlib.Path(sys.argv[1]))
workdir_lock.sign(lock)
print('locked', flush=True)
sys.stdin.read()
"""


def hold(workdir, **options):
    return subprocess.Popen(
        [sys.executable, '-c', HOLD, str(workdir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_second_training_in_a_workdir(tmp_path):
    """One error that names the workdir and who is there, and nothing is touched; SIGKILL frees the lock."""
    workdir = tmp_path / 'run'
    with hold(workdir) as process:
        assert process.stdout.readline() == 'locked\n'
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
        with pytest.raises(SystemExit) as error:
            start(workdir, run_config())
        assert re.fullmatch(
            f'error: {workdir} is in use by another training, process {process.pid} on [^ ]+; wait for its end, or'
            ' give another --workdir',
            error.value.code,
        )
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
        assert process.poll() is None
        process.kill()
    workdir_lock.acquire(workdir).close()


def test_a_lock_is_handed_on(tmp_path):
    """From a sweep to the training that it starts, which keeps it when the sweep is gone; others don't get it."""
    lock = workdir_lock.acquire(tmp_path)
    environment = os.environ | {workdir_lock.INHERITED: str(lock.fileno())}
    with hold(tmp_path, env=environment, pass_fds=[lock.fileno()]) as heir:
        assert heir.stdout.readline() == 'locked\n'
        with hold(tmp_path, env=environment) as other:  # told of a descriptor that it doesn't have
            _, errors = other.communicate(timeout=30)
        assert f'process {heir.pid} on' in errors.splitlines()[-1]
        lock.close()
        with pytest.raises(workdir_lock.WorkdirLocked):
            workdir_lock.acquire(tmp_path)
        heir.stdin.close()
        assert heir.wait(timeout=30) == 0
    workdir_lock.acquire(tmp_path).close()


def test_a_descriptor_of_another_file_is_no_lock(tmp_path, monkeypatch):
    """The environment may reach a process that trains elsewhere."""
    with workdir_lock.acquire(tmp_path / 'a') as lock, workdir_lock.acquire(tmp_path / 'b'):
        monkeypatch.setenv(workdir_lock.INHERITED, str(lock.fileno()))
        with pytest.raises(workdir_lock.WorkdirLocked):
            workdir_lock.acquire(tmp_path / 'b')
        assert workdir_lock.INHERITED not in os.environ
        lock.write('still open')


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """It is said, and the training goes on; any other failure is an error."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', flock)
    number = errno.ENOSYS
    with pytest.warns(UserWarning, match=r"\.lock can't be locked \(Function not implemented\)"):
        workdir_lock.acquire(tmp_path).close()
    number = errno.EIO
    with pytest.raises(OSError, match='Input/output error'):
        workdir_lock.acquire(tmp_path)


def test_a_lock_is_no_link(tmp_path):
    """What it leads to is neither locked nor signed."""
    (tmp_path / 'elsewhere').write_text('stays')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / '.lock').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(OSError, match=r'\.lock is a link, which is not followed'):
        workdir_lock.acquire(tmp_path / 'run')
    assert (tmp_path / 'elsewhere').read_text() == 'stays'
