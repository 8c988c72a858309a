"""Prepared folders elsewhere: fetched once, whole, and only as they should be."""

import concurrent.futures
import errno
import io
import os
import time
import uuid

import fsspec
import numpy as np
import pytest
from token_folders import write_prepared

from experiments.data.preparation import fetching
from experiments.data.preparation.fetching import fetch_prepared

SHARDS = [np.arange(200), np.arange(50, 250)]


@pytest.fixture
def url(tmp_path):
    """A prepared folder in memory."""
    return put(write_prepared(tmp_path / 'out', train=SHARDS, validation=SHARDS[:1]))


def put(folder, root=None):
    root = root or f'/{uuid.uuid4()}/prepared'
    system = fsspec.filesystem('memory')
    for path in folder.rglob('*'):
        if path.is_file():
            system.pipe(f'{root}/{path.relative_to(folder)}', path.read_bytes())
    return f'memory:/{root}'


def test_fetched_once(url, tmp_path, monkeypatch, capsys):
    folder = fetch_prepared(url, tmp_path / 'cache')
    assert capsys.readouterr().out == f'fetching 3 files of {url}, 0 MB, to {folder}\n'
    expected = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert folder.parent == tmp_path / 'cache/fetched' and folder.name.startswith('prepared-')
    monkeypatch.setattr(fetching, '_fetch', None)
    assert fetch_prepared(url, tmp_path / 'cache') == folder


def test_a_folder_of_several_parts(tmp_path):
    for part in range(2):
        write_prepared(tmp_path / f'out/{part:05}-of-00002', train=SHARDS, validation=SHARDS)
    folder = fetch_prepared(put(tmp_path / 'out'), tmp_path / 'cache')
    assert len(list(folder.glob('*/*.tokens'))) == 2 * 4


def test_prepared_anew(url, tmp_path):
    """Another manifest: another folder."""
    first = fetch_prepared(url, tmp_path / 'cache')
    other = write_prepared(tmp_path / 'other', train=SHARDS[::-1], validation=SHARDS[:1])
    assert fetch_prepared(put(other, url.removeprefix('memory:/')), tmp_path / 'cache') != first


def test_damage_on_the_way(url, tmp_path):
    system = fsspec.filesystem('memory')
    shard = f'{url.removeprefix("memory:/")}/train-00001.tokens'
    contents = system.cat(shard)
    system.pipe(shard, contents[:-1] + b'x')
    with pytest.raises(OSError, match=r'train-00001.tokens is damaged: its SHA-256 is'):
        fetch_prepared(url, tmp_path / 'cache')
    assert not list((tmp_path / 'cache').rglob('train-00001.tokens'))
    system.pipe(shard, contents)
    assert (fetch_prepared(url, tmp_path / 'cache') / 'train-00001.tokens').read_bytes() == contents


def test_processes_fetch_one_after_the_other(url, tmp_path, monkeypatch):
    """Threads here; each file is fetched by one of them."""
    fetched, fetch = [], fetching._fetch

    def slow(system, source, path, *others):
        fetched.append(path.name)
        time.sleep(0.05)
        fetch(system, source, path, *others)

    monkeypatch.setattr(fetching, '_fetch', slow)
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        folders = list(executor.map(lambda _: fetch_prepared(url, tmp_path / 'cache'), range(3)))
    assert len(set(folders)) == 1 and sorted(fetched) == sorted({path.name for path in folders[0].glob('*.tokens')})


def test_a_full_disk_is_not_the_urls_fault(url, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, 'open', FullFile, raising=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*cache/fetched/prepared-.*tokens'"):
        fetch_prepared(url, tmp_path / 'cache')


class FullFile(io.FileIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_there(tmp_path):
    assert fetch_prepared('memory://nothing/here', tmp_path) is None


def test_no_such_file_system(tmp_path):
    with pytest.raises(ValueError, match=r"nosuch://x/y can't be read: Protocol not known: nosuch"):
        fetch_prepared('nosuch://x/y', tmp_path)
