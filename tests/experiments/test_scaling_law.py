"""The program of scaling laws: what it answers by the published law, to people and programs, and what it refuses."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import scipy.optimize
from law_program import lines_of, run

from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA

REPOSITORY = pathlib.Path(__file__).parents[2]


def test_critical_gives_the_published_figures():
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


def test_critical_warns_of_too_many_tokens_only_where_they_are():
    rows = json.loads(run('critical', '--model=1B', '--format=e4m3,e2m1', '--tokens=1T', '--json'))
    warnings = [remark for remark in rows['remarks'] if remark.startswith('TOO MANY TOKENS')]
    assert len(warnings) == 1 and 'e2m1' in warnings[0] and '393B' in warnings[0]


def test_blocks_of_one_value_never_have_too_many_tokens():
    row = json.loads(run('critical', '--model=1B', '--format=e2m1', '--block_size=1', '--tokens=1T', '--json'))['rows'][
        0
    ]
    assert row['critical tokens'] is None  # JSON has no infinity
    assert 'infinite' in run('critical', '--model=1B', '--format=e2m1', '--block_size=1')


def test_predict_is_the_law_at_every_point_asked_for():
    asked = ('predict', '--model=1.2b,1B', '--tokens=100B', '--format=e4m3,bf16', '--block_size=64,channel', '--json')
    rows = json.loads(run(*asked))['rows']
    assert len(rows) == 8
    assert {row['N'] for row in rows} == {1233125376, 1e9}  # a size of the configs, by its name, and a number
    for row in rows:
        law = PUBLISHED_CAPYBARA.loss(*(row[name] for name in 'NDEMB'))
        assert row['loss'] == float(law)
    assert {(row['E'], row['M']) for row in rows} == {(4, 3), (8, 7)}


def test_layout_gives_the_published_formats():
    table = lines_of(run('layout', '--bits=4,6,8,16,5.5'))
    assert [table[bits][1] for bits in ('4', '6', '8', '16')] == ['e2m1', 'e3m2', 'e4m3', 'bf16']
    E, M = PUBLISHED_CAPYBARA.optimal_layout(5.5)
    assert table['5.5'][1:] == [f'{E:.2f}', f'{M:.2f}']


def test_exchange_keeps_the_optimum_at_the_same_cost():
    """For the new N, the new bits are the best at the cost at which the old were for the old N."""
    rows = json.loads(run('exchange', '--model=1B', '--bits=8', '--new_bits=4,16', '--json'))['rows']
    bits = lambda N, cost: float(PUBLISHED_CAPYBARA.optimal_precision_for_model(N, cost, 128))
    cost = scipy.optimize.brentq(lambda cost: bits(1e9, cost) - 8, 1e15, 1e40)
    for row in rows:
        assert bits(row['new N'], cost) == pytest.approx(row['new_P'])


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        ('', r"say what to do: fit, compare, predict, critical, worth, layout, plan, exchange, report \(not ''\)"),
        ('plot', r"say what to do: .* \(not 'plot'\)"),
        ('fit', 'fit needs one table of runs: fit TABLE takes --law_name, '),
        ('plan here --compute=1', "plan has no use for 'here': plan takes --compute, "),
        ('fit nothing.csv', 'nothing.csv'),
        ('plan', 'plan needs --compute: plan takes --compute, --model, '),
        ('plan --compute=1e24 --format=e4m3', 'plan has no use for --format: plan takes '),
        ('plan --compute=-1e24', r"--compute='-1e24' must be a number above 0"),
        ('plan --compute=much', r"--compute='much' must be a number above 0"),
        ('plan --compute=1e24 --mfu=1.5 --hardware=h100', '--mfu=1.5 must be above 0, and at most 1'),
        ('plan --compute=1e24 --mfu=0 --hardware=h100', '--mfu=0 must be above 0, and at most 1'),
        ('plan --compute=1e24 --days=-1 --hardware=h100', '--days=-1 must be above 0'),
        ('plan --compute=1e24 --days=3', '--days is of a --hardware, and ideal is none'),
        ('plan --compute=1e24 --model=1B --tokens=1T', '--model and --tokens leave no choice but the precision'),
        ('plan --compute=1e16 --tokens=2T', r'C=1e\+16 is too little: the least model takes 5.99e\+16 for 2T'),
        ('plan --compute=1e24 --hardware=h100 --days=1e-30', r'--days=1e-30 takes 2.92e\+34 h100: too many to count'),
        ('plan --compute=1e24 --law=quartet --block_size=32', '--block_size is of the formats that a plan chooses'),
        ('plan --compute=1e24 --serve_tokens=', "--serve_tokens='' must be a number above 0"),
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
        ('critical --model=1B --law=quartet --law_name=kumar', '--law_name is of a law that is fitted or stored'),
        ('layout --law=quartet', 'of exponent and mantissa bits, of which the law effective knows nothing'),
        ('critical --model=1B --law=qat-w4a4 --block_size=channel', "B='channel' or 'tensor': this law takes"),
    ],
)
def test_what_makes_no_sense_is_one_error(arguments, error):
    with pytest.raises(SystemExit, match=f'^error: .*{error}') as exit_:
        run(*arguments.split())
    assert '\n' not in str(exit_.value)


def test_who_has_read_enough_is_no_error():
    """As `head`, which closes the pipe before all is printed: a MiB, more than a pipe holds."""
    points = '--model=1e9,' + ','.join(map(str, range(1000, 3000))), '--tokens=1e9,2e9', '--format=e2m1,e4m3'
    command = sys.executable, '-m', 'experiments.scaling_law', 'predict', *points
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY) as process:
        assert process.stdout.readline().startswith('law ')
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ('', 1)


def test_worth_is_what_effective_parameters_are():
    """For the law that says so, at every N and D; for others, the weights at which the losses are equal."""
    rows = json.loads(run('worth', '--model=1B,7B', '--tokens=20B', '--law=quartet', '--backward=bf16', '--json'))[
        'rows'
    ]
    assert [round(row['share of N'], 9) for row in rows] == [1.0, 0.65, 1.0, 0.65]
    (row,) = json.loads(run('worth', '--model=1B', '--tokens=1T', '--format=e2m1', '--json'))['rows']
    loss = PUBLISHED_CAPYBARA.loss(1e9, 1e12, 2, 1, 128)
    assert PUBLISHED_CAPYBARA.loss(row['N unquantized'], 1e12, 8, 7, 1) == pytest.approx(float(loss), rel=1e-12)
    assert row['share of N'] == pytest.approx(row['N unquantized'] / 1e9) and row['share of N'] < 0.9
    with pytest.raises(SystemExit, match='knows no precision: N weights are worth N'):
        run('worth', '--model=1B', '--tokens=1T', '--law=chinchilla')


def test_worth_beyond_all_models_is_none_or_infinite():
    printed = run('worth', '--model=1B', '--tokens=1e30', '--format=e2m1', '--json')
    assert json.loads(printed)['rows'][0]['share of N'] == 0


def test_prices_that_no_hardware_has_are_said_to_be_so():
    told = 'ideal prices operations by their bits, as no hardware does'
    assert told in run('plan', '--compute=1e24') and told not in run('plan', '--compute=1e24', '--law=chinchilla')
    assert told not in run('plan', '--compute=1e24', '--hardware=h100')
