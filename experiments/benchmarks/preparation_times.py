"""How long a text takes to be prepared, beside the batch call of `tokenizers` alone on the same cores."""

import pathlib
import resource
import tempfile
from collections.abc import Iterator
from typing import Any

import loky
import tokenizers

from experiments.benchmarks import timing
from experiments.data.documents import read_texts
from experiments.data.preparation import preparing
from experiments.data.preparation.encoding import Settings
from experiments.data.preparation.prepared_data import cache_folder
from experiments.data.tokenizers import load_tokenizer
from gaussq_jax.text_table import text_table

DEFAULT_TURNS = 3
BATCH = 1000  # documents that `tokenizers` is given at a time


def benchmark(texts: str, tokenizer: str, turns: int | None) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_preparation` and its table."""
    results = time_preparation(texts, tokenizer, turns or DEFAULT_TURNS)
    rows = [
        (name, f'{row["seconds"]:.2f} s', f'{results["tokens"] / row["seconds"]:,.0f}', f'{row["ratio"]:.2f}',
         timing.quartiles_text(row, 2))
        for name, row in results['times'].items()
    ]  # fmt: skip
    title = f'{results["bytes"] / 1e6:,.0f} MB of text, {results["tokens"]:,} tokens, {results["device"]}'
    table = text_table([('by', 'median', 'tokens/s', 'time to the first', 'quartiles'), *rows])
    yield results, f'{title}\n{table}\na worker takes at most {results["worker_bytes"] / 1e6:,.0f} MB'


def time_preparation(dataset: str, tokenizer: str, turns: int) -> dict[str, Any]:
    """Prepares a dataset; `tokenizers` alone, by threads, and `preparing.prepare`, by as many processes, take turns.

    The former has all texts in memory, and its tokens are thrown away. The latter starts its workers, reads the files,
    parses them, and writes shards and their digests to the disk, in a folder that TMPDIR names.

    Args:
      dataset: what `experiments.prepare --dataset` takes.
      tokenizer: the path of a Hugging Face tokenizers .json file.
      turns: of each.

    Returns:
      What `timing.provenance` says, 'bytes' of the text, 'tokens', 'turns', 'worker_bytes', the most memory of one,
      and 'times', a `timing.Timing` of 'tokenizers' and of 'prepare', whose ratios are to the first.

    Raises:
      ValueError: another tokenizer; as `preparing.open_passes`.
    """
    if not tokenizer.endswith('.json'):
        raise ValueError(f'--tokenizer={tokenizer!r}; allowed: a Hugging Face tokenizers .json file')
    settings, ours = Settings(dataset), load_tokenizer(tokenizer)
    passes = preparing.open_passes(settings, cache_dir=cache_folder(None))
    blocks = (block for one in passes for file in one.files for block in one.source.blocks(file))
    texts = [text for block in blocks for text, _ in read_texts(block, settings.invalid_text)]
    alone = tokenizers.Tokenizer.from_file(tokenizer)
    workers = loky.cpu_count()

    def encode() -> int:
        batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        return sum(len(alone.encode_batch(batch, add_special_tokens=False)) for batch in batches)

    def prepare() -> int:
        with tempfile.TemporaryDirectory() as folder:
            output = pathlib.Path(folder, 'tokens')
            return preparing.prepare(output, settings, ours, passes=passes, workers=workers).num_new

    times = timing.take_turns({'tokenizers': encode, 'prepare': prepare}, turns)
    return {
        **timing.provenance(),
        'bytes': sum(len(text.encode()) for text in texts),
        'tokens': prepare(),
        'turns': turns,
        'worker_bytes': resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        'times': times,
    }
