"""What two starts of a run may differ in: every field of a config is known, and an error tells what differs."""

import pytest
from small_runs import change_steps, run_config, start, stub_steps

from configs import tiny
from experiments.data.datasets import python_stdlib
from experiments.training import resuming


def test_every_field_is_of_one_kind():
    """A new field of configs has to be: what is learned from it, which text, or nothing of both."""
    kinds = (resuming.LEARNED_FROM, resuming.TEXT, resuming.FREE_FIELDS)
    assert sorted(field for kind in kinds for field in kind) == sorted(tiny.get_config().to_dict())


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped after its first checkpoint."""

    def stop(step, state, batch):
        if int(state.step) == 6:
            raise KeyboardInterrupt
        return step(state, batch)

    stub_steps(monkeypatch)
    with monkeypatch.context() as context, pytest.raises(SystemExit, match='continues from step 4'):
        change_steps(context, stop)
        start(tmp_path / 'run', run_config())
    return tmp_path / 'run'


def test_what_changes_nothing_that_is_learned(stopped, capsys):
    """Another name, and the same text by another name of its dataset."""
    start(
        stopped,
        run_config(name='other', validation_split='train', dataset=f'{python_stdlib.NAME}/{python_stdlib.CONFIG}'),
    )
    assert 'continuing from step 4' in capsys.readouterr().out


def test_another_text_is_told_with_what_makes_it_another(stopped):
    with pytest.raises(SystemExit, match=r"(?s)corpus: stored '\w{64}', .*train_split: stored 'train', present 'valid"):
        start(stopped, run_config(train_split='validation'))
