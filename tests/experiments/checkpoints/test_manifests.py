"""What was verified is not read again until it is touched; several processes together read all."""

import os
import shutil

import pytest
from saved_states import flip_bit, largest_file

from experiments.checkpoints import manifests
from experiments.checkpoints.manifests import MANIFEST, Verified, find_damage, write_manifest
from experiments.checkpoints.process_shares import Share, writer_of


@pytest.fixture
def step(two_steps, tmp_path):
    return shutil.copytree(two_steps / '2', tmp_path / '2')


def keep_times(change):
    """Of the largest file, as far as a program can."""

    def kept(step):
        path = largest_file(step)
        before = path.stat()
        change(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return kept


TOUCHES = {
    'a flipped bit': lambda step: flip_bit(largest_file(step)),
    'a flipped bit, and the time as before': keep_times(flip_bit),
    'a shorter file': lambda step: os.truncate(largest_file(step), 10),
    'a file less': lambda step: largest_file(step).unlink(),
    'a file more': lambda step: (step / 'more').touch(),
    'a link more': lambda step: (step / 'more').symlink_to(MANIFEST),
    'a link to its arrays': lambda step: (step / 'state').rename(step.parent / 'x') and link(step / 'state'),
    'another manifest': lambda step: (step / MANIFEST).write_text(f'{64 * "0"}  checkpoint.json\n'),
    'no manifest': lambda step: (step / MANIFEST).unlink(),
}


def link(path):
    path.symlink_to(path.parents[1] / 'x')


@pytest.mark.parametrize('touch', TOUCHES.values(), ids=TOUCHES.keys())
def test_what_was_touched_is_verified_again(step, touch):
    verified = Verified()
    assert verified.find_damage(step) is None
    touch(step)
    assert verified.find_damage(step) == find_damage(step) is not None


def test_what_was_not_touched_is_not_read_again(step):
    """Unless that is asked for, or it was touched, forgotten, or not whole."""
    asked, verified = [], Verified()

    def find(directory):
        asked.append(directory)
        return find_damage(directory)

    for _ in range(3):
        assert verified.find_damage(step, find) is None
    assert len(asked) == 1
    assert verified.find_damage(step, find, again=True) is None and len(asked) == 2
    os.utime(largest_file(step))
    assert verified.find_damage(step, find) is None and len(asked) == 3
    verified.forget(step)
    assert verified.find_damage(step, find) is None and len(asked) == 4
    flip_bit(largest_file(step))
    assert verified.find_damage(step, find) == verified.find_damage(step, find) and len(asked) == 6


def test_a_manifest_of_given_digests_is_that_of_the_files(step):
    written = (step / MANIFEST).read_bytes()
    write_manifest(step)
    assert (step / MANIFEST).read_bytes() == written


NAMES = [
    'checkpoint.json',
    'state/_METADATA',
    'state/array_metadatas/process_0',
    'state/array_metadatas/process_2',
    'state/d/0a',
    'state/manifest.ocdbt',
    *(f'state/ocdbt.process_{process}/d/{name}' for process in range(3) for name in 'abcde'),
]


def test_writers():
    assert [writer_of(name) for name in NAMES] == [0, 0, 0, 2, 0, 0, *5 * [0], *5 * [1], *5 * [2]]
    assert writer_of('state/ocdbt.process_1x/d/a') == writer_of('x/ocdbt.process_1/d/a') == 0


@pytest.mark.parametrize('num_processes', range(1, 12))
def test_each_file_is_verified_by_one_process(num_processes):
    shares = [Share(process, num_processes).of(NAMES) for process in range(num_processes)]
    assert sorted(name for share in shares for name in share) == sorted(NAMES)
    for process, share in enumerate(shares):
        assert {writer_of(name) % num_processes for name in share} <= {process, process % 3}
    if num_processes <= 9:
        assert all(shares)


def test_processes_together_find_what_one_finds(step):
    """Whichever file is damaged, it is in the share of one of them."""
    name = largest_file(step).relative_to(step).as_posix()
    flip_bit(step / name)
    found = [find_damage(step, Share(process, 3)) for process in range(3)]
    assert found.count(None) == 2 and find_damage(step) in found


def test_an_old_list_of_files_is_no_damage(step, monkeypatch):
    """As network file systems have it, in processes that haven't written them; the first, which has, looks at names."""
    monkeypatch.setattr(manifests, 'files_of', lambda directory: {})
    assert find_damage(step, Share(1, 2)) is None
    assert find_damage(step, Share(0, 2)) == 'checkpoint.json is missing'
