"""Fits: what is said of their constants and errors, and of other laws on runs held out."""

import json

import pytest
from law_program import grid, lines_of, run, write

import gaussq_jax as gq
from experiments.laws import known_laws
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA


def test_a_fit_tells_its_errors_and_what_other_laws_do(runs, tmp_path):
    """And what it writes answers with intervals, which hold the truth."""
    stored = tmp_path / 'law.json'
    printed = run('fit', runs, f'--output={stored}')
    table = lines_of(printed)
    truth = PUBLISHED_CAPYBARA.constants()
    for name, value in truth.items():
        low, high = map(float, table[name][-1].split(' to '))
        assert low < float(table[name][1]) < high and low / 1.3 < value < high * 1.3
    assert 'runs        72 of' in printed and 'correlated' in printed
    for column in (-2, -1):
        errors = [float(table[law][column].rstrip('%')) for law in ('Capybara', 'Kumar', 'Chinchilla', 'Kaplan')]
        assert errors[0] < 0.2 and min(errors[1:]) > 1

    rows = json.loads(run('critical', '--model=1B', '--format=e2m1', f'--law={stored}', '--json'))['rows']
    low, high = rows[0]['critical tokens, interval']
    assert low < rows[0]['critical tokens'] < high < 1.2 * low
    plan = json.loads(run('plan', '--compute=1e24', f'--law={stored}', '--json'))
    low, high = plan['best']['interval']
    assert low < plan['best']['loss'] < high and plan['bits_interval'][0] < plan['bits'] < plan['bits_interval'][1]
    assert run('layout', f'--law={stored}') == run('layout', f'--runs={runs}')
    assert '95 % interval of loss' in run('predict', '--model=1B', '--tokens=1T', f'--law={stored}')


def test_json_is_one_object_and_nothing_else(runs, no_comparison):
    data = json.loads(run('--json', 'fit', runs, '--exclude_e0'))
    assert data['left_out'] == {'with E = 0': 18} and data['runs'] == 54
    assert data['constants']['alpha']['determined'] is True
    assert data['comparison'] == 'not now'


def test_errors_say_what_they_assume(runs, tmp_path, no_comparison):
    """By default groups of one N and D, as no seed is told; those of one size are the least, and wrong for these."""
    found = {}
    for errors, groups in (('cr3', 9), ('hc3', 72), ('plain', 72)):
        options = [] if errors == 'cr3' else [f'--errors={errors}']
        data = found[errors] = json.loads(run('fit', runs, *options, '--json'))
        assert (data['errors'], data['groups']) == (errors, groups)
        (line,) = [line for line in run('fit', runs, *options).splitlines() if line.startswith('errors')]
        assert line.startswith(f'errors      {errors}') and line.endswith(gq.scaling_laws.ERRORS[errors])
        assert ('9 groups (runs of one N, D and seed, or checkpoints of one)' in line) == (errors == 'cr3')
        law = f'--law={tmp_path / errors}.json'
        run('fit', runs, *options, f'--output={tmp_path / errors}.json')
        printed = run('exchange', '--model=1B', '--bits=8', '--new_bits=4', law)
        assert f'intervals take it that {gq.scaling_laws.ERRORS[errors]}' in printed.splitlines()
    interval = lambda errors: found[errors]['constants']['beta']['interval']
    assert interval('plain') != interval('hc3') != interval('cr3')
    with pytest.raises(SystemExit, match='--errors is of a fit to --runs, which is not given'):
        run('layout', '--errors=plain')


def test_columns_of_a_table_make_the_groups(tmp_path, no_comparison):
    """Seeds that differ are independent, and checkpoints of one run are not."""
    rows = grid(PUBLISHED_CAPYBARA)
    groups = lambda rows: json.loads(run('fit', write(tmp_path / 'table.csv', rows), '--json'))['groups']
    assert groups([{**row, 'seed': i % 2} for i, row in enumerate(rows)]) == 18
    assert groups([{**row, 'seed': i} for i, row in enumerate(rows)]) == 72
    runs_of = [f'{row["N"]} {row["E"]} {row["M"]} {row["B"]}' for row in rows]
    for column in ('run', 'run_id', 'run_name'):
        assert groups([{**row, 'seed': i, column: run} for i, (row, run) in enumerate(zip(rows, runs_of))]) == 24
        assert groups([{**row, 'seed': i, column: ['', 'NaN', 'None'][i % 3]} for i, row in enumerate(rows)]) == 72
    assert groups([{**row, 'seed': i, 'name': 'ours'} for i, row in enumerate(rows)]) == 72


@pytest.mark.parametrize(
    ('held_out', 'errors'),
    [
        ('none', []),
        ('folds', ['held_out_error', 'size_held_out_error']),
        ('one', ['held_out_error', 'size_held_out_error']),
        ('largest:1', ['largest_held_out_error']),
    ],
)
def test_runs_are_held_out_as_asked_for(runs, held_out, errors):
    """Laws are in the order of the first error, or of their residuals."""
    data = json.loads(run('fit', runs, f'--held_out={held_out}', '--json'))
    for law in data['comparison']:
        assert list(law) == ['law', 'constants', 'rmse', *errors] and all(law[name] > 0 for name in errors)
    (capybara,) = [law for law in data['comparison'] if law['law'] == 'Capybara']
    assert all(capybara[name] < 0.05 for name in errors), capybara
    key = [law[[*errors, 'rmse'][0]] for law in data['comparison']]
    assert key == sorted(key) and len(key) == 4
    if held_out == 'largest:1':
        table = known_laws.read_runs(runs).columns
        there = table['N'] == table['N'].max()
        others = {name: column[~there] for name, column in table.items()}
        law = gq.scaling_laws.fit(gq.scaling_laws.CapybaraLaw, others).law
        error = gq.scaling_laws.held_out_error(law, {name: column[there] for name, column in table.items()})
        assert capybara['largest_held_out_error'] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    ('held_out', 'error'),
    [
        ('half', "--held_out='half' must be none, folds, one, or largest:K with a whole number K"),
        ('largest:0', "--held_out='largest:0' must be none, "),
        ('largest:3', '--held_out=largest:3 leaves no run to fit: there are 3 model sizes'),
    ],
)
def test_what_can_not_be_held_out_is_one_error(runs, held_out, error):
    with pytest.raises(SystemExit, match=f'^error: {error}'):
        run('fit', runs, f'--held_out={held_out}')


def test_too_few_runs_are_one_error_and_one_model_size_holds_none_out(tmp_path):
    rows = grid(PUBLISHED_CAPYBARA)
    with pytest.raises(SystemExit, match=r'^error: 8 runs are too few for the 9 constants of CapybaraLaw$'):
        run('fit', write(tmp_path / 'few.csv', rows[:8]))
    table = lines_of(run('fit', write(tmp_path / 'one.csv', rows[:24])))
    assert table['Kumar'][-2].endswith('%') and table['Kumar'][-1] == 'unknown'
    assert 'no errors on runs held out: ' in run('fit', write(tmp_path / 'cell.csv', rows[:8] * 2))
