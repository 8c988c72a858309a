"""Eight virtual CPU devices for every test, so that sharded code runs on any machine; memory as programs have it.

The environment is that of all processes, those that tests start too. Programs of tests are small: they are done sooner
than they are handed to another thread, and NumPy's threads would only spin beside them.
"""

import gc
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_CPU_ENABLE_ASYNC_DISPATCH', 'false')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import compilation
import pytest

from experiments.devices import host_memory

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {compilation.xla_flags(devices=8)}'
host_memory.keep_freed_memory()


def pytest_collection_modifyitems(items):
    """Those with programs compiled as users' are come last: the others' are then no longer needed."""
    items.sort(key=lambda item: item.get_closest_marker('optimized') is not None)


def pytest_collection_finish():
    """Objects made so far are kept: scanning them for garbage while JAX traces takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before the fixtures of a test."""
    compilation.compile_as_users(item.get_closest_marker('optimized') is not None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """All tests of a file in one process: what they share is made and compiled once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)
