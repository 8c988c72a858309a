"""Text files, each of which is one document."""

from collections.abc import Iterator
from typing import NamedTuple

from experiments.data.sources.document_files import open_file
from experiments.data.sources.source import BYTE_ORDER_MARK, CHATS, MOST_BYTES


class TextBlock(NamedTuple):
    """The whole of a file."""

    path: str
    text: bytes
    file_bytes: int

    def rows(self) -> Iterator[tuple[bytes]]:
        yield (self.text,)

    def place(self, row: int) -> str:
        return f'{self.path}, row {row}'


def cut(path: str, features: tuple[str, ...]) -> Iterator[TextBlock]:
    """The file as a block: all its bytes but a byte order mark; ends of lines stay as they are.

    Raises:
      ValueError, OSError: a file that can't be read, or has more than MOST_BYTES; features of chats.
    """
    if features in CHATS:
        raise ValueError(f'text_feature={"+".join(features)!r}: {path} is text; allowed: files with features')
    with open_file(path) as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(
            f'{path} is a document of more than {MOST_BYTES:,} bytes, which are allowed; '
            'cut it into several files, or write its documents as lines of a .jsonl file'
        )
    yield TextBlock(path, text.removeprefix(BYTE_ORDER_MARK), len(text))
