"""What the tests of the programs share: caches, gone when they are done, programs in several processes, and
a described H100."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from launched_processes import launcher

from experiments.devices import described_gpus


@pytest.fixture(scope='session', autouse=True)
def caches(tmp_path_factory):
    """Token arrays and compiled programs are kept in folders of the tests; the environment tells subprocesses."""
    compiled = str(tmp_path_factory.mktemp('compiled'))
    settings = {'jax_compilation_cache_dir': compiled, 'jax_persistent_cache_min_compile_time_secs': 0}
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('GAUSSQ_CACHE', str(tmp_path_factory.mktemp('tokens')))
        for name, value in settings.items():
            monkeypatch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope='session')
def h100():
    """A described one; tests that compile for it are skipped where the packages that takes aren't installed."""
    try:
        return described_gpus.devices()[0]
    except described_gpus.CannotCompile as error:
        pytest.skip(str(error))


@pytest.fixture
def launch(tmp_path):
    """launch(arguments, number of processes) -> Processes, which are killed after the test."""
    with launcher(tmp_path) as launch:
        yield launch
