"""How the processes of one launch meet: process 0 listens, each other one connects, and each proves who it is.

Each message is a line of ASCII:

    0 -> i    gaussq_jax NONCE
    i -> 0    I NUM_PROCESSES HOST NONCE MAC
    0 -> i    MAC                               at once; the connection of a stranger is closed instead
    0 -> i    PORT MAC                          when all are there: a free port, for JAX's own service

A nonce is 32 random bytes. MAC is the HMAC-SHA256, keyed with the secret of the launch, of what the message means and
of all that was said on the connection up to it. So a message that was recorded at another meeting proves nothing, and
neither does one that is sent back to its sender. The secret itself is never sent. Nothing is encrypted: this does not
keep out somebody who can change packets on their way.

A stranger can't end the meeting or prolong it: it has one connection of a bounded number, for a few seconds. Only a
process that knows the secret can end it, by coming from another launch.
"""

import contextlib
import errno
import hmac
import ipaddress
import itertools
import re
import secrets
import selectors
import socket
import time
from collections.abc import Iterable
from typing import NamedTuple

from experiments.processes.launch_secret import LaunchSecret
from experiments.processes.launchers import Launch
from experiments.processes.listening import (
    address_for_all,
    addresses_of,
    join_address,
    listen,
    listen_at,
    split_address,
)

SECONDS_TO_START = 300  # until all are there
SECONDS_TO_PROVE = 5  # in which one that connects proves who it is
MOST_STRANGERS = 64  # that are connected to process 0 at a time, beside the processes that are missing
LONGEST_LINE = 1024  # bytes
LONGEST_NAME = 64  # of a host, as Linux has them

GREETING = re.compile(rb'gaussq_jax [0-9a-f]{64}')
HELLO = re.compile(
    rb'(?P<proved>(?P<process>[0-9]{1,9}) (?P<num_processes>[0-9]{1,9}) (?P<host>[^ \n]+) [0-9a-f]{64})'
    rb' (?P<mac>[0-9a-f]{64})'
)
PORT = re.compile(rb'(?P<proved>[0-9]{1,5}) (?P<mac>[0-9a-f]{64})')

JOINS, IS_WELCOME, ALL_ARE_THERE = b'process i to 0: joins', b'process 0 to i: is welcome', b'process 0 to i: port'


class OthersMissing(ConnectionError):
    """Not all processes came, or process 0 ended before they had."""


class Meeting(NamedTuple):
    """What a process has when all have met.

    connections: to which process each is: in process 0 to all others, in the others to process 0.
    jax_coordinator_address: host:port of JAX's own service, as this process reaches it.
    jax_bind_address: where process 0 has that service listen; None in the others.
    """

    connections: dict[socket.socket, int]
    jax_coordinator_address: str
    jax_bind_address: str | None


def meet(launch: Launch, secret: LaunchSecret, bind_address: str | None = None) -> Meeting:
    """Waits until all processes are there; process 0 prints who is where.

    Args:
      launch: which process this is.
      secret: the same in all of them, and in no other.
      bind_address: the IP address at which process 0 listens, 0.0.0.0 or :: for all of its host; None is that of the
        coordinator, or all, where its name is that of a loopback address on its own host.

    Raises:
      ValueError: `bind_address` is no IP address.
      OthersMissing: not all came, or process 0 wasn't there, for `SECONDS_TO_START` seconds.
      ConnectionError: a process of another launch came; the port is in use; the address is not of this host.

    Example:
      meeting = meet(launch, LaunchSecret(workdir, os.environ))
    """
    try:
        bind_address is None or ipaddress.ip_address(bind_address)
    except ValueError:
        raise ValueError(
            f'coordinator_bind_address={bind_address!r} must be an IP address of the host of process 0, 0.0.0.0 or ::'
        ) from None
    try:
        return _receive_all(launch, secret, bind_address) if launch.process_id == 0 else _connect(launch, secret)
    except (OSError, EOFError) as error:
        kind = OthersMissing if isinstance(error, TimeoutError | EOFError) else ConnectionError
        raise kind(
            f'process {launch.process_id} of {launch.num_processes}, by {launch.launcher}, did not meet the others at'
            f' the coordinator {launch.coordinator_address}: {error}'
        ) from error


