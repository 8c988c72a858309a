"""The program that fits scaling laws and plans with them: what it says to people and programs, and what it refuses."""

import csv
import dataclasses
import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
from absl import flags
from ml_collections import config_flags

import gaussq_jax as gq
from experiments import scaling_law
from experiments.laws import known_laws, notation, training_plans
from experiments.training import optimizers
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA, BitwidthLaw

REPOSITORY = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # of ml_collections


@pytest.fixture
def run(capsys):
    """Runs the program with this command line; returns what it prints."""

    def run(*arguments):
        args = flags.FlagValues()
        scaling_law.define_flags(args)
        scaling_law.main(args(['scaling_law', *arguments]), args)
        return capsys.readouterr().out

    return run


@pytest.fixture
def no_comparison(monkeypatch):
    """Comparing laws is what takes long."""

    def hold_out(*arguments, **options):
        raise ValueError('not now')

    monkeypatch.setattr(known_laws.scaling_laws, 'hold_out', hold_out)


@pytest.fixture(autouse=True)
def quick_fits(monkeypatch):
    monkeypatch.setattr(known_laws, 'NUM_STARTS', 2)
    monkeypatch.setattr(known_laws, 'NUM_DRAWS', 40)


def grid(law, *, columns=('E', 'M', 'B'), seed=0, noise=0.002):
    """Runs of this law."""
    rng = np.random.default_rng(seed)
    settings = {
        ('E', 'M', 'B'): [(E, M, B) for E, M in ((0, 7), (1, 1), (2, 1), (1, 3)) for B in (32, 'channel')],
        ('b',): [(2,), (3,), (4,), (6,)],
    }[columns]
    rows = []
    for N in (40894464, 154140672, 679477248):
        for D in 10485760000 * np.array([1, 3, 10]):
            for setting in settings:
                row = {'N': N, 'D': float(D), **dict(zip(columns, setting))}
                rows.append({**row, 'loss': float(law.loss(**row)) + rng.normal(0, noise)})
    return rows


def write(path, rows):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return write(tmp_path_factory.mktemp('runs') / 'runs.csv', grid(PUBLISHED_CAPYBARA))


def lines_of(printed):
    """Lines by their first word, cells split at two spaces or more."""
    return {line.split('  ')[0].strip(): re.split(r' {2,}', line.strip()) for line in printed.splitlines() if line}


def resolve(command):
    """The config that train makes of a command."""
    python, dash_m, module, *arguments = shlex.split(command)
    assert (python, dash_m, module) == ('python', '-m', 'experiments.train')
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=arguments)
    values(['train', *arguments])
    return config.value


def test_critical_gives_the_published_figures(run):
    """1B at B = 128: 1730T tokens in BF16, 27T in E4M3, 0.4T in E2M1."""
    printed = run('critical', '--model=1e9')
    rows = [re.split(r' {2,}', line) for line in printed.splitlines() if line.startswith('1B')]
    assert [row[:4] for row in rows] == [
        ['1B', 'bf16', '128', '1730T'],
        ['1B', 'e4m3', '128', '27.3T'],
        ['1B', 'e3m2', '128', '4.8T'],
        ['1B', 'e2m1', '128', '393B'],
    ]
    loss = PUBLISHED_CAPYBARA.loss(1e9, PUBLISHED_CAPYBARA.critical_data_size(1e9, 2, 1, 128), 2, 1, 128)
    assert rows[-1][4] == f'{loss:.4f}'
    assert 'no intervals' in printed


def test_critical_warns_of_too_many_tokens_only_where_they_are(run):
    rows = json.loads(run('critical', '--model=1B', '--format=e4m3,e2m1', '--tokens=1T', '--json'))
    warnings = [remark for remark in rows['remarks'] if remark.startswith('TOO MANY TOKENS')]
    assert len(warnings) == 1 and 'e2m1' in warnings[0] and '393B' in warnings[0]


def test_blocks_of_one_value_never_have_too_many_tokens(run):
    row = json.loads(run('critical', '--model=1B', '--format=e2m1', '--block_size=1', '--tokens=1T', '--json'))['rows'][
        0
    ]
    assert row['critical tokens'] is None  # JSON has no infinity
    assert 'infinite' in run('critical', '--model=1B', '--format=e2m1', '--block_size=1')


