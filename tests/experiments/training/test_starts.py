"""How a run was started is in its workdir, each time, and is read as it was written."""

import json

import pytest

from experiments.training import starts
from experiments.training.starts import Start


def test_a_resumed_run_keeps_all(tmp_path):
    """One that starts again from the beginning is another run."""
    first = Start(0, ['--config=configs/tiny.py:smoke', '--workdir=runs/a b'], '1 x cpu')
    again = Start(10, ['--config=configs/tiny.py:smoke'], '8 x é')
    for added in ([first], [again, again], [first]):
        expected = added if added == [first] else [first, *added]
        for start in added:
            starts.add(tmp_path, start)
        assert starts.read(tmp_path) == expected


def test_arguments_that_are_no_text(tmp_path):
    """Bytes that are no UTF-8 are a surrogate each in sys.argv, which no JSON holds: a run has to be resumed yet."""
    for _ in range(2):
        starts.add(tmp_path, Start(10, ['--workdir=caf\udce9', 'é'], '1 x cpu'))
    assert [start.arguments for start in starts.read(tmp_path)] == [['--workdir=caf\\xe9', 'é']] * 2


def test_runs_of_before_have_none(tmp_path):
    assert starts.read(tmp_path) == []
    starts.add(tmp_path, Start(10, [], '1 x cpu'))
    assert len(starts.read(tmp_path)) == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'arguments': 'all'}, "'arguments' must be an array"),
        ({'arguments': ['a', 1]}, "'arguments' must be texts"),
        ({'devices': None}, "'devices' must be a string"),
        ({'from_step': 1.5}, "'from_step' must be an integer"),
    ],
)
def test_what_another_wrote(tmp_path, changes, message):
    start = Start(0, [], '')._asdict() | changes
    (tmp_path / starts.NAME).write_text(json.dumps({'starts': [start]}))
    with pytest.raises(ValueError, match=rf'command\.json: a start: {message}'):
        starts.read(tmp_path)


@pytest.mark.parametrize('damaged', [b'{"starts": [', b'\xff\xfe', b'{"starts": 1}'])
def test_damage_stops_no_training(tmp_path, damaged):
    """What can't be read is put aside, and said."""
    (tmp_path / starts.NAME).write_bytes(damaged)
    again = Start(10, ['--workdir=a'], '1 x cpu')
    (remark,) = starts.add(tmp_path, again)
    assert 'command.json is now command.json.damaged' in remark
    assert starts.read(tmp_path) == [again] and (tmp_path / starts.DAMAGED).read_bytes() == damaged
    assert starts.add(tmp_path, again) == []
