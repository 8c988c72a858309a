"""Where process 0 listens: at the address of the coordinator, and not at every one that its host has."""

import contextlib
import errno
import ipaddress
import re
import socket
import time
from collections.abc import Iterable


def split_address(address: str) -> tuple[str, int]:
    """'[::1]:80' -> ('::1', 80)."""
    host, _, port = address.rpartition(':')
    return host.strip('[]'), int(port)


def join_address(host: str, port: int) -> str:
    """('::1', 80) -> '[::1]:80'."""
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def addresses_of(host: str, deadline: float) -> tuple[list[str], str]:
    """The IP addresses of the coordinator's host; all of this host's, and a remark that says so, if they are loopback.

    Debian gives a host's own name the address 127.0.1.1 on that host, at which no other host finds it.

    Raises:
      TimeoutError: the name isn't known by the deadline.
    """
    while True:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f'{host} is not a name that this host knows ({error}): give --coordinator_bind_address, with one of'
                    " this host's addresses, or with 0.0.0.0 or :: for all of them"
                ) from error
            time.sleep(0.2)
    addresses = list(dict.fromkeys(address for *_, (address, *_) in found))
    is_meant = re.fullmatch('[0-9.]+|.*:.*|.*localhost.*', host.lower())  # an address, or a name of loopback only
    if is_meant or not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        return addresses, ''
    remark = f'; process 0 listens on all interfaces, since {host} is {" and ".join(addresses)} on its own host'
    return ['::' if socket.has_dualstack_ipv6() else '0.0.0.0'], remark


def listen(addresses: Iterable[str], port: int) -> list[socket.socket]:
    """Servers at those of the addresses that this host has; at least one.

    Raises:
      OSError: it has none of them; the port is in use.
    """
    servers = []
    with contextlib.ExitStack() as after_an_error:
        for address in addresses:
            try:
                servers.append(after_an_error.enter_context(listen_at(address, port)))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        after_an_error.pop_all()
    if not servers:
        raise OSError(
            f'{" and ".join(addresses)} is not an address of this host: give --coordinator_bind_address, with one of'
            ' its addresses, or with 0.0.0.0 or :: for all of them'
        )
    return servers


def listen_at(address: str, port: int) -> socket.socket:
    """A server; at :: it takes IPv4, too. Port 0 is a free one."""
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    is_for_both = address == '::' and socket.has_dualstack_ipv6()
    return socket.create_server((address, port), family=family, dualstack_ipv6=is_for_both, backlog=1024)


def address_for_all(servers: Iterable[socket.socket], connections: Iterable[socket.socket]) -> str:
    """The one of the servers' addresses at which all others are expected to find another server.

    A process tries a host's addresses in order: one that came at a later address did not find the earlier ones.
    """
    came = {connection.getsockname()[0] for connection in connections}
    addresses = [server.getsockname()[0] for server in servers]
    return ([address for address in addresses if address in came] or addresses)[-1]