def test_predict_is_the_law_at_every_point_asked_for(run):
    asked = ('predict', '--model=1.2b,1B', '--tokens=100B', '--format=e4m3,bf16', '--block_size=64,channel', '--json')
    rows = json.loads(run(*asked))['rows']
    assert len(rows) == 8
    assert {row['N'] for row in rows} == {1233125376, 1e9}  # a size of the configs, by its name, and a number
    for row in rows:
        law = PUBLISHED_CAPYBARA.loss(*(row[name] for name in 'NDEMB'))
        assert row['loss'] == float(law)
    assert {(row['E'], row['M']) for row in rows} == {(4, 3), (8, 7)}


def test_layout_gives_the_published_formats(run):
    table = lines_of(run('layout', '--bits=4,6,8,16,5.5'))
    assert [table[bits][1] for bits in ('4', '6', '8', '16')] == ['e2m1', 'e3m2', 'e4m3', 'bf16']
    E, M = PUBLISHED_CAPYBARA.optimal_layout(5.5)
    assert table['5.5'][1:] == [f'{E:.2f}', f'{M:.2f}']


def test_exchange_keeps_the_optimum_at_the_same_cost(run):
    """For the new N, the new bits are the best at the cost at which the old were for the old N."""
    rows = json.loads(run('exchange', '--model=1B', '--bits=8', '--new_bits=4,16', '--json'))['rows']
    bits = lambda N, cost: float(PUBLISHED_CAPYBARA.optimal_precision_for_model(N, cost, 128))
    cost = scipy.optimize.brentq(lambda cost: bits(1e9, cost) - 8, 1e15, 1e40)
    for row in rows:
        assert bits(row['new N'], cost) == pytest.approx(row['new_P'])


@pytest.mark.parametrize('fixed', [(), ('--model=7b',), ('--tokens=2T',)])
@pytest.mark.parametrize('compute', [1e18, 1e21, 1e24])
def test_plan_is_the_best_that_the_budget_buys(run, compute, fixed):
    """Whole bits each cost the budget, and are best among their neighbours in what is free; the best is the best."""
    plan = json.loads(run('plan', f'--compute={compute}', *fixed, '--json'))
    law = PUBLISHED_CAPYBARA
    for option in plan['options']:
        P, N, D, E, M = (option[name] for name in ('bits', 'N', 'D', 'E', 'M'))
        assert P == 1 + E + M
        assert pytest.approx(compute) == 6 / 16 * N * D * P
        B = 1 if (E, M) == (8, 7) else 128  # BF16 is not quantized
        assert option['loss'] == pytest.approx(float(law.loss(N, D, E, M, B)))
        if not fixed:
            near = N * np.array([0.99, 1.01])
            assert np.all(law.loss(near, N * D / near, E, M, B) > option['loss'])
        assert np.all(law.loss(N, D, np.arange(P), P - 1 - np.arange(P), 128) >= option['loss'])
    assert plan['best']['loss'] == min(option['loss'] for option in plan['options'])
    assert abs(plan['bits'] - plan['best']['bits']) < 1 or not 3 <= plan['bits'] <= 16
    assert plan['bits_interval'] is None and plan['best']['interval'] is None  # the published law has no errors
    if fixed:
        column, value = {'--model=7b': ('N', 6973030400), '--tokens=2T': ('D', 2e12)}[fixed[0]]
        assert {option[column] for option in plan['options']} == {value}


def test_the_training_of_a_plan_keeps_to_the_tokens(run):
    """And to the budget: of the sizes that it has bits for on so many tokens, the nearest."""
    plan = json.loads(run('plan', '--compute=1e22', '--tokens=10B', '--json'))
    option = plan['training']['option']
    assert option['D'] == 1e10 and option['N'] == notation.model_sizes()['70b']
    assert 6 / 16 * option['N'] * option['D'] * option['bits'] <= 1e22
    D = resolve(plan['training']['command']).total_steps * 2**21
    assert pytest.approx(1e10, rel=1e-3) == D


