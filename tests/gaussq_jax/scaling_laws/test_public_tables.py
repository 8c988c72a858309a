"""Fits of runs that others have published, against what they say of them. The tables are not part of the project.

GAUSSQ_PUBLIC_RUNS names a folder with chinchilla_epoch_240.csv (N, D, loss: the runs of Besiroglu et al., Chinchilla
scaling: a replication attempt, arXiv 2404.10102) and quartet_174.csv (N, D, forward, backward, loss: those of Castro et
al., Quartet: native FP4 training can be optimal for large language models, arXiv 2505.14669) and
overtraining_gadre_104.csv (params_no_embed, tokens, dataset, loss_c4_val, ...: those of Gadre et al., Language models
scale reliably with over-training, arXiv 2403.08540).
"""

import csv
import os
import pathlib

import numpy as np
import pytest

from gaussq_jax.scaling_laws import CHINCHILLA_REFIT, ChinchillaLaw, EffectiveLaw, OuterExponentLaw, fit

FOLDER = os.environ.get('GAUSSQ_PUBLIC_RUNS')
pytestmark = pytest.mark.skipif(not FOLDER, reason='GAUSSQ_PUBLIC_RUNS names no folder with the tables')


def read(name, **chosen):
    with open(pathlib.Path(FOLDER) / name, newline='') as file:
        rows = [row for row in csv.DictReader(file) if all(row[column] == value for column, value in chosen.items())]
    runs = {column: np.array([float(row[column]) for row in rows]) for column in ('N', 'D', 'loss')}
    return runs | {
        column: np.array([row[column] for row in rows]) for column in ('forward', 'backward') if column in rows[0]
    }


@pytest.fixture(scope='module')
def chinchilla():
    return read('chinchilla_epoch_240.csv')


def pairs_bootstrap(result, num_draws=200):
    """The standard deviation of beta over fits to runs drawn with replacement: it takes them to be independent."""
    rng, betas = np.random.default_rng(0), []
    columns = {**result._problem.columns, 'loss': result.predicted + result.residuals}
    for _ in range(num_draws):
        drawn = rng.integers(0, result.num_runs, result.num_runs)
        runs = {name: column[drawn] for name, column in columns.items()}
        betas.append(fit(ChinchillaLaw, runs, start=result.law, num_starts=0, errors='hc3').law.beta)
    return np.std(betas)


def test_errors_are_those_of_a_bootstrap_over_runs(chinchilla):
    """And not what equal residuals would make of them: .009."""
    result = fit(ChinchillaLaw, chinchilla)
    assert result.errors == 'hc3' and result.undetermined == ()
    np.testing.assert_allclose(result.standard_errors['beta'], pairs_bootstrap(result), rtol=0.15)
    plain = fit(ChinchillaLaw, chinchilla, errors='plain').standard_errors['beta']
    assert 0.008 < plain < 0.01 and result.standard_errors['beta'] > 2.5 * plain


def test_log_huber_finds_the_published_constants(chinchilla):
    """Their notebook's optimum is .00101827, at E 1.81724, A 477.84, B 2143.9, alpha .34731, beta .36718."""
    result = fit(ChinchillaLaw, chinchilla, objective='log_huber')
    errors = np.abs(np.log(result.predicted / chinchilla['loss']))
    huber = np.where(errors < 1e-3, errors**2 / 2, 1e-3 * (errors - 5e-4))
    assert np.sum(huber) <= 0.00101828
    found = [result.law.constants()[name] for name in ('epsilon', 'n', 'd', 'alpha', 'beta')]
    np.testing.assert_allclose(found, [1.81724, 477.84, 2143.9, 0.34731, 0.36718], rtol=1e-3)
    assert result.undetermined == ()
    assert 0.013 < result.standard_errors['beta'] < 0.0206  # published, by a bootstrap that fits each draw anew


def test_intervals_of_runs_hold_as_many_of_them_as_they_say(chinchilla):
    """Of the runs that a fit to two thirds hasn't seen, three times."""
    held = np.arange(240) % 3
    inside = np.zeros(240, bool)
    for third in range(3):
        part, rest = ({name: column[mask] for name, column in chinchilla.items()} for mask in _both(held == third))
        result = fit(ChinchillaLaw, rest)
        low, high = result.prediction_interval(lambda law, part=part: law.loss(part['N'], part['D']))
        inside[held == third] = (low < part['loss']) & (part['loss'] < high)
    assert 0.92 <= inside.mean() <= 0.98


