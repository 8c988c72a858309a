"""Processes that don't meet say so in one line, each; those of the names that are shown."""

import re
import socket
import threading

import pytest

from experiments import peers
from experiments.launchers import Launch


@pytest.fixture
def port():
    with socket.create_server(('', 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(peers, 'SECONDS_TO_START', 1)


def launch(port, process_id, num_processes=2):
    return Launch('flags', f'localhost:{port}', num_processes, process_id)


def test_a_process_that_does_not_come(port):
    with pytest.raises(
        peers.OthersMissing, match=f'process 0 of 4, by flags, .*localhost:{port}: process 1-3 did not come'
    ):
        peers.Peers(launch(port, 0, 4))


@pytest.mark.parametrize('host', ['localhost', 'nowhere.invalid'])
def test_no_process_0(port, host):
    with pytest.raises(peers.OthersMissing, match=r'process 1 of 2.* process 0 was not there within 1 seconds'):
        peers.Peers(launch(port, 1)._replace(coordinator_address=f'{host}:{port}'))


def test_a_port_in_use():
    with socket.create_server(('', 0)) as server, pytest.raises(ConnectionError, match='Address already in use'):
        peers.Peers(launch(server.getsockname()[1], 0))


@pytest.mark.parametrize('num_processes', [2, 3])
def test_processes_of_two_launches(port, num_processes):
    """Every one of them ends: nobody waits for a launch that is mixed up."""
    errors = {}

    def meet(name, *process):
        try:
            peers.Peers(launch(port, *process))
        except ConnectionError as error:
            errors[name] = str(error)

    launches = {'process 0': (0, 3), 'first': (1, 3), 'second': (1, num_processes)}
    threads = [threading.Thread(target=meet, args=(name, *process)) for name, process in launches.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(errors) == set(launches)
    assert re.search(r'process 1 of [23], on .*, came to the 3 processes of which 0', errors['process 0'])


def test_a_stranger_is_not_a_process(port):
    """Somebody else's connection, a port scan's say, neither counts nor ends the meeting."""

    def knock():
        while True:
            try:
                with socket.create_connection(('localhost', port)) as connection:
                    return connection.sendall(b'GET / HTTP/1.1\r\n\r\n')
            except ConnectionRefusedError:
                pass

    threading.Thread(target=knock).start()
    with pytest.raises(ConnectionError, match='process 1 did not come within 1 seconds'):
        peers.Peers(launch(port, 0))


def test_who_is_where():
    assert peers.who_is_where({0: 'a', 1: 'a', 2: 'b', 3: 'a'}) == '0-1 on a, 2 on b, 3 on a'
