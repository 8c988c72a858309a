"""Processes meet; those that don't say so in one line each."""

import contextlib
import socket
import struct
import time

import pytest
from meeting_protocol import LONG, NONCE, connect, is_closed, join, mac, welcome

from experiments.processes import meeting


def test_the_port_of_jax_is_authenticated(start, port, given):
    with socket.create_server(('127.0.0.1', port)) as server:
        process = start(1)
        connection, said = welcome(server)
        with connection:
            connection.sendall(b'8081 %b\n' % mac(meeting.ALL_ARE_THERE, *said, b'8080'))
            with pytest.raises(ConnectionError, match='is not from process 0, or was changed on its way'):
                process.result(LONG)


def test_process_0_ends_before_all_are_there(start, port, given):
    with socket.create_server(('127.0.0.1', port)) as server:
        process = start(1)
        welcome(server)[0].close()
        with pytest.raises(meeting.OthersMissing, match='process 0 ended before all were there; it says why'):
            process.result(LONG)


HOSTILE = b'\x1b]0;title\x07\x1b[2J\r' + 'ß'.encode() + 300 * b'x'


def test_the_name_of_a_host_is_printable(start, port, given, capsys):
    first = start(0)
    with join(port, name=HOSTILE)[0]:
        first.result(LONG)
    shown = '?]0;title??[2J???' + 47 * 'x'
    assert capsys.readouterr().out == f'processes 2: 0 on {socket.gethostname()}, 1 on {shown}\n'


@pytest.mark.parametrize(('process', 'num_processes'), [(1, 3), (2, 2), (0, 2), (999_999_999, 2)])
def test_a_process_of_another_launch(start, port, given, process, num_processes):
    first = start(0)
    with join(port, process, num_processes, HOSTILE)[0], pytest.raises(ConnectionError) as error:
        first.result(LONG)
    assert f'process {process} of {num_processes}, on ?]0;title??[2J' in str(error.value)
    assert 'came to the 2 processes of which 0 were there' in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize('num_processes', [2, 3])
def test_processes_of_two_launches(start, given, monkeypatch, num_processes):
    """Every one of them ends: nobody waits for a launch that is mixed up."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', 2)
    first, *others = start(0, 3), start(1, 3), start(1, num_processes)
    for process in others:
        with pytest.raises(meeting.OthersMissing):
            process.result(LONG)
    with pytest.raises(ConnectionError, match=r'process 1 of [23], on .*, came to the 3 processes of which 0'):
        first.result(LONG)


def test_a_process_comes_again(start, port, given):
    """As it does when its launcher starts it again, before all are there."""
    first = start(0, 3)
    join(port, 1, 3)[0].close()
    for process in (first, start(1, 3), start(2, 3)):
        process.result(LONG)


def test_processes_that_do_not_come(start, port, soon):
    with pytest.raises(
        meeting.OthersMissing,
        match=f'process 0 of 4, by flags, .*127.0.0.1:{port}: process 1-3 did not come within 0.5 seconds$',
    ):
        start(0, 4).result(LONG)


@pytest.mark.parametrize('host', ['127.0.0.1', 'nowhere.invalid'])
def test_no_process_0(start, soon, host):
    with pytest.raises(meeting.OthersMissing, match=r'process 1 of 2.* process 0 was not met within 0.5 seconds \('):
        start(1, host=host).result(LONG)


def test_the_secret_of_the_workdir(start, tmp_path):
    """No other is there when the first process comes, or an old one; it is gone when all have met."""
    for text in (None, 64 * '0'):
        if text:
            (tmp_path / '.secret').write_text(text)
            (tmp_path / '.secret').chmod(0o600)
        others = [start(1, 3), start(2, 3)]
        time.sleep(0.1)
        for process in (start(0, 3), *others):
            process.result(LONG)
        assert not list(tmp_path.iterdir())


def test_a_second_start_by_accident(start, tmp_path):
    """Its port is in use: it leaves the first one's secret as it is."""
    first = start(0)
    until = time.monotonic() + LONG
    while not (tmp_path / '.secret').exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    secret = (tmp_path / '.secret').read_text()
    with pytest.raises(ConnectionError, match='Address already in use'):
        start(0).result(LONG)
    assert (tmp_path / '.secret').read_text() == secret
    for process in (first, start(1)):
        process.result(LONG)


