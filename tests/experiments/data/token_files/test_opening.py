"""Token files of other programs: as small writers of them have it, and refused where they can't be."""

import numpy as np
import pytest
from token_folders import WRITERS, write_llmc, write_megatron, write_nanogpt

from experiments.data.token_files.opening import open_token_files
from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes

GENERATOR = np.random.default_rng(0)
DOCUMENTS = [np.append(GENERATOR.integers(97, 123, 20 + 3 * i), 256) for i in range(12)]
TOKENS = np.concatenate(DOCUMENTS)


def opened(folder, name='*.bin', held_out=0.25):
    splits = dict(train_split='train', validation_split='val' if '{split}' in name else 'validation')
    return open_token_files(
        f'{folder}/{name}', Tokenizer(Bytes()), **splits, held_out=held_out, cache_dir=folder / 'cache'
    )


def tokens_of(data):
    return np.concatenate(data.shards)


@pytest.mark.parametrize('kind', WRITERS)
def test_splits_by_name(kind, tmp_path):
    WRITERS[kind](tmp_path / 'train.bin', DOCUMENTS)
    WRITERS[kind](tmp_path / 'val.bin', DOCUMENTS[:3])
    train, validation = opened(tmp_path, '{split}.bin')
    np.testing.assert_array_equal(tokens_of(train), TOKENS)
    np.testing.assert_array_equal(tokens_of(validation), np.concatenate(DOCUMENTS[:3]))
    assert all(isinstance(shard, np.memmap) for shard in train.shards)
    assert train.num_documents == (12 if 'megatron' in kind else None)
    # One byte a token, but for those that end documents.
    assert validation.num_bytes == len(tokens_of(validation)) - 3
    assert train.num_bytes == round(validation.bytes_per_token * len(TOKENS))
    assert train.num_ids == 257 and train.sha256 != validation.sha256


@pytest.mark.parametrize('kind', WRITERS)
def test_several_files_and_no_splits(kind, tmp_path):
    """The last tokens, rounded up, are for validation, wherever files end."""
    for name, documents in (('b', DOCUMENTS[5:]), ('a', DOCUMENTS[:5])):
        WRITERS[kind](tmp_path / f'{name}.bin', documents)
    for held_out in (0.01, 0.25, 0.9):
        train, validation = opened(tmp_path, held_out=held_out)
        np.testing.assert_array_equal(np.concatenate([tokens_of(train), tokens_of(validation)]), TOKENS)
        assert validation.num_tokens == np.ceil(held_out * len(TOKENS))


def test_what_identifies_them(tmp_path):
    def identity(documents=DOCUMENTS, name='a.bin', **options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_nanogpt(folder / name, documents)
        return opened(folder, **options)[0].sha256

    assert identity() == identity()
    others = [identity(DOCUMENTS[::-1]), identity(name='b.bin'), identity(held_out=0.3), identity(DOCUMENTS[:-1])]
    assert len({identity(), *others}) == 5


def test_tokens_of_another_vocabulary(tmp_path):
    write_nanogpt(tmp_path / 'a.bin', [TOKENS, [50_256], TOKENS])
    with pytest.raises(OSError, match=r'a.bin holds the token 50256; the vocabulary has 0 to 256'):
        opened(tmp_path)
    write_nanogpt(tmp_path / 'a.bin', [TOKENS, [50_256]])
    with pytest.raises(ValueError, match=r'a.bin holds the token 50256; .* of another tokenizer than'):
        opened(tmp_path)


def cut_off(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ('write', 'damage', 'message'),
    [
        (write_nanogpt, lambda path: cut_off(path, -1), 'a.bin has .* bytes, an odd number'),
        (write_llmc, lambda path: cut_off(path, -2), 'its header says .* tokens, and there are'),
        (write_llmc, lambda path: cut_off(path, 99), 'its header is cut off after 99 bytes'),
        (write_llmc, lambda path: (path.parent / 'a.idx').write_bytes(b''), 'begins as of llm.c, and a.idx beside it'),
        (write_megatron, lambda path: cut_off(path, -2), 'a.bin has .* bytes, but a.idx is of'),
        (write_megatron, lambda path: cut_off(path.with_suffix('.idx'), -1), 'a.idx has .* bytes, but 12 sequences'),
        (write_megatron, lambda path: cut_off(path.with_suffix('.idx'), 5), 'a.idx is no index of Megatron'),
        (write_megatron, lambda path: path.with_suffix('.idx').write_bytes(b'x' * 99), 'no index of Megatron'),
        (write_megatron, lambda path: write_nanogpt(path.with_name('b.bin'), DOCUMENTS), 'allowed: files of one kind'),
        (write_nanogpt, lambda path: cut_off(path, 4), '2 tokens are too few'),
        (write_nanogpt, lambda path: path.unlink(), 'there is no file'),
        (write_nanogpt, lambda path: path.unlink() or path.mkdir(), 'a.bin is no file'),
    ],
)
def test_damage(write, damage, message, tmp_path):
    write(tmp_path / 'a.bin', DOCUMENTS)
    damage(tmp_path / 'a.bin')
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        (9, 2, 'a.idx has version 2; allowed: 1'),
        (17, 5, r'tokens of the type 5 \(int64\); allowed: 1 \(uint8\), .*, 4 \(int32\), 8 \(uint16\)'),
        (17, 77, r'tokens of the type 77 \(none\)'),
        (18, 13, 'a.idx has .* bytes, but 13 sequences'),
        (34, 9, 'its sequences do not lie one after the other'),
        (-8, 7, 'documents are of sequences 0 to 7, not all of them'),
    ],
)
def test_damaged_index(place, value, message, tmp_path):
    write_megatron(tmp_path / 'a.bin', DOCUMENTS)
    index = bytearray((tmp_path / 'a.idx').read_bytes())
    index[place] = value
    (tmp_path / 'a.idx').write_bytes(index)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize('held_out', [0, 1, -0.5])
def test_held_out(held_out, tmp_path):
    write_nanogpt(tmp_path / 'a.bin', DOCUMENTS)
    with pytest.raises(ValueError, match=f'held_out={held_out}; allowed: between 0 and 1'):
        opened(tmp_path, held_out=held_out)
