"""The prepared folder that `train` makes itself, in its cache, at the first use of a text."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import loky
from absl import logging

from experiments.data.preparation import manifest as manifests
from experiments.data.preparation import preparing
from experiments.data.preparation.encoding import Settings
from experiments.data.sources.source import Source
from experiments.data.sources.tfds_dataset import TfdsDataset
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
    identities = [identity for one in passes for identity in _identities(one.source)]
    made_of = [settings.made_of(tokenizer), tokenizer.fingerprint, tokenizer.framing, *identities]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r'[^\w.+=-]+', '-', passes[0].source.name)[-80:].strip('-.')
    folder = cache_dir / 'tokens' / f'{name}-{digest}'
    if not anew and _is_complete(folder):
        return folder
    logging.info('Preparing %s', folder)
    workers = workers or loky.cpu_count()
    options = dict(passes=passes, workers=workers, is_cache=True, anew=anew)
    preparing.prepare(folder, settings, tokenizer, **options)
    return folder


def _is_complete(folder: pathlib.Path) -> bool:
    try:
        manifests.check_sizes(folder, manifests.read_manifest(folder))
    except ValueError:
        return False
    return True


def _identities(source: Source) -> Iterator[list[Any]]:
    """What changes when the texts do: of TFDS its dataset_info.json, which knows sizes; else each file, as it is."""
    if isinstance(source, TfdsDataset):
        info = pathlib.Path(source.builder.data_path, 'dataset_info.json').read_bytes()
        yield [source.name, hashlib.sha256(info).hexdigest()]
        return
    for file in source.files:
        try:
            yield [*file, pathlib.Path(file.path).stat().st_mtime_ns]
        except OSError:  # it is elsewhere
            yield [*file]
