"""What the tests of the programs share: one cache of tokens and of compiled programs, gone when they are done."""

import jax
import pytest


@pytest.fixture(scope='session', autouse=True)
def caches(tmp_path_factory):
    """Token arrays and compiled programs are kept in a folder of the tests, and found there by subprocesses."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('GAUSSQ_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture
def quick_compilation():
    """For tests that run a program's step a few times: compiling it is what takes long."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)
