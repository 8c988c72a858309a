"""What a source of documents is: files, read in blocks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol


class SourceFile(NamedTuple):
    """A file as it stands in manifests: path as given, size in bytes."""

    path: str
    size: int


class Block(Protocol):
    """Some whole documents of one file, as they were read: what a worker parses and encodes at a time. Picklable.

    About 4 MB of text; a document that is longer is a block of its own. Where a file is cut into blocks is a function
    of its contents alone.

    Attributes:
      file_bytes: of the file, how many had been read when the block was made: for people, who want to know how far it is.
    """

    file_bytes: int

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Of each document the values of the source's features: bytes or text; of chats, lists of messages.

        Raises:
          ValueError: with the place, what can't be parsed.
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
