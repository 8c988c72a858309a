"""From text to tokens: every document, in order, tokenised once, and never from a damaged file."""

import dataclasses
import json
import pathlib
import shutil
import sys
import sysconfig

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from experiments.data.datasets import feature_classes, python_stdlib
from experiments.data.input_pipeline import load_tokens
from experiments.data.tokenizers import Bytes, Tokenizer

DOCUMENTS = {
    'train': [f'document {i}: {"naïve 日本 " * (i % 7)}' for i in range(300)],
    'test': ['a', 'bc', 'déf'],
    'empty': [''],
}


class TinyText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS dataset that isn't ours: known by its files, as one that was prepared elsewhere."""

    VERSION = tfds.core.Version('2.0.1')
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name='plain'),)
    code_path = epath.Path(__file__)

    def _info(self):
        features = {'document': tfds.features.Text(), 'label': tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in DOCUMENTS}

    def _generate_examples(self, split):
        for i, text in enumerate(DOCUMENTS[split]):
            yield i, {'document': text, 'label': i}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tensorflow_datasets')
    TinyText(data_dir=folder, file_format='array_record').download_and_prepare()
    return folder


@pytest.fixture
def load(data_dir, tmp_path):
    """load_tokens of the tiny dataset, with a cache of its own."""

    def load(split='train', tokenizer=None, **options):
        options = {'text_feature': 'document', 'data_dir': data_dir, 'cache_dir': tmp_path / 'cache', **options}
        return load_tokens('tiny_text/plain', split, tokenizer or Tokenizer(Bytes()), **options)

    return load


def byte_tokens(documents: list[str]) -> list[int]:
    return [token for text in documents for token in (*text.encode(), 256)]


class Latin1(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS dataset of texts of which some are not UTF-8, in two files, and one is empty."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name='plain'),)
    code_path = epath.Path(__file__)
    texts = (b'one', b'', b'na\xefve', b'four', b'five', b'\xff\xfe', b'seven')

    def _info(self):
        features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for i, text in enumerate(self.texts):
            yield i, {'text': text}


@pytest.fixture(scope='module')
def latin1(tmp_path_factory):
    folder = tmp_path_factory.mktemp('latin1')
    config = tfds.download.DownloadConfig(num_shards=2)
    Latin1(data_dir=folder, file_format='array_record').download_and_prepare(download_config=config)
    return folder


@pytest.mark.parametrize(
    ('split', 'place'),
    [
        ('train', r'latin1-train.array_record-00000-of-00002, row 2: .* byte 2 is 0xef'),
        ('train[3:]', r'latin1-train.array_record-00001-of-00002, row [12]: .* byte 0 is 0xff'),
    ],
)
def test_a_document_that_is_not_utf8_is_told_with_its_place(latin1, tmp_path, split, place):
    with pytest.raises(ValueError, match=f'{place}.*--config.invalid_text=replace'):
        load_tokens('latin1/plain', split, Tokenizer(Bytes()), data_dir=latin1, cache_dir=tmp_path)
    assert not list(tmp_path.rglob('*.json')), 'nothing half written is left'


@pytest.mark.parametrize(
    ('invalid', 'texts'),
    [
        ('replace', ['one', '', 'na\ufffdve', 'four', 'five', '\ufffd\ufffd', 'seven']),
        ('skip', ['one', '', 'four', 'five', 'seven']),
    ],
)
def test_what_becomes_of_documents_that_are_not_utf8(latin1, tmp_path, invalid, texts):
    """Counted, as empty ones are; each choice has tokens of its own."""
    load = lambda: load_tokens(
        'latin1/plain', 'train', Tokenizer(Bytes()), invalid_text=invalid, data_dir=latin1, cache_dir=tmp_path
    )
    for data in load(), load():
        assert data.tokens.tolist() == byte_tokens(texts)
        assert (data.num_documents, data.num_empty, data.num_invalid) == (len(texts), 1, 2)
    with pytest.raises(ValueError, match='invalid_text=replace'):
        load_tokens('latin1/plain', 'train', Tokenizer(Bytes()), data_dir=latin1, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="invalid_text='ignore'; allowed: error, replace, skip"):
        load_tokens(
            'latin1/plain', 'train', Tokenizer(Bytes()), invalid_text='ignore', data_dir=latin1, cache_dir=tmp_path
        )


def test_tokens_of_version_0_1_are_read(load):
    """Their counts lack those of unusual documents, and their SHA-256 is of the same."""
    data = load()
    (file,) = pathlib.Path(data.tokens.filename).parent.glob('*.json')
    contents = json.loads(file.read_text())
    assert contents.pop('num_empty') == DOCUMENTS['train'].count('') and contents.pop('num_invalid') == 0
    assert contents.pop('unusual_sha256')
    file.write_text(json.dumps(contents))
    again = load()
    assert again.sha256 == data.sha256 and again.num_empty is None


@pytest.mark.parametrize(
    'change', [{'num_empty': 7}, {'num_empty': '0'}, {'unusual_sha256': None}, {'num_invalid': None}]
)
def test_counts_that_were_changed_are_counted_anew(load, change):
    data = load()
    (file,) = pathlib.Path(data.tokens.filename).parent.glob('*.json')
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | change))
    assert load().num_empty == data.num_empty and json.loads(file.read_text()) == written


