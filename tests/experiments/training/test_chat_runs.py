"""A run on chats, by the program, from a file of conversations: it says what it learns, and resumes to the bit."""

import json
import shutil

import numpy as np
import pytest
from small_chats import CHATS, write_tokenizer
from small_experiments import make_experiment, small_config
from small_runs import assert_same_run, start, stub_steps

from experiments.cost import step_costs
from experiments.data import loading
from experiments.data.packing import PackedRows


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('chats')
    (folder / 'chats.jsonl').write_text(''.join(json.dumps({'messages': chat}) + '\n' for chat in 8 * CHATS[:2]))
    return small_config(
        'smoke,method=bf16',
        dataset=str(folder / 'chats.jsonl'),
        text_feature='messages',
        tokenizer=str(write_tokenizer(folder)),
        held_out=0.6,
        cache_dir=str(folder / 'cache'),
        sequence_length=160,
        **dict(total_steps=4, log_every=2, eval_every=4, eval_batches=1, checkpoint_every=2),
        optimizer__warmup_steps=1,
    )


@pytest.mark.parametrize('is_stubbed', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_on_chats_resumes_exactly(config, tmp_path, capsys, monkeypatch, is_stubbed):
    if is_stubbed:
        stub_steps(monkeypatch)
    packed = []
    pack = lambda data, length: packed.append(data) or PackedRows(data, length)
    monkeypatch.setattr(loading, 'PackedRows', pack)
    start(tmp_path / 'whole', config)
    assert len(packed) == len(set(packed)) > 0, 'each split is packed once'
    out = capsys.readouterr().out
    assert '8 documents in ' in out and '% full; each is seen ' in out
    shutil.copytree(tmp_path / 'whole', tmp_path / 'stopped')
    shutil.rmtree(tmp_path / 'stopped/checkpoints/4')
    (tmp_path / 'stopped/summary.json').unlink()
    start(tmp_path / 'stopped', config)
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')
    summary = json.loads((tmp_path / 'whole/summary.json').read_text())
    assert np.isfinite(summary['validation/bits_per_byte'])
    assert (tmp_path / 'whole/tokenizer/chat_template.jinja').is_file()  # which --chat needs


def test_a_dry_run_is_of_the_same_step(config):
    batch = step_costs.trace(make_experiment(config)).in_avals[0][1]
    assert {name: values.dtype.name for name, values in batch.items()} == {
        'tokens': 'int32',
        'mask': 'float32',
        'segments': 'int32',
    }
