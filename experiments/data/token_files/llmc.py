"""Token files of llm.c: a header of 256 int32, then the tokens.

The header holds a magic number, a version and the number of tokens: 20240520 and 1 for uint16 tokens, those of GPT-2;
20240801 and 7 for uint32, those of Llama 3
(https://github.com/karpathy/llm.c, dev/data/data_common.py).
"""

import pathlib

import numpy as np

from experiments.data.token_files.formats import TokenFile

HEADER_BYTES = 256 * 4
VERSIONS = {20240520: (1, np.dtype('<u2')), 20240801: (7, np.dtype('<u4'))}


def has_magic(beginning: bytes) -> bool:
    return int.from_bytes(beginning[:4], 'little') in VERSIONS


def open_llmc(path: pathlib.Path) -> TokenFile:
    """ValueError for another version, or a number of tokens that the file doesn't have."""
    with open(path, 'rb') as file:
        header = file.read(HEADER_BYTES)
    size, numbers = path.stat().st_size, np.frombuffer(header[: len(header) // 4 * 4], '<i4')
    or_else = (
        'a file of plain 16-bit tokens that begins with these bytes is told from it by leaving out its first token'
    )
    if len(header) < HEADER_BYTES:
        raise ValueError(f'{path} begins as of llm.c, but its header is cut off after {size:,} bytes; {or_else}')
    version, dtype = VERSIONS[int(numbers[0])]
    if numbers[1] != version:
        raise ValueError(f'{path} begins as of llm.c, but its version is {numbers[1]}; allowed: {version}; {or_else}')
    num_tokens = int(numbers[2])
    if HEADER_BYTES + num_tokens * dtype.itemsize != size:
        raise ValueError(
            f'{path} begins as of llm.c, but its header says {num_tokens:,} tokens, and there are'
            f' {(size - HEADER_BYTES) / dtype.itemsize:,g}: it is cut off or damaged; {or_else}'
        )
    return TokenFile(path, 'llmc', dtype, HEADER_BYTES, num_tokens, header)
