"""Manifests say what a folder holds, or one line why they can't be read."""

import dataclasses
import json

import pytest

from experiments.data.preparation import manifest
from experiments.data.preparation.manifest import Counts, Manifest, Shard, Split, read_manifest, write_manifest
from experiments.data.sources.source import SourceFile

TEXT = Manifest(
    tokenizer='bytes',
    framing='',
    dtype='uint16',
    made_of={'dataset': 'texts', 'held_out': 0.005},
    sources=(SourceFile('a.jsonl', 30),),
    splits={
        'train': Split(
            (
                Shard('train-00000', Counts(5, 4, 1), {'tokens': 'ab'}, (0, 0, 1)),
                Shard('train-00001', Counts(7, 5, 2, num_empty=1, num_invalid=3), {'tokens': 'cd'}, (0, 1, 0)),
            ),
            'ef',
        ),
        'validation': Split((), '01'),
    },
    is_complete=True,
)
CHATS = dataclasses.replace(
    TEXT,
    splits={
        'train': Split(
            (
                Shard(
                    'train-00000',
                    Counts(5, 4, 1, num_learned=2),
                    dict.fromkeys(('tokens', 'mask', 'documents'), 'a'),
                    (0, 0, 1),
                ),
            )
        ),
        'validation': Split(),
    },
)


@pytest.mark.parametrize('written', [TEXT, CHATS, dataclasses.replace(TEXT, is_complete=False)])
def test_what_is_written_is_read(tmp_path, written):
    assert not manifest.is_prepared(tmp_path)
    write_manifest(tmp_path, written)
    assert manifest.is_prepared(tmp_path)
    assert read_manifest(tmp_path, complete=False) == written
    assert written.is_chats == (written is CHATS)


def test_counts_of_a_split_are_the_sums_of_its_shards():
    assert TEXT.splits['train'].counts == Counts(12, 9, 3, 1, 3)
    assert CHATS.splits['train'].counts == Counts(5, 4, 1, num_learned=2)
    assert CHATS.splits['train'].shards[0].file_sizes('uint32') == {'tokens': 20, 'mask': 5, 'documents': 4}


def set_field(contents, path, value):
    for name in path[:-1]:
        contents = contents[name]
    contents[path[-1]] = value


SHARD = ('splits', 'train', 'shards', 0)


@pytest.mark.parametrize('is_sealed', [False, True])
@pytest.mark.parametrize(
    ('path', 'value', 'told'),
    [
        (('version',), 2, 'version 2; allowed: 1'),
        (('dtype',), 'int8', "dtype='int8'; allowed: uint16, uint32"),
        (('tokenizer',), 3, "'tokenizer' must be a string, not an integer"),
        (('sources',), [{'path': 'a'}], "lacks 'size'"),
        ((*SHARD, 'name'), '../train-00000', 'is no name of a shard'),
        ((*SHARD, 'num_tokens'), -1, 'must be integers of at least 0'),
        ((*SHARD, 'num_tokens'), 6, 'its counts are not the sums of its shards'),
        ((*SHARD, 'ends'), [0, 1], 'must be three numbers'),
        ((*SHARD, 'sha256'), {'tokens': 'a', 'mask': 'b'}, 'sha256 is of'),
        ((*SHARD, 'sha256'), {'tokens': 3}, "'tokens' must be a string"),
        ((*SHARD, 'num_learned'), None, 'must be integers of at least 0'),
    ],
)
def test_what_cannot_be(tmp_path, path, value, told, is_sealed):
    """As it says it, where it was written so; else that it was changed."""
    write_manifest(tmp_path, TEXT)
    contents = json.loads((tmp_path / 'manifest.json').read_text())
    set_field(contents, path, value)
    if is_sealed:
        seal = contents.pop(manifest.SEAL)
        contents[manifest.SEAL] = manifest._seal(contents)
        assert contents[manifest.SEAL] != seal
    (tmp_path / 'manifest.json').write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=told if is_sealed else 'was changed|version|must be') as error:
        read_manifest(tmp_path)
    assert str(tmp_path / 'manifest.json') in str(error.value)


def test_parts(tmp_path):
    other = dataclasses.replace(TEXT, made_of={'dataset': 'others'})
    for part in (0, 2):
        (tmp_path / f'0000{part}-of-00003').mkdir()
        write_manifest(tmp_path / f'0000{part}-of-00003', TEXT)
    with pytest.raises(ValueError, match=r'lacks the part 00001-of-00003: prepare it with --shard=1/3'):
        read_manifest(tmp_path)
    (tmp_path / '00001-of-00003').mkdir()
    write_manifest(tmp_path / '00001-of-00003', other)
    with pytest.raises(ValueError, match=r"00001-of-00003 was prepared with made_of=\{'dataset': 'others'\}, 00000"):
        read_manifest(tmp_path)
    write_manifest(tmp_path / '00001-of-00003', dataclasses.replace(TEXT, is_complete=False))
    with pytest.raises(ValueError, match='00001-of-00003 is not complete: run the same command'):
        read_manifest(tmp_path)
    write_manifest(tmp_path / '00001-of-00003', TEXT)
    joined = read_manifest(tmp_path)
    assert joined.splits['train'].counts.num_tokens == 36 and len(joined.sources) == 3
    assert joined.splits['train'].shards[2].name == '00001-of-00003/train-00000'
    (tmp_path / '00000-of-00002').mkdir()
    with pytest.raises(ValueError, match='has parts of different counts'):
        read_manifest(tmp_path)


def test_sizes_are_checked(tmp_path):
    for name, size in {'train-00000': 10, 'train-00001': 14}.items():
        (tmp_path / f'{name}.tokens').write_bytes(bytes(size))
    manifest.check_sizes(tmp_path, TEXT)
    (tmp_path / 'train-00001.tokens').write_bytes(bytes(13))
    with pytest.raises(ValueError, match=r'train-00001\.tokens has 13 bytes; .* says 14 bytes'):
        manifest.check_sizes(tmp_path, TEXT)
    (tmp_path / 'train-00001.tokens').unlink()
    with pytest.raises(ValueError, match=r'train-00001\.tokens is not there; .* says 14 bytes'):
        manifest.check_sizes(tmp_path, TEXT)
