"""Prepare a text for training: tokenise it, by several processes, into a folder that --config.dataset can name.

    python -m experiments.prepare --dataset='texts/*.jsonl.zst' --tokenizer=tokenizer.json --output=tokens
    python -m experiments.prepare --dataset='texts/*.parquet' --tokenizer=tokenizer.json --output=tokens --shard=3/8
    python -m experiments.prepare --dataset=chats.jsonl --text_feature=messages --tokenizer=tokenizer.json --show=3
    python -m experiments.train --config.dataset=tokens --config.tokenizer=tokenizer.json

The same command again goes on where it was interrupted, however that was, and comes to the same files. With --shard,
several machines prepare one part each; the folder with all parts is what training reads. With --show, the first chats
are printed as a model reads them, what it learns between ⟦ and ⟧, and nothing is written.
"""

import contextlib
import itertools
import os
import pathlib
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import loky
from absl import flags

from experiments import cli
from experiments.data import chats, mixtures, tokenizers
from experiments.data.preparation import preparing
from experiments.data.preparation.encoding import Settings
from experiments.data.preparation.manifest import is_prepared
from experiments.data.preparation.prepared_data import cache_folder
from experiments.data.preparation.preparing import Part
from experiments.data.token_files.opening import is_token_files
from experiments.files import foreign_text, json_files, paths
from experiments.processes import exit_codes

DEFAULTS = Settings('')
DATASET = flags.DEFINE_string('dataset', None, 'What to prepare, as --config.dataset names it, but for a mixture.')
TOKENIZER = flags.DEFINE_string('tokenizer', None, "'bytes', a SentencePiece .model or a Hugging Face .json file.")
OUTPUT = flags.DEFINE_string('output', None, 'The folder that is written.')
WORKERS = flags.DEFINE_integer('workers', None, 'How many processes; one for each core if not given.', lower_bound=1)
TEXT_FEATURE = flags.DEFINE_string(
    'text_feature', DEFAULTS.text_feature, "The feature that holds the text; 'messages', 'prompt+completion': chats."
)
INVALID_TEXT = flags.DEFINE_string(
    'invalid_text', DEFAULTS.invalid_text, 'What becomes of documents that are not UTF-8: error, replace, skip.'
)
HELD_OUT = flags.DEFINE_float(
    'held_out', DEFAULTS.held_out, 'The share of documents that are for validation, where a dataset has no splits.'
)
TRAIN_SPLIT = flags.DEFINE_string('train_split', DEFAULTS.train_split, 'The split to train on.')
VALIDATION_SPLIT = flags.DEFINE_string('validation_split', DEFAULTS.validation_split, 'The split for validation.')
DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where TFDS keeps its datasets.')
CACHE_DIR = flags.DEFINE_string('cache_dir', '', 'Where python_stdlib is written; else $GAUSSQ_CACHE.')
BOS_TOKEN_ID = flags.DEFINE_string('bos_token_id', '', 'As --config.special_tokens.bos_token_id.')
EOS_TOKEN_ID = flags.DEFINE_string('eos_token_id', '', 'As --config.special_tokens.eos_token_id.')
ADD_BOS_TOKEN = flags.DEFINE_string('add_bos_token', '', 'As --config.special_tokens.add_bos_token.')
VOCAB_SIZE = flags.DEFINE_integer('vocab_size', 0, "As --config.vocab_size: the model's; 0 is the tokenizer's.")
SHARD = flags.DEFINE_string('shard', '0/1', 'I/N: read the files I, I + N, … alone, to be the part I of N.')
SHARD_SIZE = flags.DEFINE_integer('shard_size', 512, 'MB of tokens in a file.', lower_bound=1)

SHOW = flags.DEFINE_integer('show', 0, 'So many chats are printed, with what is learned of them.', lower_bound=0)


def main(argv):
    del argv
    with cli.user_errors():
        for flag in (DATASET, TOKENIZER, OUTPUT):
            if not flag.value and not (flag is OUTPUT and SHOW.value):
                raise ValueError(f'--{flag.name} must be given')
        output = None if SHOW.value else paths.parse(OUTPUT.value, '--output')
        part = parse_part(SHARD.value)
        check_is_text(DATASET.value)
        settings = Settings(
            **{
                flag.name: flag.value
                for flag in (DATASET, TEXT_FEATURE, INVALID_TEXT, HELD_OUT, TRAIN_SPLIT, VALIDATION_SPLIT)
            },
            data_dir=DATA_DIR.value or None,
        )
        special = special_tokens()
        tokenizer = tokenizers.load_tokenizer(TOKENIZER.value, special, vocab_size=VOCAB_SIZE.value)
        print(tokenizer.describe(), *tokenizer.remarks, sep='\n', flush=True)
        if SHOW.value:
            show(settings, tokenizer, part, SHOW.value)
            return
        with told_how_to_resume():
            run(output, settings, tokenizer, part)


