"""Laws by their errors on runs held out: which are held out, and of which runs the errors are."""

import json

import numpy as np
import pytest
from law_program import grid, lines_of, run, write

from experiments.laws import comparisons
from experiments.laws.law_choices import LAWS
from experiments.laws.tables import run_tables
from gaussq_jax import scaling_laws
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA


@pytest.mark.parametrize('held_out', ['none', 'folds', 'folds,sizes', 'one', 'largest:1', 'size:4', 'compute:10'])
def test_runs_are_held_out_as_asked_for(runs, held_out):
    """Laws are in the order of the first error, or of their residuals; the one behind the runs is the best."""
    names = 'capybara,kumar,chinchilla,chinchilla-tied,kaplan'
    data = json.loads(run('compare', runs, f'--laws={names}', f'--held_out={held_out}', '--json'))
    ways = [] if held_out == 'none' else held_out.split(',')
    assert len(data['held_out']) == len(ways) and data['runs'] == 72
    for law in data['laws']:
        assert len(law['errors']) == len(ways) and all(error > 0 for error in law['errors'])
    assert data['laws'][0]['law'] == 'Capybara' and all(error < 0.002 for error in data['laws'][0]['errors'])
    key = [law['errors'][0] if ways else law['rmse'] for law in data['laws']]
    assert key == sorted(key) and len(key) == 5
    if held_out == 'largest:1':
        columns = run_tables.read_runs(runs).columns
        there = columns['N'] == columns['N'].max()
        others = {name: column[~there] for name, column in columns.items()}
        law = scaling_laws.fit(scaling_laws.CapybaraLaw, others).law
        error = scaling_laws.held_out_error(law, {name: column[there] for name, column in columns.items()})
        assert data['laws'][0]['errors'] == pytest.approx([error], rel=1e-3)
        assert data['held_out'] == [{'way': 'N of 679M and more held out', 'runs': 24}]


def test_extrapolations_are_to_what_is_largest(runs):
    """Sizes above a quarter of the largest; runs above a tenth of the most compute."""
    table = run_tables.read_runs(runs)
    size, compute = comparisons.parse_ways('size:4,compute:10', table)
    products = table.columns['N'] * table.columns['D']
    for way, expected in ((size, table.columns['N'] > 679477248 / 4), (compute, products > products.max() / 10)):
        np.testing.assert_array_equal([label is True for label in way.options['groups']], expected)
        assert 0 < expected.sum() < 72
    assert size.title == 'N above 170M held out' and compute.title == '6 N D above 4.3e+19 held out'


@pytest.mark.parametrize(
    ('held_out', 'error'),
    [
        ('half', "--held_out='half' must be of folds, sizes, one, size:R and compute:R with R above 1, largest:K"),
        ('largest:0', "--held_out='largest:0' must be of folds, "),
        ('size:1', "--held_out='size:1' must be of folds, "),
        ('folds,size', "--held_out='size' must be of folds, "),
        ('largest:3', '--held_out=largest:3 leaves no run to fit'),
        ('size:1e9', "--held_out='size:1e9' must be of"),
        ('compute:100000', '--held_out=compute:100000 leaves no run to fit'),
    ],
)
def test_what_can_not_be_held_out_is_one_error(runs, held_out, error):
    with pytest.raises(SystemExit, match=f'^error: {error}'):
        run('compare', runs, f'--held_out={held_out}')


def test_by_default_laws_are_those_that_all_runs_serve(runs, tmp_path):
    """And what some of them can't tell apart is said, once for each."""
    printed = run('compare', runs, '--held_out=none')
    table = lines_of(printed)
    assert set(table) >= {'Capybara', 'Kumar', 'Chinchilla', 'Kaplan', 'OuterExponent', 'OuterExponent, beta = alpha'}
    assert 'Bitwidth' not in table and 'Effective' not in table  # as no run is of bf16
    assert printed.count('Chinchilla does not tell apart') == 1
    mixed = [*grid(PUBLISHED_CAPYBARA), *({**row, 'E': '', 'M': ''} for row in grid(PUBLISHED_CAPYBARA)[:5])]
    path = write(tmp_path / 'mixed.csv', mixed)
    assert 'Capybara' not in lines_of(run('compare', path, '--held_out=none'))
    printed = run('compare', path, '--laws=capybara,chinchilla', '--held_out=none')
    assert 'left out: 5 without E' in printed and 'Capybara' in lines_of(printed)
    with pytest.raises(SystemExit, match=r"has no column 'b' or"):
        run('compare', runs, '--laws=bitwidth')
    printed = run('compare', runs, '--laws=qat,chinchilla', '--held_out=none')
    assert 'left out: 36 by channel or tensor' in printed and 'QAT' in lines_of(printed)


def test_a_law_that_can_not_be_fitted_to_so_few_runs_says_so(tmp_path):
    rows = [row for row in grid(PUBLISHED_CAPYBARA) if row['N'] > 1e8][:11]
    path = write(tmp_path / 'few.csv', rows)
    printed = run('compare', path, '--laws=capybara,chinchilla', '--held_out=sizes')
    assert 'Capybara, N held out: ' in printed and lines_of(printed)['Capybara'][-1] == 'unknown'
    with pytest.raises(SystemExit, match=r'4 runs are too few for the 9 constants of CapybaraLaw'):
        run('compare', write(tmp_path / 'four.csv', rows[:4]), '--laws=capybara')


def test_every_choice_has_what_its_fit_needs():
    for name, choice in LAWS.items():
        assert choice.needs[:2] == ('N', 'D') and set(choice.fixed) <= {'beta'}, name
