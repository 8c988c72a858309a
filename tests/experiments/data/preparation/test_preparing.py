"""A folder is prepared to the same bytes by any number of processes, and however often it was interrupted."""

import hashlib
import json
import os

import numpy as np
import pytest
from small_blocks import SmallSource

from experiments.data.preparation import encoding, manifest, preparing, shards
from experiments.data.preparation.encoding import Settings
from experiments.data.preparation.preparing import WHOLE, Part, Pass
from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes

SETTINGS = Settings('texts', held_out=0.3)
TEXTS = [[f'file {i}, text {j}: {"naïve 日本 " * (j % 5)}' for j in range(20 + i)] for i in range(4)]
ALL = [text for of_file in TEXTS for text in of_file]


def passes_of(texts=TEXTS, part=WHOLE, **options):
    source = SmallSource(texts, **options)
    return [Pass(None, source, range(part.index, len(source.files), part.count))]


def prepare(folder, settings=SETTINGS, passes=None, tokenizer=None, **options):
    options = {'shard_bytes': 500, **options}
    return preparing.prepare(folder, settings, tokenizer or Tokenizer(Bytes()), passes=passes or passes_of(), **options)


def contents(folder):
    """Of every file, its SHA-256; but for the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock'
    }


def tokens(folder, split, suffix='tokens', dtype='<u2'):
    return np.concatenate([np.fromfile(path, dtype) for path in sorted(folder.glob(f'{split}-*.{suffix}'))]).tolist()


def is_held_out(text, share=0.3):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big') / 2**64 < share


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed') / 'tokens'
    assert prepare(folder).num_new > 0
    return contents(folder)


def test_what_is_prepared_are_the_documents_in_order(tmp_path):
    prepared = prepare(tmp_path / 'a').manifest
    assert prepared.is_complete and prepared == manifest.read_manifest(tmp_path / 'a')
    for split, texts in {
        'train': [text for text in ALL if not is_held_out(text)],
        'validation': [text for text in ALL if is_held_out(text)],
    }.items():
        expected = [token for text in texts for token in (*text.encode(), 256)]
        assert tokens(tmp_path / 'a', split) == expected
        counts = prepared.splits[split].counts
        assert counts == manifest.Counts(len(expected), sum(len(text.encode()) for text in texts), len(texts))
        of_version_0_1 = hashlib.sha256(np.array(expected, '<u2').tobytes())
        of_version_0_1.update(
            json.dumps(
                dict(num_tokens=counts.num_tokens, num_bytes=counts.num_bytes, num_documents=len(texts)), sort_keys=True
            ).encode()
        )
        assert prepared.splits[split].sha256 == of_version_0_1.hexdigest()
        assert len(prepared.splits[split].shards) > 2
        for shard in prepared.splits[split].shards:
            file = tmp_path / 'a' / f'{shard.name}.tokens'
            assert shard.sha256 == {'tokens': hashlib.sha256(file.read_bytes()).hexdigest()}
            assert file.stat().st_size == 2 * shard.counts.num_tokens
    manifest.check_sizes(tmp_path / 'a', prepared)


def test_how_it_is_cut_into_shards_changes_no_digest(tmp_path):
    several, one = (prepare(tmp_path / str(size), shard_bytes=size).manifest.splits for size in (500, 10**6))
    assert {name: split.sha256 for name, split in several.items()} == {
        name: split.sha256 for name, split in one.items()
    }
    assert [len(split.shards) for split in one.values()] == [1, 1]


@pytest.mark.parametrize('workers', [2, 3])
def test_any_number_of_workers_gives_the_same_files(tmp_path, monkeypatch, undisturbed, workers):
    monkeypatch.setattr(preparing, 'SMALL_BYTES', 0)
    prepare(tmp_path / 'a', workers=workers)
    assert contents(tmp_path / 'a') == undisturbed


class Killed(BaseException):
    pass


@pytest.mark.parametrize('moment', ['a shard is renamed', 'a manifest is replaced', 'a block is added'])
def test_an_interruption_anywhere_changes_nothing(tmp_path, monkeypatch, undisturbed, moment):
    """As if killed, with all that leaves: nothing is cleaned up. Each call gets a little further."""
    monkeypatch.setattr(shards.ShardFiles, 'close', lambda self: [file.close() for file in self._files.values()])
    owner, name = {
        'a shard is renamed': (shards.ShardFiles, 'finish'),
        'a manifest is replaced': (manifest, 'write_manifest'),
        'a block is added': (preparing._Writer, 'add'),
    }[moment]
    original = getattr(owner, name)
    most = {'a shard is renamed': 3, 'a manifest is replaced': 2, 'a block is added': 9}[moment]
    interruptions, finished = 0, False
    while not finished:
        assert interruptions < 60
        calls = 0

        def interrupted(*args, **kwargs):
            nonlocal calls
            result = original(*args, **kwargs)
            calls += 1
            if calls == most:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            try:
                prepare(tmp_path / 'a')
                finished = True
            except Killed:
                interruptions += 1
    assert interruptions > 2
    assert contents(tmp_path / 'a') == undisturbed


def test_what_is_written_is_not_encoded_again(tmp_path):
    class Counting(Bytes):
        texts = 0

        def encode(self, text):
            if self.texts == limit:
                raise Killed
            self.texts += 1
            return super().encode(text)

    limit, counting = 50, Counting()
    with pytest.raises(Killed):
        prepare(tmp_path / 'a', tokenizer=Tokenizer(counting))
    written = sum(
        split.counts.num_documents for split in manifest.read_manifest(tmp_path / 'a', complete=False).splits.values()
    )
    assert 30 < written <= 50
    limit, counting.texts, passes = None, 0, passes_of()
    prepare(tmp_path / 'a', passes=passes, tokenizer=Tokenizer(counting))
    assert counting.texts == len(ALL) - written
    assert passes[0].source.num_read < sum(-(-len(texts) // 3) for texts in TEXTS), 'whole files are not read again'
    assert prepare(tmp_path / 'a').num_new == 0


def test_a_pass_for_each_split(tmp_path):
    """Of a source that has splits, each is read by itself."""
    sources = {'train': SmallSource(TEXTS[:3], has_splits=True), 'validation': SmallSource(TEXTS[3:], has_splits=True)}
    passes = [Pass(split, source, range(len(source.files))) for split, source in sources.items()]
    prepare(tmp_path / 'a', passes=passes)
    for split, files in {'train': TEXTS[:3], 'validation': TEXTS[3:]}.items():
        texts = [text for of_file in files for text in of_file]
        assert tokens(tmp_path / 'a', split) == [token for text in texts for token in (*text.encode(), 256)]


def test_parts(tmp_path):
    """Of n parts, each reads the files i, i + n, …; together they are one folder."""
    for index in (2, 0, 1):
        part = Part(index, 3)
        with pytest.raises(ValueError, match=r"lacks the part|can't be read: No such file"):
            manifest.read_manifest(tmp_path / 'a')
        prepare(tmp_path / 'a', passes=passes_of(part=part), part=part)
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == [f'0000{i}-of-00003' for i in range(3)]
    joined = manifest.read_manifest(tmp_path / 'a')
    order = [TEXTS[i] for i in (0, 3, 1, 2)]
    for split, held_out in (('train', False), ('validation', True)):
        texts = [text for of_file in order for text in of_file if is_held_out(text) == held_out]
        read = np.concatenate(
            [np.fromfile(tmp_path / 'a' / f'{shard.name}.tokens', '<u2') for shard in joined.splits[split].shards]
        )
        assert read.tolist() == [token for text in texts for token in (*text.encode(), 256)]
        own = [manifest.read_manifest(tmp_path / 'a' / f'0000{i}-of-00003').splits[split].sha256 for i in range(3)]
        assert joined.splits[split].sha256 == hashlib.sha256(json.dumps(own).encode()).hexdigest()
    with pytest.raises(ValueError, match='has parts, such as 00000-of-00003; give --shard'):
        prepare(tmp_path / 'a')
    with pytest.raises(ValueError, match='has parts of another count, such as 00000-of-00003'):
        prepare(tmp_path / 'a', part=Part(0, 2))


def test_equal_documents_are_on_one_side(tmp_path):
    prepare(tmp_path / 'a', passes=passes_of([ALL[:40], ALL[20:]]))
    texts = {split: set(_documents(tmp_path / 'a', split)) for split in encoding.SPLITS}
    assert not texts['train'] & texts['validation']


def _documents(folder, split):
    return ''.join(chr(token) for token in tokens(folder, split)).split('\u0100')[:-1]


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(settings=Settings('texts', held_out=0.2)), r'held_out=0.3, now 0.2'),
        (dict(settings=Settings('texts', held_out=0.3, text_feature='body')), "text_feature='text', now 'body'"),
        (dict(passes=passes_of([*TEXTS[:3], TEXTS[3][:-1]])), r'from file3 of .* bytes, which is now file3 of'),
        (dict(passes=passes_of(TEXTS[:3])), 'num_files=4, now 3'),
    ],
)
def test_other_settings_or_sources_are_refused(tmp_path, change, told):
    prepare(tmp_path / 'a')
    before = contents(tmp_path / 'a')
    with pytest.raises(ValueError, match=told):
        prepare(tmp_path / 'a', **change)
    assert contents(tmp_path / 'a') == before


def test_another_tokenizer_is_refused(tmp_path):
    class Other(Bytes):
        fingerprint = 'other'

    prepare(tmp_path / 'a')
    with pytest.raises(ValueError, match="was prepared with tokenizer='bytes', now 'other'"):
        prepare(tmp_path / 'a', tokenizer=Tokenizer(Other()))


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match=r'has other files in it, such as notes\.txt'):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_shards_without_a_manifest_are_not_removed(tmp_path):
    """They are no leftovers of a kill: a manifest is there before them."""
    (tmp_path / 'train-00000.tokens').write_bytes(b'mine')
    with pytest.raises(ValueError, match=r'has other files in it, such as train-00000\.tokens'):
        prepare(tmp_path)
    assert (tmp_path / 'train-00000.tokens').read_bytes() == b'mine'


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'a').write_text('mine')
    with pytest.raises(ValueError, match='a is no folder'):
        prepare(tmp_path / 'a')


def test_settings_may_change_until_a_shard_is_written(tmp_path, undisturbed):
    with pytest.raises(ValueError, match='file0, row 0: the document is not UTF-8'):
        prepare(tmp_path / 'a', Settings('other', 'body'), passes=passes_of([[b'\xff']]))
    prepare(tmp_path / 'a')
    assert contents(tmp_path / 'a') == undisturbed


def test_one_process_at_a_time(tmp_path):
    prepare(tmp_path / 'a')
    with (
        preparing._locked(tmp_path / 'a', waits=False),
        pytest.raises(OSError, match=rf'another process \(process {os.getpid()} on .*\) prepares'),
    ):
        prepare(tmp_path / 'a')


def test_a_shard_that_was_damaged_meanwhile_is_told(tmp_path):
    """When a folder is resumed, what is there is read again."""
    most = 4

    class Ends(SmallSource):
        def blocks(self, file):
            if file == most:
                raise Killed
            yield from super().blocks(file)

    source = Ends([*TEXTS, ['last']])
    with pytest.raises(Killed):
        prepare(tmp_path / 'a', passes=[Pass(None, source, range(5))])
    path = tmp_path / 'a' / 'train-00001.tokens'
    flipped = bytearray(path.read_bytes())
    flipped[3] ^= 1
    path.write_bytes(flipped)
    most = None
    with pytest.raises(OSError, match=r'train-00001\.tokens is not what was written to it'):
        prepare(tmp_path / 'a', passes=[Pass(None, source, range(5))])
    path.write_bytes(flipped[:-2])
    with pytest.raises(ValueError, match=r'train-00001\.tokens has .* bytes; .* says'):
        prepare(tmp_path / 'a', passes=[Pass(None, source, range(5))])


def test_a_split_without_text_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"there is no text in this split, 'validation'.*held_out=1e-09 of 86"):
        prepare(tmp_path / 'a', Settings('texts', held_out=1e-9))
    with pytest.raises(ValueError, match='is not complete: run the same command'):
        manifest.read_manifest(tmp_path / 'a')


def test_what_is_wrong_has_its_place(tmp_path):
    texts = [TEXTS[0], ['one', 'two', b'na\xefve', 'four']]
    with pytest.raises(ValueError, match=r'file1, row 2: the document is not UTF-8'):
        prepare(tmp_path / 'a', passes=passes_of(texts))
    prepare(tmp_path / 'b', Settings('texts', held_out=0.3, invalid_text='skip'), passes=passes_of(texts))
    splits = manifest.read_manifest(tmp_path / 'b').splits
    counts = splits['train'].counts + splits['validation'].counts
    assert (counts.num_documents, counts.num_invalid) == (len(TEXTS[0]) + 3, 1)


def test_long_documents_are_encoded_in_parts(tmp_path, monkeypatch):
    """Cut after lines; of bytes, the tokens are the same."""
    monkeypatch.setattr(encoding, 'MOST_TEXT', 50)
    texts = [['line\n' * 33, 'x' * 120, 'short', '', 'y' * 50] * 3]
    given = []

    class Watching(Bytes):
        def encode(self, text):
            given.append(text)
            return super().encode(text)

    prepared = prepare(tmp_path / 'a', passes=passes_of(texts), tokenizer=Tokenizer(Watching())).manifest
    counts = prepared.splits['train'].counts + prepared.splits['validation'].counts
    assert (counts.num_cut, counts.num_empty, counts.num_documents) == (6, 3, 15)
    assert {len(text) for text in given} == {50, 15, 20, 5, 0}
    found = sorted(_documents(tmp_path / 'a', 'train') + _documents(tmp_path / 'a', 'validation'))
    assert found == sorted(texts[0])


def test_large_vocabularies_are_uint32(tmp_path):
    class Wide(Bytes):
        vocab_size, eos, end_by_name, fingerprint = 70_000, 69_999, 69_999, 'wide'

        def encode(self, text):
            return super().encode(text) + 65_500

    prepared = prepare(tmp_path / 'a', tokenizer=Tokenizer(Wide())).manifest
    assert prepared.dtype == 'uint32'
    texts = [text for text in ALL if not is_held_out(text)]
    expected = [token for text in texts for token in (*(byte + 65_500 for byte in text.encode()), 69_999)]
    assert tokens(tmp_path / 'a', 'train', dtype='<u4') == expected


def test_what_another_reader_may_cut_otherwise_is_not_resumed(tmp_path, monkeypatch):
    """But it is read, once it is complete."""
    monkeypatch.setattr(preparing._Writer, 'complete', lambda self, *_, **__: None)
    prepare(tmp_path / 'a')
    monkeypatch.undo()
    monkeypatch.setattr(preparing, 'READER', 'pyarrow 1')
    with pytest.raises(ValueError, match=r"reader='pyarrow [\d.]+', now 'pyarrow 1'"):
        prepare(tmp_path / 'a')
    monkeypatch.undo()
    prepare(tmp_path / 'a')
    monkeypatch.setattr(preparing, 'READER', 'pyarrow 1')
    assert prepare(tmp_path / 'a').num_new == 0


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(train_split='train[:1%]'), r"train_split='train\[:1%\]': .* has no splits"),
        (dict(validation_split='val'), "validation_split='val': .* has no splits; {split} in a path"),
        (dict(), 'has 3 files; allowed are 2 in a part'),
    ],
)
def test_passes_that_are_refused(tmp_path, monkeypatch, change, told):
    monkeypatch.setattr(preparing, 'MOST_FILES', 2)
    for name in 'abc':
        (tmp_path / f'{name}.txt').write_text(name)
    with pytest.raises(ValueError, match=told):
        preparing.open_passes(Settings(f'{tmp_path}/*.txt', **change))
    assert len(preparing.open_passes(Settings(f'{tmp_path}/*.txt'), Part(1, 2))[0].files) == 1
