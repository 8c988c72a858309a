"""The python_stdlib dataset: what is in it, that it needs no TensorFlow, and that nobody sees half of it."""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tokenize

import pytest
import tensorflow_datasets as tfds

from experiments.data.datasets import python_stdlib

REPOSITORY = pathlib.Path(__file__).parents[3]

# A program that prepares the dataset, of the standard library in argv[2] if given.
PREPARE = """
import sys, sysconfig
if len(sys.argv) > 2:
    sysconfig.get_path = lambda name: sys.argv[2]
from experiments.data.datasets import python_stdlib
{before}
builder = python_stdlib.prepare(sys.argv[1])
print(len(builder.as_data_source('train')), len(builder.as_data_source('validation')))
assert 'tensorflow' not in sys.modules
"""


def start(before: str, *arguments: os.PathLike) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-W', 'error', '-c', PREPARE.format(before=before), *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def examples(data_dir: os.PathLike, split: str) -> list[tuple[str, str]]:
    source = tfds.data_source(f'python_stdlib/{python_stdlib.CONFIG}', split=split, data_dir=str(data_dir))
    return [(example['path'].decode(), example['text'].decode()) for example in source]


@pytest.fixture
def small_stdlib(tmp_path, monkeypatch) -> pathlib.Path:
    """A standard library of 40 files takes the place of Python's own."""
    root = tmp_path / 'stdlib'
    root.mkdir()
    for i in range(40):
        (root / f'module{i}.py').write_text(f'answer = {i}\n' * (i + 1))
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(root))
    return root


def test_whole_standard_library_without_tensorflow(tmp_path):
    # Protects: every file once, whole, in one split; quiet; readable by name as any TFDS dataset.
    process = start('', tmp_path)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, '')
    splits = {split: dict(examples(tmp_path, split)) for split in ('train', 'validation')}
    assert stdout.split() == [str(len(splits['train'])), str(len(splits['validation']))]

    expected = {}
    root = sysconfig.get_path('stdlib')
    for folder, folders, names in os.walk(root):
        excluded = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
        folders[:] = [name for name in folders if name not in excluded and not name.startswith('config-')]
        for name in names:
            if not name.endswith('.py') or name.startswith(('_sysconfigdata', 'sitecustom', 'usercustom')):
                continue
            with tokenize.open(os.path.join(folder, name)) as file:
                text = file.read()
            if text:
                expected[os.path.relpath(os.path.join(folder, name), root).replace(os.sep, '/')] = text
    assert splits['train'] | splits['validation'] == expected
    assert not splits['train'].keys() & splits['validation'].keys()
    size = {split: sum(len(text.encode()) for text in texts.values()) for split, texts in splits.items()}
    assert size['train'] > 8e6
    assert 0.04 < size['validation'] / (size['train'] + size['validation']) < 0.07


def test_split_of_a_file_never_changes():
    # Protects: validation text of one version of the project isn't training text of the next.
    validation = ['ast.py', 'base64.py', 'random.py']
    assert [python_stdlib.split_of(path) for path in validation] == ['validation'] * 3
    assert [python_stdlib.split_of(path) for path in ['abc.py', 'typing.py', 'json/decoder.py']] == ['train'] * 3


def test_excluded_files(tmp_path):
    kept = ['a.py', 'b/c.py', 'b/testing.py', 'unittest/mock.py']
    left_out = [
        'test/a.py',
        'b/tests/c.py',
        'idlelib/idle_test/a.py',
        'site-packages/numpy/a.py',
        'dist-packages/a.py',
        '_sysconfigdata__linux.py',
        'config-3.11-x86_64/python-config.py',
        'sitecustomize.py',
        'a.txt',
        'a.pyc',
    ]
    for name in kept + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x')
    found = [path.relative_to(tmp_path).as_posix() for path in python_stdlib.source_files(tmp_path)]
    assert found == kept


