"""Processes meet and nobody else does, whatever strangers do; those that don't say so in one line each."""

import concurrent.futures
import contextlib
import itertools
import os
import re
import socket
import struct
import threading
import time

import pytest
from meeting_protocol import LONG, NONCE, SECRET, connect, free_port, is_closed, join, mac, read_line, welcome

from experiments.processes import meeting
from experiments.processes.launch_secret import LaunchSecret
from experiments.processes.launchers import Launch


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', 0.5)


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setenv('GAUSSQ_SECRET', SECRET.decode())


@pytest.fixture
def start(tmp_path, port, monkeypatch):
    """start(process, number of processes, …) -> the future of its Meeting, whose connections are closed at the end."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', LONG)
    with concurrent.futures.ThreadPoolExecutor(16) as threads, contextlib.ExitStack() as connections:

        def start(process, num_processes=2, *, host='127.0.0.1', bind_address=None, workdir=tmp_path):
            def run():
                launch = Launch('flags', f'{host}:{port}', num_processes, process)
                met = meeting.meet(launch, LaunchSecret(workdir, os.environ), bind_address)
                for connection in met.connections:
                    connections.enter_context(connection)
                return met

            return threads.submit(run)

        yield start


# What strangers do with a connection to process 0, which has greeted them. Each returns when it is closed, or stops.


def hello_with(proved, key):
    def behave(connection, greeting):
        connection.sendall(b'%b %b\n' % (proved, mac(meeting.JOINS, greeting, proved, key=key)))

    return behave


def send(text):
    return lambda connection, greeting: connection.sendall(text)


def drip(connection, greeting):
    for byte in itertools.cycle(b'1 2 host '):
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def flood(connection, greeting):
    while True:
        connection.sendall(1000 * b'x')


STRANGERS = {
    'garbage': send(b'\x00\xff\xfe\n\n\x80' * 20),
    'http': send(b'GET / HTTP/1.1\r\n\r\n'),
    'five bytes': send(struct.pack('!iB', 1, 1)),
    'a rank, by the name of the protocol': send(b'gaussq_jax 1 2 host\n'),
    'a rank, with no numbers': send(b'gaussq_jax a b c\n'),
    'a rank, without the secret': hello_with(b'1 2 host ' + NONCE, b'another secret of 16'),
    'a rank, with an empty secret': hello_with(b'1 2 host ' + NONCE, b''),
    'another launch, without the secret': hello_with(b'1 3 host ' + NONCE, b'another secret of 16'),
    'a long number': send(b'%b 2 host %b %b\n' % (9 * b'9' + 900 * b'9', NONCE, NONCE)),
    'many lines': send(40 * (b'1 2 host %b %b\n' % (NONCE, NONCE))),
    'what process 0 said': lambda connection, greeting: connection.sendall(greeting + b'\n'),
    'a byte at a time': drip,
    'a line without end': flood,
    'nothing': lambda connection, greeting: connection.recv(1),
    'the end at once': lambda connection, greeting: None,
}


@contextlib.contextmanager
def strangers(port, behave):
    """One after another, each as soon as the one before has been turned away."""
    is_over = threading.Event()

    def come():
        while not is_over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), timeout=1) as connection:
                behave(connection, read_line(connection))
                is_closed(connection)
            time.sleep(0.01)

    thread = threading.Thread(target=come)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize('behave', STRANGERS.values(), ids=STRANGERS)
def test_strangers_while_processes_meet(start, port, given, capsys, behave):
    """They take no rank and end nothing, and process 0 doesn't wait for them: neither to let the others in …"""
    first = start(0, 3)
    with strangers(port, behave):
        second = start(1, 3)
        time.sleep(0.2)
        assert not first.done() and not second.done()
        processes = [first, second, start(2, 3)]
        numbers = [set(process.result(LONG).connections.values()) for process in processes]
    assert numbers == [{1, 2}, {0}, {0}]
    assert capsys.readouterr().out == f'processes 3: 0-2 on {socket.gethostname()}\n'


def test_strangers_until_the_deadline(start, port, given, monkeypatch):
    """… nor past its deadline; then it says how many there were."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', 1)
    monkeypatch.setattr(meeting, 'SECONDS_TO_PROVE', 0.3)
    started = time.monotonic()
    with contextlib.ExitStack() as all_strangers:
        first = start(0, 4)
        for behave in STRANGERS.values():
            all_strangers.enter_context(strangers(port, behave))
        with pytest.raises(meeting.OthersMissing) as error:
            first.result(LONG)
        assert time.monotonic() - started < 10  # they would go on
    assert re.fullmatch(
        f'process 0 of 4, by flags, did not meet the others at the coordinator 127.0.0.1:{port}: process 1-3 did not'
        r' come within 1 seconds; \d+ connection\(s\) were turned away, the last from 127.0.0.1, which did not know the'
        ' secret of GAUSSQ_SECRET',
        str(error.value),
    )


@pytest.mark.parametrize('behave', [drip, STRANGERS['nothing']])
def test_a_slow_stranger(start, port, given, monkeypatch, behave):
    """Its time is up long before that of the processes."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_PROVE', 0.3)
    first = start(0)
    with connect(port) as connection:
        greeting = read_line(connection)
        with contextlib.suppress(OSError):
            behave(connection, greeting)
        assert is_closed(connection) and not first.done()
    for process in (first, start(1)):
        process.result(LONG)


