"""Folders and files of tokens, written in a few lines each: prepared ones, and those of nanoGPT, llm.c and Megatron."""

import functools
import hashlib
import json
import pathlib
import struct

import numpy as np

from experiments.data.preparation.manifest import Counts, Manifest, Shard, Split, write_manifest
from experiments.data.rows import TextRows
from experiments.data.token_files.opening import open_token_files
from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes


def write_prepared(folder: pathlib.Path, dtype='uint16', **splits):
    """splits: of each its shards: tokens; or of chats a triple, tokens, mask, lengths of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, of_splits = Tokenizer(Bytes()), {}
    for split, contents in splits.items():
        shards, digest = [], hashlib.sha256()
        for number, content in enumerate(contents):
            arrays = content if isinstance(content, tuple) else (content,)
            dtypes = {'tokens': np.dtype(dtype).newbyteorder('<'), 'mask': np.uint8, 'documents': np.uint32}
            data = {name: np.asarray(array).astype(dtypes[name]).tobytes() for name, array in zip(dtypes, arrays)}
            for name, of_name in data.items():
                (folder / f'{split}-{number:05}.{name}').write_bytes(of_name)
            digest.update(data['tokens'])
            learned = int(np.sum(arrays[1])) if len(arrays) > 1 else None
            num_documents = len(arrays[2]) if len(arrays) > 1 else 1
            counts = Counts(len(arrays[0]), 3 * len(arrays[0]), num_documents, num_learned=learned)
            sha256 = {name: hashlib.sha256(of_name).hexdigest() for name, of_name in data.items()}
            shards.append(Shard(f'{split}-{number:05}', counts, sha256, (0, 0, number)))
        total = sum((shard.counts for shard in shards), Counts())
        named = {name: getattr(total, name) for name in ('num_tokens', 'num_bytes', 'num_documents')}
        digest.update(json.dumps(named, sort_keys=True).encode())
        of_splits[split] = Split(tuple(shards), digest.hexdigest())
    manifest = Manifest(tokenizer.fingerprint, tokenizer.framing, dtype, {}, (), of_splits, is_complete=True)
    write_manifest(folder, manifest)
    return folder


def write_nanogpt(path: pathlib.Path, documents):
    path.write_bytes(np.concatenate(documents).astype('<u2').tobytes())


def write_llmc(path: pathlib.Path, documents, magic=20240520):
    version, dtype = {20240520: (1, '<u2'), 20240801: (7, '<u4')}[magic]
    tokens = np.concatenate(documents)
    header = np.zeros(256, '<i4')
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype(dtype).tobytes())


def write_megatron(path: pathlib.Path, documents, code=8):
    dtype = {1: 'u1', 2: 'i1', 3: '<i2', 4: '<i4', 8: '<u2'}[code]
    lengths = np.array([len(document) for document in documents])
    path.write_bytes(np.concatenate(documents).astype(dtype).tobytes())
    index = b'MMIDIDX\0\0' + struct.pack('<QBQQ', 1, code, len(lengths), len(lengths) + 1)
    pointers = (np.cumsum(lengths) - lengths) * np.dtype(dtype).itemsize
    boundaries = np.arange(len(lengths) + 1)
    index += lengths.astype('<i4').tobytes() + pointers.astype('<i8').tobytes() + boundaries.astype('<i8').tobytes()
    path.with_suffix('.idx').write_bytes(index)


WRITERS = {
    'nanogpt': write_nanogpt,
    'llmc': write_llmc,
    'llmc of Llama 3': lambda path, documents: write_llmc(path, documents, 20240801),
    'megatron': write_megatron,
    'megatron, int32': lambda path, documents: write_megatron(path, documents, 4),
    'megatron, int16': lambda path, documents: write_megatron(path, documents, 3),
}


def write_all(folder: pathlib.Path):
    """A folder of each kind, with a file of nine documents."""
    for kind, write in WRITERS.items():
        (folder / kind).mkdir()
        write(folder / kind / 'a.bin', [np.arange(97, 123), [256]] * 9)


def reader(kind: str):
    """A function that reads all of a folder of `write_all`."""
    return functools.partial(_read, kind)


def _read(kind, folder):
    options = dict(train_split='train', validation_split='validation', held_out=0.2, cache_dir=folder)
    data = open_token_files(f'{folder}/{kind}/*.bin', Tokenizer(Bytes()), **options)
    rows = [TextRows(of_split, 1) for of_split in data]
    tokens = [of_split.read(np.arange(len(of_split)))['tokens'] for of_split in rows]
    return {'arrays': dict(zip(('train', 'validation'), tokens)), 'settings': {'num_bytes': data[0].num_bytes}}
