"""Processes that meet on a port of this host."""

import concurrent.futures
import contextlib
import os

import pytest
from meeting_protocol import LONG, SECRET, free_port

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
