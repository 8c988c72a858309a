"""What a tokenizer's normalizer and decoder may make of a letter: some bytes of a file could make gigabytes of a text.

Each of their parts multiplies what it is given: a replacement by the letters of its content over those of its pattern.
They multiply one another where one may find what another has written.
"""

import base64
import binascii
import functools
import re
import warnings
from collections.abc import Iterator
from re import _parser as regex_parser
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

MOST_GROWTH = 4096
PARTS = {'normalizer': 'normalizers', 'decoder': 'decoders'}  # where a sequence of such has its parts
# What others make of a letter at most, in code points; of the forms of Unicode by UAX 15.
GROWTHS = {
    **{'NFC': 3, 'NFD': 4, 'NFKC': 18, 'NFKD': 18, 'Lowercase': 3, 'BertNormalizer': 12, 'ByteLevel': 4, 'Nmt': 1},
    **{'Strip': 1, 'StripAccents': 1, 'Fuse': 1, 'ByteFallback': 1, 'WordPiece': 3, 'BPEDecoder': 2, 'CTC': 2},
}
UNKNOWN_GROWTH = 18
KEEPS_LETTERS = ('Strip', 'Fuse')  # write none that was not there
# Fields of SentencePiece's ModelProto, its normalizer and denormalizer, and of these, their charsmap.
SPECS, CHARSMAPS = (3, 5), (2,)


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
      ValueError: its normalizer writes too much; it is no message of Protocol Buffers.
    """
    for spec in _bytes_fields(contents, SPECS):
        for charsmap in _bytes_fields(spec, CHARSMAPS):
            if (growth := _longest(charsmap)) > MOST_GROWTH:
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
        case {'type': 'Replace', 'pattern': {'String': ''}, 'content': str(content)}:  # it is between all letters
            return Replacement(len(content) + 1)
        case {'type': 'Replace', 'pattern': {'String': str(text)}, 'content': str(content)}:
            return Replacement(max(1, len(content) / len(text)), set(text), set(content))
        case {'type': 'Replace', 'pattern': {'Regex': str(text)}, 'content': str(content)}:
            return Replacement(max(1, len(content) + _may_match_nothing(text)), None, set(content))
        case {'type': 'Prepend', 'prepend': str(text)}:
            return Replacement(len(text) + 1, set(), set(text))
        case {'type': 'Metaspace', 'replacement': str(letter)}:
            return Replacement(1, {letter}, {' '})
        case {'type': 'Precompiled', 'precompiled_charsmap': str(charsmap)}:
            try:
                return Replacement(max(1, _longest(base64.b64decode(charsmap))))
            except binascii.Error as error:
                raise ValueError(f'its precompiled_charsmap is no base64: {error}') from None
        case {'type': kind} if kind in KEEPS_LETTERS:
            return Replacement(1, set(), set())
    return Replacement(GROWTHS.get(part['type'], UNKNOWN_GROWTH))


def _longest(charsmap: bytes) -> int:
    """Of a charsmap of SentencePiece's: the size of its index, the index, texts that end with zeros."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], 'little') :]
    return max(map(len, texts.split(b'\0')))


def _may_match_nothing(pattern: str) -> bool:
    """Whether a regex of Oniguruma may match between any two letters; True where that isn't known.

    Python reads most of them alike; not so classes in classes, `&&` in them, and `}?`, and properties not at all.
    """
    pattern = re.sub(r'\\[pP]\{[^{}]*\}', 'x', pattern)
    try:
        with warnings.catch_warnings(action='ignore'):  # of what a later Python may read otherwise
            is_read_otherwise = pattern.count('[') > 1 or '&&' in pattern or '}?' in pattern
            return is_read_otherwise or regex_parser.parse(pattern).getwidth()[0] == 0
    except (re.error, RecursionError, OverflowError):
        return True


def _bytes_fields(contents: bytes, numbers: tuple[int, ...]) -> Iterator[bytes]:
    """Each field of these numbers that is bytes; of the others, of which there may be millions, nothing is made."""
    try:
        parsed = _message_class(numbers).FromString(contents)
    except message.DecodeError:
        raise ValueError('it is no message of Protocol Buffers') from None
    for number in numbers:
        yield from getattr(parsed, f'field_{number}')


@functools.cache
def _message_class(numbers: tuple[int, ...]) -> type[message.Message]:
    """Of messages whose .proto isn't at hand, but for these fields."""
    name = f'fields_{"_".join(map(str, numbers))}'
    file = descriptor_pb2.FileDescriptorProto(name=f'gaussq/{name}.proto', package='gaussq')
    of_field = descriptor_pb2.FieldDescriptorProto
    kinds = dict(type=of_field.TYPE_BYTES, label=of_field.LABEL_REPEATED)
    described = file.message_type.add(name=name)
    for number in numbers:
        described.field.add(name=f'field_{number}', number=number, **kinds)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'gaussq.{name}'))
