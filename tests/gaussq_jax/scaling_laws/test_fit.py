"""Fits: the law behind the runs comes back, and what can't be known is named."""

import dataclasses

import numpy as np
import pytest
from runs_of_laws import AXES, FEW, LAW, SIZES, TENSOR, TOKENS, grid_of, largest, refit, relative, rows, table

from gaussq_jax.scaling_laws import (
    CHINCHILLA_AS_FIRST_PUBLISHED,
    PUBLISHED_KAPLAN,
    BitwidthLaw,
    CapybaraLaw,
    ChinchillaLaw,
    KaplanLaw,
    KumarLaw,
    compare,
    fit,
    fit_capybara,
)

# What comes back


def test_without_noise_the_constants_come_back():
    result = fit_capybara(table())
    assert result.undetermined == () and result.num_runs == 4 * 4 * 22
    assert largest(relative(result.law, LAW)) < 1e-4
    assert result.rmse < 1e-9


@pytest.mark.parametrize('seed', range(3))
def test_with_the_noise_of_a_good_run(seed):
    """0.002 of loss: exponents within 1.5 %, 7B and 70B within 0.25 %, critical data sizes within 15 %."""
    law = fit_capybara(table(noise=0.002, seed=seed), **FEW).law
    assert largest(relative(law, LAW, ('alpha', 'beta', 'delta', 'nu'))) < 0.015
    held_out = dict(N=np.array([[7e9], [70e9]]), D=np.array(TOKENS), E=4, M=3, B=64)
    np.testing.assert_allclose(law.loss(**held_out), LAW.loss(**held_out), rtol=0.0025)
    for E, M in ((8, 7), (4, 3), (2, 1)):
        np.testing.assert_allclose(
            law.critical_data_size(1e9, E, M, 128), LAW.critical_data_size(1e9, E, M, 128), rtol=0.15
        )


@pytest.mark.parametrize('seed', range(3))
def test_with_five_times_that_noise(seed):
    """7B and 70B within 1.2 %."""
    law = fit_capybara(table(noise=0.01, seed=seed), **FEW).law
    held_out = dict(N=np.array([[7e9], [70e9]]), D=np.array(TOKENS), E=4, M=3, B=64)
    np.testing.assert_allclose(law.loss(**held_out), LAW.loss(**held_out), rtol=0.012)


def test_tensors_come_back():
    runs = table(TENSOR, blocks=(32, 128, 512, 'tensor'))
    result = fit_capybara(runs, **FEW)
    assert {'tensor_scale', 'tensor_exponent'} < set(result.names) and result.undetermined == ()
    assert largest(relative(result.law, TENSOR)) < 1e-4


def test_without_tensors_their_constants_stay_unknown():
    law = refit(LAW, table()).law
    assert law.tensor_scale is None and law.tensor_exponent is None


OTHERS = {
    'chinchilla': (CHINCHILLA_AS_FIRST_PUBLISHED, {}),
    'kaplan': (dataclasses.replace(PUBLISHED_KAPLAN, epsilon=0.7), {}),
    'kumar': (KumarLaw(69.2, 0.24, 7e4, 0.52, 1.9, gamma=2.1), dict(P=np.array([3.0, 4, 6, 8, 16]))),
    'bitwidth': (
        BitwidthLaw(69.2, 0.24, 7e4, 0.52, 1.9, gamma=2e4, kappa=3.3),
        dict(b=np.array([2, 3, 4.5, 8, np.inf])),
    ),
}


@pytest.mark.parametrize(('law', 'axes'), OTHERS.values(), ids=OTHERS)
def test_other_laws_come_back(law, axes):
    result = fit(type(law), grid_of(law, **AXES, **axes), **FEW)
    assert largest(relative(result.law, law)) < 1e-4 and result.undetermined == ()


