"""Token files of nanoGPT: little-endian uint16, and nothing else (https://github.com/karpathy/nanoGPT, data/)."""

import pathlib

import numpy as np

from experiments.data.token_files.formats import TokenFile


def open_nanogpt(path: pathlib.Path) -> TokenFile:
    """ValueError for an odd size, which no file of 16-bit tokens has."""
    size = path.stat().st_size
    if size % 2:
        raise ValueError(f'{path} has {size:,} bytes, an odd number: it is no file of 16-bit tokens, or is cut off')
    return TokenFile(path, 'nanogpt', np.dtype('<u2'), 0, size // 2)