def fitted(**constants):
    law = dataclasses.replace(PUBLISHED_CAPYBARA, **constants)
    return known_laws.KnownLaw(law, 'a law', known_laws.PUBLISHED.ranges)


@pytest.mark.parametrize(('delta', 'nu'), [(6.0, 1.0), (1.0, 6.0), (5.0, 2.0)])
def test_plans_are_of_formats_that_can_be_trained(delta, nu):
    """Also where a law would have all bits in the exponent, or in the mantissa."""
    plan = training_plans.make_plan(fitted(delta=delta, nu=nu, gamma=10.0), 1e30, 128)
    for option in plan.options:
        assert option.format == 'bf16' or gq.parse_format(option.format).bits == option.bits


def test_a_plan_where_no_real_number_of_bits_is_best():
    """The whole ones are told none the less."""
    plan = training_plans.make_plan(fitted(delta=0.1, nu=0.1), 1e21, 128)
    assert plan.bits is None and plan.best.bits == 3
    _, lines = training_plans.describe(plan)
    assert any('no real number of bits' in line for line in lines)


@pytest.mark.parametrize(('compute', 'size'), [(1e12, 'tiny-27k'), (1e20, '1.2b'), (1e24, '70b'), (1e33, '70b')])
def test_the_command_of_a_plan_trains_the_budget(run, compute, size):
    """It resolves, to the size nearest in N and a format and steps that cost the budget; its optimizer can be made."""
    plan = json.loads(run('plan', f'--compute={compute}', '--json'))
    training, config = plan['training'], resolve(plan['training']['command'])
    assert training['size'] == size
    shape = config.model
    N = shape.num_layers * (4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.mlp_size)
    assert training['option']['N'] == N
    distance = lambda N: abs(np.log(plan['best']['N'] / N))
    assert distance(N) == min(map(distance, notation.model_sizes().values()))
    D = config.total_steps * config.batch_size * config.sequence_length
    within_half_a_step = pytest.approx(training['option']['D'], rel=0.5 / config.total_steps + 1e-9)
    assert within_half_a_step == D
    if training['option']['bits'] == 16:
        assert config.method == 'bf16'
    else:
        assert (config.method, config.quantization.format) == ('fqt', training['option']['format'])
        assert config.quantization.block_size == '128'
    optimizers.make_optimizer(config)


def test_the_time_of_a_plan(run):
    """6 N D operations at a part of the peak, whatever the bits, which do change what the hardware could do."""
    arguments = ('plan', '--compute=1e20', '--mfu=0.5', '--json')
    one = json.loads(run(*arguments, '--gpu=h100'))
    N, D = one['training']['option']['N'], one['training']['option']['D']
    days = 6 * N * D / (0.5 * 989.4e12) / 86400
    assert one['gpu']['training_time']['bf16'] == {'peak': 989.4e12, 'gpus': 1, 'days': pytest.approx(days)}
    assert one['gpu']['training_time']['fp8']['days'] == pytest.approx(days * 989.4 / 1978.9)
    several = json.loads(run(*arguments, '--gpu=h100', '--days=2'))['gpu']['training_time']['bf16']
    assert several['gpus'] == np.ceil(days / 2) and several['days'] <= 2
    assert several['gpus'] * several['days'] == pytest.approx(days)
    assert set(json.loads(run(*arguments, '--gpu=a100'))['gpu']['training_time']) == {'bf16'}
    printed = run('plan', '--compute=1e20', '--gpu=b200', '--days=30')
    assert 'b200 at 40% of 2250 TFLOP/s' in printed and 'NVIDIA' in printed


def test_a_plan_for_people(run):
    printed = run('plan', '--compute=1e24')
    assert 'best        5.005 bits' in printed
    assert re.search(r'^5 +e2m2 +802B +665B +2\.0698 +<- best$', printed, re.MULTILINE)
    assert 'whose authors give no errors of its constants: no intervals' in printed
    assert '    python -m experiments.train --config=configs/capybara.py:size=70b,method=fqt,format=e4m3' in printed
    assert 'extrapolated: N is ' in printed


