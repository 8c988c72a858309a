"""What two starts of a run may differ in: every field of a config is known, and an error tells what differs."""

import copy
import pathlib

import pytest
from small_experiments import small_config
from small_runs import run_config, start, stop_after, stub_steps

from configs import stored as stored_configs
from configs import tiny
from experiments.data.datasets import python_stdlib
from experiments.training import resuming


def test_every_field_is_of_one_kind():
    """A new field of configs has to be: what is learned from it, which text, or nothing of both."""
    kinds = (resuming.LEARNED_FROM, resuming.TEXT, resuming.FREE_FIELDS)
    assert sorted(field for kind in kinds for field in kind) == sorted(tiny.get_config().to_dict())


@pytest.fixture
def stored():
    """What a checkpoint keeps of a run's config."""
    return {**stored_configs.write(small_config().to_dict()), 'corpus': 'a'}


def test_another_configs_checkpoint_is_refused(stored):
    """Every differing field, with both values; fields that change nothing of what is learned may differ."""
    present = copy.deepcopy(stored) | {'method': 'diffq', 'log_every': 77, 'initial_weights': {'step': 4}}
    present['model']['num_layers'] = 8
    present['model']['rope'] = True
    del present['model']['hidden_size'], stored['dtype']
    with pytest.raises(ValueError, match='--workdir') as error:
        resuming.check_config(present, pathlib.Path('run/checkpoints/2'), stored)
    message = str(error.value)
    assert 'run/checkpoints/2' in message
    for line in (
        f'model.num_layers: stored {stored["model"]["num_layers"]}, present 8',
        f'model.hidden_size: stored {stored["model"]["hidden_size"]}, present (absent)',
        'model.rope: stored (absent), present True',
        f"method: stored '{stored['method']}', present 'diffq'",
        f"dtype: stored (absent), present '{present['dtype']}'",
        "initial_weights: stored (absent), present {'step': 4}",
    ):
        assert line in message
    assert 'model.family' not in message
    assert 'log_every' not in message
    resuming.check_config(stored, pathlib.Path('run'), {**stored, 'log_every': 1})


@pytest.mark.parametrize('method', ['bf16', 'qat', 'fqt'])
def test_defaults_of_bitwidths_are_nothing_to_runs_that_learn_none(method):
    """Those of before were others; the same command continues such a run all the same."""
    present = stored_configs.write(tiny.get_config(f'method={method}').to_dict())
    before = stored_configs.write(tiny.get_config(f'method={method},bitwidths=decay').to_dict())
    assert present['quantization'] != before['quantization']
    resuming.check_config(present, pathlib.Path('run'), before)
    before['quantization']['parts'] = 'up'
    with pytest.raises(ValueError, match=r'quantization\.parts'):
        resuming.check_config(present, pathlib.Path('run'), before)
    present, before = ({**config, 'method': 'gaussws'} for config in (present, before))
    with pytest.raises(ValueError, match=r'quantization\.b_target'):
        resuming.check_config(present, pathlib.Path('run'), before)


def test_a_config_of_before_is_completed(stored):
    """A field that it doesn't have yet counts as what was done then; what isn't a config is told with its file."""
    before = {name: value for name, value in stored.items() if name not in ('invalid_text', 'config_version')}
    present = {**stored, 'corpus': 'b'}
    with pytest.raises(ValueError, match="corpus: stored 'a', present 'b'") as error:
        resuming.check_config({**present, 'invalid_text': 'skip'}, pathlib.Path('run'), before)
    assert "invalid_text: stored 'error', present 'skip'" in str(error.value)
    with pytest.raises(ValueError) as error:
        resuming.check_config(present, pathlib.Path('run'), before)
    assert 'invalid_text' not in str(error.value)
    with pytest.raises(ValueError, match=r'^run/checkpoint\.json: .*config_version=9'):
        resuming.check_config(present, pathlib.Path('run'), {**before, 'config_version': 9})


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped after its first checkpoint."""

    stub_steps(monkeypatch)
    with monkeypatch.context() as context, pytest.raises(SystemExit, match='continues from step 4'):
        stop_after(context, 6)
        start(tmp_path / 'run', run_config())
    return tmp_path / 'run'


def test_what_changes_nothing_that_is_learned(stopped, capsys):
    """Another name, and the same text by another name of its dataset."""
    start(
        stopped,
        run_config(name='other', validation_split='train', dataset=f'{python_stdlib.NAME}/{python_stdlib.CONFIG}'),
    )
    told = capsys.readouterr().out
    assert 'continuing from step 4' in told
    assert 'validation_split=train, before validation: other validation losses than before' in told


def test_another_text_is_told_with_what_makes_it_another(stopped):
    with pytest.raises(SystemExit, match=r"(?s)corpus: stored '\w{64}', .*train_split: stored 'train', present 'valid"):
        start(stopped, run_config(train_split='validation'))


@pytest.mark.parametrize(
    ('field', 'value'),
    [('recipe', 'nvfp4'), ('full_precision', 'first=1'), ('start_step', 3), ('end_step', 5)],
)
def test_a_run_goes_on_as_it_was_quantized(field, value):
    stored = stored_configs.write(tiny.get_config('method=fqt,recipe=mxfp8').to_dict())
    present = copy.deepcopy(stored)
    present['quantization'][field] = value
    with pytest.raises(ValueError, match=f'quantization.{field}: stored {stored["quantization"][field]!r}, present'):
        resuming.check_config(present, pathlib.Path('run'), stored)
