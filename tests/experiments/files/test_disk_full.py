"""A full disk ends a training with one line, and costs what was trained since the last checkpoint; nothing else."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import pytest
from compilation import xla_flags
from small_runs import assert_ends_as, change_steps, run_config, run_stubbed, start, stub_steps

from experiments.checkpoints.manifests import find_damage
from gaussq_jax import atomic_files

REPOSITORY = pathlib.Path(__file__).parents[3]
FULL = pathlib.Path('/dev/full')  # each write to it fails as one to a full disk does

pytestmark = pytest.mark.skipif(not FULL.exists(), reason='there is no /dev/full')


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, path, size):
        self.path = path
        path.mkdir()
        self._mount(f'size={size}')

    def resize(self, size):
        self._mount(f'remount,rw,size={size}')

    def set_read_only(self):
        self._mount('remount,ro')

    def _mount(self, options):
        command = ['mount', '-t', 'tmpfs', '-o', options, 'none', str(self.path)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            pytest.skip(f'mount is not allowed here: {process.stderr.strip()}')


@pytest.fixture
def make_disk(tmp_path):
    if not shutil.which('mount'):
        pytest.skip('there is no mount')
    disks = []
    yield lambda size: disks.append(Disk(tmp_path / f'disk{len(disks)}', size)) or disks[-1]
    for disk in disks:
        subprocess.run(['umount', '--lazy', str(disk.path)], check=True)


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    """The workdir of a run that was never stopped."""
    return run_stubbed(tmp_path_factory.mktemp('expected'))


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    stub_steps(monkeypatch)


# The exit codes of trainings in these workdirs. They have a process of their own, in which Orbax leaves of saves that
# fail closed event loops, and coroutines that nobody awaits.
START = """
import json, sys
import pytest
from small_runs import run_config, start, stub_steps
codes = []
with pytest.MonkeyPatch.context() as monkeypatch:
    stub_steps(monkeypatch)
    for workdir in sys.argv[1:]:
        try:
            codes.append(start(workdir, run_config()))
        except SystemExit as exit:
            codes.append(exit.code)
print(json.dumps(codes))
"""


def test_in_the_middle_of_a_save(expected, make_disk):
    """At its beginning or at its end: the checkpoints before are whole, and with room again the run continues."""
    one = sum(path.stat().st_size for path in (expected / 'checkpoints' / '12').rglob('*') if path.is_file()) / 1024
    disks = [make_disk(f'{round(share * one)}k') for share in (0.3, 0.7, 1.2, 1.6, 2.2, 2.6)]
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', START, *(str(disk.path / 'run') for disk in disks)],
        cwd=REPOSITORY,
        env=os.environ | {'PYTHONPATH': f'{REPOSITORY}:{REPOSITORY}/tests'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    failures = set()
    for disk, error in zip(disks, json.loads(process.stdout.splitlines()[-1]), strict=True):
        workdir = disk.path / 'run'
        message = re.fullmatch(
            rf'error: saving the checkpoint {workdir}/checkpoints/(\d+) failed \(older ones are whole\): No space left'
            r' on device; once that is mended, the same command continues from (its beginning|step \d+)',
            error,
        )
        assert message, error
        failed = int(message[1])
        assert message[2] == ('its beginning' if failed == 4 else f'step {failed - 4}')
        whole = [path for path in (workdir / 'checkpoints').iterdir() if path.name.isdecimal()]
        assert sorted(path.name for path in whole) == [str(step) for step in range(4, failed, 4)]
        assert [find_damage(path) for path in whole] == [None] * len(whole)
        failures.add(failed)
        disk.resize('8m')
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*was never finished')  # where it could not be removed
            assert_ends_as(workdir, expected)
    assert len(failures) > 1


def full_events(workdir, monkeypatch):
    """The events' file is open: writes to it go to a full disk from now on."""
    with FULL.open('w') as full:
        for descriptor in pathlib.Path('/proc/self/fd').iterdir():
            if str(workdir / 'tensorboard') in os.path.realpath(descriptor):
                os.dup2(full.fileno(), int(descriptor.name))


def writable(path):
    return os.fdopen(path if isinstance(path, int) else os.open(path, os.O_RDWR | os.O_CREAT), 'w')


def full_metrics(workdir, monkeypatch):
    real_open = os.open
    is_metrics = lambda path: str(path).endswith('metrics.jsonl')
    opened = lambda path, *flags, **how: real_open(FULL if is_metrics(path) else path, *flags, **how)
    monkeypatch.setattr(os, 'open', opened)


@pytest.mark.parametrize('fill', [full_events, full_metrics])
def test_while_metrics_are_written(expected, tmp_path, monkeypatch, fill):
    """It isn't noticed at the end of a training of weeks, but with the first line that is lost."""
    workdir = tmp_path / 'run'

    def change(step, state, batch):
        if int(state.step) == 7:
            fill(workdir, context)
        return step(state, batch)

    with monkeypatch.context() as context, pytest.raises(SystemExit) as error:
        change_steps(context, change)
        start(workdir, run_config())
    assert re.fullmatch(
        f"error: .Errno 28. No space left on device: '{workdir}/(metrics.jsonl|tensorboard/.*)'; once that is mended,"
        ' the same command continues from step 8',
        error.value.code,
    )
    assert_ends_as(workdir, expected)


@pytest.mark.parametrize('name', ['config.json', 'summary.json'])
def test_while_a_file_is_replaced(expected, tmp_path, monkeypatch, name):
    """The one that was there, if any, stays, and nothing is left beside it."""
    workdir = tmp_path / 'run'
    workdir.mkdir()
    with monkeypatch.context() as context, pytest.raises(SystemExit) as error:
        opened = lambda path, *_, **how: writable(FULL if f'.{name}.' in str(path) else path)
        context.setattr(atomic_files, 'open', opened, raising=False)
        start(workdir, run_config())
    assert re.match(f"error: .Errno 28. No space left on device: '{workdir / name}'", error.value.code)
    assert '\n' not in error.value.code
    assert not list(workdir.glob('.*.writing')) and not (workdir / 'summary.json').exists()
    assert_ends_as(workdir, expected)


def test_a_read_only_workdir(expected, make_disk):
    """One that is new, and one with checkpoints, of which nothing changes."""
    disk = make_disk('8m')
    shutil.copytree(expected, disk.path / 'run')
    for name in ('summary.json', 'checkpoints/12'):
        path = disk.path / 'run' / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    disk.set_read_only()
    for workdir in (disk.path / 'new', disk.path / 'run'):
        with pytest.raises(SystemExit) as error:
            start(workdir, run_config())
        assert re.fullmatch("error: .Errno 30. Read-only file system: '.*'", error.value.code)
    disk.resize('8m')
    assert_ends_as(disk.path / 'run', expected)


@pytest.mark.slow
def test_the_program_itself(make_disk):
    """Nothing but this one line, whatever the libraries have to say."""
    disk = make_disk('700k')
    config = ('--config=configs/tiny.py:smoke,parts=down', '--config.checkpoint_every=1')
    process = subprocess.run(
        [sys.executable, '-m', 'experiments.train', *config, f'--workdir={disk.path / "run"}'],
        cwd=REPOSITORY,
        env=os.environ | {'XLA_FLAGS': xla_flags(devices=1)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line == (
        f'error: saving the checkpoint {disk.path}/run/checkpoints/1 failed (older ones are whole): No space left on'
        ' device; once that is mended, the same command continues from its beginning'
    )
