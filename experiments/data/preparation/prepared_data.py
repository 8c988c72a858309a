"""The prepared folder that `train` makes itself, in its cache, at the first use of a text."""

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from absl import logging

from experiments.data.preparation import manifest as manifests
from experiments.data.preparation import preparing
from experiments.data.preparation.encoding import Settings
from experiments.data.sources.source import SourceFile
from experiments.data.tokenizers import Tokenizer
from experiments.files import paths


def cache_folder(cache_dir: str | os.PathLike | None) -> pathlib.Path:
    """`cache_dir`, or the environment variable GAUSSQ_CACHE, or else ~/.cache/gaussq_jax."""
    return paths.parse(cache_dir or os.environ.get('GAUSSQ_CACHE') or '~/.cache/gaussq_jax', 'cache_dir')


def prepared_data(
    settings: Settings,
    tokenizer: Tokenizer,
    *,
    cache_dir: str | os.PathLike | None = None,
    workers: int | None = None,
    anew: bool = False,
) -> pathlib.Path:
    """The folder in the cache with the tokens of a text, which is prepared the first time.

    Its name is made of the settings, the tokenizer and its special tokens, and of the paths, sizes and times of the
    sources: when one of them changes, there is another folder. Where another process is preparing it, this one waits.

    Args:
      settings: of the text.
      tokenizer: of the tokens.
      cache_dir: as `cache_folder`.
      workers: how many processes; None: one for each core.
      anew: whether to prepare a folder again that is complete: one that was found to be damaged.

    Raises:
      ValueError: as `preparing.open_passes`; a document that can't be read; a split without text.
      OSError: a worker died; a file can't be written.

    Example:
      >>> from experiments.data.tokenizers import load_tokenizer
      >>> folder = prepared_data(Settings('python_stdlib'), load_tokenizer('bytes'))
      >>> sorted(path.name for path in folder.glob('*.tokens'))
      ['train-00000.tokens', 'validation-00000.tokens']
    """
    cache_dir = cache_folder(cache_dir)
    passes = preparing.open_passes(settings, cache_dir=cache_dir)
    made_of = [settings.made_of(), tokenizer.fingerprint, tokenizer.framing, *map(_identity, preparing.files_of(passes))]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r'[^\w.+=-]+', '-', passes[0].source.name)[-80:].strip('-.')
    folder = cache_dir / 'tokens' / f'{name}-{digest}'
    if not anew and _is_complete(folder):
        return folder
    workers = workers or len(os.sched_getaffinity(0))
    logging.info('Preparing %s', folder)
    preparing.prepare(
        folder,
        settings,
        tokenizer,
        passes=passes,
        workers=workers,
        waits=True,
        start_over=lambda folder: anew or _is_damaged(folder),
    )
    return folder


def _is_complete(folder: pathlib.Path) -> bool:
    try:
        manifests.check_sizes(folder, manifests.read_manifest(folder))
    except ValueError:
        return False
    return True


def _is_damaged(folder: pathlib.Path) -> bool:
    """Whether there is something that can't be gone on with; what it is, is logged."""
    if not os.path.lexists(folder / manifests.NAME):
        return False
    try:
        manifests.check_sizes(folder, manifests.read_manifest(folder, complete=False))
    except ValueError as error:
        logging.warning('%s is damaged (%s) and will be written anew', folder, error)
        return True
    return False


def _identity(file: SourceFile) -> list[Any]:
    """Of a file on this machine, also when it was changed."""
    try:
        return [*file, pathlib.Path(file.path).stat().st_mtime_ns]
    except OSError:
        return [*file]
