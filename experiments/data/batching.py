"""Tokens to batches of sequences, read by Grain.

Sequence i is tokens[i * T : i * T + T + 1], T the sequence length: one more token than inputs, so that each
token but the first is predicted once. Tokens that don't fill a last sequence are left out.
"""

import grain
import numpy as np

# Reading a batch is copying rows out of a memory map: one thread, two batches ahead.
READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


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
        block = sequences[chosen[batch * global_batch_size :][rows]]
        padding = ((0, rows.stop - rows.start - len(block)), (0, 0))
        mask = np.ones((len(block), sequence_length), np.float32)
        return {'tokens': np.pad(block.astype(np.int32), padding), 'mask': np.pad(mask, padding)}

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
