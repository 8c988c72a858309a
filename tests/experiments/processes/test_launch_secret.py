"""The secret of a launch is nobody else's: a file that others can read or write isn't used, and nothing prints it."""

import contextlib
import os
import re

import pytest

from experiments.processes.launch_secret import LaunchSecret

GIVEN = 'correct horse battery staple'


@pytest.fixture
def path(tmp_path):
    return tmp_path / '.secret'


@pytest.fixture
def secret(tmp_path):
    return LaunchSecret(tmp_path, {})


def test_it_is_there_for_the_others_while_they_meet(tmp_path):
    workdir = tmp_path / 'runs' / 'new'
    secret = LaunchSecret(workdir, {})
    values = set()
    for _ in range(2):  # each start has its own
        with secret.published() as value:
            assert LaunchSecret(workdir, {}).read() == value and len(value) == 64
            (path,) = workdir.iterdir()
            assert path.stat().st_mode & 0o777 == 0o600
            assert value.decode() not in f'{secret.name} {secret}'
        values.add(value)
        assert not list(workdir.iterdir())
    assert len(values) == 2


def test_it_is_gone_after_an_error(secret, path):
    with pytest.raises(TimeoutError), secret.published():
        raise TimeoutError
    assert not path.exists()


def test_one_start_leaves_the_file_of_another(tmp_path, secret):
    with contextlib.ExitStack() as second:
        with LaunchSecret(tmp_path, {}).published():
            value = second.enter_context(secret.published())
        assert secret.read() == value


def test_a_stale_file_or_link_is_replaced_and_not_followed(tmp_path, secret, path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.write_text('mine')
    path.symlink_to(elsewhere)
    with secret.published() as value:
        assert not path.is_symlink() and secret.read() == value
    path.write_text('left by a start that was killed')
    path.chmod(0o666)
    with secret.published() as value:
        assert secret.read() == value
    assert elsewhere.read_text() == 'mine'


def _link(path):
    (path.parent / 'other').write_text(64 * 'x')
    (path.parent / 'other').chmod(0o600)
    path.symlink_to('other')


def _file(text, mode):
    def make(path):
        path.write_text(text)
        path.chmod(mode)

    return make


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda path: None, 'is not there: process 0 writes it, into a workdir that all hosts see'),
        (_link, 'is a symbolic link, and must be a regular file'),
        (lambda path: path.mkdir(), 'is not a regular file'),
        (os.mkfifo, 'is not a regular file'),
        (
            _file(64 * 'x', 0o640),
            'is of user .* with mode 640, and must be .* with mode 600; .* set GAUSSQ_SECRET in all processes',
        ),
        (_file(64 * 'x', 0o606), 'is of user .* with mode 606, and must be'),
        (_file('x', 0o600), 'has 1 characters, and must have at least 16'),
    ],
    ids=['missing', 'link', 'directory', 'pipe', 'group', 'others', 'cut off'],
)
def test_a_file_that_is_not_used(secret, path, make, message):
    make(path)
    with pytest.raises(OSError, match=rf'{re.escape(str(path))} {message}'):
        secret.read()


def test_a_file_of_another_user(secret, path, monkeypatch):
    _file(64 * 'x', 0o600)(path)
    me = os.geteuid()
    os.chown(path, me or 1234, -1)  # only root can
    monkeypatch.setattr(os, 'geteuid', lambda: me + 1)
    with pytest.raises(
        PermissionError, match=f'of user {me or 1234} .*must be of this process.s user, {me + 1}, or root'
    ):
        secret.read()


def test_a_file_system_that_forces_modes(secret, path, monkeypatch):
    """Process 0 says so at once: the others would wait for one that they can use."""
    fstat = os.fstat
    monkeypatch.setattr(
        os, 'fstat', lambda descriptor: os.stat_result([fstat(descriptor)[0] | 0o077, *fstat(descriptor)[1:]])
    )
    with pytest.raises(PermissionError, match='set GAUSSQ_SECRET in all processes'), secret.published():
        pass


def test_one_that_is_given(tmp_path):
    secret = LaunchSecret(tmp_path, {'GAUSSQ_SECRET': f'{GIVEN}\n'})
    with secret.published() as value:
        assert value == secret.read() == GIVEN.encode()
    assert secret.name == 'GAUSSQ_SECRET' and not list(tmp_path.iterdir())


@pytest.mark.parametrize('given', ['', 'too short', 2000 * 'x'])
def test_one_that_is_given_and_too_short_or_too_long(tmp_path, given):
    with pytest.raises(ValueError, match=f'GAUSSQ_SECRET has {len(given)} characters') as error:
        LaunchSecret(tmp_path, {'GAUSSQ_SECRET': given})
    assert not given or given not in str(error.value)
