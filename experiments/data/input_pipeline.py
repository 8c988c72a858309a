"""Text to batches of tokens: a TFDS dataset, tokenised once into a memory-mapped array, read by Grain.

    data = load_tokens('python_stdlib', 'train', load_tokenizer('bytes'))
    batches = train_iterator(data.tokens, global_batch_size=32, sequence_length=256, seed=0)
    next(batches)['tokens']                        # (32, 257) int32: inputs [:, :-1], targets [:, 1:]

Sequence i is tokens[i * T : i * T + T + 1], T the sequence length: one more token than inputs, so that each
token but the first is predicted once. Tokens that don't fill a last sequence are left out.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from experiments.data.datasets import feature_classes, python_stdlib
from experiments.data.tokenizers import Tokenizer
from experiments.files import json_files, paths
from experiments.files.atomic_files import new_file, replace_file

INVALID = ('error', 'replace', 'skip')  # what becomes of documents that are not UTF-8
COUNTS = ('num_tokens', 'num_bytes', 'num_documents')  # that the SHA-256 vouches for, as in every version
UNUSUAL, OF_UNUSUAL = ('num_empty', 'num_invalid'), 'unusual_sha256'  # which version 0.1 didn't have
# Reading a batch is copying rows out of a memory map: one thread, two batches ahead.
READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


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
    builder = _open_dataset(dataset, data_dir, cache_dir)
    if text_feature not in builder.info.features:
        raise ValueError(
            f'text_feature={text_feature!r}: {builder.info.full_name} has no such feature in {builder.data_path}; '
            f'it has {sorted(builder.info.features)}.'
        )
    # Two data_dirs may hold different data under one name and version: the sizes, kept in this file, differ.
    info = pathlib.Path(builder.data_path, 'dataset_info.json').read_bytes()
    fields = (split, text_feature, tokenizer.fingerprint, hashlib.sha256(info).hexdigest()[:12])
    fields += () if invalid_text == INVALID[0] else (invalid_text,)
    fields += (tokenizer.framing,) if tokenizer.framing else ()
    stem = '-'.join(urllib.parse.quote(field, safe='') for field in fields)
    folder = cache_dir / 'tokens' / _folder_name(builder)
    dtype = np.dtype('<u2' if tokenizer.num_document_ids <= 2**16 else '<u4')
    data = _read_tokens(folder, stem, dtype)
    if data is None:
        _write_tokens(folder, stem, dtype, _documents(builder, split, text_feature, invalid_text), tokenizer)
        data = _read_tokens(folder, stem, dtype)
    if data is None:
        raise OSError(f'{folder / stem}.tokens was damaged while it was written; is the disk failing?')
    return data


def train_iterator(
    tokens: np.ndarray,
    *,
    global_batch_size: int,
    sequence_length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an endless iterator over shuffled batches, this process's rows of each.

    The sequences of an epoch are a random permutation of all, another one each epoch; this endless stream is
    cut into batches, so that a batch may end one epoch and begin the next, and no sequence is left out. The
    global batch of a step is a function of (tokens, global_batch_size, sequence_length, seed, step) only.
    Process p of P has its rows [p G / P, (p + 1) G / P), G the global batch size.

    Args:
      tokens: (num_tokens,) integers.
      global_batch_size: sequences in a step, over all processes.
      sequence_length: T, tokens that are predicted in each sequence.
      seed: any non-negative integer.
      process_index, process_count: as jax.process_index() and jax.process_count().

    Returns:
      A Grain iterator over {'tokens': (G / P, T + 1) int32}. `get_state()` is a small dict for a checkpoint,
      `set_state(state)` goes there, and `grain.experimental.set_next_index(iterator, step)` to any step;
      `close()` ends its thread.

    Raises:
      ValueError: sizes that aren't positive, don't divide, or exceed the data; a negative seed.

    Example:
      >>> batches = train_iterator(np.arange(100), global_batch_size=2, sequence_length=8, seed=0)
      >>> next(batches)['tokens'].shape
      (2, 9)
    """
    if seed < 0:
        raise ValueError(f'seed={seed}; allowed: non-negative integers.')
    rows = _rows_of_process(global_batch_size, process_index, process_count)
    sequences = _sequences(tokens, sequence_length)
    # Grain shuffles epoch e with seed + e: spread the seeds, or seed 1 repeats seed 0, an epoch ahead.
    shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    dataset = (
        grain.MapDataset.range(len(sequences))
        .shuffle(shuffle_seed)
        .repeat()
        .batch(global_batch_size, drop_remainder=True)  # of an endless stream: else its length overflows at size 1
        .map(lambda indices: {'tokens': sequences[indices[rows]].astype(np.int32)})
    )
    return iter(dataset.to_iter_dataset(READ_OPTIONS))


