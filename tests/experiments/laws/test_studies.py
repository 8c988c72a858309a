"""Fits: what is said of their constants and errors, and of other laws on runs held out."""

import json

import pytest
from law_program import grid, lines_of, run, write

import gaussq_jax as gq
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
    rows = json.loads(run('critical', '--model=1B', '--format=e2m1', f'--law={stored}', '--json'))['rows']
    low, high = rows[0]['critical tokens, interval']
    assert low < rows[0]['critical tokens'] < high < 1.2 * low
    plan = json.loads(run('plan', '--compute=1e24', f'--law={stored}', '--json'))
    low, high = plan['best']['interval']
    assert low < plan['best']['loss'] < high and plan['bits_interval'][0] < plan['bits'] < plan['bits_interval'][1]
    assert run('layout', f'--law={stored}') == run('layout', f'--runs={runs}')
    assert '95 % interval of loss' in run('predict', '--model=1B', '--tokens=1T', f'--law={stored}')


def test_json_is_one_object_and_nothing_else(runs):
    data = json.loads(run('--json', 'fit', runs, '--exclude_e0'))
    assert data['left_out'] == {'with E = 0': 18} and data['runs'] == 54
    assert data['constants']['alpha']['determined'] is True
    assert len(data['worst']) == 5 and data['worst'][0]['run'].startswith('line ')
    residuals = [abs(run['residual']) for run in data['worst']]
    assert residuals == sorted(residuals, reverse=True) and residuals[0] < 0.05


def test_errors_say_what_they_assume(runs, tmp_path):
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


def test_columns_of_a_table_make_the_groups(tmp_path):
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


def test_too_few_runs_are_one_error(tmp_path):
    rows = grid(PUBLISHED_CAPYBARA)
    with pytest.raises(SystemExit, match=r'^error: 8 runs are too few for the 9 constants of CapybaraLaw$'):
        run('fit', write(tmp_path / 'few.csv', rows[:8]))


def test_constants_that_are_tied_or_kept_are_told_so(runs):
    table = lines_of(run('fit', runs, '--law_name=chinchilla-tied'))
    assert table['law'][1] == 'Chinchilla, beta = alpha' and table['beta'][-1] == '= alpha'
    assert table['beta'][1] == table['alpha'][1]
    table = lines_of(run('fit', runs, '--law_name=outer', '--fixed=gamma=1,beta=alpha'))
    assert table['gamma'][1:] == ['1', 'not fitted'] and table['beta'][-1] == '= alpha'
    for fixed, error in (('gamma', "--fixed='gamma' must be"), ('kappa=1', r"fixed\['kappa'\]: .* has the constants")):
        with pytest.raises(SystemExit, match=f'^error: {error}'):
            run('fit', runs, '--law_name=outer', f'--fixed={fixed}')


def test_recipes_that_a_law_does_not_tell_apart_are_said(runs):
    printed = run('fit', runs, '--law_name=chinchilla')
    assert 'Chinchilla does not tell apart runs of' in printed and 'what these cost is in its residuals' in printed
    assert 'does not tell apart' not in run('fit', runs)
