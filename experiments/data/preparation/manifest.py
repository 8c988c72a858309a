"""What a prepared folder holds, as its manifest.json says: splits of shards, from which sources, by which settings."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.data.sources.source import SourceFile
from experiments.files import json_files

NAME, VERSION = 'manifest.json', 1
DTYPES = ('uint16', 'uint32')
TOKENS, MASK, DOCUMENTS = 'tokens', 'mask', 'documents'  # the endings of a shard's files; the latter two of chats
BYTES_EACH = {MASK: 1, DOCUMENTS: 4}
COUNTS = ('num_tokens', 'num_bytes', 'num_documents')  # that the SHA-256 of a split vouches for, as in version 0.1
UNUSUAL = ('num_empty', 'num_invalid', 'num_cut')
SHARD_FOLDER = re.compile(r'(\d{5})-of-(\d{5})')
AGAIN = 'run the same command of experiments.prepare again, and it goes on'
SEAL = 'manifest_sha256'


@dataclasses.dataclass(frozen=True)
class Counts:
    """What there is in a shard, or in a split.

    num_bytes: UTF-8 bytes of the text that is learned; of chats, of the answers.
    num_learned: of chats, how many tokens are learned; None of text, of which all are.
    num_empty, num_invalid, num_cut: how many documents are empty, are not UTF-8, are so long that they are encoded
      in parts.
    """

    num_tokens: int = 0
    num_bytes: int = 0
    num_documents: int = 0
    num_empty: int = 0
    num_invalid: int = 0
    num_cut: int = 0
    num_learned: int | None = None

    def __add__(self, other: 'Counts') -> 'Counts':
        learned = [counts.num_learned for counts in (self, other) if counts.num_learned is not None]
        summed = {name: getattr(self, name) + getattr(other, name) for name in (*COUNTS, *UNUSUAL)}
        return Counts(**summed, num_learned=sum(learned) if learned else None)


@dataclasses.dataclass(frozen=True)
class Shard:
    """name: of its files, without their endings. sha256: of each file, by its ending.

    ends: the pass over the sources and its file in which it ends, counted from 0; after how many blocks of the file.
    """

    name: str
    counts: Counts
    sha256: Mapping[str, str]
    ends: tuple[int, int, int]

    def file_sizes(self, dtype: str) -> dict[str, int]:
        """The bytes that each of its files has, by its ending."""
        num_documents = self.counts.num_documents
        sizes = {TOKENS: self.counts.num_tokens * (2 if dtype == 'uint16' else 4), MASK: self.counts.num_tokens}
        sizes[DOCUMENTS] = BYTES_EACH[DOCUMENTS] * num_documents
        return {ending: sizes[ending] for ending in self.sha256}


@dataclasses.dataclass(frozen=True)
class Split:
    """sha256: of all its tokens and of `COUNTS`; '' until the folder is complete."""

    shards: tuple[Shard, ...] = ()
    sha256: str = ''

    @functools.cached_property
    def counts(self) -> Counts:
        return sum((shard.counts for shard in self.shards), Counts())


@dataclasses.dataclass(frozen=True)
class Manifest:
    """tokenizer, framing: as `Tokenizer.fingerprint` and `Tokenizer.framing`. made_of: the settings, by name.

    reader: what cut the sources into blocks, of which `Shard.ends` counts; another one may cut them elsewhere.
    """

    tokenizer: str
    framing: str
    dtype: str
    made_of: Mapping[str, Any]
    sources: tuple[SourceFile, ...]
    splits: Mapping[str, Split]
    is_complete: bool = False
    reader: str = ''

    @property
    def is_chats(self) -> bool:
        return any(MASK in shard.sha256 for split in self.splits.values() for shard in split.shards)


def is_prepared(folder: pathlib.Path) -> bool:
    """Whether a folder is one that was prepared, or is being prepared, in one part or in several."""
    return (folder / NAME).is_file() or bool(_parts(folder))


def read_manifest(folder: pathlib.Path, *, complete: bool = True) -> Manifest:
    """The manifest of a prepared folder; of one with several parts, one that is the manifest of all.

    Args:
      folder: with a manifest.json; or with folders such as 00003-of-00008, each of which has one. The names of their
        shards are then such as '00003-of-00008/train-00000'.
      complete: whether to refuse a folder that isn't complete.

    Raises:
      ValueError: naming the file: it can't be read, was changed, or is of a later version; the folder isn't complete;
        parts are missing, or were prepared with different settings.
    """
    if (folder / NAME).is_file() or not (parts := _parts(folder)):
        manifest = _read(folder / NAME)
        if complete and not manifest.is_complete:
            raise ValueError(f'{folder} is not complete: {AGAIN}')
        return manifest
    count = int(SHARD_FOLDER.fullmatch(parts[0])[2])
    expected = [f'{part:05}-of-{count:05}' for part in range(count)]
    if foreign := sorted(set(parts) - set(expected)):
        raise ValueError(f'{folder} has parts of different counts, {parts[0]} and {foreign[0]}; allowed: of one')
    if lacking := [name for name in expected if name not in parts]:
        raise ValueError(f'{folder} lacks the part {lacking[0]}: prepare it with --shard={int(lacking[0][:5])}/{count}')
    return _joined(folder, {name: read_manifest(folder / name, complete=complete) for name in expected})


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Replaces the manifest of a folder in one step."""
    contents = _to_json(manifest)
    json_files.write(folder / NAME, {**contents, SEAL: _seal(contents)})


