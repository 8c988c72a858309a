"""Who doesn't know the secret takes no part in a meeting, whether it comes to process 0 or listens in its place."""

import contextlib
import itertools
import re
import socket
import struct
import threading
import time

import pytest
from meeting_protocol import LONG, NONCE, connect, is_closed, join, mac, read_line

from experiments.processes import meeting

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
