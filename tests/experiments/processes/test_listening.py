"""Process 0 listens at the coordinator's address and at no other, but where the others could not come then."""

import socket
import time

import pytest

from experiments.processes import listening

DOCUMENTATION = '203.0.113.1'  # an address for documentation, which no host has


@pytest.fixture
def resolve(monkeypatch):
    """resolve(address, …): what all names mean; an OSError is raised."""

    def resolve(*addresses):
        answers = list(addresses)

        def getaddrinfo(host, *_, **__):
            if isinstance(answers[0], OSError):
                raise answers.pop(0) if len(answers) > 1 else answers[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (address, 0)) for address in answers]

        monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)

    return resolve


UNKNOWN = socket.gaierror(socket.EAI_NONAME, 'Name or service not known')


@pytest.mark.parametrize(
    ('host', 'addresses'),
    [
        ('node1', ['10.0.0.1']),
        ('node1', ['10.0.0.1', 'fd00::1']),
        ('node1', ['127.0.1.1', '10.0.0.1']),
        ('localhost', ['::1', '127.0.0.1']),
        ('ip6-localhost', ['::1']),
        ('127.0.0.1', ['127.0.0.1']),
        ('127.1', ['127.0.0.1']),
        ('0:0::1', ['::1']),
    ],
)
def test_the_addresses_of_the_coordinator(resolve, host, addresses):
    resolve(*addresses)
    assert listening.addresses_of(host, time.monotonic()) == (addresses, '')


@pytest.mark.parametrize(('has_ipv6', 'everywhere'), [(True, '::'), (False, '0.0.0.0')])
def test_a_name_that_is_loopback_on_its_own_host(resolve, monkeypatch, has_ipv6, everywhere):
    """As Debian's names are, which are another address on the other hosts."""
    resolve('127.0.1.1')
    monkeypatch.setattr(socket, 'has_dualstack_ipv6', lambda: has_ipv6)
    remark = '; process 0 listens on all interfaces, since node1 is 127.0.1.1 on its own host'
    assert listening.addresses_of('node1', time.monotonic()) == ([everywhere], remark)


def test_a_name_that_is_not_known_yet(resolve):
    """As that of a pod is, when it starts."""
    resolve(UNKNOWN, '10.0.0.1')
    assert listening.addresses_of('train-0.train', time.monotonic() + 30) == (['10.0.0.1'], '')


def test_a_name_that_is_not_known_by_the_deadline(resolve):
    resolve(UNKNOWN)
    with pytest.raises(TimeoutError, match=r'node1 is not a name that this host knows .* --coordinator_bind_address'):
        listening.addresses_of('node1', time.monotonic())


def test_only_the_addresses_of_this_host():
    """Of the names of a cluster some have more addresses than one host."""
    (server,) = listening.listen([DOCUMENTATION, '127.0.0.1'], 0)
    with server:
        assert server.getsockname()[0] == '127.0.0.1'


def test_no_address_of_this_host():
    message = (
        f'{DOCUMENTATION} is not an address of this host: give --coordinator_bind_address, with one of its addresses'
    )
    with pytest.raises(OSError, match=message):
        listening.listen([DOCUMENTATION], 0)


def test_a_port_in_use():
    with socket.create_server(('127.0.0.1', 0)) as server, pytest.raises(OSError, match='Address already in use'):
        listening.listen(['127.0.0.2', '127.0.0.1'], server.getsockname()[1])


@pytest.mark.parametrize(
    ('came', 'chosen'),
    [
        ([], '127.0.0.2'),
        (['127.0.0.1'], '127.0.0.1'),
        (['127.0.0.1', '127.0.0.2'], '127.0.0.2'),
    ],
)
def test_the_address_for_all(came, chosen):
    """One that came at the second address has not found the first."""
    servers = listening.listen(['127.0.0.1', '127.0.0.2'], 0)
    try:
        ports = {server.getsockname() for server in servers}
        connections = [socket.create_connection(address) for address in ports if address[0] in came]
        accepted = [server.accept()[0] for server in servers if server.getsockname()[0] in came]
        assert listening.address_for_all(servers, accepted) == chosen
    finally:
        for each in (*servers, *connections, *accepted):
            each.close()


@pytest.mark.parametrize(
    ('text', 'parts'), [('node1:80', ('node1', 80)), ('10.0.0.1:80', ('10.0.0.1', 80)), ('[::1]:80', ('::1', 80))]
)
def test_hosts_and_ports(text, parts):
    assert listening.split_address(text) == parts and listening.join_address(*parts) == text
