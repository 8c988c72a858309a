"""Freed memory stays in the process where it computes on CPUs, and nothing happens elsewhere."""

import ctypes
import os
import subprocess
import sys
import types

import pytest

from experiments import host_memory

# A block of 32 MB is taken, written and freed again and again; printed is how many pages of it were faults.
PROGRAM = """
import resource
from experiments import host_memory
{settings}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
turn = lambda: bytearray(b'x') * 2**25
turn()
before = faults()
for _ in range(10):
    turn()
print((faults() - before) * resource.getpagesize() // 2**25)
"""


def blocks_faulted(settings='', **environment):
    command = [sys.executable, '-c', PROGRAM.format(settings=settings)]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'} | environment
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'gnu_get_libc_version'), reason='the C library is not glibc')
def test_freed_memory_is_used_again():
    """Without the setting each of ten blocks is mapped and zeroed anew."""
    assert blocks_faulted() == 10
    assert blocks_faulted('host_memory.keep_freed_memory()') == 0
    assert blocks_faulted(**host_memory.environment()) == 0


@pytest.mark.parametrize(
    ('device', 'platforms', 'keeps'),
    [
        (None, None, True),
        ('/dev/nvidia0', None, False),
        ('/dev/accel0', None, False),
        ('/dev/nvidia0', 'cpu', True),
        ('/dev/nvidia0', 'cuda', False),
    ],
)
def test_it_is_for_programs_that_compute_on_cpus(monkeypatch, device, platforms, keeps):
    calls = []
    library = types.SimpleNamespace(
        mallopt=lambda *arguments: calls.append(arguments), gnu_get_libc_version=lambda: b'2.36'
    )
    monkeypatch.setattr(host_memory.ctypes, 'CDLL', lambda _: library)
    matches = lambda pattern: [device] if device and device.startswith(pattern.partition('[')[0].rstrip('*')) else []
    monkeypatch.setattr(host_memory.glob, 'glob', matches)
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    if platforms:
        monkeypatch.setenv('JAX_PLATFORMS', platforms)
    host_memory.keep_freed_memory()
    assert calls == ([(-8, 1), (-4, 0), (-1, 2**31 - 1), (-2, 2**26)] if keeps else [])


def test_another_c_library_is_left_alone(monkeypatch):
    """musl and macOS have no such function; nothing is said."""
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    monkeypatch.setattr(host_memory.ctypes, 'CDLL', lambda _: types.SimpleNamespace())
    host_memory.keep_freed_memory()
