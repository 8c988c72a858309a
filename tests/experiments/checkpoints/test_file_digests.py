"""Digests are those of the bytes that files have in the end, however they came there."""

import contextlib
import hashlib
import os
import threading
import time

import pytest

from experiments.checkpoints import file_digests
from experiments.checkpoints.file_digests import DigestsWhileWritten, file_stat, sha256_of_each


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read, in order."""
    names, sha256 = [], file_digests.sha256

    def counted(path, **options):
        names.append(path.name)
        return sha256(path, **options)

    monkeypatch.setattr(file_digests, 'sha256', counted)
    return names


@pytest.fixture
def digests(tmp_path):
    with contextlib.closing(DigestsWhileWritten(tmp_path, 'd*/*')) as digests:
        yield digests


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check(found, files):
    for name, path in files.items():
        assert found[name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found[name].stat == file_stat(path)


def test_of_each_in_order(tmp_path):
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_bytes(os.urandom(1000))
    assert list(sha256_of_each(paths)) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    paths[3].unlink()
    found = sha256_of_each(paths)
    assert [next(found) for _ in range(3)]
    with pytest.raises(FileNotFoundError):
        next(found)


def test_a_written_file_is_read_once_and_early(tmp_path, digests, reads):
    """Though its directory comes later, and is renamed in the end; what is outside of the pattern is read last."""
    (tmp_path / 'd.tmp').mkdir()
    for name in 'ab':
        (tmp_path / 'd.tmp' / name).write_bytes(os.urandom(5000))
    wait_until(lambda: len(reads) == 2)
    (tmp_path / 'd.tmp').rename(tmp_path / 'd')
    (tmp_path / 'late').write_text('late')
    files = {'d/a': tmp_path / 'd' / 'a', 'd/b': tmp_path / 'd' / 'b', 'late': tmp_path / 'late'}
    found = digests.of(files)
    assert sorted(reads) == ['a', 'b', 'late']
    check(found, files)
    assert digests.of({}) == {}


@pytest.mark.parametrize('change', ['grows', 'same size', 'another file', 'same size and mtime'])
def test_a_file_that_changes_after_it_was_read_is_read_again(tmp_path, digests, reads, change):
    path = tmp_path / 'd' / 'a'
    path.parent.mkdir()
    path.write_bytes(b'0' * 1000)
    wait_until(lambda: reads == ['a'])
    before = path.stat()
    if change == 'grows':
        with path.open('ab') as file:
            file.write(b'1')
    elif change == 'another file':
        (tmp_path / 'other').write_bytes(b'1' * 1000)
        (tmp_path / 'other').rename(path)
    else:
        path.write_bytes(b'1' * 1000)
    if change == 'same size and mtime':
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    files = {'a': path}
    check(digests.of(files), files)
    assert set(reads) == {'a'} and len(reads) >= 2


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, digests, monkeypatch):
    """Once, or for ever, which is an error."""
    path, sha256, changes = tmp_path / 'late', file_digests.sha256, iter(range(2))
    path.write_bytes(b'0' * 1000)

    def changing(path, **options):
        digest = sha256(path, **options)
        if next(changes, None) is not None:
            with path.open('ab') as file:
                file.write(b'1')
        return digest

    monkeypatch.setattr(file_digests, 'sha256', changing)
    check(digests.of({'late': path}), {'late': path})
    assert path.stat().st_size == 1002
    changes = iter(range(100))
    with pytest.raises(OSError, match='late changes while its checkpoint is saved'):
        digests.of({'late': path})


def test_a_file_that_others_write_slowly(tmp_path, digests, monkeypatch):
    """With pauses in which it looks written."""
    monkeypatch.setattr(file_digests, 'SECONDS_AT_REST', 0.005)
    path = tmp_path / 'd' / 'a'
    path.parent.mkdir()

    def write():
        with path.open('wb', buffering=0) as file:
            for number in range(40):
                file.write(bytes([number]) * 1000)
                time.sleep(0.001 * (number % 20))

    writer = threading.Thread(target=write)
    writer.start()
    writer.join()
    check(digests.of({'a': path}), {'a': path})


def test_a_file_that_could_not_be_read_early_is_read_late(tmp_path, digests, monkeypatch):
    sha256, failed = file_digests.sha256, []

    def failing(path, **options):
        if not failed:
            failed.append(path)
            raise OSError('a moment later it is there')
        return sha256(path, **options)

    monkeypatch.setattr(file_digests, 'sha256', failing)
    path = tmp_path / 'd' / 'a'
    path.parent.mkdir()
    path.write_bytes(b'0' * 1000)
    wait_until(lambda: failed)
    check(digests.of({'a': path}), {'a': path})
    path.unlink()
    with pytest.raises(FileNotFoundError):
        digests.of({'a': path})
