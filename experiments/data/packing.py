"""Documents to rows: whole ones side by side, as many as fit, each with a number that tells it from the others."""

import numpy as np

from experiments.data.token_data import TokenData


class PackedRows:
    """All rows of the documents of a split, each of `sequence_length + 1` tokens, to be read in any order.

    A document that is longer than a row is cut there; one of which then nothing is learned is left out. The others are
    packed by best fit decreasing: from the longest to the shortest, each goes into the fullest row with room for it.
    What remains of a row is padding. No row is without a token to learn, and the rows are a function of the documents'
    lengths and masks alone.

    Attributes:
      num_documents: how many are packed.
      num_cut: how many of them are longer than a row.
      num_left_out: how many documents have nothing to learn in as many tokens as a row has.
      fullness: the share of all rows' tokens that are of documents.

    Args:
      data: of chats, with `masks` and `document_lengths`.
      sequence_length: T, tokens that are predicted in each row.

    Raises:
      ValueError: data without documents, a length below 1, or nothing to learn.

    Example:
      >>> tokens, mask = np.arange(10, dtype=np.uint16), np.array([0, 0, 1, 1, 0, 1, 0, 1, 0, 1], np.uint8)
      >>> lengths = np.array([4, 2, 2, 2], np.uint32)
      >>> rows = PackedRows(TokenData((tokens,), 9, 4, '', 0, masks=(mask,), document_lengths=lengths), 5)
      >>> for name, values in rows.read(np.arange(2)).items():
      ...     print(name, values.tolist())
      tokens [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 0]]
      mask [[0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0]]
      segments [[1, 1, 1, 1, 2], [1, 1, 2, 2, 0]]

    Source: best fit decreasing, and why whole documents: Ding et al., Fewer Truncations Improve Language Modeling
    (arXiv 2404.10830), section 3.
    """

    def __init__(self, data: TokenData, sequence_length: int):
        if data.masks is None or data.document_lengths is None:
            raise ValueError('these tokens are no chats: nothing says where their documents end and what is learned')
        if sequence_length < 1:
            raise ValueError(f'sequence_length={sequence_length} must be at least 1')
        self.sequence_length, self._data = sequence_length, data
        lengths = np.asarray(data.document_lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        if lengths.sum() != data.num_tokens or sum(map(len, data.masks)) != data.num_tokens:
            raise ValueError(f'{data.num_tokens:,} tokens, but documents of {lengths.sum():,}')
        self._shard_starts = np.cumsum([0, *map(len, data.shards)])
        kept = np.minimum(lengths, sequence_length + 1)
        packed = np.flatnonzero(self._teach(starts, kept))
        if not len(packed):
            raise ValueError(
                f'{f"{data.source}: " * bool(data.source)}none of {len(lengths):,} documents has a token to learn among'
                f' its first sequence_length + 1 = {sequence_length + 1}: give a larger --config.sequence_length'
            )
        rows = best_fit_decreasing(kept[packed], sequence_length + 1)
        order = np.argsort(rows, kind='stable')
        self._starts, self._lengths = starts[packed][order], kept[packed][order]
        self._first = np.searchsorted(rows[order], np.arange(rows.max() + 2))  # of each row, and the end of the last
        self.num_documents, self.num_left_out = len(packed), len(lengths) - len(packed)
        self.num_cut = int(np.sum(lengths[packed] > sequence_length + 1))
        self.fullness = float(kept[packed].sum() / (len(self) * (sequence_length + 1)))

    def __len__(self) -> int:
        return len(self._first) - 1

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these indices: 'tokens' (n, T + 1) int32, 'mask' (n, T) float32, 'segments' (n, T) int32.

        mask is 1 where the next token is learned: none of padding, and not the first one of a document.

        Raises:
          OSError: as of `TokenData.check_ids`.
        """
        shape = len(indices), self.sequence_length + 1
        tokens, mask, segments = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, np.int32)
        for row, index in enumerate(indices):
            at = 0
            for number, document in enumerate(range(self._first[index], self._first[index + 1]), 1):
                start, length = self._starts[document], self._lengths[document]
                end = at + length
                tokens[row, at:end] = self._slice(self._data.shards, start, length)
                mask[row, at + 1 : end] = self._slice(self._data.masks, start, length)[1:]
                segments[row, at:end] = number
                at = end
        self._data.check_ids(tokens)
        return {'tokens': tokens, 'mask': mask[:, 1:], 'segments': segments[:, :-1]}

    def describe(self) -> str:
        """How documents lie in rows, for people."""
        told = (
            f'{self.num_documents:,} documents in {len(self):,} rows of {self.sequence_length + 1:,} tokens,'
            f' {self.fullness:.1%} full'
        )
        if self.num_cut:
            told += f'; {self.num_cut:,} longer documents are cut'
        if self.num_left_out:
            told += f'; {self.num_left_out:,} with nothing to learn there are left out'
        return told

    def _teach(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Of each document, whether a token is learned of so many at its beginning, the very first left out."""
        teach = np.zeros(len(starts), bool)
        for mask, begin, end in zip(self._data.masks, self._shard_starts, self._shard_starts[1:]):
            first, last = np.maximum(starts + 1, begin) - begin, np.minimum(starts + lengths, end) - begin
            (here,) = np.nonzero(first < last)
            edges = np.stack([first[here], last[here]], axis=1).ravel()
            if len(here):
                teach[here] |= np.maximum.reduceat(mask, edges[: -1 if edges[-1] == len(mask) else None])[::2] > 0
        return teach

    def _slice(self, arrays: tuple[np.ndarray, ...], start: int, length: int) -> np.ndarray:
        """So many of the numbers of arrays that lie one after the other."""
        shard = np.searchsorted(self._shard_starts, start, side='right') - 1
        start = start - self._shard_starts[shard]
        found = arrays[shard][start : start + length]
        while len(found) < length:
            shard += 1
            found = np.concatenate([found, arrays[shard][: length - len(found)]])
        return found


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each document, if each, from the longest on, goes into the fullest row that has room for it.

    Documents of one length are placed at once: where they go, a row of room r takes r // length of them.

    Args:
      lengths: (n,) integers, 1 to capacity.
      capacity: tokens of a row.

    Returns:
      An int64 array (n,), rows counted from 0. Documents of one length keep their order.

    Example:
      >>> best_fit_decreasing(np.array([2, 6, 3, 5, 2]), 8)
      array([0, 0, 1, 1, 2])
    """
    order = np.argsort(-lengths, kind='stable')
    values, firsts = np.unique(-lengths[order], return_index=True)
    rows, num_rows = np.empty(len(lengths), np.int64), 0
    with_room: dict[int, np.ndarray] = {}  # tokens that are left -> the rows that have as many
    rooms = 0  # bit r: with_room[r] is there

    for length, at, end in zip((-values).tolist(), firsts.tolist(), [*firsts.tolist()[1:], len(lengths)]):
        while at < end:
            if fitting := rooms >> length:
                room = length + (fitting & -fitting).bit_length() - 1
                candidates = with_room.pop(room)
                rooms ^= 1 << room
            else:
                room = capacity
                candidates = np.arange(num_rows, num_rows + -(-(end - at) // (capacity // length)))
                num_rows += len(candidates)
            each = room // length
            placed = min(end - at, len(candidates) * each)
            rows[order[at : at + placed]] = np.repeat(candidates, each)[:placed]
            at += placed
            filled, rest = divmod(placed, each)
            parts = {room - each * length: candidates[:filled]}
            parts[room] = candidates[filled + bool(rest) :]
            if rest:
                parts[room - rest * length] = candidates[filled : filled + 1]
            for left, some in parts.items():
                if left and len(some):
                    with_room[left] = np.concatenate([with_room[left], some]) if left in with_room else some
                    rooms |= 1 << left
    return rows
