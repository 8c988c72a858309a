"""The text of a document: what a source has there, decoded; and what becomes of one that is not UTF-8."""

import re
from collections.abc import Callable, Iterator

from experiments.data.sources.source import Block

INVALID = ('error', 'replace', 'skip')  # what becomes of documents that are not UTF-8
LEAVE_OUT = 'invalid_text=skip leaves it out.'
REPLACE = f'invalid_text=replace puts U+FFFD there, {LEAVE_OUT}'


def decode(value: bytes | str | None, invalid: str, place: Callable[[], str]) -> tuple[str | None, bool]:
    """The text of a document, and whether it is one in UTF-8.

    Bytes that are not UTF-8, half a surrogate pair (as JSON's escapes may have it) and None (a null) are not.

    Args:
      value: of a text feature, as `Block.rows` yields it.
      invalid: of `INVALID`: 'error'; 'replace', what is wrong becomes U+FFFD; 'skip', the document is left out.
      place: says where the document is, for errors.

    Returns:
      (text, is_valid); text is None where the document is left out.

    Raises:
      ValueError: for 'error', a document that is not valid, with its place; for 'replace', a null.

    Example:
      >>> decode(b'na\\xefve', 'replace', lambda: 'a.txt, row 0')
      ('na\ufffdve', False)
    """
    try:
        if isinstance(value, bytes):
            return value.decode(), True
        if value is not None:
            value.encode()
            return value, True
        reason, advice = 'the document is null, which is no text', LEAVE_OUT
    except UnicodeDecodeError as error:
        reason, advice = f'byte {error.start} is 0x{value[error.start]:02x}', REPLACE
    except UnicodeEncodeError as error:
        reason, advice = f'character {error.start} is half a surrogate pair, U+{ord(value[error.start]):04X}', REPLACE
    if invalid == 'skip':
        return None, False
    if invalid == 'error' or value is None:
        reason = reason if value is None else f'the document is not UTF-8, {reason}'
        raise ValueError(f'{place()}: {reason}; {advice}')
    if isinstance(value, bytes):
        return value.decode(errors='replace'), False
    return re.sub(r'[\ud800-\udfff]', '\ufffd', value), False


def read_texts(block: Block, invalid: str) -> Iterator[tuple[str | None, bool]]:
    """Of each document of a block, whose source has one feature, the text: as `decode` has it.

    Raises:
      ValueError: as `Block.rows` and `decode`.
    """
    for row, (value,) in enumerate(block.rows()):
        yield decode(value, invalid, lambda row=row: block.place(row))