def test_a_fit_tells_its_errors_and_what_other_laws_do(run, runs, tmp_path):
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


def test_json_is_one_object_and_nothing_else(run, runs, no_comparison):
    data = json.loads(run('--json', 'fit', runs, '--exclude_e0'))
    assert data['left_out'] == {'with E = 0': 18} and data['runs'] == 54
    assert data['constants']['alpha']['determined'] is True
    assert data['comparison'] == 'not now'


@pytest.mark.parametrize('name', ['chinchilla', 'kaplan', 'kumar'])
def test_other_laws_fit_and_predict(run, runs, name):
    flags = () if name != 'kumar' else ('--bits=4,8',)
    asked = ('predict', '--model=100M', '--tokens=20B', f'--runs={runs}', f'--law_name={name}', '--json')
    rows = json.loads(run(*asked, *flags))
    assert len(rows['rows']) == 1 + (name == 'kumar')
    assert all(2 < row['loss'] < 4 and row['loss, interval'][0] < row['loss'] for row in rows['rows'])
    with pytest.raises(SystemExit, match=f'error: this question is one for the law capybara, not for {name.title()}'):
        run('plan', '--compute=1e24', f'--runs={runs}', f'--law_name={name}')


def test_the_law_of_sampled_weights(run, tmp_path, no_comparison):
    law = BitwidthLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=500.0, kappa=3.0)
    path = write(tmp_path / 'runs.csv', grid(law, columns=('b',)))
    data = json.loads(run('fit', path, '--law_name=bitwidth', '--json'))
    assert data['constants']['kappa']['value'] == pytest.approx(3, rel=0.05)
    asked = ('critical', '--model=1B', '--bits=4', f'--runs={path}', '--law_name=bitwidth', '--json')
    (row,) = json.loads(run(*asked))['rows']
    assert row['critical tokens'] == pytest.approx(float(law.critical_data_size(1e9, 4)), rel=0.1)


def test_what_the_runs_do_not_determine_is_said_wherever_the_law_speaks(run, tmp_path, no_comparison):
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


def test_what_the_runs_leave_open_is_unknown_in_every_command(run, one_format, tmp_path, no_comparison):
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


def test_a_law_file_keeps_what_the_runs_leave_open(run, one_format, tmp_path, no_comparison):
    """And one without it, as version 0.1.0 wrote it, is read: nothing of it is called unknown."""
    path = tmp_path / 'law.json'
    run('fit', one_format, f'--output={path}')
    content, known = json.loads(path.read_text()), known_laws.read_law(path)
    formats = lambda law: law.critical_data_size(1e9, [2, 4], [1, 3], 32)
    np.testing.assert_array_equal(np.isnan(known.value(formats)), [False, True])
    np.testing.assert_array_equal(np.isnan(known.interval(formats)), [[False, True]] * 2)
    known_laws.write_law(tmp_path / 'again.json', known)
    assert json.loads((tmp_path / 'again.json').read_text()) == content
    for name in ('determination', 'scatter', 'errors'):
        del content[name]
    path.write_text(json.dumps(content))
    old = known_laws.read_law(path)
    assert np.isfinite(old.value(formats)).all() and old.prediction_interval(formats) is None
    printed = run('predict', '--model=1B', '--tokens=1T', '--format=e2m1', f'--law={path}')
    assert '95 % interval of loss' in printed and 'of a run' not in printed and 'intervals take it' not in printed
    assert re.search(r'^intervals are of the law; runs scatter about it by 0\.\d+ nats', printed, re.MULTILINE)


def test_errors_say_what_they_assume(run, runs, tmp_path, no_comparison):
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


