"""The table over a sweep's seeds: means, their intervals, and which differences are marked."""

import csv
import pathlib
import types

import numpy as np
import pytest
from programs import import_program

compare = import_program('compare')

REPOSITORY = pathlib.Path(__file__).parents[2]

STUDENT = 4.302652729911275  # its 97.5 % quantile of two degrees of freedom
LOSSES = {  # format, block size -> by seed
    ('bf16', '32'): {'0': 2.0, '1': 2.2, '2': 2.1},
    ('e4m3', '32'): {'0': 2.02, '1': 2.19, '2': 2.11},  # as often better as worse
    ('e2m1', '32'): {'0': 2.1, '1': 2.31, '2': 2.2},
    ('e1m1', 'channel'): {'0': 2.4, '1': 2.6},
}


def rows():
    table = [
        {'name': 'x', 'status': 'done', 'a.format': fmt, 'block_size': size, 'seed': seed, 'seconds': '3', 'loss': loss}
        for (fmt, size), by_seed in LOSSES.items()
        for seed, loss in by_seed.items()
    ]
    return [*table, {**table[-1], 'name': 'broken', 'status': 'failed', 'seed': '2', 'loss': ''}]


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def write(path, table):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def test_differences_are_taken_seed_by_seed(tmp_path):
    """The seeds differ by more than the formats do; paired, the difference is still seen, and noise is called noise."""
    groups = compare.read_groups(write(tmp_path / 'results.csv', rows()), 'loss')
    header, _, *lines = map(cells, compare.markdown(groups, 'loss').splitlines())
    assert header == ['format', 'block_size', 'seeds', 'loss', 'to the first row', 'to the row above']
    first, e4m3, e2m1, e1m1 = lines
    assert first == ['bf16', '32', '3', f'2.1000 ± {STUDENT * 0.1 / np.sqrt(3):.4f}', '', '']
    difference = np.array([0.02, -0.01, 0.01])
    half_width = STUDENT * difference.std(ddof=1) / np.sqrt(3)
    assert e4m3[4] == e4m3[5] == f'{difference.mean() / 2.1:+.2%} ± {half_width / 2.1:.2%}'
    difference = np.array([0.1, 0.11, 0.1])
    half_width = STUDENT * difference.std(ddof=1) / np.sqrt(3)
    assert e2m1[4] == f'**{difference.mean() / 2.1:+.2%} ± {half_width / 2.1:.2%}**'
    assert e2m1[5].startswith('**+')
    assert e1m1[2] == '2 of 3' and e1m1[5] == ''  # one failed; two fields changed
    assert [group.missing for group in groups] == [[], [], [], ['broken']]


def test_runs_that_diverged_are_left_out_and_counted(tmp_path, monkeypatch, capsys):
    """A loss that its row may have is none of the setting; a divergence is no failure, as a missing run is."""
    table = rows()
    for i in (4, 6, 7, 8):  # one of e4m3, all of e2m1
        table[i] |= {'status': 'diverged', 'name': f'run-{i}', 'loss': 'nan' if i == 4 else ''}
    path = write(tmp_path / 'results.csv', table[:-1])
    _, _, first, e4m3, e2m1, _ = map(cells, compare.markdown(compare.read_groups(path, 'loss'), 'loss').splitlines())
    assert (first[2], e4m3[2], e2m1[2]) == ('3', '2 of 3, 1 diverged', '0 of 3, 3 diverged')
    assert e4m3[3].startswith('2.0650 ') and 'nan' not in e4m3[4]
    assert e2m1[3:5] == ['', 'no seed in common']
    for name, value in dict(WORKDIR=tmp_path / 'results.csv', METRIC=['loss'], WHERE=[]).items():
        monkeypatch.setattr(compare, name, types.SimpleNamespace(value=value))
    compare.main(['compare'])
    assert capsys.readouterr().out.endswith('\n\ndiverged, and left out: run-4, run-6, run-7, run-8\n')
    write(tmp_path / 'results.csv', table)
    with pytest.raises(SystemExit, match='not done, and left out: broken'):
        compare.main(['compare'])