def check_sizes(folder: pathlib.Path, manifest: Manifest) -> None:
    """ValueError, naming it, for a file of a shard that isn't there or has another size than the manifest says."""
    for split in manifest.splits.values():
        for shard in split.shards:
            for ending, size in shard.file_sizes(manifest.dtype).items():
                path = folder / f'{shard.name}.{ending}'
                found = path.stat().st_size if path.is_file() else None
                if found != size:
                    has = 'is not there' if found is None else f'has {found:,} bytes'
                    raise ValueError(f'{path} {has}; {folder / NAME} says {size:,} bytes: prepare it anew')


def split_sha256(digest: Any, counts: Counts) -> str:
    """Of a digest of all tokens of a split: the SHA-256 of those followed by `COUNTS`, so that it vouches for both."""
    digest = digest.copy()
    digest.update(json.dumps({name: getattr(counts, name) for name in COUNTS}, sort_keys=True).encode())
    return digest.hexdigest()


def _parts(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if SHARD_FOLDER.fullmatch(entry.name) and entry.is_dir())


def _joined(folder: pathlib.Path, parts: Mapping[str, Manifest]) -> Manifest:
    first_name, first = next(iter(parts.items()))
    for name, other in parts.items():
        for field in ('tokenizer', 'framing', 'dtype', 'made_of'):
            if getattr(other, field) != getattr(first, field):
                raise ValueError(
                    f'{folder}: {name} was prepared with {field}={getattr(other, field)!r:.200}, {first_name} with '
                    f'{getattr(first, field)!r:.200}; allowed: the same'
                )
    splits = {}
    for split in first.splits:
        shards = tuple(
            dataclasses.replace(shard, name=f'{name}/{shard.name}')
            for name, manifest in parts.items()
            for shard in manifest.splits[split].shards
        )
        splits[split] = Split(shards, joined_sha256([manifest.splits[split].sha256 for manifest in parts.values()]))
    sources = tuple(file for manifest in parts.values() for file in manifest.sources)
    is_complete = all(manifest.is_complete for manifest in parts.values())
    return dataclasses.replace(first, sources=sources, splits=splits, is_complete=is_complete)


