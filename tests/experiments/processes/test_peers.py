"""Processes tell each other how they end: who is lost, or says what makes no sense, ends all."""

import concurrent.futures
import queue
import socket
import struct
import time

import pytest
from meeting_protocol import LONG, SECRET, join, mac, welcome

from experiments.processes import exit_codes, meeting, peers
from experiments.processes.launch_secret import LaunchSecret
from experiments.processes.launchers import Launch


@pytest.fixture
def ends(monkeypatch):
    """The exit codes with which this process would end."""
    codes = queue.Queue()
    monkeypatch.setattr(peers.Peers, '_exit', lambda self, code: codes.put(code))
    monkeypatch.setattr(peers, 'SECONDS_TO_SPEAK', 0.1)
    return codes


@pytest.fixture
def watch(tmp_path, port, monkeypatch):
    """watch(process) -> the future of a Peers."""
    monkeypatch.setattr(meeting, 'SECONDS_TO_START', LONG)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        launch = Launch('flags', f'127.0.0.1:{port}', 2, 0)
        secret = LaunchSecret(tmp_path, {'GAUSSQ_SECRET': SECRET.decode()})
        yield lambda process: threads.submit(peers.Peers, launch._replace(process_id=process), secret)


GARBLED = {
    'another process': struct.pack('!iB', 0, 1),
    'no process': struct.pack('!iB', 2, 1),
    'less than none': struct.pack('!iB', -1, 0),
    'no exit code': struct.pack('!iB', 1, 200),
    'text': b'GET / HTTP/1.1\r\n\r\n',
    'half a message': b'\x00\x00\x00',
}


@pytest.mark.parametrize('text', GARBLED.values(), ids=GARBLED)
def test_a_process_that_says_what_makes_no_sense_is_lost(watch, port, ends, capfd, text):
    """To process 0."""
    met = watch(0)
    with join(port)[0] as connection:
        met.result(LONG)
        connection.sendall(text)
        assert ends.get(timeout=LONG) == exit_codes.LOST_PROCESS
        error = 'error: process 1 of 2 was lost (killed, crashed, or its host is gone); process 0 ends, too; start all'
        assert capfd.readouterr().err.startswith(error)
    close(met)


@pytest.mark.parametrize('text', [struct.pack('!iB', 2, 1), struct.pack('!iB', 0, 128), b'text, as it is'])
def test_a_process_0_that_says_what_makes_no_sense_is_lost(watch, port, ends, capfd, text):
    """To the others."""
    with socket.create_server(('127.0.0.1', port)) as server:
        met = watch(1)
        connection, said = welcome(server)
        with connection:
            connection.sendall(b'8080 %b\n' % mac(meeting.ALL_ARE_THERE, *said, b'8080'))
            assert met.result(LONG).jax_coordinator_address == '127.0.0.1:8080'
            connection.sendall(text)
            assert ends.get(timeout=LONG) == exit_codes.LOST_PROCESS
            assert 'error: process 0 of 2 was lost' in capfd.readouterr().err
    close(met)


def test_a_process_that_says_how_it_ends(watch, port, ends, monkeypatch, capfd):
    """Whole, or in the parts that the network makes of it."""
    monkeypatch.setattr(peers, 'SECONDS_TO_SPEAK', 1)
    met = watch(0)
    with join(port)[0] as connection:
        met.result(LONG)
        for byte in struct.pack('!iB', 1, 3):
            connection.sendall(bytes([byte]))
            time.sleep(0.01)
        assert ends.get(timeout=LONG) == 3
        assert 'process 1 of 2 ended with exit code 3; process 0 ends, too; it says why' in capfd.readouterr().err
    close(met)


def close(met):
    """After the other side has closed: the thread that watches ends, and leaves the connections."""
    assert met.result()._all_others_ended.wait(LONG)
    for connection in met.result()._connections:
        connection.close()