def test_processes_of_different_secrets(start, tmp_path, monkeypatch):
    """Each says in which secret they differ, and not what it is."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', 2)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / '.secret').write_text(64 * '0')
    (tmp_path / 'other' / '.secret').chmod(0o600)
    errors = []
    for process in (start(0), start(1, workdir=tmp_path / 'other')):
        with pytest.raises(meeting.OthersMissing) as error:
            process.result(LONG)
        errors.append(str(error.value))
    assert 'the last from 127.0.0.1, which did not know the secret of ' + str(tmp_path / '.secret') in errors[0]
    assert (
        f'turned this process away, as one that does not know its secret; this one has that of {tmp_path}' in errors[1]
    )
    assert 64 * '0' not in errors[1] and not (tmp_path / '.secret').exists()


def test_process_0_ends_while_a_process_comes_again(start, port, given, monkeypatch):
    """What it said before tells more than a connection that is reset."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', 1)
    with socket.create_server(('127.0.0.1', port)) as server:
        process = start(1)
        with server.accept()[0] as connection:
            connection.sendall(b'gaussq_jax ' + NONCE + b'\n')
            assert connection.recv(1)
        server.settimeout(0.1)
        while not process.done():
            with contextlib.suppress(TimeoutError):
                connection = server.accept()[0]
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # resets it
                connection.close()
    with pytest.raises(meeting.OthersMissing, match='turned this process away, as one that does not know its secret'):
        process.result(LONG)


def test_a_secret_that_others_can_read(start, port, tmp_path, soon):
    """It is not used; the error says why, when process 0 has not put a better one in its place."""
    (tmp_path / '.secret').write_text(64 * '0')
    (tmp_path / '.secret').chmod(0o644)
    with socket.create_server(('127.0.0.1', port)) as server:
        process = start(1)
        with server.accept()[0] as connection:
            connection.sendall(b'gaussq_jax ' + NONCE + b'\n')
            assert is_closed(connection)
    with pytest.raises(meeting.OthersMissing, match=r'was not met within 0.5 seconds \(.*\.secret is .* with mode 644'):
        process.result(LONG)


def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize('address', ['127.0.0.1', '127.0.0.2'])
def test_it_listens_at_the_address_that_is_given(start, port, given, address):
    """And so does JAX's own service."""
    first = start(0, host=address)
    connect(port, address).close()
    assert not reaches({'127.0.0.1': '127.0.0.2', '127.0.0.2': '127.0.0.1'}[address], port)
    assert not reaches(socket.gethostname(), port) or socket.gethostbyname(socket.gethostname()) == address
    start(1, host=address).result(LONG)
    met = first.result(LONG)
    assert met.jax_bind_address.startswith(f'{address}:') and met.jax_coordinator_address == met.jax_bind_address


def test_it_listens_at_another_address_that_is_given(start, port, given):
    """As the coordinator's may be one that is not of its host, with NAT."""
    first = start(0, host='nowhere.invalid', bind_address='127.0.0.2')
    second = start(1, host='127.0.0.2')
    assert first.result(LONG).jax_bind_address == f'127.0.0.2:{second.result(LONG).jax_coordinator_address[10:]}'
    assert not reaches('127.0.0.1', port)


def test_it_listens_everywhere_if_told_to(start, given):
    first, second = start(0, bind_address='0.0.0.0'), start(1, host='127.0.0.2')
    assert first.result(LONG).jax_bind_address.startswith('0.0.0.0:')
    assert first.result(LONG).jax_coordinator_address.startswith('localhost:') and second.result(LONG)


def test_what_is_no_address(start, given):
    for process in range(2):
        with pytest.raises(ValueError, match="coordinator_bind_address='node1' must be an IP address of the host of"):
            start(process, bind_address='node1').result(LONG)


def test_a_name_that_is_loopback_on_its_own_host(start, given, monkeypatch, capsys):
    """The line that says who is where says, too, that process 0 listens everywhere."""
    monkeypatch.setattr(meeting, 'addresses_of', lambda host, deadline: (['0.0.0.0'], '; everywhere'))
    for process in (start(0, host='node1'), start(1)):
        process.result(LONG)
    assert capsys.readouterr().out == f'processes 2: 0-1 on {socket.gethostname()}; everywhere\n'


def test_who_is_where():
    assert meeting.who_is_where({0: 'a', 1: 'a', 2: 'b', 3: 'a'}) == '0-1 on a, 2 on b, 3 on a'
