"""Freed memory stays in the process where it computes on CPUs, and nothing happens elsewhere."""

import ctypes
import os
import subprocess
import sys
import types

import pytest

from experiments.devices import host_memory

# A block of 32 MB is taken, written and freed again and again; printed is how many page faults that takes.
PROGRAM = """
import resource
from experiments.devices import host_memory
{settings}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
turn = lambda: bytearray(b'x') * 2**25
turn()
before = faults()
for _ in range(10):
    turn()
print(faults() - before)
"""


def page_faults(settings=''):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    return int(
        subprocess.run(
            [sys.executable, '-c', PROGRAM.format(settings=settings)],
            env=inherited | {'JAX_PLATFORMS': 'cpu'},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'gnu_get_libc_version'), reason='the C library is not glibc')
def test_freed_memory_is_used_again():
    """Without the settings each of ten blocks is mapped and zeroed anew, even if pages are huge."""
    assert page_faults() >= 10 * 2**25 // 2**21
    assert page_faults('host_memory.keep_freed_memory()') < 10


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
