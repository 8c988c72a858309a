"""A packed file in which there is nothing wrong, and a place for another."""

import pytest
from packed_files import whole_file


@pytest.fixture
def whole(tmp_path_factory):
    """The bytes of a file in which there is nothing wrong."""
    return whole_file(tmp_path_factory.getbasetemp())


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'weights.safetensors'
