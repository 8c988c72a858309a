"""Laws fitted to runs, and read from files: what they answer, how sure they are, and what they leave open."""

import json
import re

import numpy as np
import pytest
from law_program import grid, lines_of, run, write

import gaussq_jax as gq
from experiments.laws import known_laws, stored_laws
from experiments.laws.law_choices import LAWS
from experiments.laws.tables import run_tables
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA, BitwidthLaw, EffectiveLaw


@pytest.mark.parametrize('name', ['chinchilla', 'kaplan', 'kumar'])
def test_other_laws_fit_and_predict(runs, name):
    flags = () if name != 'kumar' else ('--bits=4,8',)
    asked = ('predict', '--model=100M', '--tokens=20B', f'--runs={runs}', f'--law_name={name}', '--json')
    rows = json.loads(run(*asked, *flags))
    assert len(rows['rows']) == 1 + (name == 'kumar')
    assert all(2 < row['loss'] < 4 and row['loss, interval'][0] < row['loss'] for row in rows['rows'])
    assert 'e2m1' not in run('plan', '--compute=1e22', f'--runs={runs}', f'--law_name={name}')
    with pytest.raises(SystemExit, match=r'error: this question is of exponent and mantissa bits'):
        run('layout', f'--runs={runs}', f'--law_name={name}')


def test_the_law_of_sampled_weights(tmp_path, no_comparison):
    law = BitwidthLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=500.0, kappa=3.0)
    path = write(tmp_path / 'runs.csv', grid(law, columns=('b',)))
    data = json.loads(run('fit', path, '--law_name=bitwidth', '--json'))
    assert data['constants']['kappa']['value'] == pytest.approx(3, rel=0.05)
    asked = ('critical', '--model=1B', '--bits=4', f'--runs={path}', '--law_name=bitwidth', '--json')
    (row,) = json.loads(run(*asked))['rows']
    assert row['critical tokens'] == pytest.approx(float(law.critical_data_size(1e9, 4)), rel=0.1)


def test_a_law_is_fitted_to_one_method(tmp_path):
    """Weights alone in few bits (qat), and all operands (fqt), have not one law."""
    rows = 'method,format,B,N,D,loss\n' + ''.join(
        f'{method},e2m1,16,1e6,1e9,2.5\n' for method in ('fqt', 'qat', 'bf16')
    )
    (tmp_path / 'runs.csv').write_text(rows)
    with pytest.raises(ValueError, match=r'runs\.csv has runs of fqt and qat: a law is of one method'):
        known_laws.runs_for(LAWS['capybara'], tmp_path / 'runs.csv')


def test_runs_that_say_no_recipe_are_told(tmp_path):
    """And names of recipes are shown as they may be on a terminal; a file is of the law that it says."""
    law = EffectiveLaw(n=482.0, alpha=0.35, d=2085.0, beta=0.37, epsilon=1.8, gamma=1.0, eff_N={'x': 0.5})
    names = {'bf16': 'bf16', '': '', 'x': '\x1b[31mred=[x]'}
    rows = [
        {'N': N, 'D': D, 'forward': names[recipe], 'loss': float(law.loss(N, D, recipe))}
        for N in (1e8, 3e8, 1e9)
        for D in (1e9, 1e10, 1e11)
        for recipe in names
    ]
    path = write(tmp_path / 'runs.csv', rows)
    printed = run('fit', path, '--law_name=effective', f'--output={tmp_path}/law.json')
    assert '9 of 27 runs say no forward recipe, and count as bf16' in printed
    printed += run('compare', path, '--laws=chinchilla', '--held_out=none')
    assert '\\x1b[31mred=[x]' in printed and '\x1b' not in printed
    fixed = json.loads(run('fit', path, '--law_name=effective', '--fixed=eff_N[\x1b[31mRED=[x]]=0.4', '--json'))
    assert fixed['constants']['eff_N[\x1b[31mred=[x]]']['fixed'] == 0.4
    with pytest.raises(SystemExit, match=r'--law_name=kumar: the law in .*law\.json is another, effective'):
        run('predict', f'--law={tmp_path}/law.json', '--law_name=kumar', '--model=1B', '--tokens=1B')


