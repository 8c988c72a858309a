"""Ready token files, used where they are: which kind each is, and the tokens of both splits."""

import glob
import hashlib
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from experiments.data.preparation.verification import Claim, verify
from experiments.data.sources.source import check_no_splits
from experiments.data.token_data import TokenData, document_start
from experiments.data.token_files.formats import TokenFile
from experiments.data.token_files.llmc import has_magic, open_llmc
from experiments.data.token_files.megatron import index_of, open_megatron
from experiments.data.token_files.nanogpt import open_nanogpt
from experiments.data.tokenizers import Tokenizer
from experiments.files import json_files, open_files, paths

KINDS = {'nanogpt': open_nanogpt, 'llmc': open_llmc, 'megatron': open_megatron}
SAMPLES, SAMPLE_BYTES = 4096, 4096  # of all files together, and each
DECODED = 10**6  # tokens whose text is measured


def is_token_files(dataset: str) -> bool:
    return dataset.endswith('.bin')


def open_token_files(
    dataset: str,
    tokenizer: Tokenizer,
    *,
    train_split: str,
    validation_split: str,
    held_out: float,
    cache_dir: pathlib.Path,
) -> tuple[TokenData, TokenData]:
    """The tokens of both splits, memory-mapped from files of nanoGPT, llm.c or Megatron.

    What identifies them, `sha256`, is of the files' names in their order, their sizes, headers and SAMPLES samples,
    spread evenly, and of which part of them a split is. So it tells other files, and files that were cut off or written
    anew, but not a change of a few bytes between samples. Tokens that the vocabulary doesn't have are found in any
    case: each batch is checked, and once, in the background, all tokens are.

    Args:
      dataset: a path or a pattern that ends in '.bin'; files are in the order of their paths. If it has '{split}',
        that becomes train_split or validation_split; else validation is the last share of all tokens.
      tokenizer: whose ids they are.
      held_out: that share.
      cache_dir: where it is remembered which files were verified.

    Returns:
      Those of training, and of validation. Bytes of text are those of the first DECODED tokens of validation, and so
      many more as there are more tokens.

    Raises:
      ValueError: no file; files of several kinds, or of one that could be two; a file that is cut off or damaged, or
        holds a token that the vocabulary doesn't have, among those decoded; too few tokens for a split.
      OSError: the same token, in files that are small enough to be read at once.

    Example:
      train, validation = open_token_files('data/{split}.bin', tokenizer, train_split='train', validation_split='val',
                                           held_out=0.0, cache_dir=pathlib.Path('cache'))
    """
    if '{split}' in dataset:
        files = [_find(dataset, split) for split in (train_split, validation_split)]
        bounds = [(0, sum(file.num_tokens for file in of)) for of in files]
    else:
        check_no_splits(dataset, train_split, validation_split)
        files = [_find(dataset, '')] * 2
        total = sum(file.num_tokens for file in files[0])
        if not 0 < held_out < 1:
            raise ValueError(f'held_out={held_out}; allowed: between 0 and 1, of {dataset!r}, which has no {{split}}')
        cut = total - math.ceil(held_out * total)
        bounds = [(0, cut), (cut, total)]
    if min(end - start for start, end in bounds) < 2:
        raise ValueError(f'dataset={dataset!r}: {sum(end - start for start, end in bounds)} tokens are too few')
    open_files.allow_more(sum(map(len, files)))
    shards = [_cut(of, *bound) for of, bound in zip(files, bounds)]
    measured, num_bytes = _measure(shards[1], tokenizer, files[1][0].path)
    claims = [[Claim(file.path, '', file.dtype, file.offset, tokenizer.vocab_size) for file in of] for of in files]
    distinct = slice(2 if '{split}' in dataset else 1)
    checks = [verify(of, cache_dir) for of in claims[distinct]]
    digests = [_digest(of) for of in files[distinct]]
    counts = [[file.num_documents for file in of] for of in files]
    return tuple(
        TokenData(
            arrays,
            round(num_bytes * (end - start) / measured),
            sum(counted) if '{split}' in dataset and None not in counted else None,
            _identity(digest, (start, end)),
            document_start(tokenizer),
            num_ids=tokenizer.vocab_size,
            source=dataset,
            verification=verification,
        )
        for arrays, (start, end), counted, digest, verification in zip(
            shards, bounds, counts, (digests * 2)[:2], (checks * 2)[:2], strict=True
        )
    )


