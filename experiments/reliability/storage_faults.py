"""What can befall the files of a training, one function a fault, as in faults.py."""

import contextlib
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator

from experiments.processes.exit_codes import DONE, ERROR
from experiments.reliability.faults import NotTried, Observation, continued, steps_lost, told
from experiments.reliability.trial_results import (
    Unexpected,
    check_same_result,
    check_whole,
    largest_file,
    last_step,
    newest_step,
)
from experiments.reliability.trial_runs import CHECKPOINT_EVERY, Laboratory


def truncate_a_file(laboratory: Laboratory) -> Observation:
    """the newest checkpoint's largest file is cut to half its size"""

    def truncate(checkpoint: pathlib.Path) -> None:
        file = largest_file(checkpoint)
        os.truncate(file, file.stat().st_size // 2)

    return _damage(laboratory, truncate)


def flip_a_bit(laboratory: Laboratory) -> Observation:
    """one random bit of the newest checkpoint's largest file is changed"""

    def flip(checkpoint: pathlib.Path) -> None:
        file = largest_file(checkpoint)
        content = bytearray(file.read_bytes())
        bit = int(laboratory.generator.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)

    return _damage(laboratory, flip)


def link_elsewhere(laboratory: Laboratory) -> Observation:
    """the newest checkpoint's folder of arrays is elsewhere, and a link to it in its place"""
    elsewhere = laboratory.new_workdir()

    def link(checkpoint: pathlib.Path) -> None:
        (checkpoint / 'state').rename(elsewhere)
        (checkpoint / 'state').symlink_to(elsewhere)

    return _damage(laboratory, link)


def fill_the_disk(laboratory: Laboratory) -> Observation:
    """the workdir is on a tmpfs of 4 MiB, which is enlarged after the end"""
    with _small_disk(laboratory, 'size=4m') as (folder, remount):
        workdir = folder / 'run'
        ended = laboratory.run(workdir).expect(ERROR, 'error: saving .*No space left')
        if not check_whole(workdir):
            raise Unexpected('no checkpoint is left')
        remount('size=256m')
        return Observation(told(ended), continued(laboratory, workdir).lost)


def make_read_only(laboratory: Laboratory) -> Observation:
    """its tmpfs is mounted read-only before a killed training goes on, and writable again after"""
    with _small_disk(laboratory, 'size=256m') as (folder, remount):
        workdir = laboratory.killed(folder / 'run')
        remount('ro')
        ended = laboratory.run(workdir).expect(ERROR, 'error: .*Read-only')
        check_whole(workdir)
        remount('rw')
        return Observation(told(ended), continued(laboratory, workdir).lost)


@contextlib.contextmanager
def _small_disk(laboratory: Laboratory, options: str) -> Iterator[tuple[pathlib.Path, Callable[[str], None]]]:
    """A folder that is a tmpfs, and a function that mounts it with other options.

    It is mounted in a namespace of its own, for which no rights are needed, and which others see through /proc.
    """
    folder = laboratory.new_workdir()
    folder.mkdir()
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && echo mounted && exec sleep infinity'
    try:
        keeper = subprocess.Popen(
            ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mount, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        raise NotTried('there is no `unshare`') from None
    with keeper:
        try:
            if keeper.stdout.readline() != 'mounted\n':
                raise NotTried(f'no tmpfs can be mounted: {keeper.stderr.read().strip()}')

            def remount(options: str) -> None:
                enter = ['nsenter', f'--target={keeper.pid}', '--user', '--mount', '--preserve-credentials']
                subprocess.run([*enter, 'mount', '-o', f'remount,{options}', str(folder)], check=True)

            yield pathlib.Path(f'/proc/{keeper.pid}/root{folder}'), remount
        finally:
            keeper.kill()


def _damage(laboratory: Laboratory, change: Callable[[pathlib.Path], None]) -> Observation:
    """Changes the newest checkpoint."""
    workdir = laboratory.killed()
    trained, damaged = last_step(workdir), newest_step(workdir)
    change(workdir / 'checkpoints' / str(damaged))
    ended = laboratory.run(workdir).expect(DONE)
    warning = re.search(rf'skipping the damaged checkpoint \S+/{damaged}: .*', ended.text)
    if not warning or ended.continued_from != damaged - CHECKPOINT_EVERY:
        raise Unexpected(f'it continued from step {ended.continued_from}, where {damaged} is damaged')
    check_same_result(workdir, laboratory.reference)
    happened = f'exit code 0; it continues from the checkpoint before: `{warning[0]}`'
    return Observation(happened, steps_lost(trained - ended.continued_from))
