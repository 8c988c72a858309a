"""Tokenizers: bytes, a local SentencePiece model, or a local Hugging Face `tokenizers` file."""

import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np

ALLOWED = "allowed: 'bytes', a SentencePiece '.model' file, a Hugging Face tokenizers '.json' file"

# What Hugging Face tokenizers call the end of a document; the first that is in the vocabulary is taken.
END_OF_DOCUMENT_TOKENS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')


class Tokenizer(Protocol):
    """Text to token ids and back.

    vocab_size: ids are in [0, vocab_size).
    end_of_document: the id that ends a document; `encode` never returns it, `decode` leaves it out.
    fingerprint: names the tokenizer, the same on every machine; file contents are hashed into it.
    encode: text to int32 ids, no special tokens added or recognised.
    decode: ids to text; ids outside of the vocabulary are a ValueError.
    """

    vocab_size: int
    end_of_document: int
    fingerprint: str

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Iterable[int]) -> str: ...


def load_tokenizer(spec: str) -> Tokenizer:
    """Returns the tokenizer that `spec` names.

    Args:
      spec: 'bytes', or the path of a SentencePiece '.model' or Hugging Face `tokenizers` '.json' file.

    Raises:
      ValueError: another spec, or a file that is missing or isn't what its ending says.

    Example:
      >>> tokenizer = load_tokenizer('bytes')
      >>> tokenizer.decode(tokenizer.encode('naïve'))
      'naïve'
    """
    if spec == 'bytes':
        return ByteTokenizer()
    path = pathlib.Path(spec).expanduser()
    classes = {'.model': SentencePieceTokenizer, '.json': HuggingFaceTokenizer}
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


class ByteTokenizer:
    """The bytes of UTF-8: ids 0 to 255, and 256 ends a document."""

    vocab_size = 257
    end_of_document = 256
    fingerprint = 'bytes'

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """As `Tokenizer.decode`; bytes that are no UTF-8, as a model may write them, become U+FFFD."""
        return bytes(_without_end_of_document(self, ids)).decode(errors='replace')


class SentencePieceTokenizer:
    """A SentencePiece model; its end-of-sentence piece ends a document, or one more id where it has none."""

    def __init__(self, contents: bytes):
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(contents)
        pieces = self._processor.get_piece_size()
        end_of_sentence = self._processor.eos_id()  # -1: none
        self.end_of_document = end_of_sentence if end_of_sentence >= 0 else pieces
        self.vocab_size = max(pieces, self.end_of_document + 1)
        self.fingerprint = f'sentencepiece-{hashlib.sha256(contents).hexdigest()[:16]}'

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._processor.encode(text, add_bos=False, add_eos=False), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode(_without_end_of_document(self, ids))


class HuggingFaceTokenizer:
    """A `tokenizers` file; an END_OF_DOCUMENT_TOKENS ends a document, or one more id where it has none."""

    def __init__(self, contents: bytes):
        import tokenizers

        json.loads(contents)  # its errors say more than those of `tokenizers`
        self._tokenizer = tokenizers.Tokenizer.from_str(contents.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # '</s>' in a document is text, not its end
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        largest_id = max(vocabulary.values())  # ids may have holes
        self.end_of_document = next(
            (vocabulary[token] for token in END_OF_DOCUMENT_TOKENS if token in vocabulary), largest_id + 1
        )
        self.vocab_size = max(largest_id, self.end_of_document) + 1
        self.fingerprint = f'huggingface-{hashlib.sha256(contents).hexdigest()[:16]}'

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(_without_end_of_document(self, ids))


def _without_end_of_document(tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
    ids = [int(i) for i in ids]
    foreign = [i for i in ids if not 0 <= i < tokenizer.vocab_size]
    if foreign:
        raise ValueError(f'ids holds {foreign[0]}; allowed: 0 to {tokenizer.vocab_size - 1}.')
    return [i for i in ids if i != tokenizer.end_of_document]
