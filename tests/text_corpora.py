"""Corpora of synthetic text of any size, written as others have them."""

import inspect
import json
import pathlib
import random
import re
import typing

import pyarrow
import zstandard
from pyarrow import parquet

WORDS = tuple(re.findall(r'\s*\S+', inspect.getsource(typing)))
ROWS = 1000  # of a batch


def texts(number, size):
    """Documents of so many bytes in all, of words in no order: they compress as text does, not as what is repeated."""
    chosen, done, row = random.Random(number), 0, 0
    while done < size:
        body = ''.join(chosen.choices(WORDS, k=chosen.randrange(20, 1000)))
        text = f'# document {row} of {number}\n{body}\n'
        yield text
        done, row = done + len(text), row + 1


def write_lines(folder: pathlib.Path, count: int, size: int) -> str:
    """So many .jsonl.zst of `size` bytes of text each; the dataset's name."""
    for number in range(count):
        with (
            open(folder / f'{number:03}.jsonl.zst', 'wb') as file,
            zstandard.ZstdCompressor().stream_writer(file) as to,
        ):
            for text in texts(number, size):
                to.write(json.dumps({'text': text}).encode() + b'\n')
    return str(folder / '*.jsonl.zst')


def write_parquet(folder: pathlib.Path, count: int, size: int) -> str:
    """The same in Parquet."""
    schema = pyarrow.schema({'text': pyarrow.string()})
    for number in range(count):
        with parquet.ParquetWriter(folder / f'{number:03}.parquet', schema) as writer:
            batch = []
            for text in texts(number, size):
                batch.append(text)
                if len(batch) == ROWS:
                    writer.write_table(pyarrow.table({'text': batch}, schema))
                    batch = []
            writer.write_table(pyarrow.table({'text': batch}, schema))
    return str(folder / '*.parquet')