def run(output: pathlib.Path, settings: Settings, tokenizer: tokenizers.Tokenizer, part: Part):
    """Prepares, and prints what came of it."""
    begin = time.monotonic()
    prepared = preparing.prepare(
        output,
        settings,
        tokenizer,
        passes=preparing.open_passes(settings, part, cache_folder(CACHE_DIR.value)),
        part=part,
        workers=WORKERS.value or loky.cpu_count(),
        shard_bytes=SHARD_SIZE.value * 10**6,
    )
    seconds = time.monotonic() - begin
    for name, split in prepared.manifest.splits.items():
        counts = split.counts
        unusual = {
            'empty': counts.num_empty,
            'left out' if settings.is_chats else 'not UTF-8': counts.num_invalid,
            'encoded in parts': counts.num_cut,
        }
        told = ''.join(f', {number:,} {what}' for what, number in unusual.items() if number)
        print(f'{name}: {counts.num_tokens:,} tokens of {counts.num_documents:,} documents{told}')
    num_shards = sum(len(split.shards) for split in prepared.manifest.splits.values())
    if prepared.num_new:
        print(f'{num_shards} shards in {prepared.folder}, {prepared.num_new / seconds:,.0f} tokens/s')
    else:
        print(f'{prepared.folder} is complete already, with {num_shards} shards')
    command = ['python', '-m', 'experiments.train', f'--config.dataset={output}']
    command += [f'--config.tokenizer={TOKENIZER.value}']
    command += [f'--config.special_tokens.{name}={value}' for name, value in special_tokens().items() if value]
    command += [f'--config.text_feature={settings.text_feature}'] * settings.is_chats
    print(f'{"train on it" if part.count == 1 else "train on all parts"} with: {shlex.join(command)}')


def check_is_text(dataset: str):
    """ValueError for what `train` takes, too, and has tokens already."""
    if mixtures.parse(dataset)[0].name:
        raise ValueError(f'--dataset={dataset!r} is a mixture: prepare each of its datasets, in a folder of its own')
    if is_token_files(dataset) or is_prepared(pathlib.Path(dataset)):
        raise ValueError(f'--dataset={dataset!r} has tokens already: train with --config.dataset={dataset}')


def show(settings: Settings, tokenizer: tokenizers.Tokenizer, part: Part, number: int):
    """Prints the first documents of chats; ValueError for texts, of which all is learned."""
    if not settings.is_chats:
        raise ValueError(f'--show is of chats: --text_feature={" or ".join(chats.FEATURES)}')
    encoder = chats.ChatEncoder(tokenizer)
    passes = preparing.open_passes(settings, part, cache_folder(CACHE_DIR.value))
    blocks = (block for one in passes for file in one.files for block in one.source.blocks(file))
    rows = ((block.place(row), values) for block in blocks for row, values in enumerate(block.rows()))
    for place, values in itertools.islice(rows, number):
        with json_files.naming(place):
            text = foreign_text.escaped(encoder.show(values, *'⟦⟧'))
        if sys.stdout.isatty():
            text = text.replace('⟦', '\033[32m⟦').replace('⟧', '⟧\033[0m')
        print(f'=== {place} ===\n{text}')


def special_tokens() -> dict[str, str]:
    """What is asked for, as `config.special_tokens` has it."""
    return {flag.name: flag.value for flag in (BOS_TOKEN_ID, EOS_TOKEN_ID, ADD_BOS_TOKEN)}


def parse_part(text: str) -> Part:
    """'3/8', the part 3 of 8, which are counted from 0."""
    found = re.fullmatch(r'(\d{1,5})/(\d{1,5})', text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f'--shard={text!r} must be I/N, I of 0 to N - 1')
    return Part(int(found[1]), int(found[2]))


class Terminated(BaseException):
    """SIGTERM."""


@contextlib.contextmanager
def told_how_to_resume() -> Iterator[None]:
    """An interrupt and SIGTERM end the program with one line; as those of `train`, with the same exit codes."""

    def terminate(*_):
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    told = 'the same command goes on after the last shard that is written'
    try:
        yield
    except KeyboardInterrupt:
        _end(f'\ninterrupted; {told}', exit_codes.ERROR)
    except Terminated:
        _end(f'preempted; {told}', exit_codes.PREEMPTED)


def _end(told: str, code: int) -> NoReturn:
    """Ends at once: at its usual end, Python crashes at times where a thread is still within PyArrow."""
    sys.stdout.flush()
    print(told, file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == '__main__':
    cli.start(main)