def who_is_where(hosts: dict[int, str]) -> str:
    """{0: 'a', 1: 'a', 2: 'b'} -> '0-1 on a, 2 on b'."""
    return ', '.join(f'{_ranges(group)} on {host}' for host, group in itertools.groupby(sorted(hosts), hosts.get))


def _receive_all(launch: Launch, secret: LaunchSecret, bind_address: str | None) -> Meeting:
    """What process 0 does."""
    deadline = time.monotonic() + SECONDS_TO_START
    host, port = split_address(launch.coordinator_address)
    with contextlib.ExitStack() as resources:
        addresses, remark = ([bind_address], '') if bind_address else addresses_of(host, deadline)
        servers = [resources.enter_context(server) for server in listen(addresses, port)]
        key = resources.enter_context(secret.published())  # not before the port is this process's, and so the launch
        reception = resources.enter_context(_Reception(launch.num_processes, key, secret.name))
        reception.wait_for_all(servers, deadline)
        jax_address = address_for_all(servers, reception.members)
        with listen_at(jax_address, 0) as server:
            jax_port = server.getsockname()[1]
        reception.tell_all(jax_port)
    print(f'processes {launch.num_processes}: {who_is_where(reception.hosts)}{remark}', flush=True)
    own_address = 'localhost' if ipaddress.ip_address(jax_address).is_unspecified else jax_address
    connections = {connection: member.process for connection, member in reception.members.items()}
    return Meeting(connections, join_address(own_address, jax_port), join_address(jax_address, jax_port))


class _Stranger(NamedTuple):
    """One that is connected, and has not proved yet who it is."""

    address: str
    greeting: bytes
    deadline: float
    received: bytearray


class _Member(NamedTuple):
    """A process that has proved who it is."""

    process: int
    said: tuple[bytes, ...]  # by both sides, when it proved it


