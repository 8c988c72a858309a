"""Faults befall real trainings, and docs/reliability.md tells of each of them that nothing was lost."""

import json
import pathlib
import re
import shutil

import pytest
from programs import import_program

from experiments.reliability import faults, trial_results
from experiments.reliability.faults import Observation

reliability = import_program('reliability.__main__')
PAGE = pathlib.Path(reliability.__file__).parents[2] / 'docs' / 'reliability.md'


def test_page_has_every_fault_and_each_passed():
    """The page is of the faults that the program makes now, all of them; none failed or was left out."""
    rows = [
        re.split(r' (?<!\\)\| ', line.strip('| ')) for line in PAGE.read_text().splitlines() if line.startswith('|')
    ]
    header, _, *rows = rows
    assert tuple(header) == reliability.COLUMNS
    assert [(name, how) for name, how, *_ in rows] == [
        (name, ' '.join(make.__doc__.split())) for name, make in reliability.FAULTS.items()
    ]
    assert {outcome for *_, outcome in rows} == {reliability.PASSED}
    assert all(lost.startswith('nothing') for *_, lost, _ in rows)


@pytest.mark.slow
@pytest.mark.parametrize('name', reliability.FAULTS)
def test_nothing_is_lost_by_any_fault(laboratory, name):
    _observe(laboratory, name)


@pytest.mark.slow
def test_nothing_is_lost_by_many_kills(laboratory):
    _observe(laboratory, 'SIGKILL at random moments')


@pytest.fixture(scope='module')
def laboratory(tmp_path_factory):
    """Trainings and moments as the page has them."""
    folder = tmp_path_factory.mktemp('long_trials')
    return reliability.Laboratory(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    'changed', ['the final checkpoint', "the data iterator's state", 'metrics.jsonl', 'summary.json']
)
def test_another_result_is_noticed(laboratory, changed):
    """What the faults are judged by: one number that is another is found, and named; another time is none."""
    workdir = shutil.copytree(laboratory.reference, laboratory.new_workdir())
    files = {name: workdir / name for name in ('metrics.jsonl', 'summary.json')}
    _rewrite(files['summary.json'], 'seconds', lambda seconds: seconds + 1)
    trial_results.check_same_result(workdir, laboratory.reference)
    last, before = (workdir / 'checkpoints' / str(reliability.STEPS - steps) for steps in (0, 5))
    if changed == 'the final checkpoint':
        shutil.rmtree(last / 'state')
        shutil.copytree(before / 'state', last / 'state')
    elif changed == "the data iterator's state":
        shutil.copy(before / 'checkpoint.json', last)
    else:
        _rewrite(files[changed], 'validation/loss', lambda loss: loss * (1 + 1e-15))
    with pytest.raises(trial_results.Unexpected, match=changed):
        trial_results.check_same_result(workdir, laboratory.reference)


def test_a_fault_that_did_harm_fails_the_program(tmp_path, monkeypatch):
    """The page says which fault had another outcome, and which wasn't tried; the former is exit code 1."""

    def do_nothing(_):
        """so"""
        return Observation('a | b', 'nothing')

    def harm(_):
        """so"""
        raise trial_results.Unexpected('checkpoint 5 is damaged')

    def skip(_):
        """so"""
        raise faults.NotTried('there is no `unshare`')

    monkeypatch.setattr(reliability, 'FAULTS', {'good': do_nothing, 'harmful': harm, 'untried': skip})
    monkeypatch.setattr(reliability, 'OUTPUT', type('', (), {'value': str(tmp_path / 'page.md')}))
    with pytest.raises(SystemExit, match='another outcome'):
        reliability.main(['reliability'])
    rows = (tmp_path / 'page.md').read_text().splitlines()[-3:]
    assert rows == [
        '| good | so | a \\| b | nothing | yes |',
        '| harmful | so | Unexpected: checkpoint 5 is damaged | unknown | **NO** |',
        '| untried | so | there is no `unshare` | unknown | not tried |',
    ]


def _observe(laboratory, name):
    try:
        observation = reliability.FAULTS[name](laboratory)
    except faults.NotTried as reason:
        pytest.skip(str(reason))
    assert observation.lost.startswith('nothing')


def _rewrite(path, name, change):
    """Changes a number in the last JSON object of a file."""
    head, brace, last = path.read_text().rpartition('{')
    values = json.loads(brace + last)
    path.write_text(head + json.dumps({**values, name: change(values[name])}) + '\n')
