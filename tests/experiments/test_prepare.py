"""`python -m experiments.prepare`: what it says, what it refuses, and that a kill at any moment loses nothing."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from programs import import_program, run_program
from small_experiments import small_config
from small_tokenizers import write_huggingface
from text_corpora import texts, write_lines, write_parquet

from experiments.data import loading
from experiments.data.preparation import manifest
from experiments.processes import exit_codes

prepare = import_program('prepare')
ROOT = pathlib.Path(__file__).parents[2]
# Of each corpus of the large trial, and the file of its tokenizer, or 'bytes'; else one of 400 tokens.
MEGABYTES, TOKENIZER = int(os.environ.get('GAUSSQ_PREPARED_MB', '60')), os.environ.get('GAUSSQ_PREPARED_TOKENIZER')
ENVIRONMENT = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def run(output, dataset, **flags):
    defaults = dict(SHOW=0, TEXT_FEATURE='text', INVALID_TEXT='error', HELD_OUT=0.05, TRAIN_SPLIT='train', SHARD='0/1')
    defaults |= dict(VALIDATION_SPLIT='validation', SHARD_SIZE=512, VOCAB_SIZE=0, WORKERS=1, TOKENIZER='bytes')
    defaults |= dict.fromkeys(('BOS_TOKEN_ID', 'EOS_TOKEN_ID', 'ADD_BOS_TOKEN', 'DATA_DIR', 'CACHE_DIR'), '')
    run_program(prepare, DATASET=str(dataset), OUTPUT=str(output), **defaults | flags)


@pytest.fixture(scope='module')
def lines(tmp_path_factory):
    """Four files of 60 documents each."""
    folder = tmp_path_factory.mktemp('lines')
    for number in range(4):
        rows = (json.dumps({'text': f'document {number}.{i}: ' + 'words ' * (i % 9)}) for i in range(60))
        (folder / f'{number}.jsonl').write_text('\n'.join(rows))
    return folder / '*.jsonl'


def contents(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != '.lock'
    }


def test_what_is_prepared_is_trained_on(lines, tmp_path, capsys):
    """By the command that it prints; and what is there already is not prepared again."""
    run(tmp_path / 'tokens', lines)
    said = capsys.readouterr().out
    assert re.search(r'train: [\d,]+ tokens of 2\d\d documents\n', said)
    assert re.search(rf'2 shards in {tmp_path}/tokens, [\d,]+ tokens/s', said)
    command = f'python -m experiments.train --config.dataset={tmp_path}/tokens --config.tokenizer=bytes'
    assert said.endswith(f'train on it with: {command}\n')
    config = small_config(dataset=f'{tmp_path}/tokens', tokenizer='bytes', cache_dir=str(tmp_path / 'cache'))
    (source,) = loading.load_data(config, loading.load_tokenizer(config)).sources
    assert source.train.num_documents + source.validation.num_documents == 240
    assert not (tmp_path / 'cache' / 'tokens').exists()
    capsys.readouterr()
    run(tmp_path / 'tokens', lines)
    assert f'{tmp_path}/tokens is complete already, with 2 shards' in capsys.readouterr().out


def test_parts_are_one_dataset(lines, tmp_path, capsys):
    for index in range(4):
        run(tmp_path / 'tokens', lines, SHARD=f'{index}/4')
    assert 'train on all parts with:' in capsys.readouterr().out
    run(tmp_path / 'whole', lines)
    whole, parts = manifest.read_manifest(tmp_path / 'whole'), manifest.read_manifest(tmp_path / 'tokens')
    assert {name: split.counts for name, split in parts.splits.items()} == {
        name: split.counts for name, split in whole.splits.items()
    }


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        (dict(TOKENIZER=''), '--tokenizer must be given'),
        (dict(SHARD='4/4'), "--shard='4/4' must be I/N, I of 0 to N - 1"),
        (dict(SHARD='0/5'), r'--shard=0/5: .* has 4 files; allowed: at most /4'),
        (dict(DATASET='0.5 a=x; 0.5 b=y'), 'is a mixture: prepare each of its datasets'),
        (dict(DATASET='tokens/*.bin'), 'has tokens already: train with --config.dataset='),
        (dict(DATASET='nothing/*.jsonl'), "there is no file 'nothing/\\*.jsonl'"),
        (dict(HELD_OUT=1.0), 'held_out=1.0; allowed: between 0 and 1'),
        (dict(OUTPUT='gs://bucket/x'), "--output='gs://bucket/x': gs:// is not supported"),
    ],
)
def test_what_cannot_be(lines, tmp_path, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    flags = {'DATASET': lines, 'OUTPUT': 'tokens', **flags}
    with pytest.raises(SystemExit, match=told):
        run(flags.pop('OUTPUT'), flags.pop('DATASET'), **flags)
    assert not (tmp_path / 'tokens').exists()


def started(output, dataset, tokenizer, *flags):
    """The program in a process of its own."""
    command = [sys.executable, '-m', 'experiments.prepare', f'--dataset={dataset}', f'--output={output}']
    command += [f'--tokenizer={tokenizer}', *flags]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        start_new_session=True,
    )


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize('signal_number', [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_asked_to_end(tmp_path, signal_number):
    """As are its workers, by a terminal or a scheduler: it says how to go on, and leaves nothing half written."""
    (tmp_path / 'texts').mkdir()
    dataset, tokenizer = write_lines(tmp_path / 'texts', 1, 60_000_000), write_huggingface(tmp_path / 'tokenizer.json')
    with started(tmp_path / 'tokens', dataset, tokenizer, '--shard_size=1', '--workers=2') as process:
        wait_for((tmp_path / 'tokens' / 'train-00001.tokens').exists, process)
        os.killpg(process.pid, signal_number)
        _, errors = process.communicate(timeout=60)
    status = exit_codes.PREEMPTED if signal_number == signal.SIGTERM else 1
    assert process.returncode == status
    assert errors.strip().endswith('the same command goes on after the last shard that is written'), errors
    assert 'Traceback' not in errors
    assert not list((tmp_path / 'tokens').glob('.*writing'))
    left = manifest.read_manifest(tmp_path / 'tokens', complete=False)
    assert len(left.splits['train'].shards) >= 1 and not left.is_complete


@pytest.mark.slow
@pytest.mark.parametrize('write', [write_lines, write_parquet])
def test_a_large_corpus_and_three_kills(tmp_path, write):
    """Megabytes of text by two processes: killed at three places, it comes to the same bytes.

    How many tokens a second there are, and the most memory of a process, is printed.
    """
    (tmp_path / 'texts').mkdir()
    dataset = write(tmp_path / 'texts', 4, MEGABYTES * 10**6 // 4)
    tokenizer = TOKENIZER or write_huggingface(tmp_path / 'tokenizer.json')
    shard_size = max(1, MEGABYTES // 20)
    flags = ('--workers=2', f'--shard_size={shard_size}')
    with started(tmp_path / 'undisturbed', dataset, tokenizer, *flags) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    print(*output.splitlines()[-4:], sep='\n')
    shards = manifest.read_manifest(tmp_path / 'undisturbed').splits['train'].shards
    assert len(shards) > 4
    for kill in 1, 2, 3:
        with started(tmp_path / 'killed', dataset, tokenizer, *flags) as process:
            wait_for(
                (tmp_path / 'killed' / shards[kill * len(shards) // 4].name).with_suffix('.tokens').exists, process
            )
            process.kill()
            process.communicate()
        assert not manifest.read_manifest(tmp_path / 'killed', complete=False).is_complete
    with started(tmp_path / 'killed', dataset, tokenizer, *flags) as process:
        assert process.communicate() and process.returncode == 0
    assert contents(tmp_path / 'killed') == contents(tmp_path / 'undisturbed')
    size = sum(len(text.encode()) for number in range(4) for text in texts(number, MEGABYTES * 10**6 // 4))
    splits = manifest.read_manifest(tmp_path / 'killed').splits.values()
    assert sum(split.counts.num_bytes for split in splits) == size