class _Reception:
    """Lets the other processes in, and nobody else.

    hosts: of each process that is there, the name that it gives its host.
    members: the same processes by their connections, which are closed at the end of the context after an error only.

    Args:
      num_processes: of the launch.
      key: the secret.
      secret_name: where that is from, for errors.
    """

    def __init__(self, num_processes: int, key: bytes, secret_name: str):
        self.hosts = {0: _printable(socket.gethostname().encode())}
        self.members: dict[socket.socket, _Member] = {}
        self._num_processes, self._key, self._secret_name = num_processes, key, secret_name
        self._strangers: dict[socket.socket, _Stranger] = {}  # the oldest first
        self._turned_away, self._last_address = 0, ''
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> '_Reception':
        return self

    def __exit__(self, kind, *_) -> None:
        self._selector.close()
        for connection in (*self._strangers, *(self.members if kind else ())):
            connection.close()

    def wait_for_all(self, servers: Iterable[socket.socket], deadline: float) -> None:
        """Returns when all are there, or raises at the deadline, whatever strangers do.

        Raises:
          TimeoutError: not all have come by the deadline.
          OSError: one came that knows the secret, and is not one of those missing.
        """
        for server in servers:
            server.setblocking(False)
            self._selector.register(server, selectors.EVENT_READ, self._accept)
        while missing := self._missing():
            now = time.monotonic()
            if now > deadline:
                reason = f'process {_ranges(missing)} did not come within {SECONDS_TO_START} seconds'
                if self._turned_away:
                    reason += (
                        f'; {self._turned_away} connection(s) were turned away, the last from {self._last_address},'
                        f' which did not know the secret of {self._secret_name}'
                    )
                raise TimeoutError(reason)
            for connection, stranger in list(self._strangers.items()):
                if now > stranger.deadline or len(self._strangers) > len(missing) + MOST_STRANGERS:
                    self._turn_away(connection)
            until = min([deadline, *(stranger.deadline for stranger in self._strangers.values())])
            for key, _ in self._selector.select(max(0.001, until - now)):
                key.data(key.fileobj)

    def tell_all(self, jax_port: int) -> None:
        """Ends the meeting for the others, which know then that all are there."""
        for connection, member in self.members.items():
            port = str(jax_port).encode()
            connection.settimeout(SECONDS_TO_PROVE)
            with contextlib.suppress(OSError):  # one that is lost by now is noticed as later ones are
                connection.sendall(b'%b %b\n' % (port, _mac(self._key, ALL_ARE_THERE, *member.said, port)))

    def _missing(self) -> list[int]:
        return [process for process in range(self._num_processes) if process not in self.hosts]

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, (address, *_) = server.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return  # it is gone already
        connection.setblocking(False)
        greeting = b'gaussq_jax %b' % secrets.token_hex(32).encode()
        address = address.removeprefix('::ffff:')
        self._strangers[connection] = _Stranger(address, greeting, time.monotonic() + SECONDS_TO_PROVE, bytearray())
        self._selector.register(connection, selectors.EVENT_READ, self._hear)
        self._say(connection, greeting)

    def _hear(self, connection: socket.socket) -> None:
        """What comes on a stranger's connection: a hello of one of the processes, or else it is closed."""
        _, greeting, _, received = self._strangers[connection]
        try:
            part = connection.recv(LONGEST_LINE - len(received))
        except OSError:
            part = b''
        received += part
        if part and b'\n' not in part and len(received) < LONGEST_LINE:
            return  # the rest is to come
        hello = HELLO.fullmatch(received.removesuffix(b'\n'))
        said = (greeting, bytes(hello['proved'])) if hello else ()
        if not hello or not hmac.compare_digest(hello['mac'], _mac(self._key, JOINS, *said)):
            self._turn_away(connection)
            return
        del self._strangers[connection]
        process, num_processes, name = int(hello['process']), int(hello['num_processes']), _printable(hello['host'])
        self.members[connection] = _Member(process, said)
        _keep_alive(connection)
        self._say(connection, _mac(self._key, IS_WELCOME, *said))
        if num_processes != self._num_processes or process not in self._missing():
            raise OSError(
                f'process {process} of {num_processes}, on {name}, came to the {self._num_processes} processes of which'
                f' {_ranges(self.hosts)} were there'
            )
        self.hosts[process] = name
        self._selector.modify(connection, selectors.EVENT_READ, self._leave)

    def _leave(self, connection: socket.socket) -> None:
        """A process that was there has ended, or speaks out of turn; it can come again."""
        del self.hosts[self.members.pop(connection).process]
        self._selector.unregister(connection)
        connection.close()

    def _turn_away(self, connection: socket.socket) -> None:
        self._turned_away += 1
        self._last_address = self._strangers.pop(connection).address
        self._selector.unregister(connection)
        connection.close()

    def _say(self, connection: socket.socket, line: bytes) -> None:
        with contextlib.suppress(OSError):  # it is closed already, which is seen when it is read
            connection.sendall(line + b'\n')


