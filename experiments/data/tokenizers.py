"""Tokenizers: a vocabulary, with the tokens that begin and end texts."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.data import special_tokens
from experiments.data.special_tokens import SpecialTokens
from experiments.data.vocabularies import Vocabulary, load_vocabulary
from experiments.files import paths
from experiments.files.foreign_text import printable
from experiments.files.huggingface_names import TOKENIZER_CONFIG, TOKENIZERS


class Tokenizer:
    """A vocabulary with the tokens that begin and end texts.

    Attributes:
      vocabulary: as its file has it.
      special: these.
      remarks: on what files say of them that can't be.
      folder: of the model's files, where a chat template may be; None if there is none.
      vocab_size: ids are in [0, vocab_size).
      fingerprint: names the file, the same on every machine; not the special tokens.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        special: SpecialTokens | None = None,
        remarks: Iterable[str] = (),
        folder: pathlib.Path | None = None,
    ):
        self.vocabulary = vocabulary
        self.special = special or special_tokens.resolve(vocabulary)[0]
        self.remarks, self.folder = tuple(remarks), folder
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
        return max(self.vocabulary.vocab_size, *(token + 1 for token in ends))

    @property
    def before_whole_text(self) -> tuple[int, ...]:
        """What belongs to a text that is scored from its beginning on: the token that its own tokenizer puts there."""
        special = self.special
        is_own = special.before_prompt == (self.vocabulary.leading or ())
        return special.before_prompt if is_own else special.before_document

    @property
    def framing(self) -> str:
        """Names how documents begin and end; empty if as in version 0.1."""
        before, end = self.special.before_document, self.end_of_document
        return '' if (before, end) == ((), self.vocabulary.end_by_name) else f'{",".join(map(str, before))}-{end}'

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids, no special tokens added or recognised."""
        return self.vocabulary.encode(text)

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
        return self.vocabulary.decode([i for i in ids if i not in left_out])

    def describe(self) -> str:
        """Special tokens, for people."""
        text = self.vocabulary.name
        name = lambda token: printable(f'{text(token)[:80]} ({token})') if text(token) else str(token)
        named = lambda tokens: ' or '.join(map(name, tokens))
        before, (end, *others) = self.special.before_document, self.special.eos
        described = f'documents {f"begin with {named(before)} and " if before else ""}end with {named([end])}'
        return f'{described}; so may what is written, or with {named(others)}' if others else described

    def files(self) -> dict[str, Any]:
        """What a folder for transformers says of this, by file: fields of JSON, and the text of a tokenizer.json."""
        special, vocabulary = self.special, self.vocabulary
        tokens = {'bos_token': special.bos, 'eos_token': self.end_of_document}
        names = {field: None if token is None else vocabulary.name(token) or None for field, token in tokens.items()}
        return {
            TOKENIZER_CONFIG: names | {'add_bos_token': special.add_bos},
            **vocabulary.led_by(special.before_prompt),
        }

    def is_said_by(self, folder: pathlib.Path | None) -> bool:
        """Whether the files of a folder say of this vocabulary what this tokenizer does."""
        try:
            said, _ = special_tokens.resolve(self.vocabulary, folder=folder, vocab_size=self.vocab_size, is_given=True)
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
    return Tokenizer(vocabulary, *found, folder)
