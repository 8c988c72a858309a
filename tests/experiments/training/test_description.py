"""What a training says of itself: what it is about to do, and what came of it."""

import pathlib
import types

import numpy as np
import pytest
from small_experiments import ONE_DEVICE, on_mesh
from small_runs import run_config

from experiments.data import tokenizers
from experiments.data.loading import one_source
from experiments.data.rows import TextRows
from experiments.data.token_data import in_memory
from experiments.training import description
from experiments.training.experiment import make_experiment

WORKDIR = pathlib.Path('/runs/with space')


def beginning(config=None, *, start=None, remarks=(), initial_weights=None, **counts):
    tokens = in_memory(np.zeros(5000, np.uint16), num_documents=100, **counts)
    tokenizer = tokenizers.load_tokenizer('bytes')
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(config or run_config(), tokenizer.vocab_size)
    data = one_source(tokens, tokens)._replace(initial_weights=initial_weights)
    how = dict(rows={'': TextRows(tokens, 8)}, start=start, remarks=remarks)
    return description.beginning(experiment, data, tokenizer, WORKDIR, **how).splitlines()


def test_before_the_first_step():
    lines = beginning(remarks=['something was not kept'])
    assert [line[:10].strip() for line in lines if line[0] != ' '] == [
        *('model', 'method', 'weights', 'data', 'devices', 'run')
    ]
    assert lines[-2:] == ['run       /runs/with space, starting, 12 steps', '          something was not kept']
    assert any('5,000 tokens to train on; tokenizer bytes, vocabulary 257' in line for line in lines)
    assert '          validation is 0.5 % of the documents, by a hash of their text' in beginning(held_out=0.005)


def test_where_it_begins():
    assert beginning(start=8)[-1] == 'run       /runs/with space, continuing from step 8, 12 steps'
    of_another = beginning(run_config(init_from='runs/other'), initial_weights={'step': 7, 'sha256': ''})
    assert of_another[-1] == 'run       /runs/with space, starting from the weights of runs/other, step 7, 12 steps'


@pytest.mark.parametrize(
    ('counts', 'told'),
    [
        ({}, 'train on;'),
        (dict(num_empty=0, num_invalid=0), 'train on;'),
        (dict(num_empty=3, num_invalid=0), 'train on (3 empty, of 100 documents);'),
        (dict(num_empty=3, num_invalid=2), 'train on (3 empty and 2 not UTF-8, of 100 documents);'),
    ],
)
def test_documents_that_are_unusual(counts, told):
    assert any(told in line for line in beginning(**counts))


VERIFIED = types.SimpleNamespace(is_verified=lambda: True)


def test_after_the_last_step():
    config = run_config()
    summary = {'validation/loss': 2.5, 'validation/bits_per_byte': 3.6, 'validation/loss_with_noise': 2.6}
    first, *rest, last = description.end(
        types.SimpleNamespace(config=config, num_blocks=8),
        summary | {'bits/mean': 4.25, 'bits/p10': 3.5, 'bits/p90': 5.0, 'bits/stored': 6.125},
        WORKDIR,
        VERIFIED,
    ).splitlines()
    assert first == 'done      validation loss 2.500 nats a token, 3.600 bits per byte, without noise'
    assert rest == [
        '          with noise 2.600; bitwidths went from 6 to 4.25 bits on average;'
        ' 80 % of the blocks are between 3.50 and 5.00',
        '          the formats of these bitwidths have 6.12 bits a weight, mean of the blocks',
    ]
    assert last == '          next: python -m experiments.generate --workdir=\'/runs/with space\' --prompt="def "'
    without_bitwidths = types.SimpleNamespace(config=config, num_blocks=0)
    assert description.end(without_bitwidths, summary, WORKDIR, VERIFIED).splitlines() == [first, last]
    unverified = types.SimpleNamespace(is_verified=lambda: False)
    _, told, _ = description.end(without_bitwidths, summary, WORKDIR, unverified).splitlines()
    assert told.strip().startswith('not all files of its tokens were verified')
