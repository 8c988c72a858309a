"""What a file of ready tokens is: one record for each of its kinds."""

import pathlib
from typing import NamedTuple

import numpy as np


class TokenFile(NamedTuple):
    """Where the tokens of a file are.

    kind: of `opening.KINDS`.
    header: the bytes that say what it is; of Megatron those of the index.
    offset: of the first token, in bytes.
    num_documents: None where the file doesn't say.
    """

    path: pathlib.Path
    kind: str
    dtype: np.dtype
    offset: int
    num_tokens: int
    header: bytes = b''
    num_documents: int | None = None
