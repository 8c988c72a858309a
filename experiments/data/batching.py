"""Sequences to batches, which Grain reads ahead of the training that takes them."""

import hashlib
from collections.abc import Mapping
from fractions import Fraction

import grain
import numpy as np

from experiments.data.mixtures import Mixture
from experiments.data.rows import Rows
from experiments.data.shuffling import shuffled

# Reading a batch is copying rows out of a memory map: one thread, two batches ahead.
READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
ENDLESS = 2**62


def train_iterator(
    rows: Rows | Mapping[str, Rows],
    weights: Mapping[str, Fraction] | None = None,
    *,
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an endless iterator over shuffled batches, this process's rows of each.

    The sequences of an epoch are a random permutation of all, another one each epoch; this endless stream is
    cut into batches, so that a batch may end one epoch and begin the next, and no sequence is left out. Of a mixture,
    each source has its own such stream, and `Mixture` says which of them each row comes from. The global batch of a
    step is a function of (rows, weights, global_batch_size, seed, step) only.
    Process p of P has its rows [p G / P, (p + 1) G / P), G the global batch size.

    Args:
      rows: all sequences, or those of each source by its name; if several, all with the same arrays.
      weights: of each source, by its name, as `mixtures.parse` gives them; None where `rows` are of one.
      global_batch_size: sequences in a step, over all processes.
      seed: any non-negative integer.
      process_index, process_count: as jax.process_index() and jax.process_count().

    Returns:
      A Grain iterator over what `rows.read` gives: {'tokens': (G / P, T + 1) int32, ...}. `get_state()` is a small
      dict for a checkpoint, `set_state(state)` goes there, and `grain.experimental.set_next_index(iterator, step)` to
      any step; `close()` ends its thread.

    Raises:
      ValueError: sizes that aren't positive or don't divide; a negative seed; weights of other sources than `rows`.

    Example:
      >>> from experiments.data.rows import TextRows
      >>> from experiments.data.token_data import in_memory
      >>> batches = train_iterator(TextRows(in_memory(np.arange(100)), 8), global_batch_size=2, seed=0)
      >>> next(batches)['tokens'].shape
      (2, 9)
    """
    if seed < 0:
        raise ValueError(f'seed={seed}; allowed: non-negative integers.')
    mine = _rows_of_process(global_batch_size, process_index, process_count)
    read = _stream(rows, weights, seed)

    def batch_of_step(step: int) -> dict[str, np.ndarray]:
        return read(np.arange(step * global_batch_size + mine.start, step * global_batch_size + mine.stop))

    return iter(grain.MapDataset.range(ENDLESS).map(batch_of_step).to_iter_dataset(READ_OPTIONS))


def validation_batches(
    rows: Rows,
    *,
    global_batch_size: int,
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Returns the batches of one pass over the sequences in order, this process's rows of each.

    The last batch is filled up with rows of zeros, and mask says so: sum(mask * loss) / sum(mask) over all
    batches is the mean over all predicted tokens.

    Args:
      rows, global_batch_size, process_index, process_count: as in `train_iterator`.
      max_batches: None for all sequences, or how many batches at the most: of so many sequences, spread evenly.

    Returns:
      An iterable, the same at each pass, over what `rows.read` gives, and 'mask' (G / P, T) float32, in any case.

    Raises:
      ValueError: sizes that aren't positive or don't divide.

    Example:
      >>> from experiments.data.rows import TextRows
      >>> from experiments.data.token_data import in_memory
      >>> batches = validation_batches(TextRows(in_memory(np.arange(100)), 9), global_batch_size=8)
      >>> [int(batch['mask'].sum()) // 9 for batch in batches]
      [8, 3]
    """
    mine = _rows_of_process(global_batch_size, process_index, process_count)
    count = len(rows)
    if max_batches is not None:
        if max_batches < 1:
            raise ValueError(f'max_batches={max_batches}; allowed: None or a positive integer.')
        count = min(count, max_batches * global_batch_size)
    num_batches = -(-count // global_batch_size)

    def read(batch: int) -> dict[str, np.ndarray]:
        places = np.arange(batch * global_batch_size + mine.start, batch * global_batch_size + mine.stop)
        found = rows.read(places[places < count] * len(rows) // count)
        found.setdefault('mask', np.ones_like(found['tokens'][:, 1:], np.float32))
        missing = len(places) - len(found['tokens'])
        return {name: np.pad(values, ((0, missing), (0, 0))) for name, values in found.items()}

    return grain.MapDataset.range(num_batches).map(read).to_iter_dataset(READ_OPTIONS)


def _stream(rows, weights, seed):
    """A function of positions in the endless stream of sequences, which gives their arrays."""
    by_name = rows if isinstance(rows, Mapping) else {'': rows}
    if set(by_name) != set(weights or by_name):
        raise ValueError(f'weights are of {sorted(weights)}; allowed: of the sources, {sorted(by_name)}.')
    if len(by_name) == 1:
        (alone,) = by_name.values()
        shuffle_seed = _shuffle_seed(seed)
        return lambda positions: alone.read(shuffled(positions, len(alone), shuffle_seed))
    mixture = Mixture(weights)
    sources = [(by_name[name], _shuffle_seed(seed, name)) for name in mixture.names]

    def read(positions):
        places, indices = mixture.places(positions)
        batch = {}
        for place in np.unique(places):
            where, (of_source, shuffle_seed) = np.flatnonzero(places == place), sources[place]
            for name, values in of_source.read(shuffled(indices[where], len(of_source), shuffle_seed)).items():
                batch.setdefault(name, np.empty((len(positions), *values.shape[1:]), values.dtype))[where] = values
        return batch

    return read


def _shuffle_seed(seed: int, name: str = '') -> int:
    """Epoch e is shuffled with this plus e: spread the seeds, or seed 1 repeats seed 0, an epoch ahead."""
    of_name = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())] if name else []
    return int(np.random.SeedSequence([seed, *of_name] if name else seed).generate_state(1)[0])


def _rows_of_process(global_batch_size: int, process_index: int, process_count: int) -> slice:
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index={process_index}; allowed: 0 to {process_count - 1}, {process_count=}.')
    if global_batch_size < 1 or global_batch_size % process_count:
        raise ValueError(f'global_batch_size={global_batch_size}; allowed: positive multiples of {process_count=}.')
    size = global_batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)
