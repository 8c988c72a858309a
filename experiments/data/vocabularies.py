"""What a tokenizer's file alone says: bytes, a local SentencePiece model, or a local Hugging Face `tokenizers` file."""

import abc
import contextlib
import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data import replacements
from experiments.files import json_files, paths
from experiments.files.huggingface_names import TOKENIZERS

CHATS = 'their tokenizer is a tokenizer.json of Hugging Face'
USUAL_ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')
MOST_HOLES = 2**16  # between ids, beside one a token
ALLOWED = "allowed: 'bytes', a SentencePiece '.model' file, a Hugging Face tokenizers '.json' file"


class Vocabulary(abc.ABC):
    """Text to token ids and back, with what a tokenizer's own file says of special tokens.

    vocab_size: ids are in [0, vocab_size).
    fingerprint: names the file, the same on every machine; its contents are hashed into it.
    end_by_name: the first of USUAL_ENDS that it has; `vocab_size`, one more, if none.
    bos, eos: ids of its own; None if it says nothing of them.
    leading: the ids that it puts before every text; None if the file doesn't say.
    contents: of the file, of which SentencePiece's is bytes and that of `tokenizers` an object of JSON.
    """

    vocab_size: int
    fingerprint: str
    end_by_name: int
    bos: int | None = None
    eos: int | None = None
    leading: tuple[int, ...] | None = None
    contents: Any = None

    @abc.abstractmethod
    def find(self, token: str) -> int | None:
        """The id of a token, None if it isn't there."""

    @abc.abstractmethod
    def name(self, token: int) -> str:
        """The token of an id, '' if the file has no such."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids, no special tokens added or recognised."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, faster."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Ids to text."""

    def encode_with_offsets(self, text: str, *, special: bool) -> tuple[np.ndarray, np.ndarray]:
        """Text to int32 ids (n,), and where in the text each token begins and ends, (n, 2) indices of characters.

        Args:
          text: any.
          special: whether special tokens of the vocabulary are recognised in it, as those of a chat template; none is
            added. Else as `encode`.

        Raises:
          ValueError: a vocabulary that isn't of `tokenizers`.
        """
        raise ValueError(f'tokenizer {self.fingerprint} has no places of tokens in texts, which chats need: {CHATS}')

    @property
    def special_names(self) -> tuple[str, ...]:
        """The texts that are special tokens where these are recognised."""
        return ()

    @property
    def added_names(self) -> tuple[str, ...]:
        """The texts that are a token wherever they are, as others are added to the vocabulary; special ones, too."""
        return ()

    def normalize(self, text: str) -> str:
        """A text as it is before it is cut into tokens."""
        return text

    def led_by(self, tokens: tuple[int, ...]) -> dict[str, str]:
        """A tokenizer.json that puts these tokens before every text, by its name; {} if none has to be written."""
        return {}


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


class Bytes(Vocabulary):
    """The bytes of UTF-8: ids 0 to 255, and 256 ends a document."""

    vocab_size = 257
    eos = end_by_name = 256
    leading = ()
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


class SentencePiece(Vocabulary):
    """A SentencePiece model."""

    def __init__(self, contents: bytes, where: str = 'the tokenizer'):
        import sentencepiece

        self._where = where
        self.contents = contents
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

    def encode(self, text: str) -> np.ndarray:
        with _library_errors(self._where):
            return np.asarray(self._processor.encode(text, add_bos=False, add_eos=False), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _library_errors(self._where):
            encoded = self._processor.encode(list(texts), add_bos=False, add_eos=False, num_threads=1)
        return [np.asarray(ids, np.int32) for ids in encoded]

    def decode(self, ids: list[int]) -> str:
        """Tokens that only another file has are left out."""
        with _library_errors(self._where):
            return self._processor.decode([i for i in ids if i < self.vocab_size])


class HuggingFace(Vocabulary):
    """A `tokenizers` file."""

    def __init__(self, contents: bytes, where: str = 'the tokenizer'):
        self._where = where
        self.contents = json_files.parse(contents, 'it')  # its errors say more than those of `tokenizers`
        replacements.check(self.contents)
        self._open(contents.decode())
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1  # ids may have holes
        if not 0 < self.vocab_size <= 2 * len(vocabulary) + MOST_HOLES:
            raise ValueError(f'it has {len(vocabulary):,} tokens, and ids up to {self.vocab_size - 1:,}')
        self.end_by_name = next((vocabulary[end] for end in USUAL_ENDS if end in vocabulary), self.vocab_size)
        self.leading = tuple(_leading(self.contents.get('post_processor')))
        if foreign := [token for token in self.leading if not self.name(token)]:
            raise ValueError(f'its post-processor puts {foreign[0]!r} before a text, which is no token')
        self.fingerprint = f'huggingface-{hashlib.sha256(contents).hexdigest()[:16]}'

    def _open(self, text: str) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, 'dropout', None):  # of BPE: a text would have other tokens each time
            self._tokenizer.model.dropout = None
        self._tokenizer.encode_special_tokens = True  # '</s>' in a document is text, not its end
        self._recognising = None  # one to which it is its end, made when it is needed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_tokenizer': self._tokenizer.to_str(), '_recognising': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open(state['_tokenizer'])  # whose own pickle forgets `encode_special_tokens`

    def find(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def name(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ''

    def encode(self, text: str) -> np.ndarray:
        with _library_errors(self._where):
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _library_errors(self._where):
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encoded]

    def decode(self, ids: list[int]) -> str:
        with _library_errors(self._where):
            return self._tokenizer.decode(ids)

    def encode_with_offsets(self, text: str, *, special: bool) -> tuple[np.ndarray, np.ndarray]:
        if special and self._recognising is None:
            self._recognising = copy.deepcopy(self._tokenizer)
            self._recognising.encode_special_tokens = False
        with _library_errors(self._where):
            tokenizer = self._recognising if special else self._tokenizer
            encoding = tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2)

    @property
    def special_names(self) -> tuple[str, ...]:
        return tuple(token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special)

    @property
    def added_names(self) -> tuple[str, ...]:
        return tuple(token.content for token in self._tokenizer.get_added_tokens_decoder().values())

    def normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        with _library_errors(self._where):
            return text if normalizer is None else normalizer.normalize_str(text)

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
        return {TOKENIZERS[0]: json.dumps({**self.contents, 'post_processor': processor}, ensure_ascii=False)}


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