class CountingBytes(Bytes):
    """Bytes, and how many documents were tokenised."""

    count = 0

    def encode(self, text):
        self.count += 1
        return super().encode(text)


class WideBytes(Bytes):
    """More ids than uint16 holds."""

    vocab_size = 70_000
    eos = end_by_name = 69_999
    fingerprint = 'wide'

    def encode(self, text):
        return super().encode(text) + 65_500


# Tokens


@pytest.mark.parametrize('split', ['train', 'test'])
def test_tokens_are_the_documents_in_order(load, split):
    data = load(split)
    assert isinstance(data.tokens, np.memmap)
    assert data.tokens.dtype == np.uint16
    assert data.tokens.tolist() == byte_tokens(DOCUMENTS[split])
    assert data.num_tokens == len(data.tokens)
    assert data.num_documents == len(DOCUMENTS[split])
    assert data.num_bytes == sum(len(text.encode()) for text in DOCUMENTS[split])
    assert data.bytes_per_token == data.num_bytes / len(data.tokens)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.num_bytes = 0


def test_large_vocabulary_is_uint32(load):
    data = load('test', Tokenizer(WideBytes()))
    assert data.tokens.dtype == np.uint32
    assert data.tokens.tolist() == [t + 65_500 if t < 256 else 69_999 for t in byte_tokens(DOCUMENTS['test'])]


def test_split_slices(load):
    assert load('train[:10]').tokens.tolist() == byte_tokens(DOCUMENTS['train'][:10])
    assert load('train[10:]').tokens.tolist() == byte_tokens(DOCUMENTS['train'][10:])


def test_tokenised_once(load):
    counting = CountingBytes()
    tokenizer = Tokenizer(counting)
    first, second = load('train', tokenizer), load('train', tokenizer)
    assert counting.count == 300
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert (first.num_bytes, first.num_documents) == (second.num_bytes, second.num_documents)


def test_another_dataset_of_the_same_name_has_its_own_tokens(load, tmp_path, monkeypatch):
    tokens = load('test').tokens
    monkeypatch.setitem(DOCUMENTS, 'test', ['other'])
    TinyText(data_dir=tmp_path / 'other', file_format='array_record').download_and_prepare()
    assert load('test', data_dir=tmp_path / 'other').tokens.tolist() == byte_tokens(['other']) != tokens.tolist()


