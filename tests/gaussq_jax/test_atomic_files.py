"""Files and directories are written whole or not at all, whatever is beside them and whoever else writes."""

import errno
import os
import shutil
import stat

import pytest

from gaussq_jax.atomic_files import new_directory, new_file, open_own, replace_file


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


def test_a_directory_where_none_can_be_is_named(tmp_path):
    """As it was given, not as it is called while it is written."""
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=r"file/new'$"), new_directory(tmp_path / 'file' / 'new'):
        pass


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError('no space')])
def test_nothing_is_left_after_an_error(tmp_path, error):
    with (
        pytest.raises(type(error) if isinstance(error, Exception) else error),
        new_directory(tmp_path / 'new') as partial,
    ):
        (partial / 'file').write_text('half')
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_file_takes_the_place_of_a_link(tmp_path):
    """What the link leads to stays as it is."""
    (tmp_path / 'elsewhere').write_text('stays')
    (tmp_path / 'file').symlink_to('elsewhere')
    replace_file(tmp_path / 'file', 'ours')
    assert (tmp_path / 'elsewhere').read_text() == 'stays'
    assert not (tmp_path / 'file').is_symlink() and (tmp_path / 'file').read_text() == 'ours'
    assert {path.name for path in tmp_path.iterdir()} == {'elsewhere', 'file'}


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError('no space')])
def test_a_file_stays_after_an_error(tmp_path, error):
    (tmp_path / 'file').write_text('before')
    with pytest.raises(type(error) if isinstance(error, Exception) else error), new_file(tmp_path / 'file') as partial:
        partial.write_text('half')
        raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ['before']


def test_errors_name_the_file(tmp_path):
    """Not the one that is written first."""
    with pytest.raises(FileNotFoundError, match=r"'.*/nowhere/file'$"):
        replace_file(tmp_path / 'nowhere' / 'file', 'text')


@pytest.mark.parametrize('mode', ['w', 'a', 'r+'])
def test_a_file_that_stays_open_is_no_link(tmp_path, mode):
    (tmp_path / 'elsewhere').write_text('stays')
    (tmp_path / 'file').symlink_to('elsewhere')
    with pytest.raises(OSError, match='file is a link'):
        open_own(tmp_path / 'file', mode)
    assert (tmp_path / 'elsewhere').read_text() == 'stays'
    with open_own(tmp_path / 'new', mode) as file:
        file.write('text')
    assert (tmp_path / 'new').read_text() == 'text' and os.stat(tmp_path / 'new').st_mode & 0o111 == 0


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    """As /dev/null would be, by a user who may."""
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='pipe is no file, and is not replaced by one'):
        replace_file(tmp_path / 'pipe', 'text')
    assert stat.S_ISFIFO(os.stat(tmp_path / 'pipe').st_mode) and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_not_replaced(tmp_path):
    """It is refused before anything is written."""
    (tmp_path / 'folder').mkdir()
    with pytest.raises(IsADirectoryError, match='folder is no file, and is not replaced by one'):
        replace_file(tmp_path / 'folder', 'text')
    assert list(tmp_path.iterdir()) == [tmp_path / 'folder']


def test_errors_of_another_file_name_that(tmp_path):
    """Of a copy, what can't be read; what can't be written is the file itself."""
    with pytest.raises(FileNotFoundError, match='source'), new_file(tmp_path / 'file') as partial:
        shutil.copyfile(tmp_path / 'source', partial)
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"),
        new_file(tmp_path / 'file') as partial,
    ):
        raise OSError(errno.ENOSPC, 'No space left on device', str(tmp_path / 'source'), None, str(partial))
