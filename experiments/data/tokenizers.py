"""Tokenizers: bytes, a local SentencePiece model, or a local Hugging Face `tokenizers` file."""

import contextlib
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from experiments.data import replacements, special_tokens
from experiments.data.special_tokens import USUAL_ENDS, SpecialTokens
from experiments.files import json_files, paths
from experiments.files.foreign_text import printable
from experiments.files.huggingface_folder import TOKENIZER_CONFIG, TOKENIZERS

MOST_HOLES = 2**16  # between ids, beside one a token
ALLOWED = "allowed: 'bytes', a SentencePiece '.model' file, a Hugging Face tokenizers '.json' file"


class Vocabulary(special_tokens.Vocabulary, Protocol):
    """Text to token ids and back, with what the file says of special tokens.

    fingerprint: names the file, the same on every machine; its contents are hashed into it.
    encode: text to int32 ids, no special tokens added or recognised.
    decode: ids to text.
    name: of a token; '' of one that the file doesn't have.
    led_by: a tokenizer.json that puts these tokens before every text, by its name; empty if none has to be written.
    """

    fingerprint: str

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: list[int]) -> str: ...

    def name(self, token: int) -> str: ...

    def led_by(self, tokens: tuple[int, ...]) -> dict[str, str]: ...


class Tokenizer:
    """A vocabulary with the tokens that begin and end texts.

    Attributes:
      special: these.
      remarks: on what files say of them that can't be.
      vocab_size: ids are in [0, vocab_size).
      fingerprint: names the file, the same on every machine; not the special tokens.
    """

    def __init__(self, vocabulary: Vocabulary, special: SpecialTokens | None = None, remarks: Iterable[str] = ()):
        self._vocabulary = vocabulary
        self.special = special or special_tokens.resolve(vocabulary)[0]
        self.remarks = tuple(remarks)
        bos = () if self.special.bos is None else (self.special.bos,)
        self.vocab_size = max(vocabulary.vocab_size, *(token + 1 for token in (*self.special.eos, *bos)))
        self.fingerprint = vocabulary.fingerprint

    @property
    def end_of_document(self) -> int:
        """The id that ends a document; `decode` leaves it out."""
        return self.special.eos[0]

    @property
    def num_document_ids(self) -> int:
        """One more than the largest id that a document may hold."""
        ends = *self.special.before_document, self.end_of_document
        return max(self._vocabulary.vocab_size, *(token + 1 for token in ends))

    @property
    def before_whole_text(self) -> tuple[int, ...]:
        """What belongs to a text that is scored from its beginning on: the token that its own tokenizer puts there."""
        special = self.special
        is_own = special.before_prompt == (self._vocabulary.leading or ())
        return special.before_prompt if is_own else special.before_document

    @property
    def framing(self) -> str:
        """Names how documents begin and end; empty if as in version 0.1."""
        before, end = self.special.before_document, self.end_of_document
        return '' if (before, end) == ((), self._vocabulary.end_by_name) else f'{",".join(map(str, before))}-{end}'

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids, no special tokens added or recognised."""
        return self._vocabulary.encode(text)

    def encode_document(self, text: str) -> np.ndarray:
        """The ids of a document to train on, with those of its beginning, if it has one, and its end."""
        special = self.special
        return np.concatenate([special.before_document, self.encode(text), special.eos[:1]]).astype(np.int32)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that is to be continued: at least one."""
        return [*self.special.before_prompt, *self.encode(text).tolist()] or [self.special.prefix]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, without what begins and ends documents; special tokens of the vocabulary have no text.

        Raises:
          ValueError: for ids outside of the vocabulary.
        """
        ids = [int(i) for i in ids]
        if foreign := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f'ids holds {foreign[0]}; allowed: 0 to {self.vocab_size - 1}.')
        left_out = {self.end_of_document, *self.special.before_prompt}
        return self._vocabulary.decode([i for i in ids if i not in left_out])

    def describe(self) -> str:
        """Special tokens, for people."""
        text = self._vocabulary.name
        name = lambda token: printable(f'{text(token)[:80]} ({token})') if text(token) else str(token)
        named = lambda tokens: ' or '.join(map(name, tokens))
        before, (end, *others) = self.special.before_document, self.special.eos
        described = f'documents {f"begin with {named(before)} and " if before else ""}end with {named([end])}'
        return f'{described}; so may what is written, or with {named(others)}' if others else described

    def files(self) -> dict[str, Any]:
        """What a folder for transformers says of this, by file: fields of JSON, and the text of a tokenizer.json."""
        special, vocabulary = self.special, self._vocabulary
        tokens = {'bos_token': special.bos, 'eos_token': self.end_of_document}
        names = {field: None if token is None else vocabulary.name(token) or None for field, token in tokens.items()}
        return {
            TOKENIZER_CONFIG: names | {'add_bos_token': special.add_bos},
            **vocabulary.led_by(special.before_prompt),
        }

    def is_said_by(self, folder: pathlib.Path | None) -> bool:
        """Whether the files of a folder say of this vocabulary what this tokenizer does."""
        try:
            said, _ = special_tokens.resolve(self._vocabulary, folder=folder, vocab_size=self.vocab_size, is_given=True)
        except ValueError:
            return False
        return said == self.special


def load_tokenizer(
    spec: str,
    special: Mapping[str, str] = special_tokens.ASK,
    *,
    folder: pathlib.Path | None = None,
    vocab_size: int = 0,
    is_given: bool = False,
) -> Tokenizer:
    """Returns the tokenizer that `spec` names.

    Args:
      spec: 'bytes', or the path of a SentencePiece '.model' or Hugging Face `tokenizers` '.json' file.
      special: as `config.special_tokens`: which tokens begin and end texts; by default those that the files say.
      folder: of the model's config.json and tokenizer_config.json. By default that of the tokenizer's file, if it is
        called tokenizer.json or tokenizer.model.
      vocab_size: of the model, which may have more than the tokenizer; 0: as many as it takes.
      is_given: whether the model has been trained already, elsewhere.

    Raises:
      ValueError: another spec, a file that is missing or isn't what its ending says; as `special_tokens.resolve` does.

    Example:
      >>> tokenizer = load_tokenizer('bytes')
      >>> tokenizer.decode(tokenizer.encode('naïve'))
      'naïve'
    """
    vocabulary = load_vocabulary(spec)
    path = paths.parse(spec, 'tokenizer')
    if folder is None and path.name in TOKENIZERS:
        folder = path.parent
    found = special_tokens.resolve(vocabulary, special, folder=folder, vocab_size=vocab_size, is_given=is_given)
    return Tokenizer(vocabulary, *found)


def load_vocabulary(spec: str) -> Vocabulary:
    """What a tokenizer's file alone says."""
    if spec == 'bytes':
        return Bytes()
    path = paths.parse(spec, 'tokenizer')
    classes = {'.model': SentencePiece, '.json': HuggingFace}
    if path.suffix not in classes:
        raise ValueError(f'tokenizer={spec!r} is unknown; {ALLOWED}.')
    try:
        if (size := paths.check_file(path).stat().st_size) > json_files.MOST_BYTES:
            raise ValueError(f'tokenizer={spec!r} has {size:,} bytes; allowed are {json_files.MOST_BYTES:,}')
        contents = path.read_bytes()
    except OSError as error:
        raise ValueError(f"tokenizer={spec!r} can't be read: {error.strerror}; {ALLOWED}.") from None
    try:
        with _library_errors('it'):
            return classes[path.suffix](contents, f'tokenizer={spec!r}')
    except ImportError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exceptions
        kind = 'SentencePiece' if path.suffix == '.model' else 'Hugging Face tokenizers'
        reason = ' '.join(str(error).split())
        raise ValueError(f"tokenizer={spec!r} isn't a {kind} file: {reason:.300}; {ALLOWED}.") from None


