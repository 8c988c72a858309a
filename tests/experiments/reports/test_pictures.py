"""Pictures are refused before anything is measured, or written whole."""

import doctest

import pytest
from matplotlib.figure import Figure

from experiments.reports import pictures


def test_a_picture_of_each_kind(tmp_path):
    for kind, begins in (('.png', b'\x89PNG'), ('.svg', b'<?xml'), ('.PDF', b'%PDF')):
        pictures.check(path := tmp_path / f'picture{kind}')
        pictures.save(Figure(), path)
        assert path.read_bytes().startswith(begins)


def test_what_could_not_be_written_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r'^--output=.*a\.gif must end in \.png, \.svg or \.pdf$'):
        pictures.check(tmp_path / 'a.gif')
    with pytest.raises(ValueError, match=r'^--output=.*a\.png: there is no folder .*nowhere$'):
        pictures.check(tmp_path / 'nowhere/a.png')


def test_names_as_pictures_have_them():
    """No formulas, and not without end."""
    assert doctest.testmod(pictures).failed == 0
    assert pictures.plain('$a$' * 5) == r'\$a\$' * 5 and pictures.plain('a' * 40) == 'a' * 40
    assert pictures.plain('a' * 30 + 'b' * 30) == 'a' * 19 + '…' + 'b' * 20
