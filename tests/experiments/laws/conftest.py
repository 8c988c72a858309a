"""What the tests of laws share: a table of runs, and fits without what takes long."""

import pytest
from law_program import grid, write

from experiments.laws import known_laws
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA


@pytest.fixture
def no_comparison(monkeypatch):
    """Comparing laws is what takes long."""

    def hold_out(*arguments, **options):
        raise ValueError('not now')

    monkeypatch.setattr(known_laws.scaling_laws, 'hold_out', hold_out)


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
    return write(tmp_path_factory.mktemp('runs') / 'runs.csv', grid(PUBLISHED_CAPYBARA))