def test_columns_of_a_table_make_the_groups(run, tmp_path, no_comparison):
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
    ('change', 'message'),
    [
        ({'errors': 'cv1'}, "errors='cv1' must be one of cr3, hc3, plain"),
        ({'scatter': {'residuals': [], 'is_relative': False}}, 'scatter must have residuals, finite numbers'),
        ({'scatter': {'residuals': [0.1, float('nan')], 'is_relative': False}}, 'scatter must have residuals'),
        ({'scatter': {'residuals': [[0.1]], 'is_relative': False}}, 'scatter must have residuals'),
        ({'scatter': {'residuals': [0.1]}}, "has no 'is_relative'"),
    ],
)
def test_a_law_file_with_errors_that_are_none(run, runs, tmp_path, no_comparison, change, message):
    run('fit', runs, f'--output={tmp_path / "law.json"}')
    content = json.loads((tmp_path / 'law.json').read_text())
    (tmp_path / 'law.json').write_text(json.dumps(content | change))
    with pytest.raises(SystemExit, match=message):
        run('layout', f'--law={tmp_path / "law.json"}')


def test_losses_have_the_interval_of_a_run_beside_that_of_the_law(run, runs, tmp_path, no_comparison):
    """Wider, by as much as the runs scatter; as the library has it; in plans too, and in files."""
    law = tmp_path / 'law.json'
    run('fit', runs, f'--output={law}')
    points = '--model=100M', '--tokens=30B,100B', '--format=e2m1', '--block_size=32'
    rows = json.loads(run('predict', *points, f'--law={law}', '--json'))['rows']
    assert rows == json.loads(run('predict', *points, f'--runs={runs}', '--json'))['rows']
    table = known_laws.read_runs(runs).columns
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


@pytest.mark.parametrize(
    ('held_out', 'errors'),
    [
        ('none', []),
        ('folds', ['held_out_error', 'size_held_out_error']),
        ('one', ['held_out_error', 'size_held_out_error']),
        ('largest:1', ['largest_held_out_error']),
    ],
)
def test_runs_are_held_out_as_asked_for(run, runs, held_out, errors):
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
def test_what_can_not_be_held_out_is_one_error(run, runs, held_out, error):
    with pytest.raises(SystemExit, match=f'^error: {error}'):
        run('fit', runs, f'--held_out={held_out}')


def test_too_few_runs_are_one_error_and_one_model_size_holds_none_out(run, tmp_path):
    rows = grid(PUBLISHED_CAPYBARA)
    with pytest.raises(SystemExit, match=r'^error: 8 runs are too few for the 9 constants of CapybaraLaw$'):
        run('fit', write(tmp_path / 'few.csv', rows[:8]))
    table = lines_of(run('fit', write(tmp_path / 'one.csv', rows[:24])))
    assert table['Kumar'][-2].endswith('%') and table['Kumar'][-1] == 'unknown'
    assert 'no errors on runs held out: ' in run('fit', write(tmp_path / 'cell.csv', rows[:8] * 2))


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        ('', r"say what to do: fit, predict, critical, layout, plan, exchange, report \(not ''\)"),
        ('plot', r"say what to do: .* \(not 'plot'\)"),
        ('fit', 'fit needs one table of runs: fit TABLE takes --law_name, '),
        ('plan here --compute=1', "plan has no use for 'here': plan takes --compute, "),
        ('fit nothing.csv', 'nothing.csv'),
        ('plan', 'plan needs --compute: plan takes --compute, --model, '),
        ('plan --compute=1e24 --format=e4m3', 'plan has no use for --format: plan takes '),
        ('plan --compute=-1e24', r"--compute='-1e24' must be a number above 0"),
        ('plan --compute=much', r"--compute='much' must be a number above 0"),
        ('plan --compute=1e24 --mfu=1.5 --gpu=h100', '--mfu=1.5 must be above 0, and at most 1'),
        ('plan --compute=1e24 --mfu=0 --gpu=h100', '--mfu=0 must be above 0, and at most 1'),
        ('plan --compute=1e24 --days=-1 --gpu=h100', '--days=-1 must be above 0'),
        ('plan --compute=1e24 --days=3', '--days is of a --gpu, which is not given'),
        ('plan --compute=1e24 --model=1B --tokens=1T', '--model and --tokens leave no choice but the bits'),
        ('plan --compute=1e16 --tokens=2T', r'2T tokens are too many: the least model takes C = 5.99e\+16 for them'),
        ('plan --compute=1e24 --model=1B,2B', '--model=1B,2B: plan takes one'),
        ('plan --compute=1e24 --block_size=', '--block_size=: plan takes one'),
        ('plan --compute=1e24 --block_size=1', 'B=1 must be above 1'),
        ('plan --compute=1e24 --block_size=tensor', "B='tensor': this law does not know"),
        ('layout --bits=1', "--bits='1' must be at least 2"),
        ('exchange --model=1B --bits=8 --new_bits=1.5', "--new_bits='1.5' must be at least 2"),
        ('critical --model=1B --block_size=0', "--block_size='0' must be a whole number above 0, channel or tensor"),
        ('critical --model=1B --block_size=row', "--block_size='row' must be a whole number above 0"),
        ('critical --model=1B --format=fp8', "format 'fp8' is unknown; known are "),
        ('critical --model=0', "--model='0' must be a number above 0, .*, or one of tiny, "),
        ('critical --model=1B --bits=4', '--bits has no meaning for the law capybara, which takes N, D, E, M, B'),
        ('critical --model=1B --robust', '--robust is of a fit to --runs, which is not given'),
        ('critical --model=1B --law=a.json --runs=a.csv', '--law and --runs are two laws'),
        ('critical --model=1B --law=a.json', 'a.json'),
    ],
)
def test_what_makes_no_sense_is_one_error(run, arguments, error):
    with pytest.raises(SystemExit, match=f'^error: .*{error}') as exit_:
        run(*arguments.split())
    assert '\n' not in str(exit_.value)


