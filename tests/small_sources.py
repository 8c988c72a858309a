"""What tests read of a source of documents."""

import pathlib
import pickle
from typing import Any

from experiments.data.sources.opening import open_source
from experiments.data.sources.source import Block, Source

NO_CACHE = pathlib.Path('/nonexistent')


def open_text(dataset: Any, split: str = 'train', features: tuple[str, ...] = ('text',)) -> Source:
    """A source that isn't of TFDS."""
    return open_source(str(dataset), split, features, cache_dir=NO_CACHE)


def blocks_of(source: Source) -> list[Block]:
    """All of them, as a worker has them."""
    return [pickle.loads(pickle.dumps(block)) for file in range(len(source.files)) for block in source.blocks(file)]


def rows_of(source: Source) -> list[tuple]:
    return [row for block in blocks_of(source) for row in block.rows()]


def places_of(source: Source) -> list[str]:
    return [block.place(row) for block in blocks_of(source) for row in range(len(list(block.rows())))]