def validation_batches(
    tokens: np.ndarray,
    *,
    global_batch_size: int,
    sequence_length: int,
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Returns the batches of one pass over the sequences in order, this process's rows of each.

    The last batch is filled up with rows of zeros, and mask says so: sum(mask * loss) / sum(mask) over all
    batches is the mean over all predicted tokens.

    Args:
      tokens, global_batch_size, sequence_length, process_index, process_count: as in `train_iterator`.
      max_batches: None for all sequences, or how many batches at the most: of so many sequences, spread evenly.

    Returns:
      An iterable, the same at each pass, over {'tokens': (G / P, T + 1) int32, 'mask': (G / P, T) float32}.

    Raises:
      ValueError: sizes that aren't positive, don't divide, or exceed the data.

    Example:
      >>> batches = validation_batches(np.arange(100), global_batch_size=8, sequence_length=9)
      >>> [int(batch['mask'].sum()) // 9 for batch in batches]
      [8, 3]
    """
    rows = _rows_of_process(global_batch_size, process_index, process_count)
    sequences = _sequences(tokens, sequence_length)
    count = len(sequences)
    if max_batches is not None:
        if max_batches < 1:
            raise ValueError(f'max_batches={max_batches}; allowed: None or a positive integer.')
        count = min(count, max_batches * global_batch_size)
    chosen = np.arange(count) * len(sequences) // count
    num_batches = -(-count // global_batch_size)

    def read(batch: int) -> dict[str, np.ndarray]:
        start = batch * global_batch_size
        block = sequences[chosen[start + rows.start : start + rows.stop]]
        size = rows.stop - rows.start
        padded = np.zeros((size, sequence_length + 1), np.int32)
        padded[: len(block)] = block
        mask = np.zeros((size, sequence_length), np.float32)
        mask[: len(block)] = 1
        return {'tokens': padded, 'mask': mask}

    return grain.MapDataset.range(num_batches).map(read).to_iter_dataset(READ_OPTIONS)


def _rows_of_process(global_batch_size: int, process_index: int, process_count: int) -> slice:
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index={process_index}; allowed: 0 to {process_count - 1}, {process_count=}.')
    if global_batch_size < 1 or global_batch_size % process_count:
        raise ValueError(f'global_batch_size={global_batch_size}; allowed: positive multiples of {process_count=}.')
    size = global_batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _sequences(tokens: np.ndarray, sequence_length: int) -> np.ndarray:
    """A view of all sequences, (num_sequences, sequence_length + 1); nothing is read yet."""
    if not 1 <= sequence_length < len(tokens):
        raise ValueError(
            f'sequence_length={sequence_length}; allowed: 1 to {len(tokens) - 1}, one less than the tokens.'
        )
    return np.lib.stride_tricks.sliding_window_view(tokens, sequence_length + 1)[::sequence_length]


def _open_dataset(
    dataset: str, data_dir: str | os.PathLike | None, cache_dir: pathlib.Path
) -> tfds.core.DatasetBuilder:
    """The builder of a prepared dataset; any way in which TFDS can't give it becomes one ValueError."""
    name = dataset.split('/')[0].split(':')[0]
    is_python_stdlib = name == python_stdlib.NAME
    if data_dir is None:
        data_dir = cache_dir / 'tensorflow_datasets' if is_python_stdlib else tfds.core.constants.DATA_DIR
    data_dir = paths.parse(data_dir, 'data_dir')
    feature_classes.check(data_dir / name)
    if dataset in (python_stdlib.NAME, f'{python_stdlib.NAME}/{python_stdlib.CONFIG}'):
        return python_stdlib.prepare(data_dir)
    reason = ''
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
        if builder.data_path.exists() and builder.is_prepared():
            return builder
    except Exception as error:  # TFDS raises ValueError, AssertionError, RuntimeError, ImportError, …
        reason = f' ({str(error).strip().splitlines()[0][:200]})' if str(error).strip() else ''
    if is_python_stdlib:
        remedy = f'This Python writes {python_stdlib.NAME}/{python_stdlib.CONFIG} and no other.'
    else:
        remedy = (
            f"Prepare it once with 'tfds build {dataset} --data_dir={data_dir} --file_format=array_record' "
            "(for some datasets that needs TensorFlow; reading doesn't)."
        )
    raise ValueError(f'dataset={dataset!r} is not prepared in data_dir={str(data_dir)!r}{reason}. {remedy}')


def _folder_name(builder: tfds.core.DatasetBuilder) -> str:
    """Of its tokens, which its dataset_info.json must not put elsewhere."""
    name = builder.info.full_name
    if not all(re.fullmatch(r'[\w.+=-]+', part) and part.strip('.') for part in name.split('/')):
        raise ValueError(f'{builder.data_path}: dataset_info.json names the dataset {name!r:.80}, which is no name')
    return name


class _Document(NamedTuple):
    """A document's text, None where it is left out, and whether it is UTF-8."""

    text: str | None
    is_valid: bool = True


def _documents(builder: tfds.core.DatasetBuilder, split: str, text_feature: str, invalid: str) -> Iterator[_Document]:
    name = builder.info.full_name
    try:
        source: Sequence = builder.as_data_source(split)
    except NotImplementedError:
        raise ValueError(
            f'dataset {name} in {builder.data_path} is written as {builder.info.file_format.value}; allowed: '
            'array_record. Prepare it in another data_dir with --file_format=array_record.'
        ) from None
    except (KeyError, ValueError):
        splits = sorted(builder.info.splits)
        raise ValueError(f'split={split!r}: {name} in {builder.data_path} has {splits}, and slices of them.') from None
    for start in range(0, len(source), 128):
        rows = range(start, min(start + 128, len(source)))
        try:
            examples = source.__getitems__(rows)
        except Exception as error:  # ArrayRecord raises RuntimeErrors
            reason = ' '.join(str(error).split())[:200]
            raise ValueError(f'{_place(builder, split, start)} and after it: damaged, {reason}') from None
        for index, example in enumerate(examples, start):
            text = example[text_feature]
            if not isinstance(text, bytes | str):
                kind = type(text).__name__
                raise ValueError(f'text_feature={text_feature!r}: {name} has {kind} there; allowed: text.')
            yield _decode(text, invalid, lambda index=index: _place(builder, split, index))


def _decode(text: bytes | str, invalid: str, place: Callable[[], str]) -> _Document:
    if isinstance(text, str):
        return _Document(text)
    try:
        return _Document(text.decode())
    except UnicodeDecodeError as error:
        if invalid == 'error':
            raise ValueError(
                f'{place()}: the document is not UTF-8, byte {error.start} is 0x{text[error.start]:02x};'
                ' --config.invalid_text=replace puts U+FFFD there, --config.invalid_text=skip leaves it out.'
            ) from None
        return _Document(text.decode(errors='replace') if invalid == 'replace' else None, is_valid=False)


def _place(builder: tfds.core.DatasetBuilder, split: str, index: int) -> str:
    """The file and the row, counted from 0, of a document of a split, which may be a slice."""
    for part in builder.info.splits[split].file_instructions:
        if index < part.examples_in_shard if part.take < 0 else index < part.take:
            return f'{part.filename}, row {part.skip + index}'
        index -= part.examples_in_shard if part.take < 0 else part.take
    return f'{builder.info.full_name}, {split}, document {index}'


def _write_tokens(
    folder: pathlib.Path, stem: str, dtype: np.dtype, documents: Iterator[_Document], tokenizer: Tokenizer
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
    replace_file(folder / f'{stem}.json', json.dumps(contents, indent=2) + '\n')


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
