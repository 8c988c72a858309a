"""Each file of a checkpoint is read as often as it has to be, and no more; what was touched is read again."""

import collections
import contextlib
import threading
import time

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from saved_states import CONFIG, assert_same_bits, flip_bit, largest_file, restore, save_steps, small_state, step_names

from experiments.checkpoints import checkpointing, file_digests
from experiments.checkpoints.checkpointing import Checkpointer, SaveError
from experiments.checkpoints.manifests import MANIFEST, find_damage
from experiments.checkpoints.process_shares import files_of


@pytest.fixture
def reads(monkeypatch):
    """How often each file is hashed; data files by their names alone, which no two share."""
    counts, sha256 = collections.Counter(), file_digests.sha256

    def counted(path, **options):
        counts[path.name if path.parent.name == 'd' else f'{path.parent.name}/{path.name}'] += 1
        return sha256(path, **options)

    monkeypatch.setattr(file_digests, 'sha256', counted)
    return counts


def save(checkpointer, step, **options):
    assert checkpointer.save(step, small_state(step), {}, CONFIG, **options)
    checkpointer.wait()


def after_orbax(monkeypatch, writing, function):
    """Calls the function when Orbax has written the arrays there, before the rest."""
    wait_until_finished = ocp.AsyncCheckpointer.wait_until_finished

    def wait(orbax):
        wait_until_finished(orbax)
        if (writing / 'state').exists():
            function()

    monkeypatch.setattr(ocp.AsyncCheckpointer, 'wait_until_finished', wait)


def data_files(directory):
    return {path.name for path in directory.glob('*/state/**/d/*')}


def test_a_save_reads_its_own_files_once_and_those_found_once(tmp_path, reads):
    """Of three that stay, those before were written by another process, or by this one."""
    save_steps(tmp_path, [1, 2])
    before = data_files(tmp_path)
    reads.clear()
    with Checkpointer(tmp_path, keep=4) as checkpointer:
        for step in (3, 4):
            save(checkpointer, step)
        assert data_files(tmp_path) > before
        assert {reads[name] for name in data_files(tmp_path)} == {1}
        flip_bit(largest_file(tmp_path / '3'))
        flip_bit(largest_file(tmp_path / '1'))
        save(checkpointer, 5)
        save(checkpointer, 6)
    assert step_names(tmp_path) == [
        '2',
        '3',
        '4',
        '5',
        '6',
    ]  # damaged ones don't count, and go when older than the rest


def test_a_step_that_was_restored_or_saved_is_not_read_to_be_left_as_it_is(tmp_path, reads):
    save_steps(tmp_path, [1])
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.restore(small_state(0))
        save(checkpointer, 2)
        reads.clear()
        assert not checkpointer.save(1, small_state(1), {}, CONFIG)
        assert not checkpointer.save(2, small_state(2), {}, CONFIG)
        assert not reads
        flip_bit(largest_file(tmp_path / '2'))
        save(checkpointer, 2)
    assert_same_bits(restore(tmp_path).state, small_state(2))


def test_a_restore_reads_all_again(tmp_path, reads):
    """What was whole an hour ago may have changed on the disk, of which its times tell nothing."""
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
        reads.clear()
        checkpointer.restore(small_state(0))
        assert reads == dict.fromkeys(reads, 1)
        assert len(reads) == len(files_of(tmp_path / '1').keys() - {MANIFEST})


def test_files_are_hashed_while_others_are_written(tmp_path, monkeypatch, reads):
    """The data files of an array are several, and all are read before Orbax is done, which waits here for that."""
    monkeypatch.setattr(checkpointing, 'DATA_FILE_BYTES', 2**16)
    early = []

    def wait_for_reads():
        deadline = time.monotonic() + 30
        while len(reads) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        early.extend(reads)

    after_orbax(monkeypatch, tmp_path / '1.writing', wait_for_reads)
    state = {'w': jnp.arange(2.0**17).reshape(2**9, 2**8)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {}, CONFIG)
        checkpointer.wait()
        assert len(early) >= 4
        files = files_of(tmp_path / '1')
        assert sum(path.stat().st_size for name, path in files.items() if path.name in early) > state['w'].nbytes / 2
        assert {reads[name] for name in data_files(tmp_path)} == {1}
        assert_same_bits(checkpointer.restore(state).state, state)


def test_a_file_that_changes_after_it_was_hashed_is_hashed_again(tmp_path, monkeypatch):
    """As on a file system on which a file that looks written is not."""
    changed = []

    def change():
        time.sleep(4 * file_digests.SECONDS_AT_REST)  # in which all are hashed
        flip_bit(largest_file(tmp_path / '1.writing'))
        changed.append(True)

    after_orbax(monkeypatch, tmp_path / '1.writing', change)
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
    assert changed and find_damage(tmp_path / '1') is None


def test_no_thread_is_left(tmp_path, monkeypatch):
    """Neither after a save, nor after one that fails at once or in the background."""

    def fail(*_, **__):
        raise OSError(28, 'full')

    def watching():
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(('sha256', 'written'))]

    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
        assert not watching()
        for place, name in ((ocp.AsyncCheckpointer, 'save'), (checkpointing, 'gather_digests')):
            with monkeypatch.context() as context, pytest.raises(SaveError, match='No space left'):
                context.setattr(place, name, fail)
                save(checkpointer, 2)
            with contextlib.suppress(SaveError):
                checkpointer.wait()
            assert not watching()
        save(checkpointer, 2)
    assert step_names(tmp_path) == ['1', '2']