@pytest.mark.parametrize(
    ('contents', 'text'),
    [
        ('# naïve\r\nx = 1\r\n'.encode(), '# naïve\nx = 1\n'),
        (b'# coding: latin-1\n# na\xefve\n', '# coding: latin-1\n# naïve\n'),
        (b'\xef\xbb\xbfx = 1\n', 'x = 1\n'),
        (b'# na\xefve\n', None),
        (b'# coding: klingon\n', None),
    ],
)
def test_read_source_by_declared_encoding(tmp_path, contents, text):
    (tmp_path / 'a.py').write_bytes(contents)
    assert python_stdlib.read_source(tmp_path / 'a.py') == text


def test_undecodable_and_empty_files_are_skipped(tmp_path, small_stdlib):
    (small_stdlib / 'module1.py').write_bytes(b'\xff')
    (small_stdlib / 'module2.py').write_text('')
    python_stdlib.prepare(tmp_path / 'data')
    found = {path for split in ('train', 'validation') for path, _ in examples(tmp_path / 'data', split)}
    assert found == {f'module{i}.py' for i in range(40)} - {'module1.py', 'module2.py'}


def test_generation_is_deterministic(tmp_path, small_stdlib):
    for name in ('first', 'second'):
        python_stdlib.prepare(tmp_path / name)
        for path in sorted(small_stdlib.iterdir(), reverse=True):  # another order of creation on disk
            text = path.read_text()
            path.unlink()
            path.write_text(text)
    for split in ('train', 'validation'):
        assert examples(tmp_path / 'first', split) == examples(tmp_path / 'second', split) != []
    infos = [next((tmp_path / name).glob('*/*/*/dataset_info.json')).read_text() for name in ('first', 'second')]
    assert json.loads(infos[0]) == json.loads(infos[1])


def test_prepared_once(tmp_path, small_stdlib):
    python_stdlib.prepare(tmp_path / 'data')
    before = examples(tmp_path / 'data', 'train')
    for path in small_stdlib.iterdir():
        path.unlink()
    python_stdlib.prepare(tmp_path / 'data')
    assert examples(tmp_path / 'data', 'train') == before


def test_two_processes_at_once(tmp_path, small_stdlib):
    # Both have written all of their files, and neither has renamed its folder, when both go on.
    wait = """
import pathlib, time
write = python_stdlib.PythonStdlib._download_and_prepare
def meet(*args, **kwargs):
    write(*args, **kwargs)
    pathlib.Path(sys.argv[3]).touch()
    deadline = time.monotonic() + 60
    while not pathlib.Path(sys.argv[4]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
python_stdlib.PythonStdlib._download_and_prepare = meet
"""
    data, a, b = tmp_path / 'data', tmp_path / 'a', tmp_path / 'b'
    processes = [start(wait, data, small_stdlib, *files) for files in ((a, b), (b, a))]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert not list(data.rglob('incomplete*'))
    python_stdlib.prepare(tmp_path / 'alone')
    assert examples(data, 'train') == examples(tmp_path / 'alone', 'train')


def test_killed_in_the_middle(tmp_path, small_stdlib):
    kill = """
import os, signal
read = python_stdlib.read_source
def read_or_die(path):
    if path.name == 'module30.py':
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path)
python_stdlib.read_source = read_or_die
"""
    process = start(kill, tmp_path / 'data', small_stdlib)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert list((tmp_path / 'data').rglob('incomplete*'))
    python_stdlib.prepare(tmp_path / 'data')
    found = {path for split in ('train', 'validation') for path, _ in examples(tmp_path / 'data', split)}
    assert found == {f'module{i}.py' for i in range(40)}


def test_python_without_sources(tmp_path, small_stdlib):
    for path in small_stdlib.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r'python_stdlib: no \*\.py files in .*stdlib'):
        python_stdlib.prepare(tmp_path / 'data')
    assert not list((tmp_path / 'data').rglob('dataset_info.json'))
