"""Which of the steps on disk is used: the newest that is whole; nothing damaged is ever used."""

import shutil
import subprocess

import pytest
from saved_states import CONFIG, assert_same_bits, flip_bit, largest_file, restore, save_steps, small_state, step_names

from experiments.checkpoints.checkpointing import Checkpointer
from experiments.checkpoints.contents import CONTENTS
from experiments.checkpoints.manifests import MANIFEST
from experiments.checkpoints.step_directories import load_contents, newest_step

DAMAGES = {
    'flipped bit': (lambda step: flip_bit(largest_file(step)), 'SHA-256'),
    'flipped bit in the config': (lambda step: flip_bit(step / CONTENTS), 'SHA-256'),
    'truncated file': (
        lambda step: largest_file(step).write_bytes(largest_file(step).read_bytes()[:-1]),
        'SHA-256',
    ),
    'deleted file': (lambda step: largest_file(step).unlink(), 'is missing'),
    'no manifest': (lambda step: (step / MANIFEST).unlink(), f'{MANIFEST} is missing'),
    'empty manifest': (lambda step: (step / MANIFEST).write_text(''), f'is not in {MANIFEST}'),
    'binary manifest': (lambda step: (step / MANIFEST).write_bytes(b'\xff\xfe\x00'), 'is not a manifest'),
    'short manifest': (
        lambda step: (step / MANIFEST).write_text((step / MANIFEST).read_text().split('\n', 1)[1]),
        f'is not in {MANIFEST}',
    ),
    'nothing but an empty manifest': (
        lambda step: [shutil.rmtree(step), step.mkdir(), (step / MANIFEST).touch()],
        f'there is nothing beside {MANIFEST}',
    ),
    'no files': (lambda step: [shutil.rmtree(step), step.mkdir()], f'{MANIFEST} is missing'),
    'a link to its arrays': (
        lambda step: (
            (step / 'state').rename(step.parent / 'elsewhere').parent.joinpath('2/state').symlink_to('../elsewhere')
        ),
        'state is a link',
    ),
    'a link to one more file': (lambda step: (step / 'more').symlink_to(step / MANIFEST), 'more is a link'),
}


@pytest.mark.parametrize('damage, reason', DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_step_is_skipped_for_the_one_before(two_steps, tmp_path, damage, reason):
    """Orbax itself restores a flipped bit without noticing; the warning says which step and why."""
    directory = tmp_path / 'checkpoints'
    shutil.copytree(two_steps, directory)
    damage(directory / '2')
    with pytest.warns(UserWarning) as caught:
        restored = restore(directory)
    [warning] = caught
    assert str(directory / '2') in str(warning.message)
    assert reason in str(warning.message)
    assert restored.step == 1
    assert restored.data_state == {'next': 1}
    assert_same_bits(restored.state, small_state(1))


def test_error_when_no_step_is_whole(two_steps, tmp_path):
    """A run whose checkpoints are all damaged must never start again from the beginning unasked."""
    directory = tmp_path / 'checkpoints'
    shutil.copytree(two_steps, directory)
    for step in ('1', '2'):
        flip_bit(largest_file(directory / step))
    with (
        pytest.warns(UserWarning, match='SHA-256'),
        pytest.raises(ValueError, match='none is whole'),
    ):
        restore(directory)


def test_only_an_unfinished_save_is_no_checkpoint(tmp_path):
    """A run killed during its first save starts from the beginning, and says why."""
    (tmp_path / '1.writing').mkdir()
    with pytest.warns(UserWarning, match='1.writing was never finished'):
        assert restore(tmp_path) is None
    save_steps(tmp_path, [1])
    assert step_names(tmp_path) == ['1']


def test_newest_step(two_steps, tmp_path):
    """As a message tells it: without a look into the checkpoints, whose reading may take minutes."""
    assert newest_step(two_steps) == 2
    assert newest_step(tmp_path) is newest_step(tmp_path / 'missing') is None


def test_load_contents(two_steps, tmp_path):
    """Programs that only have a workdir build the model from what the checkpoint says."""
    assert load_contents(two_steps)['config'] == CONFIG
    with pytest.raises(ValueError, match='holds no checkpoint'):
        load_contents(tmp_path)


def test_manifest_is_what_sha256sum_reads(tmp_path):
    """An independent judge of the digests, and that they cover every file."""
    save_steps(tmp_path, [1])
    files = {str(path.relative_to(tmp_path / '1')) for path in (tmp_path / '1').rglob('*') if path.is_file()}
    listed = {line.split('  ')[1] for line in (tmp_path / '1' / MANIFEST).read_text().splitlines()}
    assert listed == files - {MANIFEST}
    assert CONTENTS in listed
    subprocess.run(['sha256sum', '--check', '--strict', MANIFEST], cwd=tmp_path / '1', check=True, capture_output=True)


def test_numbers_that_no_step_has_are_no_steps(two_steps):
    for name in ('2147483648', '9' * 40):
        shutil.copytree(two_steps / '2', two_steps / name)
    assert newest_step(two_steps) == restore(two_steps).step == 2
    with Checkpointer(two_steps) as checkpointer, pytest.raises(ValueError, match='a step is of 0 to 2,147,483,647'):
        checkpointer.save(2**31, small_state(0), {}, CONFIG)
