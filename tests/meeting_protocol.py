"""The messages by which processes meet, written down a second time: for tests that play a process, or a stranger.

What they mean is in experiments/processes/meeting.py.
"""

import hashlib
import hmac
import socket
import time

from experiments.processes import meeting

SECRET = b'correct horse battery staple'
NONCE = 64 * b'0'
LONG = 20  # seconds, more than any of it takes


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def mac(meaning, *said, key=SECRET):
    return hmac.new(key, b'\n'.join((meaning, *said)), hashlib.sha256).hexdigest().encode()


def connect(port, host='127.0.0.1'):
    """A connection, when there is a server."""
    until = time.monotonic() + LONG
    while True:
        try:
            return socket.create_connection((host, port), timeout=LONG)
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.01)


def read_line(connection):
    line = b''
    while not line.endswith(b'\n'):
        byte = connection.recv(1)
        assert byte, f'closed after {line}'
        line += byte
    return line[:-1]


def is_closed(connection):
    """Whether the other side closes it."""
    try:
        while connection.recv(1024):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def join(port, process=1, num_processes=2, name=b'host'):
    """Comes as a process that knows the secret: the connection, and what was said on it."""
    connection = connect(port)
    said = read_line(connection), b'%d %d %b %b' % (process, num_processes, name, NONCE)
    connection.sendall(b'%b %b\n' % (said[1], mac(meeting.JOINS, *said)))
    assert read_line(connection) == mac(meeting.IS_WELCOME, *said)
    return connection, said


def welcome(server, process=1):
    """Receives a process as process 0 does, with the secret: the connection, and what was said on it."""
    connection, _ = server.accept()
    greeting = b'gaussq_jax ' + NONCE
    connection.sendall(greeting + b'\n')
    proved, _, proof = read_line(connection).rpartition(b' ')
    said = greeting, proved
    assert proof == mac(meeting.JOINS, *said) and proved.startswith(b'%d ' % process)
    connection.sendall(mac(meeting.IS_WELCOME, *said) + b'\n')
    return connection, said
