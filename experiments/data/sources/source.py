"""What a source of documents is: files, read in blocks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

BLOCK_BYTES = 2**22  # of whole documents that are handed on together
MOST_BYTES = 2**27  # of one document
BYTE_ORDER_MARK = b'\xef\xbb\xbf'  # that a file of text may begin with
MOST_NAMES = 20  # of features, that an error tells
CHATS = (('messages',), ('prompt', 'completion'))  # the features of chats; any other is one of text


class SourceFile(NamedTuple):
    """A file as it stands in manifests: path as given, size in bytes."""

    path: str
    size: int


class Block(Protocol):
    """Some whole documents of one file, as they were read: what a worker parses and encodes at a time. Picklable.

    About 4 MB of text; a document that is longer is a block of its own. Where a file is cut into blocks is a function
    of its contents alone.

    Attributes:
      file_bytes: how many bytes of the file had been read when the block was made: for people, who want to know how
        far it is.
    """

    file_bytes: int

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Of each document the values of the source's features.

        Of text: bytes or str, which `documents.decode` takes; None is a null. Of chats: lists of messages, and of
        prompts and completions also text.

        Raises:
          ValueError: with the place, what can't be parsed; a feature that isn't there, or is of another type.
        """

    def place(self, row: int) -> str:
        """'FILE, row 17', of the block's document `row`; rows of a file are counted from 0."""


class Source(Protocol):
    """The documents of a dataset, or of one split of it.

    Attributes:
      name: for people.
      files: in the order in which they are read.
      has_splits: whether these are the documents of the split that was asked for; else they are those of all splits.
    """

    name: str
    files: Sequence[SourceFile]
    has_splits: bool

    def blocks(self, file: int) -> Iterator[Block]:
        """The blocks of `files[file]`, in their order.

        Raises:
          ValueError, OSError: naming the file, and the row where one is wrong.
        """


def check_no_splits(dataset: str, train_split: str, validation_split: str) -> None:
    """ValueError if splits are asked for by name of a dataset that has none."""
    for field, asked, default in (
        ('train_split', train_split, 'train'),
        ('validation_split', validation_split, 'validation'),
    ):
        if asked != default:
            raise ValueError(
                f'{field}={asked!r}: {dataset} has no splits; {{split}} in a path stands for them, and without it a'
                ' share held_out is for validation'
            )


def types_of(feature: str, features: tuple[str, ...]) -> tuple[type, ...]:
    """Of the values of a feature among others; of text, None is a null."""
    if features not in CHATS:
        return bytes, str, type(None)
    return (list,) if feature == 'messages' else (bytes, str, list)


def check_names(features: tuple[str, ...], names: Iterable[str], where: str):
    """Raises ValueError for a feature that is not among the names, which it tells."""
    names = list(names)
    for feature in features:
        if feature not in names:
            told = f'{sorted(names)[:MOST_NAMES]}' + ' and others' * (len(names) > MOST_NAMES)
            raise ValueError(f'text_feature={feature!r}: {where} has no such feature; it has {told}.')


def wrong_type(feature: str, features: tuple[str, ...], where: str, kind: str) -> ValueError:
    """The error of a feature whose values are of another kind than `types_of` says."""
    allowed = 'text' if bytes in types_of(feature, features) else ''
    allowed = ' or '.join(filter(None, (allowed, 'a list of messages' * (features in CHATS))))
    return ValueError(f'text_feature={feature!r}: {where} has {kind} there; allowed: {allowed}.')


def select(row: Mapping[str, Any], features: tuple[str, ...], place: str) -> tuple[Any, ...]:
    """The values of the features of one document, which are of the types that `Block.rows` says.

    Raises:
      ValueError: with the place, a feature that isn't there, with those that are, or one of another type.
    """
    check_names(features, row, place)
    for feature in features:
        if not isinstance(row[feature], types_of(feature, features)):
            kind = 'null' if row[feature] is None else type(row[feature]).__name__
            raise wrong_type(feature, features, place, kind)
    return tuple(row[feature] for feature in features)