@pytest.mark.parametrize(
    'text', ['', '[]', '{"law": "capybara"}', '{"law": "x", "constants": {}}', 'N,D\n1,2\n', '\xff']
)
def test_a_file_that_holds_no_law_is_one_error(run, tmp_path, text):
    (tmp_path / 'law.json').write_bytes(text.encode('latin1'))
    with pytest.raises(
        SystemExit,
        match=r'error: .*law\.json (is not a law as `fit --output=.*` writes it: |is no JSON|must hold a JSON object)',
    ) as exit_:
        run('layout', f'--law={tmp_path / "law.json"}')
    assert '\n' not in str(exit_.value)


def test_a_law_is_fitted_to_one_method(tmp_path):
    """Weights alone in few bits (qat), and all operands (fqt), have not one law."""
    rows = 'method,format,B,N,D,loss\n' + ''.join(
        f'{method},e2m1,16,1e6,1e9,2.5\n' for method in ('fqt', 'qat', 'bf16')
    )
    (tmp_path / 'runs.csv').write_text(rows)
    with pytest.raises(ValueError, match=r'runs\.csv has runs of fqt and qat: a law is of one method'):
        known_laws.runs_for(known_laws.LAWS['capybara'], tmp_path / 'runs.csv', exclude_e0=False)


def test_who_has_read_enough_is_no_error():
    """As `head`, which closes the pipe before all is printed: a MiB, more than a pipe holds."""
    points = '--model=1e9,' + ','.join(map(str, range(1000, 3000))), '--tokens=1e9,2e9', '--format=e2m1,e4m3'
    command = sys.executable, '-m', 'experiments.scaling_law', 'predict', *points
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY) as process:
        assert process.stdout.readline().startswith('law ')
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ('', 1)


@pytest.mark.slow
def test_the_readme_says_what_the_plan_does(run, no_comparison, monkeypatch, tmp_path):
    """The plan of the tiny law, with its intervals: whoever changes a fit or its draws, changes the README."""
    monkeypatch.setattr(known_laws, 'NUM_STARTS', 16)
    monkeypatch.setattr(known_laws, 'NUM_DRAWS', 1000)
    run('fit', str(REPOSITORY / 'benchmarks' / 'tiny_law.csv'), f'--output={tmp_path / "law.json"}')
    told = json.loads(run('plan', '--compute=4e11', '--block_size=16', f'--law={tmp_path / "law.json"}', '--json'))
    option = told['training']['option']
    ends = ' to '.join(f'{end:.3f}' for end in option['interval'])
    ends += '; of a run ' + ' to '.join(f'{end:.3f}' for end in option['prediction_interval'])
    readme = ' '.join((REPOSITORY / 'README.md').read_text().split())
    assert f'with a loss of {option["loss"]:.3f} (95 %: {ends})' in readme
