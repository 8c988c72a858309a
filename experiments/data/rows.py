"""Sequences of a fixed length out of tokens that lie one after the other, in one file or in many."""

import mmap
import time
from typing import Protocol

import numpy as np

from experiments.data.token_data import TokenData

SLOW_ROW = 1e-5  # seconds, above which rows come from a disk


class Rows(Protocol):
    """All sequences of a TokenData.

    `read(indices)` gives of n of them: 'tokens' (n, T + 1) int32; if they have them, 'mask' (n, T) float32, the weight
    of each target, and 'segments' (n, T) int32, which document each input token is of: 1, 2, ...; 0 is padding.
    """

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


class TextRows:
    """All sequences of T + 1 tokens that begin at multiples of T, so that each token but the first is predicted once.

    Sequence i is tokens[i * T : i * T + T + 1]. Tokens that don't fill a last sequence are left out. Where a `read` has
    taken long, the next one asks the system for all its sequences before it copies the first, so that a disk reads
    them at the same time, not one after the other.

    Args:
      data: the tokens; sequences may begin in one shard and end in another.
      sequence_length: T, 1 to num_tokens - 1.
      segmented: whether to give 'segments': a segment begins at the sequence's first token and at each
        data.document_start.

    Raises:
      ValueError: another sequence_length.

    Example:
      >>> from experiments.data.token_data import in_memory
      >>> TextRows(in_memory(np.arange(100)), 4).read(np.array([0, 20]))['tokens'].tolist()
      [[0, 1, 2, 3, 4], [80, 81, 82, 83, 84]]
    """

    def __init__(self, data: TokenData, sequence_length: int, *, segmented: bool = False):
        if not 1 <= sequence_length < data.num_tokens:
            raise ValueError(
                f'sequence_length={sequence_length}; allowed: 1 to {data.num_tokens - 1}, one less than the tokens'
                f'{data.source and f" of {data.source}"}.'
            )
        self._data, self._length, self._is_segmented = data, sequence_length, segmented
        self._shards = [np.asarray(shard) for shard in data.shards]  # slices of a memmap take much longer
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._mappings = [_mapping(shard) for shard in self._shards]
        self._is_slow = True  # the last `read`; of the first nothing is known

    def __len__(self) -> int:
        return (int(self._ends[-1]) - 1) // self._length

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Of each sequence 'tokens' (n, T + 1) int32; and if segmented 'segments' (n, T) int32.

        Raises:
          OSError: naming the files, for an id that the vocabulary doesn't have, where `data.num_ids` says which it has.
        """
        starts = np.asarray(indices, np.int64) * self._length
        shards = np.searchsorted(self._ends, starts, side='right')
        starts -= (self._ends - [len(shard) for shard in self._shards])[shards]
        tokens = np.empty((len(starts), self._length + 1), np.int32)
        began = time.perf_counter()
        places = list(zip(shards.tolist(), starts.tolist(), strict=True))
        if self._is_slow:
            self._ask_for(places)
        for row, (shard, start) in zip(tokens, places, strict=True):
            piece = self._shards[shard][start : start + len(row)]
            row[: len(piece)] = piece
            filled = len(piece)
            while filled < len(row):
                shard += 1
                piece = self._shards[shard][: len(row) - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
        self._is_slow = time.perf_counter() - began > SLOW_ROW * len(tokens)
        self._data.check_ids(tokens)
        if not self._is_segmented:
            return {'tokens': tokens}
        begins = tokens[:, :-1] == self._data.document_start
        begins[:, 0] = True
        return {'tokens': tokens, 'segments': np.cumsum(begins, axis=1, dtype=np.int32)}

    def _ask_for(self, places: list[tuple[int, int]]) -> None:
        """Lets the system read sequences, of which the shards and the first tokens there are given."""
        for shard, start in places:
            if self._mappings[shard] is not None:
                mapping, offset = self._mappings[shard]
                size = self._shards[shard].itemsize
                begin = offset + start * size
                page = begin // mmap.PAGESIZE * mmap.PAGESIZE
                end = min(begin + (self._length + 1) * size, len(mapping))
                mapping.madvise(mmap.MADV_WILLNEED, page, end - page)


def _mapping(array: np.ndarray) -> tuple[mmap.mmap, int] | None:
    """The memory map that an array lies in, and where; None if it lies elsewhere."""
    base = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if not isinstance(base, mmap.mmap):
        return None
    return base, array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
