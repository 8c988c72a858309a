"""The tokens of a split: a TFDS dataset, tokenised once into a memory-mapped file."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import urllib.parse
from collections.abc import Iterable

import numpy as np
from absl import logging

from experiments.data.documents import INVALID, read_texts
from experiments.data.sources.tfds_dataset import TfdsDataset, folder_name, open_dataset
from experiments.data.tokenizers import Tokenizer
from experiments.files import json_files, paths
from gaussq_jax.atomic_files import new_file

COUNTS = ('num_tokens', 'num_bytes', 'num_documents')  # that the SHA-256 vouches for, as in every version
UNUSUAL, OF_UNUSUAL = ('num_empty', 'num_invalid'), 'unusual_sha256'  # which version 0.1 didn't have


@dataclasses.dataclass(frozen=True, eq=False)
class TokenData:
    """The tokens of one split, each document with what the tokenizer begins and ends it with.

    tokens: (num_tokens,) uint16 or uint32, memory-mapped from a file.
    num_bytes: UTF-8 bytes of the text, ends of documents not counted.
    num_documents: how many documents it holds.
    num_empty, num_invalid: how many of the split's are empty, and how many are not UTF-8; None where version 0.1
      tokenised it, which didn't count them.
    sha256: of the tokens and the counts, as hexadecimal digits.
    """

    tokens: np.memmap
    num_bytes: int
    num_documents: int
    sha256: str
    num_empty: int | None = None
    num_invalid: int | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def bytes_per_token(self) -> float:
        """num_bytes / num_tokens: nats per token divided by it are nats per byte."""
        return self.num_bytes / self.num_tokens


def load_tokens(
    dataset: str,
    split: str,
    tokenizer: Tokenizer,
    *,
    text_feature: str = 'text',
    invalid_text: str = INVALID[0],
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> TokenData:
    """Returns the tokens of one split, tokenising it the first time.

    They are kept in `cache_dir` by dataset, config, version, split, feature, tokenizer and its special tokens, with a
    SHA-256 checked at every load; a damaged file is written anew. A missing `python_stdlib` is written first.

    Args:
      dataset: TFDS name, as 'python_stdlib' or 'wikipedia/20230601.simple', prepared as array_record.
      split: TFDS split, slices allowed: 'train', 'train[:99%]'.
      tokenizer: as from `load_tokenizer`.
      text_feature: the feature that holds the text.
      invalid_text: what becomes of documents that are not UTF-8: 'error'; 'replace', what's wrong becomes U+FFFD;
        or 'skip', they are left out.
      data_dir: root of TFDS datasets. None: where TFDS keeps them (TFDS_DATA_DIR or ~/tensorflow_datasets);
        for `python_stdlib`, `<cache_dir>/tensorflow_datasets`.
      cache_dir: None: the environment variable GAUSSQ_CACHE, or else ~/.cache/gaussq_jax.

    Raises:
      ValueError: a dataset that isn't prepared, or whose features are of classes that are not TFDS's own; a split or
        feature that it lacks, a split without text; another `invalid_text`; for 'error', a document that is not UTF-8,
        with its file and row.

    Example:
      >>> from experiments.data.tokenizers import load_tokenizer
      >>> load_tokens('python_stdlib', 'validation', load_tokenizer('bytes')).tokens.dtype
      dtype('uint16')
    """
    if invalid_text not in INVALID:
        raise ValueError(f'invalid_text={invalid_text!r}; allowed: {", ".join(INVALID)}.')
    cache_dir = cache_dir or os.environ.get('GAUSSQ_CACHE') or '~/.cache/gaussq_jax'
    cache_dir = paths.parse(cache_dir, 'cache_dir')
    builder = open_dataset(dataset, data_dir, cache_dir)
    source = TfdsDataset(builder, split, (text_feature,))
    # Two data_dirs may hold different data under one name and version: the sizes, kept in this file, differ.
    info = pathlib.Path(builder.data_path, 'dataset_info.json').read_bytes()
    fields = (split, text_feature, tokenizer.fingerprint, hashlib.sha256(info).hexdigest()[:12])
    fields += () if invalid_text == INVALID[0] else (invalid_text,)
    fields += (tokenizer.framing,) if tokenizer.framing else ()
    stem = '-'.join(urllib.parse.quote(field, safe='') for field in fields)
    folder = cache_dir / 'tokens' / folder_name(builder)
    dtype = np.dtype('<u2' if tokenizer.num_document_ids <= 2**16 else '<u4')
    data = _read_tokens(folder, stem, dtype)
    if data is None:
        blocks = itertools.chain.from_iterable(map(source.blocks, range(len(source.files))))
        texts = itertools.chain.from_iterable(read_texts(block, invalid_text) for block in blocks)
        _write_tokens(folder, stem, dtype, texts, tokenizer)
        data = _read_tokens(folder, stem, dtype)
    if data is None:
        raise OSError(f'{folder / stem}.tokens was damaged while it was written; is the disk failing?')
    return data


def _write_tokens(
    folder: pathlib.Path, stem: str, dtype: np.dtype, documents: Iterable[tuple[str | None, bool]], tokenizer: Tokenizer
) -> None:
    """Streams the documents into `<stem>.tokens`, then writes `<stem>.json`; both appear when complete."""
    logging.info('Tokenising to %s', folder / stem)
    folder.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(COUNTS, 0)
    unusual = dict.fromkeys(UNUSUAL, 0)
    digest = hashlib.sha256()
    with new_file(folder / f'{stem}.tokens') as partial, partial.open('xb') as file:
        for text, is_valid in documents:
            unusual['num_invalid'] += not is_valid
            unusual['num_empty'] += text == ''
            if text is None:
                continue
            ids = tokenizer.encode_document(text).astype(dtype)
            file.write(ids.data)
            digest.update(ids.data)
            counts['num_tokens'] += len(ids)
            counts['num_bytes'] += len(text.encode())
            counts['num_documents'] += 1
        if not counts['num_bytes']:
            raise ValueError(f'{folder / stem}: there is no text in this split; allowed: splits with text.')
    sha256 = _finish(digest, counts)
    contents = {**counts, 'sha256': sha256, **unusual, OF_UNUSUAL: _sha256_of_unusual(unusual, sha256)}
    json_files.write(folder / f'{stem}.json', contents)


def _read_tokens(folder: pathlib.Path, stem: str, dtype: np.dtype) -> TokenData | None:
    """What `_write_tokens` wrote; None if it isn't there or isn't what it was."""
    tokens_file, json_file = folder / f'{stem}.tokens', folder / f'{stem}.json'
    if not json_file.exists():
        return None
    try:
        contents = json_files.read(json_file, sha256=str, **dict.fromkeys(COUNTS, int))
        sha256, counts = contents['sha256'], {name: contents[name] for name in COUNTS}
        with paths.check_file(tokens_file).open('rb') as file:
            digest = hashlib.file_digest(file, 'sha256')
        if _finish(digest, counts) != sha256:
            raise ValueError('its SHA-256 is another')
        tokens = np.memmap(tokens_file, dtype, mode='r', shape=(counts['num_tokens'],))
        unusual = {name: contents[name] for name in UNUSUAL if name in contents}
        if (unusual or OF_UNUSUAL in contents) and contents.get(OF_UNUSUAL) != _sha256_of_unusual(unusual, sha256):
            raise ValueError(f'its {OF_UNUSUAL} is another')
        return TokenData(tokens, counts['num_bytes'], counts['num_documents'], sha256, **unusual)
    except (OSError, ValueError) as error:
        logging.warning('%s is damaged (%s) and will be written anew', tokens_file, error)
        return None


def _finish(digest, counts: dict[str, int]) -> str:
    """The SHA-256 of the tokens followed by the counts, so that it vouches for both."""
    digest.update(json.dumps(counts, sort_keys=True).encode())
    return digest.hexdigest()


def _sha256_of_unusual(unusual: dict[str, int], sha256: str) -> str:
    return hashlib.sha256(json.dumps({**unusual, 'sha256': sha256}, sort_keys=True).encode()).hexdigest()
