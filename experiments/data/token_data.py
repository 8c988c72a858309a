"""The tokens of one split, in one file or in many."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class TokenData:
    """The tokens of one split, documents one after the other, each with what the tokenizer begins and ends it with.

    Attributes:
      shards: 1-D arrays of uint16, uint32 or int32, memory-mapped from files: the tokens are theirs, in order.
      num_bytes: UTF-8 bytes of the text that is learned, ends of documents not counted.
      num_documents: how many documents it holds; None where the files don't say.
      sha256: names what it holds, as hexadecimal digits: of the tokens and the counts.
      document_start: the token that every document begins with; where none leads them, the end of the one before.
      num_empty, num_invalid: how many of the split's documents are empty, and how many are not UTF-8; None if unknown.
      masks: of chats, for each shard an array of as many uint8: 1 where a token is learned; None where all are.
      document_lengths: of chats, how many tokens each document has, in their order; None of text.
      raise_if_damaged: raises OSError, naming the file, once a shard is known to be another than the manifest says.
    """

    shards: tuple[np.ndarray, ...]
    num_bytes: int
    num_documents: int | None
    sha256: str
    document_start: int
    num_empty: int | None = None
    num_invalid: int | None = None
    masks: tuple[np.ndarray, ...] | None = None
    document_lengths: np.ndarray | None = None
    num_learned: int | None = None
    raise_if_damaged: Callable[[], Any] = lambda: None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.shards))

    @property
    def bytes_per_token(self) -> float:
        """num_bytes by learned tokens: nats per token divided by it are nats per byte."""
        return self.num_bytes / (self.num_tokens if self.num_learned is None else self.num_learned)
