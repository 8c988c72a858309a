"""Records of runs: which runs are one curve, what is compared with what, and bitwidths as they were written."""

import json

import numpy as np
import pytest
from small_records import config_of, record

from configs import stored as stored_configs
from experiments.reports import run_records
from experiments.reports.run_records import RunRecord


def losses(*values):
    return [{'step': 10 * i, 'validation/loss': value} for i, value in enumerate(values, start=1)]


def grouped(*records):
    return [(group.label, [run.name for run in group.runs]) for group in run_records.group_by_seed(records)]


def test_runs_that_differ_in_their_seed_are_one():
    """In nothing else but what tells where things are; methods and any other field keep runs apart."""
    runs = [record('bf16-0'), record('g-0', 'method=gaussws'), record('bf16-1', seed=1, cache_dir='elsewhere')]
    runs += [record('other', seed=2, total_steps=7), record('g-1', 'method=gaussws', seed=1, data_dir='elsewhere')]
    assert grouped(*runs) == [('bf16', ['bf16-0', 'bf16-1']), ('g', ['g-0', 'g-1']), ('other', ['other'])]


def test_runs_of_one_seed_are_not_averaged():
    """The same run twice is no second seed."""
    assert grouped(record('a'), record('b'), record('c', seed=1)) == [('a … c', ['a', 'c']), ('b', ['b'])]


@pytest.mark.parametrize(
    ('names', 'label'),
    [
        (('tiny-0', 'tiny-1'), 'tiny'),
        (('tiny_seed0', 'tiny_seed1'), 'tiny'),
        (('method=bf16,seed=0', 'method=bf16,seed=1'), 'method=bf16'),
        (('tiny', 'tiny-1'), 'tiny'),
        (('0', '1'), '0 … 1'),
        (('lr10', 'lr11'), 'lr10 … lr11'),
        (('aseed0', 'aseed1'), 'a'),
        (('seed=0', 'seed=1'), 'seed=0 … seed=1'),
        (('first', 'second'), 'first … second'),
    ],
)
def test_what_several_seeds_are_called(names, label):
    assert grouped(*(record(name, seed=seed) for seed, name in enumerate(names)))[0][0] == label


def test_groups_of_one_label_are_told_apart():
    """A label is a curve."""
    runs = [record(f'a{dash}{seed}', seed=seed, total_steps=7 + (dash == '_')) for dash in '-_' for seed in (0, 1)]
    assert [label for label, _ in grouped(*runs)] == ['a-0, a-1', 'a_0, a_1']


def test_runs_without_a_config_stay_alone():
    assert grouped(RunRecord('a', [], None), RunRecord('b', [], None)) == [('a', ['a']), ('b', ['b'])]


def test_mean_and_range_of_the_steps_that_all_have():
    curves = [(np.array([1.0, 2, 3]), np.array([4.0, 5, 6])), (np.array([2.0, 3, 4]), np.array([7.0, 9, 0]))]
    steps, mean, low, high = run_records.mean_and_range(curves)
    np.testing.assert_array_equal([steps, mean, low, high], [[2, 3], [6, 7.5], [5, 6], [7, 9]])
    assert all(not len(of) for of in run_records.mean_and_range([*curves, (np.array([]), np.array([]))]))


def test_gaps_are_paired_by_seed():
    """Of two seeds that both have, each against its own; in percent; at the steps of both."""
    base = [record('b-0', seed=0, lines=losses(2.0, 1.0)), record('b-1', seed=1, lines=losses(4.0, 2.0))]
    ours = [record(f'g-{seed}', 'method=gaussws', seed, losses(2.0, 1.1, 5.0)) for seed in (1, 0, 2)]
    groups = run_records.group_by_seed([*base, *ours])
    assert run_records.base_of(groups[1], groups) is groups[0] and run_records.base_of(groups[0], groups) is None
    gaps = run_records.gaps_to(groups[1], groups[0], 'validation/loss')
    assert [steps.tolist() for steps, _ in gaps] == [[10, 20]] * 2
    np.testing.assert_allclose([values for _, values in gaps], [[-50, -45], [0, 10]], atol=1e-9)