def test_what_the_runs_do_not_determine_is_said_wherever_the_law_speaks(tmp_path, no_comparison):
    """All runs have one format: gamma, delta and nu can't be told apart."""
    path = write(tmp_path / 'runs.csv', [row for row in grid(PUBLISHED_CAPYBARA) if (row['E'], row['M']) == (2, 1)])
    printed = run('fit', path, f'--output={tmp_path / "law.json"}')
    assert re.search(r'^NOT KNOWN +.*gamma, delta, nu', printed, re.MULTILINE)
    printed = run('predict', '--model=1B', '--tokens=1T', '--format=e4m3', f'--law={tmp_path / "law.json"}')
    assert re.search('the runs did not determine .*gamma, delta, nu', printed)


@pytest.fixture(scope='module')
def one_format(tmp_path_factory):
    """Runs of BF16 and E2M1 alone: gamma, delta and nu can't be told apart."""
    rows = [row for row in grid(PUBLISHED_CAPYBARA) if (row['E'], row['M'], row['B']) == (2, 1, 32)]
    rows += [
        {**row, 'E': 8, 'M': 7, 'B': 1, 'loss': float(PUBLISHED_CAPYBARA.loss(row['N'], row['D'], 8, 7, 1))}
        for row in rows
    ]
    return write(tmp_path_factory.mktemp('one_format') / 'runs.csv', rows)


def test_what_the_runs_leave_open_is_unknown_in_every_command(one_format, tmp_path, no_comparison):
    law = f'--law={tmp_path / "law.json"}'
    run('fit', one_format, f'--output={tmp_path / "law.json"}')
    for source in (law, f'--runs={one_format}'):
        lines = lines_of(run('layout', '--bits=4,8', source))
        assert lines['4'][1:] == lines['8'][1:] == ['unknown'] * 5
        assert any(line.startswith('unknown: the runs leave it open, with gamma, delta, nu') for line in lines)
    assert lines_of(run('exchange', '--model=1B', '--bits=8', '--new_bits=4', law))['1B'][-2:] == ['unknown'] * 2
    points = '--model=1B', '--format=e2m1,e4m3', '--block_size=32'
    known, unknown = json.loads(run('critical', *points, '--tokens=1000T', law, '--json'))['rows']
    assert known['critical tokens'] > 0 and None not in known['critical tokens, interval']
    assert unknown['critical tokens'] is None and unknown['critical tokens, interval'] == [None, None]
    printed = run('critical', *points, '--tokens=1000T', law)
    assert 'TOO MANY TOKENS for 1B e2m1' in printed and 'TOO MANY TOKENS for 1B e4m3' not in printed
    with pytest.raises(
        SystemExit, match=r'no plan follows from .* unknown: the runs leave it open, with gamma, delta, nu'
    ):
        run('plan', '--compute=1e20', '--block_size=32', law)


def test_losses_have_the_interval_of_a_run_beside_that_of_the_law(runs, tmp_path, no_comparison):
    """Wider, by as much as the runs scatter; as the library has it; in plans too, and in files."""
    law = tmp_path / 'law.json'
    run('fit', runs, f'--output={law}')
    points = '--model=100M', '--tokens=30B,100B', '--format=e2m1', '--block_size=32'
    rows = json.loads(run('predict', *points, f'--law={law}', '--json'))['rows']
    assert rows == json.loads(run('predict', *points, f'--runs={runs}', '--json'))['rows']
    table = run_tables.read_runs(runs).columns
    result = gq.scaling_laws.fit(gq.scaling_laws.CapybaraLaw, table, num_starts=2)
    loss, draws = lambda law: law.loss(1e8, np.array([3e10, 1e11]), 2, 1, 32), result.bootstrap(40)
    for name, ends in (('interval', result.interval(loss, draws)), ('prediction interval', None)):
        ends = result.prediction_interval(loss, draws) if ends is None else ends
        np.testing.assert_allclose([row[f'loss, {name}'] for row in rows], np.transpose(ends), rtol=1e-6)
    for row in rows:
        (low, high), (lowest, highest) = row['loss, interval'], row['loss, prediction interval']
        assert lowest < low < row['loss'] < high < highest and 0.004 < highest - lowest < 0.02
        assert f'{lowest:.4f} to {highest:.4f}' in run('predict', *points, f'--law={law}')
    plan = json.loads(run('plan', '--compute=1e20', '--block_size=32', f'--law={law}', '--json'))
    for option in (plan['training']['option'], *plan['options']):
        assert option['prediction_interval'][0] < option['interval'][0] < option['loss'] < option['interval'][1]
    printed = run('plan', '--compute=1e20', '--block_size=32', f'--law={law}')
    low, high = plan['training']['option']['prediction_interval']
    assert f'; of a run {low:.4f} to {high:.4f})' in printed and '95 % of a run' in printed