class Bytes:
    """The bytes of UTF-8: ids 0 to 255, and 256 ends a document."""

    vocab_size = 257
    bos = None
    eos = end_by_name = 256
    leading = ()
    fingerprint = 'bytes'

    def find(self, token: str) -> int | None:
        return None

    def name(self, token: int) -> str:
        return bytes([token]).decode('latin1') if token < 256 else ''

    def led_by(self, tokens: tuple[int, ...]) -> dict[str, str]:
        return {}

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: list[int]) -> str:
        """Bytes that are no UTF-8, as a model may write them, become U+FFFD."""
        return bytes(i for i in ids if i < 256).decode(errors='replace')


class SentencePiece:
    """A SentencePiece model."""

    leading = None

    def __init__(self, contents: bytes, where: str = 'the tokenizer'):
        import sentencepiece

        self._where = where
        self._processor = sentencepiece.SentencePieceProcessor()
        replacements.check_sentencepiece(contents)
        self._processor.LoadFromSerializedProto(contents)
        self.vocab_size = self._processor.get_piece_size()
        own = self._processor.bos_id(), self._processor.eos_id()  # -1: none
        self.bos, self.eos = (None if token < 0 else token for token in own)
        self.end_by_name = self.vocab_size if self.eos is None else self.eos
        self.fingerprint = f'sentencepiece-{hashlib.sha256(contents).hexdigest()[:16]}'

    def find(self, token: str) -> int | None:
        found = self._processor.piece_to_id(token)  # that of the unknown piece, if there is no such
        return found if self._processor.id_to_piece(found) == token else None

    def name(self, token: int) -> str:
        return self._processor.id_to_piece(token) if token < self.vocab_size else ''

    def led_by(self, tokens: tuple[int, ...]) -> dict[str, str]:
        return {}

    def encode(self, text: str) -> np.ndarray:
        with _library_errors(self._where):
            return np.asarray(self._processor.encode(text, add_bos=False, add_eos=False), np.int32)

    def decode(self, ids: list[int]) -> str:
        """Tokens that only another file has are left out."""
        with _library_errors(self._where):
            return self._processor.decode([i for i in ids if i < self.vocab_size])