def _connect(launch: Launch, secret: LaunchSecret) -> Meeting:
    """What the others do: try until they and process 0 know each other, then wait until it says that all are there.

    Being turned away is no reason to end before the deadline: whoever listens at that address can do it, and on a
    network file system the secret in the workdir may be an earlier one for a while. It is read again at each try.
    """
    deadline, pause, answer = time.monotonic() + SECONDS_TO_START, 0.2, None
    host, port = split_address(launch.coordinator_address)
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=SECONDS_TO_PROVE)
            try:
                key, said = _introduce(connection, launch, secret)
                break
            except OSError as error:
                connection.close()
                has_just_ended = isinstance(error, ConnectionResetError | BrokenPipeError)
                answer = answer if has_just_ended and answer else error
                raise
        except OSError as error:  # its name may not be known yet, either
            if (seconds := deadline - time.monotonic()) <= 0:  # process 0 may have ended: what it answered says more
                reason = f'process 0 was not met within {SECONDS_TO_START} seconds ({answer or error})'
                raise TimeoutError(reason) from error
            time.sleep(min(pause, seconds))
            pause = min(1.2 * pause, 2)
    with contextlib.ExitStack() as after_an_error:
        after_an_error.enter_context(connection)
        try:
            line = _read_line(connection, time.monotonic() + SECONDS_TO_START + SECONDS_TO_PROVE)
        except ConnectionError:
            raise EOFError('process 0 ended before all were there; it says why') from None
        told = PORT.fullmatch(line)
        if not told or not hmac.compare_digest(told['mac'], _mac(key, ALL_ARE_THERE, *said, told['proved'])):
            raise ConnectionError("the message with JAX's port is not from process 0, or was changed on its way")
        after_an_error.pop_all()
    return Meeting({connection: 0}, join_address(host, int(told['proved'])), None)


def _introduce(connection: socket.socket, launch: Launch, secret: LaunchSecret) -> tuple[bytes, tuple[bytes, ...]]:
    """The secret, and what was said on the connection, when this process and process 0 know each other."""
    _keep_alive(connection)
    deadline = time.monotonic() + SECONDS_TO_PROVE
    greeting = _read_line(connection, deadline)
    if not GREETING.fullmatch(greeting):
        raise ConnectionError('what listens there is not process 0 of a training')
    key = secret.read()  # now, when process 0 has written it
    name = _printable(socket.gethostname().encode())
    proved = f'{launch.process_id} {launch.num_processes} {name} {secrets.token_hex(32)}'.encode()
    connection.sendall(b'%b %b\n' % (proved, _mac(key, JOINS, greeting, proved)))
    try:
        welcome = _read_line(connection, deadline)
    except ConnectionError:
        raise ConnectionError(
            f'it turned this process away, as one that does not know its secret; this one has that of {secret.name}'
        ) from None
    if not hmac.compare_digest(welcome, _mac(key, IS_WELCOME, greeting, proved)):
        raise ConnectionError(f'what listens there does not know the secret of {secret.name}')
    return key, (greeting, proved)


def _mac(key: bytes, meaning: bytes, *said: bytes) -> bytes:
    """In hexadecimal digits. No part has a line's end, so different parts never make the same text."""
    return hmac.digest(key, b'\n'.join((meaning, *said)), 'sha256').hex().encode()


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """A line, without its end, and nothing of what comes after it.

    Raises:
      TimeoutError: it isn't there by the deadline.
      ConnectionError: the connection is closed; the line is too long.
    """
    line = bytearray()
    while not line.endswith(b'\n'):
        if (seconds := deadline - time.monotonic()) <= 0:
            raise TimeoutError('process 0 did not finish its line in time')
        connection.settimeout(seconds)
        try:
            byte = connection.recv(1)
        except TimeoutError:
            continue
        if not byte or len(line) == LONGEST_LINE:
            raise ConnectionError('what listens there closed the connection, or its line was too long')
        line += byte
    return bytes(line[:-1])


def _keep_alive(connection: socket.socket) -> None:
    """Has the kernel ask every few seconds if the other host is there; also, no firewall forgets the connection."""
    with contextlib.suppress(OSError):  # it is closed already, which is seen when it is read
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (('TCP_KEEPIDLE', 10), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', 4)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _printable(name: bytes) -> str:
    """A host's name as it is shown: all but printable ASCII is replaced, and so what a terminal would obey."""
    return re.sub(r'[^!-~]', '?', name[:LONGEST_NAME].decode('ascii', 'replace'))


def _ranges(numbers: Iterable[int]) -> str:
    """(0, 1, 2, 5) -> '0-2, 5'."""
    groups = itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    runs = ([number for _, number in group] for _, group in groups)
    return ', '.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)