def test_kaplan_comes_back_as_published_without_epsilon():
    result = fit(KaplanLaw, grid_of(PUBLISHED_KAPLAN, **AXES), fixed={'epsilon': 0}, **FEW)
    assert largest(relative(result.law, PUBLISHED_KAPLAN, result.names)) < 1e-4 and 'epsilon' not in result.names


def test_a_fit_is_the_same_every_time():
    runs = table(noise=0.01)
    assert fit_capybara(runs, num_starts=2).law == fit_capybara(runs, num_starts=2).law


# Options


def test_weights_are_repetitions():
    runs = table(noise=0.01, sizes=SIZES[::2])
    weights = np.random.default_rng(0).integers(1, 4, len(runs['loss']))
    weighted = refit(LAW, runs, weights=weights)
    repeated = refit(LAW, {name: np.repeat(column, weights) for name, column in runs.items()})
    assert largest(relative(weighted.law, repeated.law)) < 1e-6
    assert largest(relative(refit(LAW, runs).law, repeated.law)) > 1e-3  # which they change


def test_only_the_ratios_of_weights_count():
    runs = table(noise=0.01, sizes=SIZES[::2])
    weights = np.random.default_rng(0).uniform(0.1, 3, len(runs['loss']))
    one, scaled = (refit(LAW, runs, weights=weights * factor) for factor in (1, 1e6))
    assert largest(relative(scaled.law, one.law)) < 1e-6
    np.testing.assert_allclose(list(scaled.standard_errors.values()), list(one.standard_errors.values()), rtol=1e-4)


def test_fixed_constants_stay():
    runs = table(noise=0.01)
    result = fit_capybara(runs, fixed={'alpha': 0.25, 'log2_channel': 12.0}, **FEW)
    assert result.law.alpha == 0.25 and result.law.log2_channel == 12.0
    assert not {'alpha', 'log2_channel'} & {*result.names, *result.standard_errors}
    assert result.rmse > refit(LAW, runs).rmse


def test_bounds_hold_and_an_answer_on_one_is_named():
    runs = table(noise=0.002)
    result = fit_capybara(runs, bounds={'beta': (0.3, 0.45), 'epsilon': (1.0, 3.0)}, **FEW)
    assert 0.3 <= result.law.beta <= 0.45 + 1e-9 and 1.0 <= result.law.epsilon <= 3.0
    assert 'beta' in result.undetermined and 'epsilon' not in result.undetermined
    inside = refit(LAW, runs, bounds={'beta': (0.1, 0.9)})
    assert largest(relative(inside.law, refit(LAW, runs).law)) < 1e-5