def test_there_is_no_gap_where_a_loss_is_not_finite():
    """Neither to such a loss nor of one."""
    base = record('b', lines=losses(1.0, np.inf, 1.0, np.nan, 2.0))
    groups = run_records.group_by_seed([base, record('g', 'method=gaussws', lines=losses(1.1, 1.0, np.inf, 1.0, 1.0))])
    ((steps, gaps),) = run_records.gaps_to(groups[1], groups[0], 'validation/loss')
    assert steps.tolist() == [10, 50] and gaps.tolist() == pytest.approx([10, -50])


def test_runs_are_compared_with_what_was_trained_alike():
    """A gap to a run of another length would say nothing of the method."""
    groups = run_records.group_by_seed([record('b'), record('g', 'method=gaussws', total_steps=7)])
    assert run_records.base_of(groups[1], groups) is None


def test_bitwidths_over_steps():
    """Matrices, layers, steps; a matrix that fewer layers have is NaN beyond them; other lines don't count."""
    lines = [
        {'step': 5, 'bits/mean': 5.0, 'bits/matrix/query': [6.0, 5.0], 'bits/matrix/gate': [4.0]},
        {'step': 5, 'validation/loss': 1.0},
        {'step': 10, 'bits/mean': 4.0, 'bits/matrix/query': [5.0, 4.5], 'bits/matrix/gate': [3.0]},
    ]
    history = run_records.bitwidth_history(record('g', 'method=gaussws', lines=lines))
    assert history.names == ['query', 'gate'] and history.steps.tolist() == [5, 10]
    np.testing.assert_array_equal(history.bits, [[[6, 5], [5, 4.5]], [[4, 3], [np.nan, np.nan]]])


def test_long_histories_are_thinned():
    lines = [{'step': step, 'bits/matrix/up': [float(step)]} for step in range(1, 5001)]
    history = run_records.bitwidth_history(record('g', 'method=gaussws', lines=lines))
    assert len(history.steps) == run_records.MOST_STEPS and history.steps[[0, -1]].tolist() == [1, 5000]
    np.testing.assert_array_equal(history.bits[0, 0], history.steps)


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (losses(1.0), '^old learned no bitwidths: its method is bf16$'),
        (
            [{'step': 1, 'bits/mean': 4.0}],
            '^old has no bitwidths by matrix in its metrics.jsonl: it was written before',
        ),
        ([{'step': 1, 'bits/matrix/up': 4.0}], '^old: bits/matrix/… must be lists of a number a layer'),
        ([{'step': 1, 'bits/matrix/up': [4.0] * 100_001}], '^old has bitwidths of 1 matrices of 100001 layers: too'),
    ],
)
def test_runs_without_bitwidths_by_matrix(lines, message):
    with pytest.raises(ValueError, match=message):
        run_records.bitwidth_history(record('old', lines=lines))


def test_a_record_is_read_from_its_directory(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 2.0}\n')
    assert run_records.read_record(tmp_path) == RunRecord(tmp_path.name, [{'step': 1, 'train/loss': 2.0}], None)
    config = config_of('method=fqt', seed=3)
    (tmp_path / 'config.json').write_text(json.dumps(stored_configs.write(config)))
    read = run_records.read_record(tmp_path)
    assert (read.method, read.seed, read.config) == ('fqt', 3, config)


@pytest.mark.parametrize(('name', 'shown'), [('a\udce9', 'a\\udce9'), ('a\x1bb', 'a\\x1bb'), ('a\nb', 'a\\nb')])
def test_a_name_can_be_printed(tmp_path, name, shown):
    """Where it is no UTF-8, too, as a name of a folder may be."""
    (tmp_path / name).mkdir()
    assert run_records.read_record(tmp_path / name, needs_metrics=False).name == shown


def test_a_list_is_no_curve():
    with pytest.raises(ValueError, match="'train/loss' must be a number"):
        run_records.series([{'step': 1, 'train/loss': [1.0]}], 'train/loss')
