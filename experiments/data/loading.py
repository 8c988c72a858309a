"""The text and the tokenizer that a config names."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from experiments.data import chats, mixtures, tokenizers
from experiments.data.packing import PackedRows
from experiments.data.preparation import fetching
from experiments.data.preparation.encoding import Settings
from experiments.data.preparation.manifest import is_prepared, read_manifest
from experiments.data.preparation.prepared_data import cache_folder, prepared_data
from experiments.data.preparation.verification import DamagedFile
from experiments.data.rows import Rows, TextRows
from experiments.data.sources import document_files
from experiments.data.token_data import TokenData, open_prepared
from experiments.data.token_files.opening import is_token_files, open_token_files

SEGMENTED = 'segmented'  # of `config.packing`


class SourceData(NamedTuple):
    """One of the datasets that are trained on.

    name: '' of a dataset alone.
    weight: its share of the sequences.
    dataset: what the config says.
    """

    name: str
    weight: Fraction
    train: TokenData
    validation: TokenData
    dataset: str = ''


class Data(NamedTuple):
    """All sources, and where the weights come from that training starts from, if not at random, and that teach."""

    sources: tuple[SourceData, ...]
    initial_weights: dict[str, Any] | None = None  # as initial_weights.find gives
    teacher_weights: dict[str, Any] | None = None  # the source of a distillation.Teacher

    @property
    def sha256(self) -> str:
        """Names what is trained on: of one source its own, of several of names, weights and theirs."""
        return self._sha256('train')

    @property
    def validation_sha256(self) -> str:
        return self._sha256('validation')

    def raise_if_damaged(self) -> None:
        """DamagedFile once a file is known to be."""
        for tokens in self._tokens():
            tokens.verification.raise_if_damaged()

    def is_verified(self) -> bool:
        """Whether all files have been read, and are what they should be."""
        return all(tokens.verification.is_complete() for tokens in self._tokens())

    def _tokens(self) -> Iterator[TokenData]:
        for source in self.sources:
            yield from (source.train, source.validation)

    def _sha256(self, split: str) -> str:
        if len(self.sources) == 1:
            return getattr(self.sources[0], split).sha256
        named = [(source.name, str(source.weight), getattr(source, split).sha256) for source in self.sources]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def one_source(train: TokenData, validation: TokenData) -> Data:
    """The data of one dataset alone."""
    return Data((SourceData('', Fraction(1), train, validation),))


def load_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
    """The tokenizer of a config; ValueError as `tokenizers.load_tokenizer`."""
    return tokenizers.load_tokenizer(config.tokenizer, config.special_tokens, vocab_size=config.vocab_size)


def load_data(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> Data:
    """The data of a config, prepared, fetched and verified as far as it has to be before the first step.

    Raises:
      ValueError: as `mixtures.parse`, `prepared_data`, `open_prepared`, `open_token_files` and
        `fetching.fetch_prepared`; a mixture of text and chats; a text_feature of the other kind.
      OSError: tokens that are damaged, or can't be read or kept.
    """
    sources = []
    for name, weight, dataset in mixtures.parse(config.dataset):
        try:
            sources.append(SourceData(name, weight, *_load(dataset, config, tokenizer), dataset))
        except ValueError as error:
            raise ValueError(f'{name}: {error}' if name else str(error)) from None
    if len({source.train.masks is None for source in sources}) > 1:
        names = [source.name for source in sources if source.train.masks is not None]
        raise ValueError(
            f'dataset={config.dataset!r}: {", ".join(names)} is of chats, others are of text; mix one kind'
        )
    is_chats = sources[0].train.masks is not None
    if is_chats != (config.text_feature in chats.FEATURES):  # which prepared tokens don't depend on, but the step does
        raise ValueError(
            f'text_feature={config.text_feature!r}: dataset={config.dataset!r} has tokens of'
            f' {"chats" if is_chats else "text"}; allowed: {", ".join(chats.FEATURES) if is_chats else "text"}'
        )
    return Data(tuple(sources))


def prepared_splits(
    settings: Settings, tokenizer: tokenizers.Tokenizer, cache_dir: pathlib.Path
) -> tuple[TokenData, TokenData]:
    """Both splits of a text, prepared in the cache at its first use, and anew where it is damaged there.

    Raises:
      ValueError, OSError: as `prepared_data` and `open_prepared`.
    """
    try:
        return _open_splits(prepared_data(settings, tokenizer, cache_dir=cache_dir), tokenizer, cache_dir)
    except DamagedFile as error:
        logging.warning('%s, and will be written anew', error)
    return _open_splits(prepared_data(settings, tokenizer, cache_dir=cache_dir, anew=True), tokenizer, cache_dir)


def make_rows(data: TokenData, config: ConfigDict) -> Rows:
    """The sequences of `config.sequence_length` that tokens are cut into, as `config.packing` says.

    Raises:
      ValueError: another packing; as `TextRows` and `PackedRows`.
    """
    is_chats = data.masks is not None
    if config.packing and (is_chats or config.packing != SEGMENTED):
        allowed = "'' alone, of chats" if is_chats else f"'' and {SEGMENTED!r}, of text"
        raise ValueError(f'packing={config.packing!r}; allowed: {allowed}')
    if is_chats:
        return PackedRows(data, config.sequence_length)
    return TextRows(data, config.sequence_length, segmented=config.packing == SEGMENTED)


def train_rows(data: Data, config: ConfigDict) -> tuple[dict[str, Rows], dict[str, Fraction]]:
    """Of each source the sequences to train on, and its weight."""
    weights = {source.name: source.weight for source in data.sources}
    return {source.name: make_rows(source.train, config) for source in data.sources}, weights


def _load(dataset: str, config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> tuple[TokenData, TokenData]:
    """Both splits of one dataset."""
    cache_dir = cache_folder(config.cache_dir)
    splits = dict(train_split=config.train_split, validation_split=config.validation_split)
    if is_token_files(dataset):
        return open_token_files(dataset, tokenizer, **splits, held_out=config.held_out, cache_dir=cache_dir)
    is_remote = document_files.is_remote(dataset)
    folder = fetching.fetch_prepared(dataset, cache_dir) if is_remote else pathlib.Path(os.path.expanduser(dataset))
    if folder is None or not is_prepared(folder):
        fields = ('text_feature', 'invalid_text', 'held_out', 'train_split', 'validation_split')
        settings = Settings(dataset, **{field: config[field] for field in fields}, data_dir=config.data_dir or None)
        return prepared_splits(settings, tokenizer, cache_dir)
    _check_settings(folder, config)
    try:
        return _open_splits(folder, tokenizer, cache_dir)
    except DamagedFile as error:
        if not is_remote:
            raise
        logging.warning('%s, and will be fetched anew', error)
        error.path.unlink(missing_ok=True)
    return _open_splits(fetching.fetch_prepared(dataset, cache_dir), tokenizer, cache_dir)


def _check_settings(folder: pathlib.Path, config: ConfigDict) -> None:
    """ValueError if a config asks for another text of a prepared folder than is in it."""
    made_of, defaults = read_manifest(folder).made_of, Settings('')
    for field in ('text_feature', 'invalid_text', 'train_split', 'validation_split'):
        asked, prepared = config[field], made_of.get(field)
        if asked not in (getattr(defaults, field), prepared) and field in made_of:
            raise ValueError(
                f'{field}={asked!r}: {folder} was prepared with {prepared!r}; give the same, or prepare another folder'
            )


def _open_splits(
    folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, cache_dir: pathlib.Path
) -> tuple[TokenData, TokenData]:
    return tuple(open_prepared(folder, split, tokenizer, cache_dir) for split in ('train', 'validation'))
