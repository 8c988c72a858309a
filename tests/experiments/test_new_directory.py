"""Directories that are written whole or not at all, whatever is beside them and whoever else writes."""

import pytest

from experiments.new_directory import new_directory


def test_what_is_beside_it_is_left_alone(tmp_path):
    """Also what has the name that a partial one once had."""
    other = tmp_path / 'new.writing'
    other.mkdir()
    (other / 'unrelated').write_text('stays')
    with new_directory(tmp_path / 'new') as partial:
        (partial / 'file').write_text('ours')
    assert (other / 'unrelated').read_text() == 'stays' and (tmp_path / 'new' / 'file').read_text() == 'ours'
    assert {path.name for path in tmp_path.iterdir()} == {'new', 'new.writing'}


def test_of_two_writers_one_has_it_whole(tmp_path):
    """The other is told, and their files don't mix."""
    with pytest.raises(ValueError, match='new is there already'), new_directory(tmp_path / 'new') as slower:
        (slower / 'slow').write_text('')
        with new_directory(tmp_path / 'new') as faster:
            (faster / 'fast').write_text('')
    assert [path.name for path in tmp_path.iterdir()] == ['new']
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['fast']


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'new').symlink_to('elsewhere')
    with pytest.raises(ValueError, match='new is there already'), new_directory(tmp_path / 'new'):
        raise AssertionError
    assert list((tmp_path / 'elsewhere').iterdir()) == []


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError('no space')])
def test_nothing_is_left_after_an_error(tmp_path, error):
    with (
        pytest.raises(type(error) if isinstance(error, Exception) else error),
        new_directory(tmp_path / 'new') as partial,
    ):
        (partial / 'file').write_text('half')
        raise error
    assert list(tmp_path.iterdir()) == []
