"""From text to a prepared folder: shards of tokens, and a manifest that is replaced after each of them.

What the manifest names is on the disk, and stays. A process that ends, however it ends, loses what it has encoded since
the last shards: the next one goes on after those. Shards of all splits end together, so that this is one place in the
sources.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow
from absl import logging

from experiments.data.preparation import manifest as manifests
from experiments.data.preparation.encoding import SPLITS, BlockEncoder, Encoded, Settings, token_dtype
from experiments.data.preparation.manifest import Counts, Manifest, Split
from experiments.data.preparation.progress import Progress
from experiments.data.preparation.shards import OF_MANIFEST, ShardFiles, SplitDigests, is_left_over, remove_leftovers
from experiments.data.preparation.workers import Placed, encoded_blocks
from experiments.data.sources.opening import open_source
from experiments.data.sources.source import Source, SourceFile, check_no_splits
from experiments.data.tokenizers import Tokenizer
from experiments.files import locks
from gaussq_jax.atomic_files import open_own

SHARD_BYTES = 512 * 10**6  # of tokens
SMALL_BYTES = 8 * 10**6  # of sources, maybe compressed, that one process encodes sooner than several start
MOST_FILES = 200_000  # which a manifest names, each time that it is written
READER = f'pyarrow {pyarrow.__version__}'
WANTED = 10  # documents of validation, where an error says how to have some
LOCK = '.lock'


class Pass(NamedTuple):
    """One reading of a source: of the documents of a split, or where `split` is None, of those of all splits."""

    split: str | None
    source: Source
    files: range  # of the source's files, those that are read


class Prepared(NamedTuple):
    """folder: that of the manifest. num_new: tokens that were encoded this time."""

    folder: pathlib.Path
    manifest: Manifest
    num_new: int


class Part(NamedTuple):
    """Part `index` of `count`, the files index, index + count, …"""

    index: int = 0
    count: int = 1


WHOLE = Part()


def open_passes(settings: Settings, part: Part = WHOLE, cache_dir: pathlib.Path | None = None) -> list[Pass]:
    """The passes over a dataset that give both splits.

    Raises:
      ValueError: there are fewer files than parts, or more than MOST_FILES in a part; splits are named of a source that
        has none; as `open_source`.
    """
    open_split = lambda split: open_source(
        settings.dataset, split, settings.features, data_dir=settings.data_dir, cache_dir=cache_dir
    )
    source = open_split(settings.train_split)
    if source.has_splits:
        sources = {'train': source, 'validation': open_split(settings.validation_split)}
    else:
        check_no_splits(source.name, settings.train_split, settings.validation_split)
        sources = {None: source}
    if (count := len(source.files)) < part.count:
        raise ValueError(
            f'--shard={part.index}/{part.count}: {source.name} has {count} files; allowed: at most /{count}'
        )
    passes = [Pass(split, of, range(part.index, len(of.files), part.count)) for split, of in sources.items()]
    if (number := sum(len(one.files) for one in passes)) > MOST_FILES:
        raise ValueError(
            f'{source.name} has {number:,} files; allowed are {MOST_FILES:,} in a part: give more parts by --shard=I/N'
            ' of experiments.prepare, or put several documents into a file, as lines of a .jsonl'
        )
    return passes


def files_of(passes: Sequence[Pass]) -> tuple[SourceFile, ...]:
    return tuple(one.source.files[file] for one in passes for file in one.files)


def prepare(
    output: pathlib.Path,
    settings: Settings,
    tokenizer: Tokenizer,
    *,
    passes: Sequence[Pass],
    part: Part = WHOLE,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    is_cache: bool = False,
    anew: bool = False,
) -> Prepared:
    """Prepares a folder, or goes on where an earlier call has ended; does nothing if it is complete.

    The files are the same for any number of workers, and any number of interruptions.

    Args:
      output: the folder; of one of several parts, the folder of all.
      settings: of the text.
      tokenizer: of the tokens.
      passes: over the sources, as from `open_passes`.
      part: which files to read.
      workers: how many processes; one, this process, where the sources are small.
      shard_bytes: of tokens; shards end at the first block after so many.
      is_cache: whether to wait for another process that prepares the folder, and to write anew what is damaged or was
        prepared otherwise; else these are errors.
      anew: whether to write anew what is there.

    Raises:
      ValueError: the folder was prepared with other settings, or from other sources; there is something else in it; a
        document can't be read; there is no text.
      OSError: another process prepares it; a worker died; a file can't be written.
    """
    folder = output if part.count == 1 else output / f'{part.index:05}-of-{part.count:05}'
    _check_place(output, part, is_cache)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, waits=is_cache):
        manifest = _manifest_to_go_on_with(folder, _new_manifest(settings, tokenizer, passes), is_cache, anew)
        if manifest.is_complete:
            return Prepared(folder, manifest, 0)
        remove_leftovers(folder, manifest)
        if sum(file.size for file in manifest.sources) < SMALL_BYTES:
            workers = 1
        with _Writer(folder, manifest, shard_bytes) as writer:
            start = writer.ends
            blocks = _blocks(passes, start)
            encoder = BlockEncoder(settings, tokenizer)
            total, before = sum(file.size for file in manifest.sources), _bytes_before(passes, start)
            with (
                Progress(total, before) as progress,
                contextlib.closing(encoded_blocks(encoder, blocks, workers)) as encoded,
            ):
                for placed, parts in encoded:
                    writer.add(parts, placed.ends)
                    progress.update(placed.read, writer.new.num_documents, writer.new.num_tokens)
            return Prepared(folder, writer.complete(settings, allows_empty=part.count > 1), writer.new.num_tokens)


def _manifest_to_go_on_with(folder: pathlib.Path, new: Manifest, is_cache: bool, anew: bool) -> Manifest:
    """That of the folder, if it is of the same; or `new`, which is written there, as where there is no shard yet."""
    if os.path.lexists(folder / manifests.NAME) and not anew:
        try:
            manifest = manifests.read_manifest(folder, complete=False)
            if manifest.is_complete or any(split.shards for split in manifest.splits.values()):
                _check_same(folder, manifest, new)
                manifests.check_sizes(folder, manifest)
                return manifest
        except ValueError as error:
            if not is_cache:
                raise
            logging.warning('%s is damaged (%s) and will be written anew', folder, error)
    manifests.write_manifest(folder, new)
    return new


class _Writer(contextlib.AbstractContextManager):
    """Writes shards and the manifest.

    Attributes:
      ends: the place in the sources after which the shards end that are written.
      new: what was added since it was opened.
    """

    def __init__(self, folder: pathlib.Path, manifest: Manifest, shard_bytes: int):
        self._folder, self._manifest, self._shard_bytes = folder, manifest, shard_bytes
        self._itemsize = 2 if manifest.dtype == 'uint16' else 4
        self._open: dict[str, ShardFiles] = {}
        self._digests = SplitDigests(folder)
        self.new = Counts()
        shards = [(name, shard) for name, split in manifest.splits.items() for shard in split.shards]
        self.ends = max((shard.ends for _, shard in shards), default=(0, 0, 0))
        self._last = self.ends
        for name, shard in shards:
            self._digests.add(name, shard)

    def add(self, parts: Mapping[str, Encoded], ends: tuple[int, int, int]) -> None:
        for split, encoded in parts.items():
            if split not in self._open:
                number = len(self._manifest.splits[split].shards)
                self._open[split] = ShardFiles(self._folder, f'{split}-{number:05}')
            self._open[split].add(encoded)
            self.new += encoded.counts
        self._last = ends
        if sum(files.counts.num_tokens for files in self._open.values()) * self._itemsize >= self._shard_bytes:
            self._finish_shards()

    def complete(self, settings: Settings, *, allows_empty: bool) -> Manifest:
        """Finishes the last shards; the manifest, which then is that of a complete folder."""
        self._finish_shards()
        manifest, splits = self._manifest, self._manifest.splits
        for name, split in splits.items():
            if not split.counts.num_bytes and not allows_empty:
                raise ValueError(_no_text(self._folder, settings, name, splits))
        digests = self._digests.sha256({name: split.counts for name, split in splits.items()})
        splits = {name: dataclasses.replace(split, sha256=digests[name]) for name, split in splits.items()}
        self._manifest = dataclasses.replace(manifest, splits=splits, is_complete=True)
        manifests.write_manifest(self._folder, self._manifest)
        return self._manifest

    def _finish_shards(self) -> None:
        if not self._open:
            return
        splits = dict(self._manifest.splits)
        finished = {name: files.finish(self._last) for name, files in self._open.items()}
        _sync_folder(self._folder)
        self._open = {}
        for name, shard in finished.items():
            splits[name] = Split((*splits[name].shards, shard))
        self._manifest = dataclasses.replace(self._manifest, splits=splits)
        manifests.write_manifest(self._folder, self._manifest)
        for name, shard in finished.items():
            self._digests.add(name, shard)

    def __exit__(self, *_) -> None:
        for files in self._open.values():
            files.close()
        self._digests.__exit__(*_)


def _blocks(passes: Sequence[Pass], start: tuple[int, int, int]) -> Iterator[Placed]:
    """All blocks after a place; those of the same file before it are read, as only that tells where they end."""
    before = _bytes_before(passes, start)
    for number, (split, source, files) in enumerate(passes[start[0] :], start[0]):
        first_file = start[1] if number == start[0] else 0
        for place, file in enumerate(files[first_file:], first_file):
            skipped = start[2] if (number, place) == start[:2] else 0
            blocks = itertools.islice(source.blocks(file), skipped, None)
            for block_number, block in enumerate(blocks, skipped + 1):
                yield Placed(block, split, (number, place, block_number), before + block.file_bytes)
            before += source.files[file].size


def _bytes_before(passes: Sequence[Pass], place: tuple[int, int, int]) -> int:
    """The bytes of the files before the file of a place."""
    number, file, _ = place
    whole = files_of(passes[:number])
    return sum(one.size for one in (*whole, *(passes[number].source.files[i] for i in passes[number].files[:file])))


def _new_manifest(settings: Settings, tokenizer: Tokenizer, passes: Sequence[Pass]) -> Manifest:
    made_of = settings.made_of(tokenizer) | {'num_files': sum(len(one.source.files) for one in passes)}
    return Manifest(
        tokenizer=tokenizer.fingerprint,
        framing=tokenizer.framing,
        dtype=token_dtype(tokenizer).name,
        made_of=made_of,
        sources=files_of(passes),
        splits={split: Split() for split in SPLITS},
        reader=READER,
    )


def _check_same(folder: pathlib.Path, before: Manifest, now: Manifest) -> None:
    differing = []
    for field in ('tokenizer', 'framing', 'dtype', *(() if before.is_complete else ('reader',))):
        differing.append((field, getattr(before, field), getattr(now, field)))
    for name in dict.fromkeys((*before.made_of, *now.made_of)):
        differing.append((name, before.made_of.get(name), now.made_of.get(name)))
    told = [f'{name}={was!r:.200}, now {is_now!r:.200}' for name, was, is_now in differing if was != is_now]
    if told:
        raise ValueError(f'{folder} was prepared with {"; ".join(told)}: give the same settings, or another folder')
    for was, is_now in itertools.zip_longest(before.sources, now.sources, fillvalue=None):
        if was != is_now:
            raise ValueError(
                f'{folder} was prepared from {_described(was)}, which is now {_described(is_now)}: sources must stay as'
                ' they are; prepare them anew, in another folder'
            )


def _described(file: SourceFile | None) -> str:
    return 'no file' if file is None else f'{file.path} of {file.size:,} bytes'


def _check_place(output: pathlib.Path, part: Part, is_cache: bool) -> None:
    """ValueError if there is something in the folder that isn't of this program, or is of another count of parts.

    Shards without a manifest, which is there before them, are in a cache only what a process has left.
    """
    if os.path.lexists(output) and not output.is_dir():
        raise ValueError(f'{output} is no folder')
    names = set(os.listdir(output)) if output.is_dir() else set()
    names = {name for name in names if not (is_left_over(name) if is_cache else OF_MANIFEST.fullmatch(name))}
    parts = {name for name in names if manifests.SHARD_FOLDER.fullmatch(name)}
    if part.count == 1 and parts:
        raise ValueError(f'{output} has parts, such as {min(parts)}; give --shard, or another folder')
    if part.count > 1 and manifests.NAME in names:
        raise ValueError(f'{output} was prepared without --shard; give none, or another folder')
    if foreign := [name for name in parts if int(name[-5:]) != part.count]:
        raise ValueError(f'{output} has parts of another count, such as {min(foreign)}; give another folder')
    if names and manifests.NAME not in names and not parts and names != {LOCK}:
        raise ValueError(f'{output} has other files in it, such as {min(names - {LOCK})}; give another folder')


@contextlib.contextmanager
def _locked(folder: pathlib.Path, waits: bool) -> Iterator[None]:
    path = folder / LOCK
    with open_own(path, 'r+') as file:
        if not locks.lock(file, path):
            holder = file.read().strip()
            by = f'{holder and f" ({holder})"}'
            if not waits:
                raise OSError(f'another process{by} prepares {folder}; wait for its end, or give another folder')
            print(f'waiting for another process{by}, which prepares {folder}', flush=True)
            locks.lock(file, path, waits=True)
        locks.sign(file)
        yield


def _no_text(folder: pathlib.Path, settings: Settings, split: str, splits: Mapping[str, Split]) -> str:
    asked = {'train': settings.train_split, 'validation': settings.validation_split}[split]
    num_documents = sum(of.counts.num_documents for of in splits.values())
    enough = min(0.5, math.ceil(1000 * WANTED / max(1, num_documents)) / 1000)
    return (
        f'{folder}: there is no text in this split, {asked!r}; allowed: splits with text. Where a dataset has no'
        f' splits, held_out={settings.held_out} of {num_documents:,} documents are for validation: prepare it again, in'
        f' another folder, with another share, such as held_out={enough}.'
    )


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
