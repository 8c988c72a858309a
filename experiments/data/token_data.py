"""The tokens of one split, in one file or in many, and how those of a prepared folder are opened."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.data import chats
from experiments.data.preparation.manifest import DOCUMENTS, MASK, TOKENS, Manifest, check_sizes, read_manifest
from experiments.data.preparation.verification import VERIFIED, Claim, Verification, verify
from experiments.data.tokenizers import Tokenizer
from experiments.files import open_files

SAME = 'the same tokenizer and special tokens'


@dataclasses.dataclass(frozen=True, eq=False)
class TokenData:
    """The tokens of one split, documents one after the other, each with what the tokenizer begins and ends it with.

    Attributes:
      shards: 1-D arrays of uint16, uint32 or int32, memory-mapped from files: their tokens, one after the other.
      num_bytes: UTF-8 bytes of the text that is learned, ends of documents not counted.
      num_documents: how many documents it holds; None where the files don't say.
      sha256: names what it holds, as hexadecimal digits: of the tokens and the counts.
      document_start: the token that every document begins with; where none leads them, the end of the one before.
      num_empty, num_invalid: how many of the split's documents are empty, and how many are not UTF-8; None if unknown.
      masks: of chats, for each shard an array of as many uint8: 1 where a token is learned; None where all are.
      document_lengths: of chats, how many tokens each document has, in their order; None of text.
      num_learned: of chats, how many tokens are learned; None where all are.
      held_out: the share of the documents that are for validation, by a hash of their text; None where the data has
        splits of its own.
      num_ids: of files that others wrote, in which a token may be that the vocabulary doesn't have: one more than the
        largest that it has. None where tokens are known to be right.
      source: where the tokens come from, for errors.
      verification: of its files, some of which may be read in the background.
    """

    shards: tuple[np.ndarray, ...]
    num_bytes: int
    num_documents: int | None
    sha256: str
    document_start: int
    num_empty: int | None = None
    num_invalid: int | None = None
    masks: tuple[np.ndarray, ...] | None = None
    document_lengths: np.ndarray | None = None
    num_learned: int | None = None
    held_out: float | None = None
    num_ids: int | None = None
    source: str = ''
    verification: Verification = VERIFIED

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.shards))

    @property
    def bytes_per_token(self) -> float:
        """num_bytes by learned tokens: nats per token divided by it are nats per byte.

        Of chats both are of whole documents, as prepared; also of what rows of a sequence_length cut or leave out.
        """
        return self.num_bytes / (self.num_tokens if self.num_learned is None else self.num_learned)

    def check_ids(self, tokens: np.ndarray) -> None:
        """OSError if one of these tokens (int32) is not below num_ids, or is negative."""
        if self.num_ids is not None and tokens.size and (largest := tokens.view(np.uint32).max()) >= self.num_ids:
            raise OSError(
                f'{self.source} holds the token {largest}; the vocabulary has 0 to {self.num_ids - 1}: these tokens are'
                ' of another tokenizer, or the file is damaged'
            )


def in_memory(tokens: np.ndarray, **fields: Any) -> TokenData:
    """The TokenData of an array of tokens: a document of as many bytes; `fields` replace others.

    Example:
      >>> in_memory(np.arange(100, dtype=np.uint16)).num_tokens
      100
    """
    return TokenData(
        **{
            **dict(shards=(tokens,), num_bytes=len(tokens), num_documents=1, sha256='', document_start=0),
            **fields,
        }
    )


def document_start(tokenizer: Tokenizer) -> int:
    """The token that every document begins with; where none leads them, the end of the one before."""
    return (*tokenizer.special.before_document, tokenizer.end_of_document)[0]


def open_prepared(folder: pathlib.Path, split: str, tokenizer: Tokenizer, cache_dir: pathlib.Path) -> TokenData:
    """One split of a folder that `experiments.prepare` wrote, memory-mapped.

    Up to `verification.MOST_AT_ONCE` bytes are compared with the manifest's SHA-256 at once, more in the background.

    Args:
      folder: as `manifest.read_manifest` takes it.
      split: 'train' or 'validation'.
      tokenizer: that it was prepared with.
      cache_dir: where it is remembered which files were verified.

    Raises:
      ValueError: another tokenizer, other special tokens, of chats another template, a split that it lacks or without
        tokens; as `manifest.read_manifest` and `manifest.check_sizes`.
      OSError: a shard is damaged.

    Example:
      data = open_prepared(pathlib.Path('prepared'), 'train', tokenizer, pathlib.Path('cache'))
    """
    manifest = read_manifest(folder)
    _check_same(folder, 'the tokenizer', manifest.tokenizer, tokenizer.fingerprint)
    _check_same(folder, 'documents that begin and end with', manifest.framing, tokenizer.framing, 'of version 0.1')
    if 'chat_template' in manifest.made_of:
        for name, present in chats.ChatEncoder(tokenizer).settings().items():
            prepared = manifest.made_of.get(name)
            remedy = _to_begin_with(prepared) if name == 'before_prompt' else SAME
            _check_same(folder, name, prepared, present, remedy=remedy)
    if split not in manifest.splits or not manifest.splits[split].counts.num_tokens:
        there = [name for name, other in manifest.splits.items() if other.counts.num_tokens]
        raise ValueError(f'{folder} has no tokens of the split {split!r}; it has {", ".join(there) or "none"}')
    check_sizes(folder, manifest)
    of_split = manifest.splits[split]
    counts, dtypes = of_split.counts, {TOKENS: np.dtype(manifest.dtype), MASK: np.uint8, DOCUMENTS: np.uint32}
    paths = {ending: [folder / f'{shard.name}.{ending}' for shard in of_split.shards] for ending in dtypes}
    open_files.allow_more(len(dtypes) * len(of_split.shards))
    arrays = {
        ending: tuple(_mapped(path, np.dtype(dtypes[ending]).newbyteorder('<')) for path in paths[ending])
        for ending in (dtypes if manifest.is_chats else (TOKENS,))
    }
    claims = [
        Claim(folder / f'{shard.name}.{ending}', sha256)
        for shard in of_split.shards
        for ending, sha256 in shard.sha256.items()
    ]
    return TokenData(
        arrays[TOKENS],
        counts.num_bytes,
        counts.num_documents,
        of_split.sha256,
        document_start(tokenizer),
        counts.num_empty,
        counts.num_invalid,
        masks=arrays.get(MASK),
        document_lengths=np.concatenate(arrays[DOCUMENTS]) if DOCUMENTS in arrays else None,
        num_learned=counts.num_learned,
        held_out=_held_out(manifest),
        source=f'{folder}, {split}',
        verification=verify(claims, cache_dir),
    )


def _check_same(folder: pathlib.Path, what: str, prepared: Any, present: str, nothing: str = '', remedy: str = SAME):
    if prepared != present:
        raise ValueError(
            f"{folder} was prepared with {what} {prepared or nothing!r:.200}; the config's is"
            f' {present or nothing!r:.200}: give {remedy}, or prepare it anew'
        )


def _to_begin_with(prompt: str) -> str:
    """The flags with which prompts begin with this token, or, of '', with none."""
    flags = ('bos_token_id', prompt), ('add_bos_token', 'true' if prompt else 'false')
    return ' '.join(f'--config.special_tokens.{name}={value}' for name, value in flags if value)


def _held_out(manifest: Manifest) -> float | None:
    """As of TokenData: where both splits are of one pass over the sources."""
    passes = {shard.ends[0] for split in manifest.splits.values() for shard in split.shards}
    share = manifest.made_of.get('held_out')
    return share if passes == {0} and isinstance(share, float) else None


def _mapped(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, mode='r') if path.stat().st_size else np.empty(0, dtype)
