"""How long batches take to be read, beside a plain copy of as many tokens out of a memory map."""

import mmap
import os
import pathlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from experiments.data.batching import train_iterator
from experiments.data.rows import TextRows
from experiments.data.shuffling import shuffled
from experiments.data.token_data import TokenData, in_memory
from experiments.files import open_files, paths
from gaussq_jax.text_table import text_table

BATCH_SIZE, LENGTH = 512, 2048
AHEAD = 4  # batches that the iterator may have read beyond the one that it has given
WAYS = ('a plain copy', 'rows', 'batches')


def benchmark(tokens: str, turns: int | None) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_batches` and its table."""
    results = time_batches(paths.parse(tokens, '--tokens'), turns or timing.DEFAULT_TURNS)
    cells = [
        (f'{name}, {cache}', f'{row["seconds"] * 1e3:.2f} ms', f'{row["ratio"]:.2f}', f'{row["tokens_per_second"]:.3g}')
        for cache, ways in results['caches'].items()
        for name, row in ways.items()
    ]
    title = f'{BATCH_SIZE} x {LENGTH + 1} tokens of {results["bytes"] / 1e9:.1f} GB in {tokens}'
    table = text_table([('a batch', 'seconds', 'a copy to it', 'tokens/s'), *cells])
    opened, peak = (f'{results[name] / 1e6:,.0f} MB' for name in ('opened_bytes', 'peak_bytes'))
    told = f'opened in {results["open_seconds"]:.2g} s, with {opened} of memory; at most {peak}, with what is mapped'
    yield results, f'{title}\n{table}\n{told}'


def time_batches(folder: pathlib.Path, turns: int) -> dict[str, Any]:
    """Reads batches of shuffled sequences: by copies in a loop, by TextRows, and as training does, by its iterator.

    Each way reads `turns` batches, one after the other. Cold, the files' pages are dropped from the page cache before;
    warm, the same batches have been read just before.

    Args:
      folder: with files *.tokens, of uint16.
      turns: batches of each kind.

    Returns:
      What `timing.provenance` says, 'bytes', 'open_seconds', the resident 'opened_bytes' and 'peak_bytes', and
      'caches': {'cold' or 'warm': {way: 'seconds' a batch, the 'ratio' of a copy's to it, 'tokens_per_second'}}.

    Raises:
      ValueError: no such files, or too few tokens for a sequence.
    """
    files = sorted(folder.glob('*.tokens'))
    if not files:
        raise ValueError(f'{folder} has no files *.tokens')
    start = time.perf_counter()
    open_files.allow_more(len(files))
    mapped = [_map(path) for path in files]
    data = in_memory(np.empty(0), shards=tuple(np.frombuffer(of, '<u2') for of in mapped))
    rows = TextRows(data, LENGTH)
    batches = train_iterator(rows, global_batch_size=BATCH_SIZE, seed=0)
    open_seconds, opened_bytes = time.perf_counter() - start, _resident_bytes()
    positions = np.arange(BATCH_SIZE * turns).reshape(turns, -1)
    caches = {}
    for cache in ('cold', 'warm'):
        seconds = {}
        for name, read in zip(WAYS, (_plain_copy(data), rows.read, lambda indices: next(batches)), strict=True):
            of_turns = [shuffled(of_turn, len(rows), len(seconds)) for of_turn in positions]
            if cache == 'cold':
                _drop(files, mapped)
            elif name == WAYS[-1]:  # what it is about to read, and what it reads ahead of that
                state = batches.get_state()
                for _ in range(turns + AHEAD):
                    next(batches)
                batches.set_state(state)
            else:
                for indices in of_turns:
                    rows.read(indices)
            start = time.perf_counter()
            for indices in of_turns:
                read(indices)
            seconds[name] = (time.perf_counter() - start) / turns
        caches[cache] = {
            name: {
                'seconds': of,
                'ratio': seconds[WAYS[0]] / of,
                'tokens_per_second': BATCH_SIZE * (LENGTH + 1) / of,
            }
            for name, of in seconds.items()
        }
    batches.close()
    return {
        **timing.provenance(),
        'bytes': sum(path.stat().st_size for path in files),
        'turns': turns,
        'open_seconds': open_seconds,
        'opened_bytes': opened_bytes,
        'peak_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        'caches': caches,
    }


def _plain_copy(data: TokenData) -> Callable[[np.ndarray], np.ndarray]:
    """Copies sequences that lie in one shard each; the first tokens of a shard are read for those that don't."""
    shards = [np.asarray(shard) for shard in data.shards]
    begins = np.cumsum([0, *map(len, shards)])

    def read(indices):
        out = np.empty((len(indices), LENGTH + 1), np.int32)
        for row, start in zip(out, (indices * LENGTH).tolist()):
            shard = int(np.searchsorted(begins, start, side='right')) - 1
            start -= int(begins[shard])
            row[:] = shards[shard][start if start + LENGTH < len(shards[shard]) else 0 :][: LENGTH + 1]
        return out

    return read


def _map(path: pathlib.Path) -> mmap.mmap:
    with open(path, 'rb') as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _drop(files: list[pathlib.Path], mapped: list[mmap.mmap]) -> None:
    """Takes the files out of the page cache; pages that a process uses would stay, so that this one lets go of them."""
    for path, of in zip(files, mapped, strict=True):
        of.madvise(mmap.MADV_DONTNEED)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _resident_bytes() -> int:
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
