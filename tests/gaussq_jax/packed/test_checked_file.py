"""A damaged or foreign file is one clear error, never a wrong tensor; a whole one is there or isn't."""

import concurrent.futures
import json
import os
import pickle
import re
import signal
import stat
import struct
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import numpy_float_formats as oracle
import pytest
import safetensors.numpy
from packed_files import LAYOUT, NOTHING, header_length, refused, rewritten, save

import gaussq_jax as gq
from gaussq_jax.packed import checked_file, read_packed

# --- damage ---------------------------------------------------------------------------------------------


def test_a_whole_file_is_read_and_so_is_one_that_others_rewrote(path, whole):
    """What the tests of damage start from is whole."""
    path.write_bytes(whole)
    weights = gq.load_packed(path)
    path.write_bytes(rewritten(whole))
    assert path.read_bytes() != whole
    again = gq.load_packed(path)
    for name in ('kernel', 'single', 'bias'):
        oracle.assert_same_bits(again[name], weights[name])


def test_no_flipped_bit_goes_unnoticed(path, whole):
    """One at each byte of the header, its length included, and of every byte of the payload."""
    generator = np.random.default_rng(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        refused(path, bytes(damaged))


def test_a_flipped_bit_of_a_tensor_is_told_as_damage(path, whole):
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    assert refused(path, bytes(damaged)) == 'is damaged: its bytes are not those that were written (SHA-256)'


@pytest.mark.parametrize('left', [0, 1, 7, 8, 9, 0.1, 0.5, 0.9, -1])
def test_a_truncated_file(path, whole, left):
    length = header_length(whole)
    left = int(left * length) if isinstance(left, float) else left
    assert 'is no safetensors file, or a damaged one: ' in refused(path, whole[:left])


@pytest.mark.parametrize('more', [b'\0', b'more', bytes(4096)])
def test_appended_bytes(path, whole, more):
    assert 'is no safetensors file, or a damaged one: ' in refused(path, whole + more)


def test_bytes_in_another_order(path, whole):
    length = header_length(whole)
    swapped = whole[:length] + whole[length:][::-1]
    assert 'is damaged' in refused(path, swapped)


@pytest.mark.parametrize('name', ['not-there', 'directory', 'not-there/file'])
def test_what_cannot_be_read_is_an_error_of_the_system(tmp_path, name):
    """As `open` has it: an OSError that names the file."""
    (tmp_path / 'directory').mkdir()
    with pytest.raises(OSError, match=re.escape(str(tmp_path / name))):
        gq.load_packed(tmp_path / name)


# --- what others write ----------------------------------------------------------------------------------


class Harmful:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('zipped', [False, True])
def test_pickles_are_not_loaded(path, tmp_path, protocol, zipped):
    """PyTorch's files are a zip archive with a pickle in it; older ones begin with a pickle."""
    trap = tmp_path / 'was_loaded'
    data = pickle.dumps(Harmful(trap), protocol)
    if zipped:
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('archive/data.pkl', data)
    else:
        path.write_bytes(data)
    message = refused(path)
    assert ('it is a pickle, as PyTorch writes them, which is never loaded' in message) == (zipped or protocol == 2)
    assert not trap.exists()
    pickle.loads(data).close()
    assert trap.exists()  # it would have been seen


def test_what_torch_saves(path):
    torch = pytest.importorskip('torch')
    for new in (True, False):
        torch.save({'weight': torch.ones(3)}, path, _use_new_zipfile_serialization=new)
        assert 'it is a pickle, as PyTorch writes them, which is never loaded' in refused(path)


@pytest.mark.parametrize('header_bytes', [0x280, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_is_read_all_the_same(path, header_bytes):
    """The first two bytes of a file are those of its header's length; these are a pickle's, and a zip archive's."""
    filled = 0
    for _ in range(2):
        checked_file.write(path, {'x': np.zeros(3, np.int32)}, {**NOTHING, 'info': {'x': 'x' * filled}})
        filled = 8 + header_bytes - checked_file.header_bytes(path)
    assert path.read_bytes()[:2] in (b'\x80\x02', b'PK')
    assert gq.load_packed(path)['x'].tolist() == [0, 0, 0]


@pytest.mark.parametrize('metadata', [None, {'format': 'pt'}, {'version': '1'}])
def test_safetensors_of_others(path, metadata):
    safetensors.numpy.save_file({'weight': np.ones(3)}, path, metadata)
    assert refused(path) == "is a safetensors file, but not of packed weights: its metadata has no 'gaussq_jax'"


@pytest.mark.parametrize(
    'text',
    ['', 'text', '[]', '1', 'null', '"text"', '{}', '{"version": 1}', '{"sha256": ""}', '[' * 50_000, '{"a":' * 50_000],
    ids=lambda text: text[:12],
)
def test_metadata_that_is_something_else(path, text):
    """What is no JSON object, and JSON that is nested without an end."""
    safetensors.numpy.save_file({'weight': np.ones(3)}, path, {'gaussq_jax': text})
    assert "is damaged: its metadata 'gaussq_jax' is not what it should be" in refused(path)


@pytest.mark.parametrize('version', [0, 3, '1', None, 1.5, [1], True])
def test_another_version(path, whole, version):
    data = rewritten(whole, lambda contents: contents.update(version=version))
    assert refused(path, data) == f'is of version {version!r}; this program reads 1 and 2'


@pytest.mark.parametrize('digest', ['', 'x', '0' * 64, 'F' * 64, None, 7, '\ud800', ['a']])
def test_another_digest(path, digest):
    safetensors.numpy.save_file(
        {'weight': np.ones(3)}, path, {'gaussq_jax': json.dumps({'version': 1, 'sha256': digest})}
    )
    assert refused(path) == 'is damaged: its bytes are not those that were written (SHA-256)'


@pytest.mark.parametrize('header', [b'{', b'[' * 100_000, b'{"a":' * 100_000, b'{"a": {}}', b'\xff' * 8, b'null'])
def test_a_header_that_is_something_else(path, header):
    data = struct.pack('<Q', len(header)) + header
    assert 'is no safetensors file, or a damaged one: ' in refused(path, data)


@pytest.mark.parametrize('length', [2**63 - 1, 2**64 - 1, 10**9])
def test_a_header_beyond_the_file(path, length):
    assert 'is no safetensors file, or a damaged one: ' in refused(path, struct.pack('<Q', length) + b'{}')


def test_tensors_that_overlap(path):
    entry = {'dtype': 'U8', 'shape': [4], 'data_offsets': [0, 4]}
    header = json.dumps({'a': entry, 'b': {**entry, 'data_offsets': [2, 6]}}).encode()
    data = struct.pack('<Q', len(header)) + header + bytes(6)
    assert 'is no safetensors file, or a damaged one: ' in refused(path, data)


# --- writing --------------------------------------------------------------------------------------------


def test_the_same_weights_are_the_same_bytes(path, whole):
    """In this process and in another one, where hashes of strings differ."""
    save(path, info={'config': {'name': 'tiny'}})
    assert path.read_bytes() == whole
    assert sorted(os.listdir(path.parent)) == [path.name]


def test_leaves_are_written_as_they_are_whatever_their_memory_looks_like(path):
    leaves = {
        'transposed': np.arange(6).reshape(2, 3).T,
        'reversed': np.arange(5)[::-1],
        'scalar': np.int8(-3),
        'empty': np.zeros((0, 4), np.int32),
        'bits': np.array([True, False]),
    }
    gq.save_packed(path, leaves, {})
    for name, leaf in gq.load_packed(path).items():
        np.testing.assert_array_equal(leaf, leaves[name], strict=True)


def test_an_error_in_the_middle_leaves_what_was_there(path, monkeypatch):
    save(path)
    before = path.read_bytes()
    for module, name in ((checked_file, '_digest'), (safetensors.numpy, 'save_file')):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            with pytest.raises(OSError, match='no space left'):
                save(path, seed=1)
        assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def failing(*arguments):
    raise OSError('no space left')


@pytest.mark.parametrize('name', ['not-there/file', 'directory'])
def test_a_place_where_no_file_can_be(tmp_path, name):
    (tmp_path / 'directory').mkdir()
    with pytest.raises(OSError, match=re.escape(str(tmp_path / name))):
        save(tmp_path / name)
    assert os.listdir(tmp_path) == ['directory']


def test_two_writers_at_a_time_leave_the_file_of_one(path):
    """Also where they are threads of one process."""
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda seed: save(path, seed), [1, 2, 1, 2, 1, 2]))
    assert gq.load_packed(path)['bias'].tolist() in ([1, 2, 3], [2, 3, 4])
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_is_replaced_while_it_is_read_is_one_of_the_two_or_an_error(path, monkeypatch):
    """Its tensors are those of the file whose metadata were read."""
    save(path, seed=1)
    digest = checked_file._digest

    def replaced_meanwhile(*arguments):
        result = digest(*arguments)
        save_without_patch(path)
        return result

    def save_without_patch(path):
        with monkeypatch.context() as patch:
            patch.setattr(checked_file, '_digest', digest)
            save(path, seed=2)

    with monkeypatch.context() as patch:
        patch.setattr(checked_file, '_digest', replaced_meanwhile)
        weights = gq.load_packed(path)
    assert weights['bias'].tolist() == [1, 2, 3]
    assert gq.load_packed(path)['bias'].tolist() == [2, 3, 4]


KILLED = """
import os, sys, time
import numpy as np
from gaussq_jax.packed import checked_file
digest = checked_file._digest
def wait(*arguments):
    print('written, not yet named', flush=True)
    time.sleep(600)
checked_file._digest = wait
checked_file.write(sys.argv[1], {'x': np.ones(1000, np.int32)}, {'info': {}})
"""


@pytest.mark.slow
def test_a_kill_leaves_the_old_file(path):
    checked_file.write(path, {'x': np.zeros(3, np.int32)}, NOTHING)
    before = path.read_bytes()
    process = subprocess.Popen([sys.executable, '-c', KILLED, path], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == 'written, not yet named\n'
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    assert gq.load_packed(path)['x'].tolist() == [0, 0, 0]


def test_a_leaf_as_it_is_must_be_bfloat16_if_it_is_floating(path):
    """What a whole file of others may hold; ours never do, and sizes count two bytes."""
    checked_file.write(path, {'x': np.zeros(3, np.float32)}, NOTHING)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is none .*'x' is float32, and not bfloat16$"):
        gq.load_packed(path)


def test_the_header_is_what_is_before_the_tensors(path, whole):
    path.write_bytes(whole)
    assert checked_file.header_bytes(path) == header_length(whole)
    packed = read_packed(path)
    assert packed.size.total_bytes == len(whole) - header_length(whole)
    assert jnp.isnan(packed.size.mean_bitwidth)


def test_a_weight_that_was_retyped(path, whole):
    """Its bits as integers, with the right digest: refused where `like` says what it is."""
    data = rewritten(whole, change_tensors=lambda tensors: tensors.update(bias=tensors['bias'].view(np.int16)))
    path.write_bytes(data)
    like = {**{name: np.zeros((2, 7, 9), np.float32) for name in LAYOUT}, 'bias': np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match='holds other leaves than `like`: bias: int16 in the file, float32 in `like`'):
        gq.load_packed(path, like=like)
    path.write_bytes(whole)
    gq.load_packed(path, like=like)
    with pytest.raises(ValueError, match='bias: bfloat16 in the file, int16 in `like`'):
        gq.load_packed(path, like=like | {'bias': np.zeros(3, np.int16)})


def test_a_pipe_or_a_device_is_not_replaced(path):
    os.mkfifo(path)
    with pytest.raises(ValueError, match='is no file, and is not replaced by one'):
        gq.save_packed(path, {'a': np.ones((4, 4), np.float32)}, {})
    assert stat.S_ISFIFO(path.stat().st_mode) and [other.name for other in path.parent.iterdir()] == [path.name]
