"""Files are verified when they are opened, or meanwhile; each once, by one process of a host."""

import fcntl
import hashlib
import io
import json
import os
import threading
import time

import numpy as np
import pytest

from experiments.data.preparation import verification
from experiments.data.preparation.verification import Claim, verify

TOKENS = np.arange(5000, dtype='<u2')


@pytest.fixture
def claim(tmp_path):
    path = tmp_path / 'train-00000.tokens'
    path.write_bytes(TOKENS.tobytes())
    return Claim(path, hashlib.sha256(TOKENS.tobytes()).hexdigest())


def wait(seconds=20):
    for thread in threading.enumerate():
        if thread.name == 'verification':
            thread.join(seconds)


@pytest.fixture
def in_background(monkeypatch, tmp_path):
    """Verifies in the background, to its end; which files were read, and the function that raises."""
    monkeypatch.setattr(verification, 'MOST_AT_ONCE', 100)
    read, before = [], verification._read
    monkeypatch.setattr(verification, '_read', lambda claim: read.append(claim.path.name) or before(claim))

    def in_background(*claims, seconds=20):
        read.clear()
        raise_if_damaged = verify(claims, tmp_path / 'cache').raise_if_damaged
        wait(seconds)
        return read, raise_if_damaged

    return in_background


def test_at_once(claim, tmp_path):
    verified = verify([claim], tmp_path)
    verified.raise_if_damaged()
    assert verified.is_complete()
    with pytest.raises(OSError, match=r'train-00000.tokens is damaged: its SHA-256 is .*, and should be ff'):
        verify([claim._replace(sha256='ff')], tmp_path)


@pytest.mark.parametrize(('num_ids', 'is_right'), [(5000, True), (4999, False)])
def test_tokens_of_the_vocabulary(claim, tmp_path, num_ids, is_right, monkeypatch):
    monkeypatch.setattr(verification, 'PIECE', 1000)
    claim.path.write_bytes(b'\xff' * 10 + TOKENS.tobytes())
    asked = Claim(claim.path, '', TOKENS.dtype, 10, num_ids)
    if is_right:
        return verify([asked], tmp_path).raise_if_damaged()
    with pytest.raises(OSError, match=r'holds the token 4999; the vocabulary has 0 to 4998'):
        verify([asked], tmp_path)


def test_negative_tokens(claim, tmp_path):
    claim.path.write_bytes(np.array([3, -7, 5], '<i4').tobytes())
    with pytest.raises(OSError, match=r'holds the token -7; the vocabulary has 0 to 9'):
        verify([Claim(claim.path, '', np.dtype('<i4'), 0, 10)], tmp_path)


def test_a_file_is_read_once_until_it_changes(claim, in_background):
    assert in_background(claim)[0] == [claim.path.name]
    read, raise_if_damaged = in_background(claim)
    assert read == []
    raise_if_damaged()
    status = claim.path.stat()
    os.utime(claim.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert in_background(claim)[0] == [claim.path.name]
    claim.path.with_name('copy').write_bytes(TOKENS.tobytes())
    os.replace(claim.path.with_name('copy'), claim.path)  # another inode
    assert in_background(claim)[0] == [claim.path.name]
    assert in_background(claim)[0] == []


def test_damage_in_the_background(claim, in_background):
    claim.path.write_bytes(TOKENS[::-1].tobytes())
    _, raise_if_damaged = in_background(claim)
    with pytest.raises(OSError, match=r'train-00000.tokens is damaged: its SHA-256 is'):
        raise_if_damaged()
    with pytest.raises(verification.DamagedFile, match=r'train-00000.tokens is damaged'):  # remembered
        in_background(claim)
    before = claim.path.stat()
    time.sleep(0.02)  # more than a tick of the clock of files
    claim.path.write_bytes(TOKENS.tobytes())
    os.utime(claim.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy may, that is brought back
    in_background(claim)[1]()


def test_a_file_that_vanishes(claim, in_background, monkeypatch):
    monkeypatch.setattr(verification, '_read', lambda claim: claim.path.with_name('gone').stat())
    _, raise_if_damaged = in_background(claim)
    with pytest.raises(OSError, match=r'gone'):
        raise_if_damaged()


@pytest.mark.parametrize('is_damaged', [False, True])
def test_another_process_is_at_it(claim, in_background, tmp_path, is_damaged):
    """It is waited for; what it has read is not read again, and its damage is told; the rest is read."""
    claim = claim._replace(sha256='ff') if is_damaged else claim
    other = claim._replace(path=claim.path.with_name('other'), sha256='')
    other.path.write_bytes(TOKENS.tobytes())
    (tmp_path / 'cache/verified').mkdir(parents=True)
    with open(tmp_path / 'cache/verified/.lock', 'a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        read, raise_if_damaged = in_background(other, claim, seconds=0.1)
        assert read == []
        verification._read_and_remember(claim, tmp_path / 'cache')  # as the other process does
    wait()
    assert read == [claim.path.name, 'other']
    if is_damaged:
        with pytest.raises(OSError, match=r'train-00000.tokens is damaged'):
            raise_if_damaged()
    else:
        raise_if_damaged()


def test_an_unexpected_error_ends_the_run(claim, in_background, monkeypatch):
    monkeypatch.setattr(verification, '_read', lambda claim: 1 / 0)
    _, raise_if_damaged = in_background(claim)
    with pytest.raises(OSError, match=r'division by zero'):
        raise_if_damaged()


def test_reads_that_end_within_a_token(claim, tmp_path, monkeypatch):
    """As those of some network file systems do."""

    class Short(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:999])

    def open_short(path, mode, buffering=-1):
        return io.BufferedReader(Short(path)) if buffering else Short(path)

    monkeypatch.setattr(verification, 'open', open_short, raising=False)
    verify([Claim(claim.path, claim.sha256, TOKENS.dtype, 0, 5000)], tmp_path).raise_if_damaged()


@pytest.mark.parametrize('contents', ['', '[]', '{"sha256": 3}', '{"a": "b"}'])
def test_what_is_remembered_is_damaged(claim, in_background, tmp_path, contents):
    in_background(claim)
    (record,) = (tmp_path / 'cache/verified').glob('*.json')
    assert json.loads(record.read_text())['sha256'] == claim.sha256
    record.write_text(contents)
    assert in_background(claim)[0] == [claim.path.name]


def test_a_cache_that_cannot_be_written(claim, in_background, tmp_path):
    (tmp_path / 'cache').write_text('no folder')
    read, raise_if_damaged = in_background(claim)
    assert read == [claim.path.name]
    raise_if_damaged()
