"""What a worker does: the documents of a block, split, and as tokens."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data import chats, documents
from experiments.data.preparation.manifest import Counts
from experiments.data.sources.source import CHATS, Block
from experiments.data.tokenizers import Tokenizer

SPLITS = ('train', 'validation')
MOST_TEXT = 2**23  # characters that are encoded at once: a longer document is encoded in parts
BATCH_TEXT = 2**19  # characters of the documents that are encoded together


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a folder is prepared of: the fields of a config with these names."""

    dataset: str
    text_feature: str = 'text'
    invalid_text: str = documents.INVALID[0]
    held_out: float = 0.005
    train_split: str = 'train'
    validation_split: str = 'validation'
    data_dir: str | os.PathLike | None = None

    def __post_init__(self):
        allowed = documents.INVALID
        if self.is_chats:
            allowed = tuple(choice for choice in allowed if choice != 'replace')
        if self.invalid_text not in allowed:
            of_chats = f', of text_feature={self.text_feature}' if self.is_chats else ''
            raise ValueError(f'invalid_text={self.invalid_text!r}; allowed: {", ".join(allowed)}{of_chats}.')
        if not 0 < self.held_out < 1:
            raise ValueError(f'held_out={self.held_out}; allowed: between 0 and 1, both excluded.')

    @property
    def is_chats(self) -> bool:
        return self.features in CHATS

    @property
    def features(self) -> tuple[str, ...]:
        """The features that a source is read for."""
        parts = tuple(self.text_feature.split('+'))
        return parts if parts in CHATS else (self.text_feature,)

    def made_of(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """As manifests have them: without data_dir, which each machine may have elsewhere; with a chat template."""
        settings = {name: value for name, value in dataclasses.asdict(self).items() if name != 'data_dir'}
        return settings | (chats.ChatEncoder(tokenizer).settings() if self.is_chats else {})


class Encoded(NamedTuple):
    """What a block adds to a split. mask, lengths: of chats, as TokenData's masks and document_lengths."""

    counts: Counts
    tokens: np.ndarray
    mask: np.ndarray | None = None
    lengths: np.ndarray | None = None


class Document(NamedTuple):
    """key: what says of which split it is. contents: None where it is left out."""

    key: bytes
    contents: Any
    is_valid: bool


class BlockEncoder:
    """Encodes blocks; picklable.

    Args:
      settings: of the text.
      tokenizer: of the tokens.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer):
        self._held_out = settings.held_out
        self._documents = (_Chats if settings.is_chats else _Texts)(settings, tokenizer)

    def encode(self, block: Block, split: str | None) -> dict[str, Encoded]:
        """What the documents of a block add to each split, or to `split` if its source has splits.

        Raises:
          ValueError: what can't be parsed, with its place; for invalid_text=error, a document that isn't UTF-8.
        """
        kept: dict[str, list[Document]] = {name: [] for name in ((split,) if split else SPLITS)}
        for row, values in enumerate(block.rows()):
            document = self._documents.read(values, lambda row=row: block.place(row))
            kept[split or split_of(document.key, self._held_out)].append(document)
        return {name: self._encoded(of_split) for name, of_split in kept.items() if of_split}

    def _encoded(self, of_split: Sequence[Document]) -> Encoded:
        contents = [document.contents for document in of_split if document.contents is not None]
        encoded = self._documents.pack(contents)
        counts = Counts(num_documents=len(contents), num_invalid=sum(not document.is_valid for document in of_split))
        return encoded._replace(counts=encoded.counts + counts)


def split_of(key: bytes, held_out: float) -> str:
    """The split of a document of a dataset without splits: equal ones are of the same."""
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), 'big')
    return SPLITS[number < held_out * 2**64]


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Of the tokens of documents, as files have them."""
    return np.dtype('<u2' if tokenizer.num_document_ids <= 2**16 else '<u4')


class _Texts:
    """Documents that are learned from their beginning to their end."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer):
        self._invalid, self._tokenizer, self._dtype = settings.invalid_text, tokenizer, token_dtype(tokenizer)

    def read(self, values: tuple[Any], place: Callable[[], str]) -> Document:
        text, is_valid = documents.decode(values[0], self._invalid, place)
        key = _text(values[0]).encode(errors='surrogatepass') if text is None else text.encode()
        return Document(key, text, is_valid)

    def pack(self, texts: Sequence[str]) -> Encoded:
        parts = [_parts(text) for text in texts]
        encoded = iter(self._encode(part for of_text in parts for part in of_text))
        special = self._tokenizer.special
        before, end = (np.array(ids, self._dtype) for ids in (special.before_document, special.eos[:1]))
        pieces = []
        for of_text in parts:
            pieces += [before, *(next(encoded) for _ in of_text), end]
        tokens = np.concatenate([np.empty(0, self._dtype), *pieces])
        counts = Counts(
            num_tokens=len(tokens),
            num_bytes=sum(len(text.encode()) for text in texts),
            num_empty=sum(not text for text in texts),
            num_cut=sum(len(of_text) > 1 for of_text in parts),
        )
        return Encoded(counts, tokens)

    def _encode(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """In batches, as what tokenizers give is much larger than its ids."""
        batch, size = [], 0
        for text in texts:
            batch.append(text)
            size += len(text)
            if size >= BATCH_TEXT:
                yield from self._encode_batch(batch)
                batch, size = [], 0
        yield from self._encode_batch(batch)

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [ids.astype(self._dtype) for ids in self._tokenizer.vocabulary.encode_batch(texts)]


class _Chats:
    """Conversations, of which the answers are learned."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer):
        self._invalid, self._dtype = settings.invalid_text, token_dtype(tokenizer)
        self._encoder = chats.ChatEncoder(tokenizer)

    def read(self, values: tuple[Any, ...], place: Callable[[], str]) -> Document:
        key = json.dumps(values, sort_keys=True, default=_text).encode()
        try:
            return Document(key, self._encoder.encode(values), True)
        except chats.InvalidChatError as error:
            if self._invalid == 'error':
                raise ValueError(f'{place()}: {error}; {documents.LEAVE_OUT}') from None
            return Document(key, None, False)
        except chats.TemplateError as error:
            raise ValueError(f'{place()}: {error}') from None

    def pack(self, encoded: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> Encoded:
        tokens = np.concatenate([np.empty(0, self._dtype), *(ids.astype(self._dtype) for ids, _, _ in encoded)])
        mask = np.concatenate([np.empty(0, np.uint8), *(mask for _, mask, _ in encoded)])
        lengths = np.array([len(ids) for ids, _, _ in encoded], '<u4')
        num_bytes = sum(num_bytes for _, _, num_bytes in encoded)
        counts = Counts(num_tokens=len(tokens), num_bytes=num_bytes, num_learned=int(mask.sum(dtype=np.int64)))
        return Encoded(counts, tokens, mask, lengths)


def _parts(text: str) -> list[str]:
    """A text, cut after lines where it is too long to be encoded at once."""
    parts = []
    while len(text) > MOST_TEXT:
        end = text.rfind('\n', 0, MOST_TEXT) + 1 or MOST_TEXT
        parts.append(text[:end])
        text = text[end:]
    return [*parts, text]


def _text(value: Any) -> str:
    return value.decode(errors='replace') if isinstance(value, bytes) else str(value)