def _both(mask):
    return mask, ~mask


def test_one_model_says_nothing_of_larger_ones():
    """Those of 30M parameters: the largest of the table, of 822M, ended at 2.46."""
    runs = read('quartet_174.csv', forward='BF16', backward='BF16')
    small = {name: column[runs['N'] == runs['N'].min()] for name, column in runs.items()}
    assert len(small['N']) == 7
    result = fit(ChinchillaLaw, small)
    largest = np.argmax(runs['N'])
    loss = lambda law: law.loss(np.array([small['N'][0], runs['N'][largest]]), runs['D'][largest])
    np.testing.assert_array_equal(result.determination.is_unknown(loss), [False, True])
    for ends in (result.interval(loss), result.prediction_interval(loss)):
        np.testing.assert_array_equal(np.isnan(ends), [[False, True]] * 2)
    result = fit(ChinchillaLaw, runs)
    assert not result.determination.is_unknown(loss).any()


BF16 = dict(forward='BF16', backward='BF16')


@pytest.mark.parametrize(
    ('law', 'fixed', 'rmse', 'of_largest'),
    [
        (OuterExponentLaw, {}, 0.0045, 2.483),
        (OuterExponentLaw, {'beta': 'alpha'}, 0.0043, 2.471),
        (ChinchillaLaw, {}, 0.0142, 2.545),
    ],
)
def test_an_outer_exponent_describes_and_extrapolates_where_chinchilla_does_not(law, fixed, rmse, of_largest):
    """By log-Huber, as published; from models of up to 203M to the one of 822M, which ended at 2.461."""
    runs = read('quartet_174.csv', **BF16)
    result = fit(law, runs, fixed=fixed, objective='log_huber')
    np.testing.assert_allclose(result.rmse, rmse, atol=5e-5)
    small = {name: column[runs['N'] < 2.1e8] for name, column in runs.items()}
    extrapolated = fit(law, small, fixed=fixed, objective='log_huber').law
    largest = np.argmax(runs['N'])
    np.testing.assert_allclose(extrapolated.loss(runs['N'][largest], runs['D'][largest]), of_largest, atol=1e-3)
    if law is ChinchillaLaw:
        np.testing.assert_allclose(fit(law, runs).rmse, 0.0129, atol=5e-5)


def test_mxfp4_forward_is_worth_what_is_published():
    """eff_N of QuEST's MXFP4 is .645, of the runs of all recipes at once; and that in the backward pass too."""
    result = fit(EffectiveLaw, read('quartet_174.csv'))
    worth, error = result.law.eff_N['quest'], result.standard_errors['eff_N[quest]']
    assert abs(worth - 0.645) < error < 0.01
    assert len(result.law.eff_N) == len(result.law.eff_D) == 6


def test_the_refit_is_what_is_published(chinchilla):
    np.testing.assert_allclose(
        CHINCHILLA_REFIT.loss(chinchilla['N'], chinchilla['D']),
        fit(ChinchillaLaw, chinchilla, objective='log_huber').predicted,
        rtol=2e-3,
    )


@pytest.mark.parametrize(('corpus', 'percent'), [('c4_original', -4.3), ('rpj', 0.7), ('rw_original', -1.6)])
def test_overtraining_extrapolates(corpus, percent):
    """To 7B, from models of 11M to 412M on 20 tokens a weight and the least on 320, with alpha = beta, as published."""
    with open(pathlib.Path(FOLDER) / 'overtraining_gadre_104.csv', newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['dataset'] == corpus]
    names = dict(N='params', D='tokens', loss='loss_c4_val', times='mult')  # of 20 tokens a weight
    runs = {ours: np.array([float(row[theirs]) for row in rows]) for ours, theirs in names.items()}
    chosen = (runs['N'] < 1e9) & ((runs['times'] == 1) | (runs['times'] == 16) & (runs['N'] < 2e7))
    assert chosen.sum() == 5
    law = fit(ChinchillaLaw, {name: column[chosen] for name, column in runs.items()}, fixed={'beta': 'alpha'}).law
    largest = np.argmax(runs['N'])
    error = law.loss(runs['N'][largest], runs['D'][largest]) / runs['loss'][largest] - 1
    np.testing.assert_allclose(100 * error, percent, atol=0.05)
