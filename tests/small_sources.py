"""Sources of documents: what tests read of them, and files of each kind."""

import gzip
import json
import pathlib
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow
import zstandard
from pyarrow import ipc, parquet

from experiments.data.documents import read_texts
from experiments.data.sources.opening import open_source
from experiments.data.sources.source import Block, Source

NO_CACHE = pathlib.Path('/nonexistent')


def open_text(dataset: Any, split: str = 'train', features: tuple[str, ...] = ('text',)) -> Source:
    """A source that isn't of TFDS."""
    return open_source(str(dataset), split, features, cache_dir=NO_CACHE)


def blocks_of(source: Source) -> list[Block]:
    """All of them, as a worker has them."""
    return [pickle.loads(pickle.dumps(block)) for block in _blocks(source)]


def rows_of(source: Source) -> list[tuple]:
    return [row for block in blocks_of(source) for row in block.rows()]


def places_of(source: Source) -> list[str]:
    return [block.place(row) for block in blocks_of(source) for row in range(len(list(block.rows())))]


def write_files(folder: pathlib.Path, texts: list[str], chats: list[list]) -> None:
    """The same documents in a file of each kind, and in a folder of Hugging Face datasets."""
    rows = [{'text': text, 'messages': chat} for text, chat in zip(texts, chats)]
    lines = ''.join(json.dumps(row) + '\n' for row in rows).encode()
    (folder / 'a.jsonl').write_bytes(lines)
    (folder / 'a.jsonl.gz').write_bytes(gzip.compress(lines))
    (folder / 'a.jsonl.zst').write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(lines))
    (folder / 'a.txt').write_text('\n'.join(texts))
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / 'a.parquet', row_group_size=3)
    (folder / 'saved').mkdir()
    with ipc.new_stream(folder / 'saved/data-00000-of-00001.arrow', table.schema) as writer:
        writer.write_table(table, 3)
    state = {'_data_files': [{'filename': 'data-00000-of-00001.arrow'}], '_indices_data_files': None}
    (folder / 'saved/state.json').write_text(json.dumps(state))


def read_source(dataset: Any) -> list[tuple]:
    """The texts of a source that are UTF-8, and if it has them its chats; in this process."""
    texts = [text for block in _blocks(open_text(dataset)) for text, _ in read_texts(block, 'skip')]
    if str(dataset).endswith('.txt'):
        return texts
    chats = _blocks(open_text(dataset, features=('messages',)))
    return texts + [row for block in chats for row in block.rows()]


def _blocks(source: Source) -> Iterator[Block]:
    for file in range(len(source.files)):
        yield from source.blocks(file)
