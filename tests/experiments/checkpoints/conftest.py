"""Checkpoints that several tests look at, and none changes."""

import pytest
from saved_states import save_steps


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp('two_steps')
    save_steps(directory, [1, 2])
    return directory