def test_robust_fits_withstand_runs_gone_wrong():
    """A tenth of the runs off by half a unit of loss."""
    runs = table(noise=0.002)
    rng = np.random.default_rng(1)
    wrong = rng.permutation(len(runs['loss']))[: len(runs['loss']) // 10]
    runs['loss'][wrong] += rng.uniform(0.3, 0.7, len(wrong))
    exponents = ('alpha', 'beta', 'delta', 'nu')
    plain, robust = (fit_capybara(runs, objective=objective, **FEW) for objective in ('squares', 'huber'))
    assert largest(relative(robust.law, LAW, exponents)) < 0.03
    assert largest(relative(plain.law, LAW, exponents)) > 0.06
    for name in exponents:
        assert robust.standard_errors[name] < plain.standard_errors[name] / 5


def test_robust_fits_of_clean_runs_are_nearly_plain():
    runs = table(noise=0.01)
    plain, robust = (refit(LAW, runs, objective=objective) for objective in ('squares', 'huber'))
    for name, error in plain.standard_errors.items():
        assert abs(getattr(robust.law, name) - getattr(plain.law, name)) < error
        assert 0.7 < robust.standard_errors[name] / error < 1.5


def test_runs_that_are_off_alone_leave_the_others_exact():
    """All runs on the law but a few: the robust fit goes through those on it, without dividing by their zero spread."""
    runs = table()
    runs['loss'][::20] += 0.5
    law = fit_capybara(runs, objective='huber', **FEW).law
    assert largest(relative(law, LAW)) < 1e-3


def test_runs_without_exponent_bits_can_be_left_out():
    runs = table()
    odd = np.asarray(runs['E']) == 0
    runs['loss'] = np.where(odd, runs['loss'] - 0.05, runs['loss'])  # the quantizer's E0M7 is better than the law's
    kept, without = (fit_capybara(runs, include_e0=include, **FEW) for include in (True, False))
    assert without.num_runs == kept.num_runs - odd.sum()
    assert largest(relative(without.law, LAW)) < 1e-4 < largest(relative(kept.law, LAW))


def test_weights_are_left_out_with_their_runs():
    runs = table(noise=0.002)
    weights = np.random.default_rng(0).uniform(0.1, 3, len(runs['loss']))
    keep = np.asarray(runs['E']) > 0
    one = fit_capybara(runs, include_e0=False, weights=weights, start=LAW, num_starts=0)
    other = refit(LAW, rows(runs, keep), weights=weights[keep])
    assert largest(relative(one.law, other.law)) < 1e-9


# What the columns may be


class Frame(dict):
    """What a DataFrame does of a mapping: `in`, [] and iteration by column; nothing else."""

    def keys(self):
        return list(super().keys())


def test_columns_in_every_form():
    """Lists, texts as a CSV file has them, columns of no concern, E and M for P."""
    runs = table(noise=0.002)
    expected = refit(LAW, runs).law
    texts = {name: [str(value) for value in column] for name, column in runs.items()}
    for form in (
        {name: list(column) for name, column in runs.items()},
        texts,
        Frame(runs),
        runs | {'name': ['x'] * 352},
    ):
        assert largest(relative(refit(LAW, form).law, expected)) < 1e-6


def test_data_frames():
    pandas = pytest.importorskip('pandas')
    runs = table(noise=0.002)
    frame = pandas.DataFrame(runs, index=np.arange(len(runs['loss']))[::-1])
    assert largest(relative(refit(LAW, frame).law, refit(LAW, runs).law)) < 1e-6
    assert [held.name for held in compare([CapybaraLaw], frame, groups=frame['N'], num_starts=2)] == ['Capybara']


def test_bits_follow_from_exponent_and_mantissa():
    runs = table(noise=0.002)
    bits = {name: runs[name] for name in ('N', 'D', 'loss')} | {'P': 1 + np.asarray(runs['E']) + np.asarray(runs['M'])}
    assert fit(KumarLaw, runs, num_starts=3).law == fit(KumarLaw, bits, num_starts=3).law


# What the runs can't say


UNDETERMINED = {
    'one model': (dict(sizes=SIZES[:1]), {'n', 'alpha'}),
    'one data size': (dict(tokens=TOKENS[:1]), {'d', 'beta'}),
    'one exponent': (dict(formats=[(1, M) for M in range(1, 7)]), {'gamma', 'delta'}),
    'one mantissa': (dict(formats=[(E, 1) for E in range(1, 7)]), {'gamma', 'nu'}),
    'one format': (dict(formats=[(1, 1)]), {'gamma', 'delta', 'nu'}),
    'nothing seen of rounding': (dict(formats=[(8, 23)], blocks=()), {'gamma', 'delta', 'nu'}),
}


@pytest.mark.parametrize('noise', [0.002, 0.02])
@pytest.mark.parametrize(('part', 'expected'), UNDETERMINED.values(), ids=UNDETERMINED)
def test_what_the_runs_do_not_determine_is_named(part, expected, noise):
    """And nothing that is asked of such a fit fails."""
    result = fit_capybara(table(noise=noise, **part), **FEW)
    assert expected <= set(result.undetermined), result.undetermined
    assert 'nu' not in result.undetermined or 'nu' in expected
    intervals = result.confidence_intervals()
    for name in result.names:
        assert result.standard_errors[name] > 0 and intervals[name][0] < intervals[name][1]
    assert result.correlations.shape == (len(result.names),) * 2
    low, high = result.interval(lambda law: law.loss(1e8, 2e10, 1, 2, 128), result.bootstrap(5))
    assert low <= high if expected == {'gamma', 'delta'} else np.isnan([low, high]).all()  # E = 1 is what the runs have


def test_one_block_size_leaves_the_channel_as_published():
    """What a channel counts as can't be told from gamma, then; with the published figure all others can."""
    for runs in (table(blocks=()), rows(table(), [B != 'channel' for B in table()['B']])):
        result = refit(LAW, runs)
        assert 'log2_channel' not in result.names and result.law.log2_channel == 13.1567
    assert refit(LAW, table(noise=0.002, blocks=())).undetermined == ()


def test_noise_that_hides_a_law_leaves_it_undetermined():
    result = fit_capybara(table(noise=0.3), **FEW)
    assert {'gamma', 'd'} <= set(result.undetermined)


def test_runs_all_alike_determine_nothing():
    runs = dict(N=[1e9] * 30, D=[1e10] * 30, E=[4] * 30, M=[3] * 30, B=[16] * 30, loss=[2.5] * 30)
    result = fit_capybara(runs, **FEW)
    assert set(result.undetermined) | {'epsilon'} == set(result.names)  # that alone may be all of the loss
    np.testing.assert_allclose(result.predicted, 2.5, rtol=1e-6)


def test_correlations_of_what_is_not_determined_are_not_numbers():
    result = fit_capybara(table(noise=0.002, formats=[(1, M) for M in range(1, 7)]), **FEW)
    unknown = np.isinf(list(result.standard_errors.values()))
    assert 0 < sum(unknown) < len(unknown)
    found = result.correlations
    assert np.all(np.isnan(found[unknown])) and np.all(np.isnan(found[:, unknown]))
    assert np.all(np.isfinite(found[~unknown][:, ~unknown]))


def test_a_term_that_noise_can_hide_leaves_the_others_their_errors():
    """Where the best epsilon is 0 and another is as good, n and alpha, which trade with it, are no surer."""
    law = ChinchillaLaw(n=2.25, alpha=0.127, d=437.0, beta=0.479, epsilon=0.6)
    axes = dict(N=np.array([27e3, 60e3, 106e3, 240e3]), D=np.geomspace(3e5, 3e7, 5))
    hidden = covered = drawn = 0
    for seed in range(10):
        runs = grid_of(law, **axes)
        runs['loss'] = runs['loss'] + 0.012 * np.random.default_rng(seed).standard_normal(20)
        result = fit(ChinchillaLaw, runs, **FEW)
        if result.law.epsilon < 0.05:
            hidden += 1
            low, high = result.confidence_intervals()['alpha']
            covered += low < law.alpha < high or 'alpha' in result.undetermined
            drawn += np.mean([draw.epsilon > 0.05 for draw in result.bootstrap(10)])
    assert hidden >= 2
    assert covered / hidden > 0.6
    assert drawn / hidden > 0.1  # noise that takes epsilon away gives it as often


def test_a_start_may_know_less_than_the_runs():
    """The published laws lack what their papers lack: Kaplan's epsilon, the constants of tensors."""
    fit(KaplanLaw, grid_of(PUBLISHED_KAPLAN, **AXES), start=PUBLISHED_KAPLAN, num_starts=1)
    fit_capybara(table(TENSOR, blocks=(32, 'tensor')), start=LAW, num_starts=1)


def test_every_law_begins_a_search_with_a_law_of_its_own():
    for law, columns in ((ChinchillaLaw, 'ND'), (KaplanLaw, 'ND'), (KumarLaw, 'NDP'), (BitwidthLaw, 'NDb')):
        assert tuple(columns) == law.COLUMNS