def test_a_line_without_end(start, port, given, monkeypatch):
    """It is closed by its length, not by its time."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_PROVE', 10 * LONG)
    first = start(0)
    with connect(port) as connection:
        connection.sendall(meeting.LONGEST_LINE * b'x')
        assert is_closed(connection)
    for process in (first, start(1)):
        process.result(LONG)


def test_more_strangers_than_there_is_room_for(start, port, given, monkeypatch):
    """The oldest are closed, long before their time is up."""
    monkeypatch.setattr(meeting, 'MOST_STRANGERS', 8)
    monkeypatch.setattr(meeting, 'SECONDS_TO_PROVE', LONG)
    first = start(0, 3)
    with contextlib.ExitStack() as idle:
        connections = [idle.enter_context(connect(port)) for _ in range(30)]
        assert all(map(is_closed, connections[: 30 - 8 - 2]))
        second = start(1, 3)
        time.sleep(0.1)
        connections[-1].settimeout(0.01)
        assert not is_closed(connections[-1])
        for process in (first, second, start(2, 3)):
            process.result(LONG)


def test_a_recorded_process_is_a_stranger(start, port, given):
    """What a process said at an earlier meeting, or at this one, proves nothing on another connection."""
    earlier = start(0)
    connection, said = join(port)
    with connection:
        earlier.result(LONG)
    recorded = b'%b %b\n' % (said[1], mac(meeting.JOINS, *said))
    again = start(0)
    with connect(port) as connection:
        read_line(connection)
        connection.sendall(recorded)
        assert is_closed(connection)
    for process in (again, start(1)):
        process.result(LONG)


# What listens at the coordinator's address, and is not process 0.


def closes(connection):
    pass


def recorded(connection):
    """What process 0 said at an earlier meeting."""
    said = b'gaussq_jax ' + NONCE, b'1 2 host ' + NONCE
    connection.sendall(said[0] + b'\n')
    read_line(connection)
    connection.sendall(mac(meeting.IS_WELCOME, *said) + b'\n')
    connection.sendall(b'1 %b\n' % mac(meeting.ALL_ARE_THERE, *said, b'1'))
    is_closed(connection)


def turns_away(connection):
    connection.sendall(b'gaussq_jax ' + NONCE + b'\n')
    read_line(connection)


def reflects(connection):
    """Gives the process its own proof."""
    connection.sendall(b'gaussq_jax ' + NONCE + b'\n')
    connection.sendall(read_line(connection).split()[-1] + b'\n')
    is_closed(connection)


def drips(connection):
    for byte in itertools.cycle(b'gaussq_jax '):
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


FAKES = {
    'closes': (closes, 'what listens there closed the connection'),
    'another service': (lambda connection: connection.sendall(b'SSH-2.0-OpenSSH_9.2\r\n'), 'is not process 0 of a'),
    'a line without end': (lambda connection: flood(connection, b''), 'its line was too long'),
    'a byte at a time': (drips, 'process 0 did not finish its line in time'),
    'turns away': (turns_away, r'it turned this process away, .* this one has that of GAUSSQ_SECRET'),
    'recorded': (recorded, 'what listens there does not know the secret of GAUSSQ_SECRET'),
    'reflects': (reflects, 'what listens there does not know the secret of GAUSSQ_SECRET'),
}


@pytest.mark.parametrize(('behave', 'message'), FAKES.values(), ids=FAKES)
def test_a_fake_process_0(start, port, given, monkeypatch, behave, message):
    """It is no process 0, and at the deadline the error says what it did."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', 0.3)
    monkeypatch.setattr(meeting, 'SECONDS_TO_PROVE', 0.3 if behave is drips else LONG)
    started = time.monotonic()
    with socket.create_server(('127.0.0.1', port)) as server:

        def serve():
            with contextlib.suppress(OSError):  # until the server is shut down
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError, AssertionError):
                        behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(meeting.OthersMissing, match=rf'process 0 was not met within 0.3 seconds \(.*{message}'):
            start(1).result(LONG)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert time.monotonic() - started < 10


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
