"""A run on several sources: what it says and measures of each, and that it resumes exactly, or ends at damage."""

import dataclasses
import pathlib

import numpy as np
import pytest
from small_experiments import ONE_DEVICE, on_mesh, random_state
from small_runs import assert_same_run, read_batches, records, run_config, start, stub_steps
from token_folders import write_prepared

from experiments.data import loading
from experiments.data.loading import Data
from experiments.data.preparation.verification import DamagedFile, Verification
from experiments.processes import exit_codes
from experiments.training import evaluation
from experiments.training.experiment import make_experiment


@pytest.fixture
def config(tmp_path):
    folders = []
    for name in 'ab':
        tokens = np.random.default_rng(ord(name)).integers(0, 256, 3000)
        folders.append(write_prepared(tmp_path / name, train=np.split(tokens, [777]), validation=[tokens[:999]]))
    return run_config(
        dataset=f'0.75 web={folders[0]}; 0.25 code={folders[1]}', cache_dir=str(tmp_path / 'cache'), total_steps=12
    )


def test_validation(config):
    """Of each source as if it was alone; of all the mean by their weights."""
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(config, 257)
        state, data = random_state(experiment), loading.load_data(config, loading.load_tokenizer(config))
        found = evaluation.make_validation(experiment, data)(state)
        alone = {
            source.name: evaluation.make_validation(experiment, Data((source._replace(weight=1),)))(state)
            for source in data.sources
        }
    assert list(alone) == ['code', 'web'] and all(len(metrics) == 3 for metrics in alone.values())
    for name, metrics in alone.items():
        assert found[f'validation/{name}/loss'] == metrics['validation/loss']
        assert found[f'validation/{name}/bits_per_byte'] == metrics['validation/bits_per_byte']
    for metric in ('validation/loss', 'validation/loss_with_noise', 'validation/bits_per_byte'):  # equal bytes a token
        assert found[metric] == pytest.approx(0.75 * alone['web'][metric] + 0.25 * alone['code'][metric], rel=1e-12)
    assert len(found) == 7


def test_validation_of_damaged_tokens(config):
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(config, 257)
        data = loading.load_data(config, loading.load_tokenizer(config))
        first, second = data.sources
        damaged = dataclasses.replace(second.validation, verification=Verification(lambda: fail(6)))
        data = Data((first, second._replace(validation=damaged)))
        with pytest.raises(OSError, match='is damaged'):
            evaluation.make_validation(experiment, data)(random_state(experiment))


def test_a_run_resumes_exactly(config, tmp_path, monkeypatch, capsys):
    stub_steps(monkeypatch)
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    start(whole, config)
    said = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(said) if line.startswith('data '))
    assert said[first].startswith('data      2 sources; tokenizer bytes, vocabulary 257; D =')
    assert said[first + 1].strip().startswith(f'25.00% code: {tmp_path}/b, 3,000 tokens, each seen')
    assert said[first + 2].strip().startswith(f'75.00% web: {tmp_path}/a, 3,000 tokens, each seen')
    change = loading.Data.raise_if_damaged
    steps = iter(range(100))
    monkeypatch.setattr(loading.Data, 'raise_if_damaged', lambda self: fail(next(steps)) or change(self))
    with pytest.raises(SystemExit):
        start(stopped, config)
    monkeypatch.setattr(loading.Data, 'raise_if_damaged', change)
    start(stopped, config)
    assert_same_run(stopped, whole)
    assert len(records(whole)) > 3


def fail(step):
    if step == 6:
        raise DamagedFile(pathlib.Path('train-00001.tokens'), 'is damaged')


def test_damage_ends_the_run(config, tmp_path, monkeypatch, capsys):
    stub_steps(monkeypatch)
    monkeypatch.setattr(loading.Data, 'raise_if_damaged', lambda self: fail(6))
    with pytest.raises(SystemExit) as ended:
        start(tmp_path / 'run', config)
    told = f'{ended.value} {capsys.readouterr().err}'
    assert 'train-00001.tokens is damaged' in told and 'what was trained since its beginning may have seen it' in told
    assert ended.value.code in (1, exit_codes.ERROR) or isinstance(ended.value.code, str)


def test_batches_of_a_run_are_by_weight(config):
    rows = np.concatenate(read_batches(config, 10))
    of_web = {bytes(row) for row in windows(config, 'a')}
    share = np.mean([bytes(row.astype(np.uint16)) in of_web for row in rows])
    assert abs(share - 0.75) * len(rows) < 1


def windows(config, name):
    tokens = np.random.default_rng(ord(name)).integers(0, 256, 3000).astype(np.uint16)
    length = config.sequence_length
    return [tokens[i * length : (i + 1) * length + 1] for i in range((len(tokens) - 1) // length)]
