"""What the tests of the programs share: caches of tokens and of compiled programs, gone when they are done."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope='session', autouse=True)
def caches(tmp_path_factory):
    """Token arrays and compiled programs are kept in folders of the tests; the environment tells subprocesses."""
    compiled = str(tmp_path_factory.mktemp('compiled'))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('GAUSSQ_CACHE', str(tmp_path_factory.mktemp('tokens')))
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', compiled)
        compilation_cache.set_cache_dir(compiled)
        compilation_cache.reset_cache()
        yield
        jax.config.update('jax_compilation_cache_dir', None)
        compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def quick_compilation():
    """For a module of tests that run a step a few times: compiling it is what takes long."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)
