"""A TFDS dataset of a few lines, and the tokens of a dataset's split."""

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from experiments.data.loading import prepared_splits
from experiments.data.preparation.encoding import Settings
from experiments.data.preparation.prepared_data import cache_folder

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


def load_tokens(dataset, split, tokenizer, *, cache_dir=None, **settings):
    """The TokenData of one split, prepared in the cache."""
    settings = Settings(dataset, train_split=split, validation_split=split, **settings)
    return prepared_splits(settings, tokenizer, cache_folder(cache_dir))[0]


def byte_tokens(documents: list[str]) -> list[int]:
    return [token for text in documents for token in (*text.encode(), 256)]
