"""The connections between process 0 and each other one: by them they find each other, and say how they end.

A process that ends says on its connection with which exit code. One that is killed, or crashes, says nothing, and the
kernel closes its connection: process 0 tells all, and each ends itself, with one line, as LOST_PROCESS.

JAX does without: where others don't come it aborts, a port in use crashes it, and that a process is gone it knows after
its heartbeat's timeout, and aborts the others, which wait until then in a collective for one that doesn't come.
"""

import contextlib
import itertools
import os
import selectors
import socket
import struct
import sys
import threading
import time

from experiments.exit_codes import DONE, LOST_PROCESS, PREEMPTED
from experiments.launchers import Launch

SECONDS_TO_START = 300  # until all are there
SECONDS_TO_SPEAK = 5  # in which a process may end with an error of its own after another one did

HELLO = 'gaussq_jax'
PORT = struct.Struct('!H')
END = struct.Struct('!iB')  # which process ends, and its exit code


class OthersMissing(ConnectionError):
    """Not all processes came, or process 0 ended before they had."""


class Peers:
    """Meets the other processes, at the coordinator's address; from then on this one ends if another one ends badly.

    jax_coordinator_address: for JAX' own service; host of the coordinator, and a port that process 0 found free.

    Raises:
      OthersMissing: not all came, or process 0 wasn't there, for `SECONDS_TO_START` seconds.
      ConnectionError: the port is in use, say.
    """

    def __init__(self, launch: Launch):
        self.process_id = launch.process_id
        self._num_processes = launch.num_processes
        self._connections: dict[socket.socket, int] = {}  # to each, the other process
        self._is_ending = threading.Event()
        self._all_others_ended = threading.Event()
        host, _, port = launch.coordinator_address.rpartition(':')
        try:
            meet = self._accept_all if self.process_id == 0 else self._connect
            jax_port = meet(host.strip('[]'), int(port))
        except (OSError, EOFError) as error:
            for connection in self._connections:
                connection.close()
            kind = OthersMissing if isinstance(error, TimeoutError | EOFError) else ConnectionError
            raise kind(
                f'process {self.process_id} of {self._num_processes}, by {launch.launcher}, did not meet the others at'
                f' the coordinator {launch.coordinator_address}: {error}'
            ) from error
        self.jax_coordinator_address = f'{host}:{jax_port}'
        threading.Thread(target=self._watch, name='peers', daemon=True).start()

    def end(self, code: int) -> None:
        """Says how this process ends. Returns if it ends well, which JAX lets all processes do together."""
        self._is_ending.set()
        self._tell(self.process_id, code)
        if code not in (DONE, PREEMPTED):
            sys.stdout.flush()
            self._exit(code)

    def _accept_all(self, host: str, port: int) -> int:
        """What process 0 does: waits for all others, tells them a free port, and prints who is where."""
        deadline = time.monotonic() + SECONDS_TO_START
        hosts = {0: socket.gethostname()}
        with _listen(port) as server:
            while missing := [process for process in range(self._num_processes) if process not in hosts]:
                server.settimeout(max(0.001, deadline - time.monotonic()))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    reason = f'process {_ranges(missing)} did not come within {SECONDS_TO_START} seconds'
                    raise TimeoutError(reason) from None
                connection.settimeout(SECONDS_TO_SPEAK)
                self._connections[connection] = -1
                try:
                    hello, process, num_processes, name = connection.makefile().readline().split()
                except (OSError, ValueError):
                    hello = ''
                if hello != HELLO:  # a stranger
                    del self._connections[connection]
                    connection.close()
                    continue
                if int(num_processes) != self._num_processes or int(process) in hosts:
                    raise OSError(
                        f'process {process} of {num_processes}, on {name}, came to the {self._num_processes} processes'
                        f' of which {_ranges(hosts)} were there'
                    )
                connection.settimeout(None)
                self._connections[connection], hosts[int(process)] = int(process), name
        with _listen(0) as server:
            jax_port = server.getsockname()[1]
        for connection in self._connections:
            _keep_alive(connection)
            connection.sendall(PORT.pack(jax_port))
        print(f'processes {self._num_processes}: {who_is_where(hosts)}', flush=True)
        return jax_port

    def _connect(self, host: str, port: int) -> int:
        """What the others do: try until process 0 is there, and is told by it that all are."""
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=SECONDS_TO_SPEAK)
                break
            except OSError as error:  # its name may not be known yet, either
                if time.monotonic() > deadline:
                    reason = f'process 0 was not there within {SECONDS_TO_START} seconds ({error})'
                    raise TimeoutError(reason) from error
                time.sleep(0.2)
        _keep_alive(connection)
        self._connections = {connection: 0}
        connection.sendall(f'{HELLO} {self.process_id} {self._num_processes} {socket.gethostname()}\n'.encode())
        connection.settimeout(SECONDS_TO_START + SECONDS_TO_SPEAK)
        message = _receive(connection, PORT.size)
        if not message:
            raise EOFError('process 0 ended before all were there; it says why')
        connection.settimeout(None)
        return PORT.unpack(message)[0]

    def _tell(self, process: int, code: int) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(END.pack(process, code))

    def _watch(self) -> None:
        """Listens to all connections until they are closed."""
        ended, is_ending_with_another = set(), False
        with selectors.DefaultSelector() as selector:
            for connection in self._connections:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    message = _receive(key.fileobj, END.size)
                    if not message:
                        selector.unregister(key.fileobj)
                    lost = self._connections[key.fileobj], LOST_PROCESS
                    process, code = END.unpack(message) if message else lost
                    if code not in (DONE, PREEMPTED) and process not in ended and not is_ending_with_another:
                        is_ending_with_another = True
                        if self.process_id == 0:
                            self._tell(process, code)
                        threading.Thread(target=self._end_with, args=(process, code), daemon=True).start()
                    ended.add(process)
        self._all_others_ended.set()

    def _end_with(self, process: int, code: int) -> None:
        """Ends this process, because another one ended."""
        if self._is_ending.wait(0 if code == LOST_PROCESS else SECONDS_TO_SPEAK):
            return
        if code == LOST_PROCESS:
            what = 'was lost (killed, crashed, or its host is gone)'
            remedy = 'start all again with the same command: they continue from the newest checkpoint'
        else:
            what, remedy = f'ended with exit code {code}', 'it says why'
        text = (
            f'error: process {process} of {self._num_processes} {what}; process {self.process_id} ends, too; {remedy}'
        )
        os.write(sys.stderr.fileno(), f'{text}\n'.encode())  # whatever the main thread is doing
        self._exit(code)

    def _exit(self, code: int) -> None:
        if self.process_id == 0:  # the others abort when JAX' service in process 0 is gone
            self._all_others_ended.wait(2 * SECONDS_TO_SPEAK)
        os._exit(code)


def who_is_where(hosts: dict[int, str]) -> str:
    """{0: 'a', 1: 'a', 2: 'b'} -> '0-1 on a, 2 on b'."""
    return ', '.join(f'{_ranges(group)} on {host}' for host, group in itertools.groupby(sorted(hosts), hosts.get))


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(('', port), backlog=1024)


def _receive(connection: socket.socket, size: int) -> bytes:
    """A message; b'' where the connection is closed, by the other process' end or that of its host."""
    try:
        message = connection.recv(size, socket.MSG_WAITALL)
    except OSError:
        message = b''
    return message if len(message) == size else b''


def _keep_alive(connection: socket.socket) -> None:
    """Has the kernel ask every few seconds if the other host is there; also, no firewall forgets the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 10), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _ranges(numbers) -> str:
    """(0, 1, 2, 5) -> '0-2, 5'."""
    groups = itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    runs = ([number for _, number in group] for _, group in groups)
    return ', '.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)