def joined_sha256(parts: Sequence[str]) -> str:
    """What stands for the splits of several folders: the SHA-256 of the JSON list of theirs; of one, its own."""
    if len(parts) == 1 or '' in parts:
        return parts[0] if len(parts) == 1 else ''
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def _seal(contents: Mapping[str, Any]) -> str:
    """Notices a change of any field."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _to_json(manifest: Manifest) -> dict[str, Any]:
    splits = {}
    for name, split in manifest.splits.items():
        shards = [
            {'name': shard.name, **_counts(shard.counts), 'sha256': dict(shard.sha256), 'ends': list(shard.ends)}
            for shard in split.shards
        ]
        splits[name] = {**_counts(split.counts), 'sha256': split.sha256, 'shards': shards}
    return {
        'version': VERSION,
        'is_complete': manifest.is_complete,
        'reader': manifest.reader,
        'tokenizer': manifest.tokenizer,
        'framing': manifest.framing,
        'dtype': manifest.dtype,
        'made_of': dict(manifest.made_of),
        'sources': [file._asdict() for file in manifest.sources],
        'splits': splits,
    }


def _counts(counts: Counts) -> dict[str, int]:
    return {name: value for name, value in dataclasses.asdict(counts).items() if value is not None}


def _read(path: pathlib.Path) -> Manifest:
    contents = json_files.read(path, version=int)
    if contents['version'] != VERSION:
        raise ValueError(f'{path}: version {contents["version"]}; allowed: {VERSION}')
    kinds = dict(
        is_complete=bool, reader=str, tokenizer=str, framing=str, dtype=str, made_of=dict, sources=list, splits=dict
    )
    json_files.require(contents, path, {**kinds, SEAL: str})
    if contents.pop(SEAL) != _seal(contents):
        raise ValueError(f'{path} was changed since it was written, or is damaged: prepare the folder anew')
    if contents['dtype'] not in DTYPES:
        raise ValueError(f'{path}: dtype={contents["dtype"]!r:.80}; allowed: {", ".join(DTYPES)}')
    sources = (json_files.require(file, f'{path}, sources', dict(path=str, size=int)) for file in contents['sources'])
    splits = {name: _split(value, f'{path}, splits, {name}') for name, value in contents['splits'].items()}
    fields = {name: contents[name] for name in ('tokenizer', 'framing', 'dtype', 'made_of', 'is_complete', 'reader')}
    return Manifest(**fields, sources=tuple(SourceFile(file['path'], file['size']) for file in sources), splits=splits)


def _split(value: Any, where: str) -> Split:
    json_files.require(value, where, dict(sha256=str, shards=list))
    split = Split(tuple(_shard(shard, where) for shard in value['shards']), value['sha256'])
    if _counts(split.counts) != {name: value.get(name) for name in _counts(split.counts)}:
        raise ValueError(f'{where}: its counts are not the sums of its shards')
    return split


def _shard(value: Any, where: str) -> Shard:
    json_files.require(value, where, dict(name=str, sha256=dict, ends=list, **dict.fromkeys((*COUNTS, *UNUSUAL), int)))
    name, ends, digests = value['name'], value['ends'], value['sha256']
    if not re.fullmatch(r'[a-z]+-\d{5,}', name):
        raise ValueError(f'{where}: {name!r:.80} is no name of a shard')
    if len(ends) != 3 or not all(json_files.is_a(number, int) and number >= 0 for number in ends):
        raise ValueError(f'{where}, {name}: ends={ends!r:.80} must be three numbers')
    if digests.keys() not in ({TOKENS}, {TOKENS, MASK, DOCUMENTS}):
        raise ValueError(f'{where}, {name}: sha256 is of {", ".join(digests)!r:.80}')
    json_files.require(digests, f'{where}, {name}, sha256', dict.fromkeys(digests, str))
    counts = {field.name: value[field.name] for field in dataclasses.fields(Counts) if field.name in value}
    if not all(json_files.is_a(count, int) and count >= 0 for count in counts.values()):
        raise ValueError(f'{where}, {name}: counts must be integers of at least 0')
    return Shard(name, Counts(**counts), digests, tuple(ends))
