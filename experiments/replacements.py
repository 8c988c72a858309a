"""What the replacements of a tokenizer's file may make of a letter: some bytes of it could make gigabytes of a text.

Each replacement multiplies what it is given by at most the letters of its content over those of its pattern. They
multiply one another where one may find what another has written.
"""

import base64
import binascii
import re
import warnings
from re import _parser as regex_parser
from typing import Any, NamedTuple

MOST_GROWTH = 1000
PARTS = {'normalizer': 'normalizers', 'decoder': 'decoders'}  # where a sequence of such has its parts
LETTER_BY_LETTER = (
    'Prepend',
    'Strip',
    'StripAccents',
    'Fuse',
    'ByteFallback',
    'Metaspace',
)  # write no letters of others


class Replacement(NamedTuple):
    """letters: that it looks for, None if any; written: that it writes, None if any."""

    growth: float
    letters: set[str] | None = None
    written: set[str] | None = None

    def may_find(self, other: 'Replacement') -> bool:
        """Whether it may find what another has written."""
        return self.letters is None or other.written is None or not self.letters.isdisjoint(other.written)


def check(contents: dict[str, Any]):
    """Refuses a tokenizer.json that may make more than MOST_GROWTH letters of one.

    Raises:
      ValueError: naming its normalizer or decoder; for a part of one that doesn't say its type.
    """
    for part, inner in PARTS.items():
        replacements = [_replacement(one) for one in _flat(contents.get(part), inner)]
        longest = []  # of each, the most that a chain of them that ends with it makes
        for number, one in enumerate(replacements):
            before = (most for most, other in zip(longest, replacements[:number]) if one.may_find(other))
            longest.append(one.growth * max(before, default=1))
        if (growth := max(longest, default=1)) > MOST_GROWTH:
            raise ValueError(f'its {part} may make a letter {growth:.3g}; allowed are {MOST_GROWTH}')


def check_sentencepiece(contents: bytes):
    """The same of a SentencePiece model.

    Raises:
      ValueError: it is none, or its normalizer writes too much.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(contents)
    except DecodeError as error:
        raise ValueError(f'it is no model: {error}') from None
    for spec in (model.normalizer_spec, model.denormalizer_spec):
        if (growth := _longest(spec.precompiled_charsmap)) > MOST_GROWTH:
            raise ValueError(f'its normalizer may make a letter {growth:,}; allowed are {MOST_GROWTH}')


def _flat(part, inner):
    """The parts of sequences in sequences, in their order."""
    if part is None:
        return
    if not isinstance(part, dict) or not isinstance(part.get('type'), str):
        raise ValueError(f'a part of its {inner} has no type')
    if part['type'] != 'Sequence':
        yield part
        return
    for one in part.get(inner) or ():
        yield from _flat(one, inner)


def _replacement(part) -> Replacement:
    match part:
        case {'type': 'Replace', 'pattern': {'String': str(text)}, 'content': str(content)}:
            return Replacement(max(1, len(content) / max(1, len(text))), set(text), set(content))
        case {'type': 'Replace', 'pattern': {'Regex': str(text)}, 'content': str(content)}:
            return Replacement(max(1, len(content) + _may_match_nothing(text)), None, set(content))
        case {'type': 'Precompiled', 'precompiled_charsmap': str(charsmap)}:
            try:
                return Replacement(max(1, _longest(base64.b64decode(charsmap))))
            except binascii.Error as error:
                raise ValueError(f'its precompiled_charsmap is no base64: {error}') from None
        case {'type': kind} if kind in LETTER_BY_LETTER:
            return Replacement(1, set(), set())
    return Replacement(1)


def _longest(charsmap: bytes) -> int:
    """Of a charsmap of SentencePiece's: the size of its index, the index, texts that end with zeros."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], 'little') :]
    return max(map(len, texts.split(b'\0')))


def _may_match_nothing(pattern: str) -> bool:
    """Whether a regex may match between any two letters; True if Python doesn't know it, or reads `}?` otherwise."""
    try:
        with warnings.catch_warnings(action='ignore'):  # of what a later Python may read otherwise
            return '}?' in pattern or regex_parser.parse(pattern).getwidth()[0] == 0
    except (re.error, RecursionError, OverflowError):
        return True