def test_one_seed_separates_nothing(tmp_path):
    path = write(tmp_path / 'results.csv', [row for row in rows() if row['seed'] == '0'])
    *_, last = compare.markdown(compare.read_groups(path, 'loss'), 'loss').splitlines()
    assert '| 2.4000 (one seed) | +20.00% (one seed) |' in last and '±' not in last and '**' not in last


def test_an_unknown_column_is_an_error_that_lists_the_columns(tmp_path):
    path = write(tmp_path / 'results.csv', rows())
    with pytest.raises(ValueError, match="no 'speed'; its columns are name, status, a"):
        compare.read_groups(path, 'speed')


def test_a_table_of_something_else_is_an_error(tmp_path):
    path = write(tmp_path / 'results.csv', [{'name': 'a', 'loss': 1.0}])
    with pytest.raises(ValueError, match="no 'status'; its columns are name, loss"):
        compare.read_groups(path, 'loss')


def test_of_some_runs(tmp_path):
    """Fields that are then the same in all rows are left out; differences are to the first row of these."""
    groups = compare.read_groups(write(tmp_path / 'results.csv', rows()[:-1]), 'loss')
    of_32 = compare.chosen(groups, ['block_size=32'])
    assert [group.fields['a.format'] for group in of_32] == ['bf16', 'e4m3', 'e2m1']
    header, _, *lines = map(cells, compare.markdown(of_32, 'loss').splitlines())
    assert header[:3] == ['format', 'seeds', 'loss'] and [line[0] for line in lines] == ['bf16', 'e4m3', 'e2m1']
    (alone,) = compare.chosen(groups, ['format=e1m1', 'a.format=e1m1'])
    assert compare.markdown([alone], 'loss').startswith('| format | block_size | seeds |')


@pytest.mark.parametrize(
    ('where', 'message'),
    [
        ('format', r'^--where=format: it must be FIELD=VALUE, of one of these fields: a.format, block_size$'),
        ('seed=1', r'^--where=seed=1: it must be FIELD=VALUE, of one of these fields'),
        ('format=e5m2', r'^--where=format=e5m2: no run has that; they have bf16, e1m1, e2m1, e4m3$'),
    ],
)
def test_runs_that_are_not_there(tmp_path, where, message):
    groups = compare.read_groups(write(tmp_path / 'results.csv', rows()), 'loss')
    with pytest.raises(ValueError, match=message):
        compare.chosen(groups, [where])


def test_a_field_that_a_method_ignores_is_not_shown(tmp_path):
    """bf16 has no targets, whatever the config says."""
    table = [
        {**row, 'quantization.targets': 'P2', 'method': 'bf16' if i < 3 else 'fqt'} for i, row in enumerate(rows())
    ]
    names = ['name', 'status', 'method', 'quantization.targets', 'seed', 'seconds', 'loss']
    path = write(tmp_path / 'results.csv', [{name: row[name] for name in names} for row in table if row['loss']])
    groups = compare.read_groups(path, 'loss')
    assert [tuple(group.fields.values()) for group in groups] == [('bf16', ''), ('fqt', 'P2')]


def test_the_readme_has_the_table_of_its_sweep():
    groups = compare.read_groups(REPOSITORY / 'benchmarks/formats.csv', 'validation/loss')
    assert len(groups) == 12 and compare.markdown(groups, 'validation/loss') in (REPOSITORY / 'README.md').read_text()


def test_differences_say_of_how_many_seeds_they_are():
    group = lambda *losses: compare.SeedGroup({}, {str(seed): loss for seed, loss in enumerate(losses)}, [], [])
    assert compare.difference(group(2.0, 3.0, 4.0), group(1.0, 2.0)).endswith(' (2 seeds in common)')
    assert 'common' not in compare.difference(group(2.0, 3.0), group(1.0, 2.0))
    assert compare.difference(group(-1.0, -1.1), group(-2.0, -2.0)).startswith('**+4')  # it is above the other
    assert compare.difference(group(2.0, 3.0), group(0.0, 0.0)) == ''  # of which there are no per cent
