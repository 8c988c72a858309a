"""A small dataset on disk, and its tokens."""

import pytest
from small_datasets import TinyText

from experiments.data.token_cache import load_tokens
from experiments.data.tokenizers import Bytes, Tokenizer


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
