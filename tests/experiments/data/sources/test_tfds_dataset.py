"""The documents of a TFDS dataset: all of a split, in order; what can't be read is told, what runs code is refused."""

import json
import shutil
import sys
import sysconfig

import pytest
import tensorflow_datasets as tfds
from etils import epath
from small_datasets import DOCUMENTS, TinyText
from small_sources import blocks_of, places_of, rows_of

from experiments.data.datasets import feature_classes, python_stdlib
from experiments.data.documents import read_texts
from experiments.data.sources import tfds_dataset
from experiments.data.sources.opening import open_source


@pytest.fixture
def open_tiny(data_dir, tmp_path):
    """The source of the tiny dataset."""

    def open_tiny(split='train', feature='document', data_dir=data_dir):
        return open_source('tiny_text/plain', split, (feature,), data_dir=data_dir, cache_dir=tmp_path)

    return open_tiny


@pytest.mark.parametrize(
    ('split', 'rows'),
    [('train', slice(None)), ('train[10:]', slice(10, None)), ('train[7:9]', slice(7, 9)), ('test', slice(3))],
)
@pytest.mark.parametrize('block_bytes', [500, 2**22])
def test_documents_of_a_split_and_its_slices(open_tiny, monkeypatch, split, rows, block_bytes):
    """In blocks that are, on the average, so large."""
    monkeypatch.setattr(tfds_dataset, 'BLOCK_BYTES', block_bytes)
    source = open_tiny(split)
    documents = DOCUMENTS[split.split('[')[0]]
    assert rows_of(source) == [(text.encode(),) for text in documents[rows]]
    (file,) = source.files
    assert file.path.endswith('.array_record-00000-of-00001') and source.has_splits
    assert places_of(source) == [f'{file.path}, row {row}' for row in range(len(documents))[rows]]
    assert (len(blocks_of(source)) > 1) == (block_bytes == 500 and len(documents[rows]) > 5)


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
    source = open_source('latin1/plain', split, ('text',), data_dir=latin1, cache_dir=tmp_path)
    assert len(source.files) == 2
    with pytest.raises(ValueError, match=f'{place}.*invalid_text=replace'):
        [text for block in blocks_of(source) for text in read_texts(block, 'error')]


@pytest.mark.parametrize(
    ('invalid', 'texts'),
    [
        ('replace', ['one', '', 'na\ufffdve', 'four', 'five', '\ufffd\ufffd', 'seven']),
        ('skip', ['one', '', None, 'four', 'five', None, 'seven']),
    ],
)
def test_what_becomes_of_documents_that_are_not_utf8(latin1, tmp_path, invalid, texts):
    source = open_source('latin1/plain', 'train', ('text',), data_dir=latin1, cache_dir=tmp_path)
    is_valid = [i not in (2, 5) for i in range(7)]
    assert [text for block in blocks_of(source) for text in read_texts(block, invalid)] == [*zip(texts, is_valid)]


@pytest.mark.parametrize('data_dir_given', [True, False])
def test_python_stdlib_is_written_when_missing(tmp_path, monkeypatch, data_dir_given):
    root = tmp_path / 'stdlib'
    root.mkdir()
    for i in range(40):
        (root / f'module{i}.py').write_text(f'answer = {i}\n')
    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(root))
    data_dir = tmp_path / 'data' if data_dir_given else None
    count = 0
    for split in 'train', 'validation':
        source = open_source('python_stdlib', split, ('text',), data_dir=data_dir, cache_dir=tmp_path / 'cache')
        names = [f'module{text.decode().strip().removeprefix("answer = ")}.py' for (text,) in rows_of(source)]
        assert {python_stdlib.split_of(name) for name in names} == {split}
        count += len(names)
    assert count == 40
    where = data_dir or tmp_path / 'cache' / 'tensorflow_datasets'
    assert (where / 'python_stdlib' / python_stdlib.CONFIG).is_dir()


def test_documents_are_those_of_tfds(tmp_path):
    """As its own data source has them, one at a time."""
    source = open_source('python_stdlib', 'validation', ('text',), cache_dir=tmp_path)
    examples = python_stdlib.prepare(tmp_path / 'tensorflow_datasets').as_data_source('validation')
    assert rows_of(source) == [(examples[i]['text'],) for i in range(len(examples))]


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
        open_source(dataset, 'train', ('text',), data_dir=data_dir, cache_dir=tmp_path)
    assert str(error.value).startswith(f"dataset='{dataset}' is not prepared in data_dir='{data_dir}'")
    assert len(str(error.value)) < 600
    assert '\n' not in str(error.value)
    assert error.value.__context__ is None


def test_unknown_feature_and_split(open_tiny):
    with pytest.raises(ValueError, match=r"text_feature='text': .*it has \['document', 'label'\]"):
        open_tiny(feature='text')
    with pytest.raises(ValueError, match=r"'label': .*/tiny_text/plain/2.0.1/.*, row 0 has int there; allowed: text"):
        rows_of(open_tiny(feature='label'))
    with pytest.raises(ValueError, match=r"split='validation': .* has \['empty', 'test', 'train'\]"):
        open_tiny('validation')


def test_dataset_in_another_file_format(open_tiny, tmp_path):
    TinyText(data_dir=tmp_path / 'data', file_format='array_record').download_and_prepare()
    (info,) = (tmp_path / 'data').rglob('dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(ValueError, match='is written as tfrecord; allowed: array_record'):
        open_tiny(data_dir=tmp_path / 'data')


def test_a_damaged_file_is_named(data_dir, open_tiny, tmp_path):
    shutil.copytree(data_dir, tmp_path / 'data')
    (path,) = (tmp_path / 'data').rglob('*train.array_record*')
    contents = path.read_bytes()
    path.write_bytes(contents[:500] + bytes(500) + contents[1000:])
    with pytest.raises(ValueError, match=r'tiny_text-train\.array_record-00000-of-00001, row \d+ and after.*: damaged'):
        rows_of(open_tiny(data_dir=tmp_path / 'data'))


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
    how = dict(data_dir=tmp_path / 'data', cache_dir=tmp_path / 'cache')
    with pytest.raises(ValueError, match=r"features\.json names the class 'stranger\.Feature', which TFDS"):
        open_source('tiny_text/plain', 'train', ('document',), **how)
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
        open_source(f'{dataset}/plain', 'train', ('document',), data_dir=tmp_path / 'data', cache_dir=tmp_path)