def truncate(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    tokens.write_bytes(tokens.read_bytes()[:-2])


def flip_a_bit(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    contents = bytearray(tokens.read_bytes())
    contents[len(contents) // 2] ^= 1
    tokens.write_bytes(contents)


def lose_tokens(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    tokens.unlink()


def lose_metadata(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    metadata.unlink()


def garble_metadata(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    metadata.write_bytes(b'\xff\x00')


def replace_metadata(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    metadata.write_text('[]')


def change_a_count(tokens: pathlib.Path, metadata: pathlib.Path) -> None:
    contents = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**contents, 'num_bytes': contents['num_bytes'] + 1}))


@pytest.mark.parametrize(
    'damage',
    [truncate, flip_a_bit, lose_tokens, lose_metadata, garble_metadata, replace_metadata, change_a_count],
)
def test_damaged_cache_is_written_anew(load, tmp_path, damage):
    load()
    (tokens,), (metadata,) = ((tmp_path / 'cache').rglob(f'train*.{kind}') for kind in ('tokens', 'json'))
    damage(tokens, metadata)
    counting = CountingBytes()
    tokenizer = Tokenizer(counting)
    data = load('train', tokenizer)
    assert counting.count == 300
    assert data.tokens.tolist() == byte_tokens(DOCUMENTS['train'])
    assert data.num_bytes == sum(len(text.encode()) for text in DOCUMENTS['train'])


def test_interrupted_tokenisation_leaves_nothing(load, tmp_path):
    class Interrupted(CountingBytes):
        def encode(self, text):
            if self.count == 100:
                raise KeyboardInterrupt
            return super().encode(text)

    with pytest.raises(KeyboardInterrupt):
        load('train', Tokenizer(Interrupted()))
    assert [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == []
    assert load().tokens.tolist() == byte_tokens(DOCUMENTS['train'])


def test_files_are_whole_before_they_have_their_names(load, tmp_path):
    # What a process finds that is killed, or looks, at any moment: no tokens by their name before they are complete.
    class Watching(CountingBytes):
        def encode(self, text):
            assert not list((tmp_path / 'cache').rglob('*.tokens'))
            return super().encode(text)

    load('train', Tokenizer(Watching()))
    assert len(list((tmp_path / 'cache').rglob('*.tokens'))) == 1


@pytest.mark.parametrize('data_dir_given', [True, False])
def test_python_stdlib_is_written_when_missing(tmp_path, monkeypatch, data_dir_given):
    root = tmp_path / 'stdlib'
    root.mkdir()
    for i in range(40):
        (root / f'module{i}.py').write_text(f'answer = {i}\n')
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(root))
    monkeypatch.setenv('GAUSSQ_CACHE', str(tmp_path / 'cache'))
    data_dir = tmp_path / 'data' if data_dir_given else None
    splits = {
        split: load_tokens('python_stdlib', split, Tokenizer(Bytes()), data_dir=data_dir)
        for split in ('train', 'validation')
    }
    assert sum(data.num_documents for data in splits.values()) == 40
    for split, data in splits.items():
        documents = bytes(data.tokens[data.tokens != 256].astype(np.uint8)).decode().splitlines()
        names = [f'module{line.removeprefix("answer = ")}.py' for line in documents]
        assert {python_stdlib.split_of(name) for name in names} == {split}
    assert (tmp_path / 'cache' / 'tokens' / 'python_stdlib' / python_stdlib.CONFIG).is_dir()
    where = data_dir or tmp_path / 'cache' / 'tensorflow_datasets'
    assert (where / 'python_stdlib' / python_stdlib.CONFIG).is_dir()


@pytest.mark.parametrize(
    ('dataset', 'remedy'),
    [
        ('nonsense', "'tfds build nonsense --data_dir=.* --file_format=array_record'"),
        ('wikipedia/20230601.simple', "'tfds build wikipedia/20230601.simple --data_dir="),
        ('ag_news_subset', "'tfds build ag_news_subset --data_dir="),
        ('tiny_text/unknown', "'tfds build tiny_text/unknown --data_dir="),
        ('not a name!', 'tfds build'),
        ('python_stdlib/cpython-2.7.18', f'writes python_stdlib/{python_stdlib.CONFIG} and no other'),
    ],
)
def test_missing_dataset_is_one_error(data_dir, tmp_path, dataset, remedy):
    with pytest.raises(ValueError, match=remedy) as error:
        load_tokens(dataset, 'train', Tokenizer(Bytes()), data_dir=data_dir, cache_dir=tmp_path)
    assert str(error.value).startswith(f"dataset='{dataset}' is not prepared in data_dir='{data_dir}'")
    assert len(str(error.value)) < 600
    assert '\n' not in str(error.value)
    assert error.value.__context__ is None


def test_unknown_feature_and_split(load):
    with pytest.raises(ValueError, match=r"text_feature='text': .*it has \['document', 'label'\]"):
        load(text_feature='text')
    with pytest.raises(ValueError, match=r"text_feature='label': tiny_text/plain/2.0.1 has int"):
        load(text_feature='label')
    with pytest.raises(ValueError, match=r"split='validation': .* has \['empty', 'test', 'train'\]"):
        load('validation')
    with pytest.raises(ValueError, match='there is no text in this split'):
        load('empty')


def test_dataset_in_another_file_format(load, tmp_path):
    TinyText(data_dir=tmp_path / 'data', file_format='array_record').download_and_prepare()
    (info,) = (tmp_path / 'data').rglob('dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(ValueError, match='is written as tfrecord; allowed: array_record'):
        load(data_dir=tmp_path / 'data')


# Training batches. The tokens are 0, 1, 2, …, so that a sequence's first token says which sequence it is.


JSON_IN_JSON = {
    'JSON in JSON': '{{"type": {}}}',
    'with a number beyond all': '{{"type": {}, "x": 1e999}}',
    'with a key twice': '{{"x": 1, "x": 2, "type": {}}}',
}


def named(name, spelling):
    """A features.json with a feature of this class."""
    of_dict, of_text = (f'tensorflow_datasets.core.features.{kind}' for kind in ('FeaturesDict', 'Text'))
    if spelling == 'before 4.6':
        return {'type': of_dict, 'content': {'document': {'type': name}}}
    feature = {spelling: name, 'text': {}}
    if spelling in JSON_IN_JSON:
        text = JSON_IN_JSON[spelling].format(json.dumps(name))
        feature = {'pythonClassName': of_text, 'jsonFeature': {'json': text}}
    return {'pythonClassName': of_dict, 'featuresDict': {'features': {'document': feature}}}


@pytest.mark.parametrize('is_linked', [False, True])
@pytest.mark.parametrize('spelling', ['pythonClassName', 'python_class_name', 'before 4.6', *JSON_IN_JSON])
def test_a_dataset_runs_no_code(data_dir, tmp_path, monkeypatch, spelling, is_linked):
    """The module of a class that features.json names is not imported, even if it is there."""
    shutil.copytree(data_dir, tmp_path / 'data')
    (path,) = (tmp_path / 'data').rglob('features.json')
    path.write_text(json.dumps(named('stranger.Feature', spelling)))
    if is_linked:  # the folder of a version
        path.parent.rename(tmp_path / 'elsewhere')
        path.parent.symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'stranger.py').write_text(f'open({str(tmp_path / "ran")!r}, "w").close()\n')
    monkeypatch.syspath_prepend(tmp_path)
    how = dict(data_dir=tmp_path / 'data', cache_dir=tmp_path / 'cache', text_feature='document')
    with pytest.raises(ValueError, match=r"features\.json names the class 'stranger\.Feature', which TFDS"):
        load_tokens('tiny_text/plain', 'train', Tokenizer(Bytes()), **how)
    assert not (tmp_path / 'ran').exists() and 'stranger' not in sys.modules


def test_a_shard_that_is_not_there_hides_no_other_version(data_dir, tmp_path):
    """As in a checkout of git-annex: what is read is another version; and links that lead in circles end."""
    shutil.copytree(data_dir, tmp_path / 'data')
    (features,) = (tmp_path / 'data').rglob('features.json')
    version = features.parent.parent / '0.0.1'
    version.mkdir()
    (version / 'shard').symlink_to('gone')
    (version / 'circle').symlink_to('..')
    feature_classes.check(features.parent.parent)


@pytest.mark.parametrize('name', ['../../../x', '/tmp/x', 'a/../../b', '..'])
def test_a_dataset_chooses_no_folder(data_dir, tmp_path, name):
    """By the name that its dataset_info.json gives it."""
    shutil.copytree(data_dir, tmp_path / 'data')
    (path,) = (tmp_path / 'data').rglob('dataset_info.json')
    path.write_text(json.dumps(json.loads(path.read_text()) | {'name': name}))
    dataset = path.parent.relative_to(tmp_path / 'data').parts[0]
    with pytest.raises(ValueError, match='which is no name'):
        load_tokens(
            f'{dataset}/plain',
            'train',
            Tokenizer(Bytes()),
            text_feature='document',
            data_dir=tmp_path / 'data',
            cache_dir=tmp_path / 'a/b/c/d',
        )
    assert {path.name for path in tmp_path.iterdir()} <= {'data', 'a'}