def kind_of(path: pathlib.Path) -> str:
    """The name of `KINDS` that a file's beginning and the files beside it say; ValueError if they say two."""
    with open(paths.check_file(path), 'rb') as file:
        is_llmc = has_magic(file.read(4))
    has_index = index_of(path).is_file()
    if is_llmc and has_index:
        raise ValueError(
            f'{path} begins as of llm.c, and {index_of(path).name} beside it says that it is of Megatron: move the one'
            ' that is not meant elsewhere'
        )
    return 'llmc' if is_llmc else 'megatron' if has_index else 'nanogpt'


def _find(dataset: str, split: str) -> list[TokenFile]:
    pattern = os.fspath(paths.parse(dataset.replace('{split}', split), 'dataset'))
    names = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not names:
        raise ValueError(f'dataset={dataset!r}: there is no file {pattern!r}')
    files = []
    for name in names:
        path = pathlib.Path(name)
        files.append(KINDS[kind_of(path)](path))
    if foreign := [file for file in files if file.kind != files[0].kind]:
        raise ValueError(
            f'dataset={dataset!r}: {files[0].path} is of {files[0].kind}, {foreign[0].path} of {foreign[0].kind};'
            ' allowed: files of one kind'
        )
    return files


def _cut(files: list[TokenFile], start: int, end: int) -> tuple[np.ndarray, ...]:
    """Tokens start to end of all of them, as memory-mapped arrays."""
    shards, first = [], 0
    for file in files:
        begin, stop = max(start - first, 0), min(end - first, file.num_tokens)
        if begin < stop:
            offset = file.offset + begin * file.dtype.itemsize
            shards.append(np.memmap(file.path, file.dtype, mode='r', offset=offset, shape=(stop - begin,)))
        first += file.num_tokens
    return tuple(shards)


def _measure(shards: tuple[np.ndarray, ...], tokenizer: Tokenizer, path: pathlib.Path) -> tuple[int, int]:
    """How many tokens were decoded, and how many bytes their text has."""
    ids = []
    for shard in shards:
        ids += shard[: DECODED - len(ids)].tolist()
    if wrong := [of for of in (min(ids), max(ids)) if not 0 <= of < tokenizer.vocab_size]:
        raise ValueError(
            f'{path} holds the token {wrong[-1]}; the vocabulary has 0 to {tokenizer.vocab_size - 1}: these tokens are'
            ' of another tokenizer than config.tokenizer, or the file is damaged'
        )
    with json_files.naming(path):
        num_bytes = len(tokenizer.decode(ids).encode())
        if not num_bytes:
            raise ValueError(f'the first {len(ids):,} tokens of validation have no text')
    return len(ids), num_bytes


def _digest(files: list[TokenFile]) -> Any:
    """The SHA-256 of what identifies these files, to which more can be added."""
    digest = hashlib.sha256()
    each = max(2, SAMPLES // len(files))
    for file in files:
        size = file.path.stat().st_size
        digest.update(json.dumps([file.path.name, file.kind, size, file.header.hex()]).encode())
        with open(file.path, 'rb') as opened:
            for i in range(each):
                opened.seek(max(0, size - SAMPLE_BYTES) * i // (each - 1))
                digest.update(opened.read(SAMPLE_BYTES))
    return digest


def _identity(digest: Any, bound: tuple[int, int]) -> str:
    digest = digest.copy()
    digest.update(json.dumps(bound).encode())
    return digest.hexdigest()