def test_a_law_file_keeps_what_the_runs_leave_open(one_format, tmp_path, no_comparison):
    """And one without it, as version 0.1.0 wrote it, is read: nothing of it is called unknown."""
    path = tmp_path / 'law.json'
    run('fit', one_format, f'--output={path}')
    content, known = json.loads(path.read_text()), stored_laws.read_law(path)
    formats = lambda law: law.critical_data_size(1e9, [2, 4], [1, 3], 32)
    np.testing.assert_array_equal(np.isnan(known.value(formats)), [False, True])
    np.testing.assert_array_equal(np.isnan(known.interval(formats)), [[False, True]] * 2)
    stored_laws.write_law(tmp_path / 'again.json', known)
    assert json.loads((tmp_path / 'again.json').read_text()) == content
    for name in ('determination', 'scatter', 'errors'):
        del content[name]
    path.write_text(json.dumps(content))
    old = stored_laws.read_law(path)
    assert np.isfinite(old.value(formats)).all() and old.prediction_interval(formats) is None
    printed = run('predict', '--model=1B', '--tokens=1T', '--format=e2m1', f'--law={path}')
    assert '95 % interval of loss' in printed and 'of a run' not in printed and 'intervals take it' not in printed
    assert re.search(r'^intervals are of the law; runs scatter about it by 0\.\d+ nats', printed, re.MULTILINE)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'errors': 'cv1'}, "errors='cv1' must be one of cr3, hc3, plain"),
        ({'scatter': {'residuals': [], 'is_relative': False}}, 'scatter must have residuals, finite numbers'),
        ({'scatter': {'residuals': [0.1, float('nan')], 'is_relative': False}}, 'scatter must have residuals'),
        ({'scatter': {'residuals': [[0.1]], 'is_relative': False}}, 'scatter must have residuals'),
        ({'scatter': {'residuals': [0.1]}}, "has no 'is_relative'"),
        ({'determination': {'covariance': [[1.0]]}}, 'cannot reshape array of size 1'),
        ({'determination': {'ties': {'beta': 'alpha'}}}, 'ties must be of other constants to fitted ones, n, alpha, '),
        ({'determination': {'ties': {'beta': 'zeta'}}}, 'ties must be of other constants to fitted ones, n, alpha, '),
        ({'determination': {'ties': {'zeta': 'alpha'}}}, "'zeta' is no constant of the law"),
    ],
)
def test_a_law_file_with_errors_that_are_none(runs, tmp_path, no_comparison, change, message):
    run('fit', runs, f'--output={tmp_path / "law.json"}')
    content = json.loads((tmp_path / 'law.json').read_text())
    if 'determination' in change:
        change = {'determination': content['determination'] | change['determination']}
    (tmp_path / 'law.json').write_text(json.dumps(content | change))
    with pytest.raises(SystemExit, match=message):
        run('layout', f'--law={tmp_path / "law.json"}')


@pytest.mark.parametrize(
    'text', ['', '[]', '{"law": "capybara"}', '{"law": "x", "constants": {}}', 'N,D\n1,2\n', '\xff']
)
def test_a_file_that_holds_no_law_is_one_error(tmp_path, text):
    (tmp_path / 'law.json').write_bytes(text.encode('latin1'))
    with pytest.raises(
        SystemExit,
        match=r'error: .*law\.json (is not a law as `fit --output=.*` writes it: |is no JSON|must hold a JSON object)',
    ) as exit_:
        run('layout', f'--law={tmp_path / "law.json"}')
    assert '\n' not in str(exit_.value)


def test_the_law_of_group_sizes_takes_numbers(runs, tmp_path):
    """Runs by channel are left out, and formats that it does not tell apart are said."""
    printed = run('fit', runs, '--law_name=qat', '--fixed=gamma_B=1')
    assert 'left out: 36 by channel or tensor' in printed and 'QAT does not tell apart runs of' in printed
    rows = [{**row, 'B': 'channel'} for row in grid(PUBLISHED_CAPYBARA)]
    with pytest.raises(SystemExit, match=r'has blocks by channel or tensor alone, and QAT takes numbers$'):
        run('fit', write(tmp_path / 'channels.csv', rows), '--law_name=qat')
