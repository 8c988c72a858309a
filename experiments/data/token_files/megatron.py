"""Token files of Megatron-LM: a .bin of sequences, and beside it an .idx of their lengths and documents.

The index holds, little-endian: 'MMIDIDX' and two zero bytes; uint64 version, 1; uint8 code of the tokens' type; uint64
numbers of sequences and of document boundaries; then int32 lengths of the sequences, int64 their places in bytes, int64
boundaries of the documents, counted in sequences, and in multimodal files int8 modes
(https://github.com/NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py).
"""

import pathlib
import struct

import numpy as np

from experiments.data.token_files.formats import TokenFile

MAGIC = b'MMIDIDX\x00\x00'
HEADER = struct.Struct('<9sQBQQ')
DTYPES = {code: np.dtype(name) for code, name in {1: 'u1', 2: 'i1', 3: '<i2', 4: '<i4', 8: '<u2'}.items()}
OTHER_CODES = {5: 'int64', 6: 'float64', 7: 'float32'}
PIECE = 2**22  # sequences that are checked at a time


def index_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix('.idx')


def open_megatron(path: pathlib.Path) -> TokenFile:
    """ValueError, naming the index, for one that can't be, or that is of another .bin; sequences with gaps between."""
    index = index_of(path)
    with open(index, 'rb') as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f'{index} is no index of Megatron: it must begin with {MAGIC[:7].decode()}')
    _, version, code, num_sequences, num_boundaries = HEADER.unpack(header)
    if version != 1:
        raise ValueError(f'{index} has version {version}; allowed: 1')
    if code not in DTYPES:
        named = OTHER_CODES.get(code, 'none')
        allowed = ', '.join(f'{code} ({dtype.name})' for code, dtype in DTYPES.items())
        raise ValueError(f'{index}: tokens of the type {code} ({named}); allowed: {allowed}')
    size, dtype = index.stat().st_size, DTYPES[code]
    expected = HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if size not in (expected, expected + num_sequences) or not num_sequences or not num_boundaries:
        raise ValueError(
            f'{index} has {size:,} bytes, but {num_sequences:,} sequences and {num_boundaries:,} boundaries of'
            f' documents take {expected:,}: it is cut off or damaged'
        )
    place = HEADER.size
    lengths = np.memmap(index, '<i4', mode='r', offset=place, shape=(num_sequences,))
    pointers = np.memmap(index, '<i8', mode='r', offset=place + 4 * num_sequences, shape=(num_sequences,))
    boundaries = np.memmap(index, '<i8', mode='r', offset=place + 12 * num_sequences, shape=(num_boundaries,))
    num_tokens = _check_sequences(index, lengths, pointers, dtype.itemsize)
    if boundaries[-1] != num_sequences or boundaries[0] != 0:
        raise ValueError(f'{index}: documents are of sequences {boundaries[0]} to {boundaries[-1]}, not all of them')
    if num_tokens * dtype.itemsize != path.stat().st_size:
        raise ValueError(
            f'{path} has {path.stat().st_size:,} bytes, but {index.name} is of {num_tokens:,} tokens of'
            f' {dtype.itemsize} bytes: one of them is cut off, or of another file'
        )
    return TokenFile(path, 'megatron', dtype, 0, num_tokens, header, int(num_boundaries) - 1)


def _check_sequences(index: pathlib.Path, lengths: np.ndarray, pointers: np.ndarray, itemsize: int) -> int:
    """How many tokens there are, one sequence after the other."""
    total = 0
    for begin in range(0, len(lengths), PIECE):
        here = np.asarray(lengths[begin : begin + PIECE], np.int64)
        ends = total + np.cumsum(here)
        if here.min() < 0 or not np.array_equal(pointers[begin : begin + PIECE], (ends - here) * itemsize):
            raise ValueError(f'{index}: its sequences do not lie one after the other; write the dataset anew, merged')
        total = int(ends[-1])
    return total