class HuggingFace:
    """A `tokenizers` file."""

    bos = eos = None

    def __init__(self, contents: bytes, where: str = 'the tokenizer'):
        import tokenizers

        self._where = where
        self._contents = json_files.parse(contents, 'it')  # its errors say more than those of `tokenizers`
        replacements.check(self._contents)
        self._tokenizer = tokenizers.Tokenizer.from_str(contents.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # '</s>' in a document is text, not its end
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1  # ids may have holes
        if not 0 < self.vocab_size <= 2 * len(vocabulary) + MOST_HOLES:
            raise ValueError(f'it has {len(vocabulary):,} tokens, and ids up to {self.vocab_size - 1:,}')
        self.end_by_name = next((vocabulary[end] for end in USUAL_ENDS if end in vocabulary), self.vocab_size)
        self.leading = tuple(_leading(self._contents.get('post_processor')))
        if foreign := [token for token in self.leading if not self.name(token)]:
            raise ValueError(f'its post-processor puts {foreign[0]!r} before a text, which is no token')
        self.fingerprint = f'huggingface-{hashlib.sha256(contents).hexdigest()[:16]}'

    def find(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def name(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ''

    def encode(self, text: str) -> np.ndarray:
        with _library_errors(self._where):
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: list[int]) -> str:
        with _library_errors(self._where):
            return self._tokenizer.decode(ids)

    def led_by(self, tokens: tuple[int, ...]) -> dict[str, str]:
        if tokens == self.leading or not all(map(self.name, tokens)):
            return {}
        names = {self.name(token): token for token in tokens}
        single, other = (
            [
                *({'SpecialToken': {'id': name, 'type_id': 0}} for name in names),
                {'Sequence': {'id': text, 'type_id': 0}},
            ]
            for text in 'AB'
        )
        special = {name: {'id': name, 'ids': [token], 'tokens': [name]} for name, token in names.items()}
        processor = dict(type='TemplateProcessing', single=single, pair=single + other, special_tokens=special)
        return {TOKENIZERS[0]: json.dumps({**self._contents, 'post_processor': processor}, ensure_ascii=False)}


@contextlib.contextmanager
def _library_errors(where: str) -> Iterator[None]:
    """What `tokenizers` and SentencePiece raise: also bare Exceptions, and Rust's panics, which are none."""
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == 'PanicException'
        if not is_panic and not isinstance(error, UnicodeError | RuntimeError) and type(error) is not Exception:
            raise
        raise ValueError(
            f'{where} {"panicked" if is_panic else "failed"}: {" ".join(str(error).split()):.200}'
        ) from None


def _leading(processor):
    """The ids that a post-processor puts before a text."""
    match processor:
        case {'type': 'TemplateProcessing', 'single': pieces, 'special_tokens': special}:
            pieces = itertools.takewhile(lambda piece: 'SpecialToken' in piece, pieces)
            return [token for piece in pieces for token in special[piece['SpecialToken']['id']]['ids']]
        case {'type': 'BertProcessing' | 'RobertaProcessing', 'cls': [_, token]}:
            return [token]
        case {'type': 'Sequence', 'processors': parts}:
            return [token for part in reversed(parts) for token in _leading(part)]
    return []
