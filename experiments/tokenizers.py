"""Tokenizers: bytes, a local SentencePiece model, or a local Hugging Face `tokenizers` file."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from experiments import special_tokens
from experiments.special_tokens import USUAL_ENDS, SpecialTokens

ALLOWED = "allowed: 'bytes', a SentencePiece '.model' file, a Hugging Face tokenizers '.json' file"
OF_FOLDERS = ('tokenizer.json', 'tokenizer.model')  # names by which a file is known to be of the folder it is in


class Vocabulary(special_tokens.Vocabulary, Protocol):
    """Text to token ids and back, with what the file says of special tokens.

    fingerprint: names the file, the same on every machine; its contents are hashed into it.
    encode: text to int32 ids, no special tokens added or recognised.
    decode: ids to text.
    name: of a token; '' of one that the file doesn't have.
    """

    fingerprint: str

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: list[int]) -> str: ...

    def name(self, token: int) -> str: ...


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
        self.vocab_size = max(vocabulary.vocab_size, *(token + 1 for token in self._special_ids))
        self.fingerprint = vocabulary.fingerprint

    @property
    def end_of_document(self) -> int:
        """The id that ends a document; `encode` never returns it, `decode` leaves it out."""
        return self.special.eos[0]

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
        """Ids to text, without the special tokens.

        Raises:
          ValueError: for ids outside of the vocabulary.
        """
        ids = [int(i) for i in ids]
        if foreign := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f'ids holds {foreign[0]}; allowed: 0 to {self.vocab_size - 1}.')
        return self._vocabulary.decode([i for i in ids if i not in self._special_ids])

    def describe(self) -> str:
        """Special tokens, for people."""
        name = lambda token: f'{self._vocabulary.name(token)} ({token})' if self._vocabulary.name(token) else str(token)
        named = lambda tokens: ' or '.join(map(name, tokens))
        before, (end, *others) = self.special.before_document, self.special.eos
        text = f'documents {f"begin with {named(before)} and " if before else ""}end with {named([end])}'
        return f'{text}; so may what is written, or with {named(others)}' if others else text

    @property
    def config(self) -> dict[str, Any]:
        """What a tokenizer_config.json says of this, for transformers."""
        special, find = self.special, self._vocabulary.find
        names = {'bos_token': special.bos, 'eos_token': self.end_of_document}
        names = {field: None if token is None else self._vocabulary.name(token) for field, token in names.items()}
        known = {field: name for field, name in names.items() if name is None or find(name) is not None}
        return {**known, 'add_bos_token': special.add_bos}

    @property
    def _special_ids(self):
        special = self.special
        return {*special.eos, *(() if special.bos is None else (special.bos,))}


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
    path = pathlib.Path(spec).expanduser()
    if folder is None and path.name in OF_FOLDERS:
        folder = path.parent
    found = special_tokens.resolve(vocabulary, special, folder=folder, vocab_size=vocab_size, is_given=is_given)
    return Tokenizer(vocabulary, *found)


def load_vocabulary(spec: str) -> Vocabulary:
    """What a tokenizer's file alone says."""
    if spec == 'bytes':
        return Bytes()
    path = pathlib.Path(spec).expanduser()
    classes = {'.model': SentencePiece, '.json': HuggingFace}
    if path.suffix not in classes:
        raise ValueError(f'tokenizer={spec!r} is unknown; {ALLOWED}.')
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise ValueError(f"tokenizer={spec!r} can't be read: {error.strerror}; {ALLOWED}.") from None
    try:
        return classes[path.suffix](contents)
    except ImportError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exceptions
        kind = 'SentencePiece' if path.suffix == '.model' else 'Hugging Face tokenizers'
        raise ValueError(f"tokenizer={spec!r} isn't a {kind} file: {error}; {ALLOWED}.") from None


class Bytes:
    """The bytes of UTF-8: ids 0 to 255, and 256 ends a document."""

    vocab_size = 257
    bos = leading = None
    eos = end_by_name = 256
    says_leading = True
    fingerprint = 'bytes'

    def find(self, token: str) -> int | None:
        return None

    def name(self, token: int) -> str:
        return bytes([token]).decode('latin1') if token < 256 else ''

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: list[int]) -> str:
        """Bytes that are no UTF-8, as a model may write them, become U+FFFD."""
        return bytes(i for i in ids if i < 256).decode(errors='replace')


class SentencePiece:
    """A SentencePiece model."""

    leading = None
    says_leading = False

    def __init__(self, contents: bytes):
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
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

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._processor.encode(text, add_bos=False, add_eos=False), np.int32)

    def decode(self, ids: list[int]) -> str:
        """Tokens that only another file has are left out."""
        return self._processor.decode([i for i in ids if i < self.vocab_size])


class HuggingFace:
    """A `tokenizers` file."""

    bos = eos = None
    says_leading = True

    def __init__(self, contents: bytes):
        import tokenizers

        json.loads(contents)  # its errors say more than those of `tokenizers`
        self._tokenizer = tokenizers.Tokenizer.from_str(contents.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # '</s>' in a document is text, not its end
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have holes
        self.end_by_name = next((vocabulary[end] for end in USUAL_ENDS if end in vocabulary), self.vocab_size)
        self.leading = self._leading()
        self.fingerprint = f'huggingface-{hashlib.sha256(contents).hexdigest()[:16]}'

    def find(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def name(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ''

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def _leading(self):
        """What its post-processor puts before a text."""
        encoding = self._tokenizer.encode('a', add_special_tokens=True)
        mask = [*encoding.special_tokens_mask, 0]
        leading = encoding.ids[: mask.index(0)]
        if len(leading) > 1:
            raise ValueError(f"it puts {len(leading)} tokens before a text, and can't be followed: one at the most")
        return leading[0] if leading else None
