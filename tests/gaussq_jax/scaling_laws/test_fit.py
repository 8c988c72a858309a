"""Fits: the law behind the runs comes back, with errors that mean what they say, and what can't be known is named."""

import dataclasses
import inspect

import numpy as np
import pytest

from gaussq_jax.scaling_laws import (
    PUBLISHED_CAPYBARA,
    PUBLISHED_CHINCHILLA,
    PUBLISHED_KAPLAN,
    BitwidthLaw,
    CapybaraLaw,
    ChinchillaLaw,
    KaplanLaw,
    KumarLaw,
    compare,
    fit,
    fit_capybara,
    held_out_error,
    hold_out,
)

LAW = PUBLISHED_CAPYBARA
TENSOR = dataclasses.replace(LAW, tensor_scale=11.0, tensor_exponent=0.07)
FORMATS = [(0, 7), *((1, M) for M in range(1, 7)), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 3), (4, 5), (5, 1)]
FORMATS += [(5, 2), (6, 1)]
SIZES = (41e6, 85e6, 154e6, 679e6)
TOKENS = tuple(10485760000 * times for times in (1, 2, 5, 10))
FEW = dict(num_starts=6)  # nine starts of ten find the least


def table(law=LAW, noise=0.0, seed=0, sizes=SIZES, tokens=TOKENS, formats=FORMATS, blocks=(32, 64, 128, 256, 512)):
    """The published grid: every format by channels, and E1M1 with each of `blocks`; or a part of it."""
    settings = [(E, M, 'channel') for E, M in formats] + [(1, 1, B) for B in blocks]
    rows = [(N, D, *setting) for N in sizes for D in tokens for setting in settings]
    N, D, E, M, B = zip(*rows)
    runs = dict(N=np.array(N), D=np.array(D), E=np.array(E), M=np.array(M), B=np.array(B, object))
    loss = law.loss(**runs)
    return runs | {'loss': loss + noise * np.random.default_rng(seed).standard_normal(len(loss))}


def rows(runs, keep):
    return {name: np.asarray(column, object)[keep] for name, column in runs.items()}


def relative(found, law, names=None):
    """Of each constant: found / true - 1."""
    return {name: getattr(found, name) / getattr(law, name) - 1 for name in names or law.constants()}


def largest(errors):
    return max(map(abs, errors.values()))


def refit(law, runs, **options):
    """A fit where only its least-squares answer matters, not the search: from the truth."""
    return fit(type(law), runs, start=law, num_starts=0, **options)


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


def grid_of(law, **axes):
    """Every combination of the axes, and the losses of the law."""
    columns = dict(zip(axes, (axis.ravel() for axis in np.meshgrid(*axes.values(), indexing='ij'))))
    return columns | {'loss': law.loss(**columns)}


AXES = dict(N=np.geomspace(4e7, 7e8, 5), D=np.geomspace(1e10, 1e11, 4))
OTHERS = {
    'chinchilla': (PUBLISHED_CHINCHILLA, {}),
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


# Errors mean what they say


@pytest.fixture(scope='module')
def draws():
    """Fits of many tables that differ in their noise alone."""
    return [refit(LAW, table(noise=0.005, seed=seed)) for seed in range(80)]


def logarithms(results):
    return np.log([[getattr(result.law, name) for name in results[0].names] for result in results])


def test_standard_errors_are_the_spread_over_noise(draws):
    """Within 30 %, four standard errors of a spread estimated from 80."""
    spread = np.std(logarithms(draws), axis=0, ddof=1)
    errors = np.mean([[r.standard_errors[name] / getattr(r.law, name) for name in r.names] for r in draws], axis=0)
    np.testing.assert_allclose(errors, spread, rtol=0.3)


def test_correlations_are_those_over_noise(draws):
    found = draws[0].correlations
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-9)
    np.testing.assert_array_less(np.abs(found), 1 + 1e-9)
    np.testing.assert_allclose(found, np.corrcoef(logarithms(draws).T), atol=0.4)


def test_noise_is_the_noise(draws):
    np.testing.assert_allclose(np.mean([result.noise for result in draws]), 0.005, rtol=0.03)
    for result in draws[:3]:
        np.testing.assert_allclose(result.rmse, np.sqrt(np.mean(result.residuals**2)), rtol=1e-12)
        assert result.noise > result.rmse


def test_intervals_of_constants_are_student_intervals(draws):
    """Wider with the level, and around the constant in its logarithm; epsilon's around itself; of 16 N and D."""
    result = draws[0]
    assert result.num_groups == 16
    narrow, wide = result.confidence_intervals(0.5), result.confidence_intervals(0.99)
    for name in result.names:
        value, (low, high) = getattr(result.law, name), result.confidence_intervals()[name]
        middle, error = (low + high) / 2, high - value
        if name != 'epsilon':
            middle, error = np.sqrt(low * high), np.log(high / value) * value
        np.testing.assert_allclose(middle, value, rtol=1e-9)
        np.testing.assert_allclose(error / result.standard_errors[name], 2.1314, rtol=1e-4)  # of 15 degrees of freedom
        assert wide[name][0] < low < narrow[name][0] < value < narrow[name][1] < high < wide[name][1]


def quantities(law):
    return np.array(
        [law.critical_data_size(1e9, 2, 1, 128), law.compute_optimal(1e24, 128).P, law.loss(7e9, 2e12, 4, 3, 64)]
    )


def test_bootstrap_intervals_cover_what_they_say(draws):
    """80 % intervals of D_crit, of the best precision and of a held-out loss, over 20 tables."""
    covered = np.zeros(3)
    for result in draws[:20]:
        low, high = result.interval(quantities, result.bootstrap(30), level=0.8)
        assert low.shape == high.shape == (3,)
        covered += (low < quantities(LAW)) & (quantities(LAW) < high)
    # Of 20 at a chance of 80 %, fewer than 11 are 1 in 400, and all of them are 1 in 90.
    assert np.all(covered >= 11) and covered.min() < 20, covered


def test_bootstrap_of_one_seed_is_the_same(draws):
    assert draws[0].bootstrap(2, seed=3) == draws[0].bootstrap(2, seed=3)
    assert draws[0].bootstrap(2, seed=3) != draws[0].bootstrap(2, seed=4)
    assert len(draws[0].bootstrap(3)) == 3


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95 % intervals of each constant, over draws of the noise, so many that which ones they are does not matter."""
    covered = []
    for seed in range(1200):
        intervals = refit(LAW, table(noise=0.002, seed=seed)).confidence_intervals()
        covered.append([low < getattr(LAW, name) < high for name, (low, high) in intervals.items()])
    shares = dict(zip(intervals, np.mean(covered, axis=0).tolist()))
    print('\n95 % intervals that cover the truth:', shares)
    assert len(shares) == 9 and all(0.91 <= share <= 0.98 for share in shares.values()), shares


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


# Held out


def test_the_law_behind_the_runs_is_first():
    laws = [ChinchillaLaw, KumarLaw, CapybaraLaw]
    runs = rows(table(noise=0.002), slice(None, None, 5))
    halves = np.isin(runs['N'].astype(float), SIZES[::2])
    ranked = compare(laws, runs, groups=halves, num_starts=3)
    assert ranked[0].law is CapybaraLaw and ranked[0].name == 'Capybara'
    errors = [held.relative_error for held in ranked]
    assert errors == sorted(errors) and errors[0] < 0.002 < 0.005 < errors[1]
    assert ranked[0].result.num_runs == len(runs['loss'])
    bits = KumarLaw(69.2, 0.24, 7e4, 0.52, 1.9, gamma=2.1)
    runs['loss'] = bits.loss(*(runs[name].astype(float) for name in 'ND'), 1.0 + runs['E'] + runs['M'])
    assert compare([ChinchillaLaw, KumarLaw], runs, groups=halves, num_starts=3)[0].name == 'Kumar'


def chinchilla_runs():
    runs = grid_of(PUBLISHED_CHINCHILLA, **AXES)
    return runs | {'loss': runs['loss'] + 0.002 * np.random.default_rng(0).standard_normal(len(runs['loss']))}


def test_a_group_held_out_is_not_seen():
    """Whatever its losses are, the predictions of it are the same; and those of all the others are not."""
    runs = chinchilla_runs()
    out = runs['N'] == runs['N'].max()
    corrupted = runs | {'loss': np.where(out, runs['loss'] + 0.1, runs['loss'])}
    clean, other = (compare([ChinchillaLaw], r, groups=r['N'], num_starts=6)[0] for r in (runs, corrupted))
    np.testing.assert_allclose(other.predicted[out], clean.predicted[out], rtol=1e-6)
    for size in np.unique(runs['N'][~out]):
        there = runs['N'] == size
        assert np.max(np.abs(other.predicted - clean.predicted)[there]) > 1e-3
    alone = fit(ChinchillaLaw, rows(runs, ~out), **FEW).law
    np.testing.assert_allclose(clean.predicted[out], alone.loss(runs['N'][out], runs['D'][out]), rtol=1e-6)


def test_runs_of_one_size_and_data_are_a_group_by_default():
    """Seeds and formats of it are not to tell of each other."""
    runs = {name: np.repeat(column, 2) for name, column in chinchilla_runs().items()}
    options = dict(num_starts=4)
    by_default = compare([ChinchillaLaw], runs, **options)[0]
    labels = [f'{N} {D}' for N, D in zip(runs['N'], runs['D'])]
    by_label = compare([ChinchillaLaw], runs, groups=labels, **options)[0]
    np.testing.assert_allclose(by_label.predicted, by_default.predicted, rtol=1e-6)
    np.testing.assert_array_equal(by_default.predicted[::2], by_default.predicted[1::2])


def test_folds_are_groups_drawn_together():
    """Each run is predicted by the law of the runs that are not in its fold, and those of a group are in one."""
    runs, options = chinchilla_runs(), dict(num_starts=4)
    given = []
    progress = lambda fits: given.append(len(fits)) or iter(fits)
    results = [fit(law, runs, **FEW) for law in (ChinchillaLaw, KaplanLaw)]
    by_folds = hold_out(results, runs, groups=runs['N'], num_folds=3, progress=progress, **options)
    assert given == [6] and [held.law for held in by_folds] == [ChinchillaLaw, KaplanLaw]
    sizes = np.unique(runs['N'])
    places = dict(zip(dict.fromkeys(runs['N'].tolist()), np.random.default_rng(0).permutation(len(sizes)) % 3))
    folds = np.array([places[N] for N in runs['N'].tolist()])
    assert len(sizes) > 3
    for fold in range(3):
        out = folds == fold
        alone = fit(ChinchillaLaw, rows(runs, ~out), **FEW).law
        np.testing.assert_allclose(by_folds[0].predicted[out], alone.loss(runs['N'][out], runs['D'][out]), rtol=1e-6)
    with pytest.raises(ValueError, match='num_folds=1 must be at least 2'):
        hold_out(results, runs, num_folds=1)


def test_runs_without_a_label_are_not_held_out():
    """As for the largest models, predicted from all others."""
    runs = chinchilla_runs()
    out = runs['N'] == runs['N'].max()
    (held,) = compare([ChinchillaLaw], runs, groups=[True if there else None for there in out], num_starts=4)
    assert np.isnan(held.predicted[~out]).all()
    alone = fit(ChinchillaLaw, rows(runs, ~out), **FEW).law
    expected = alone.loss(runs['N'][out], runs['D'][out])
    np.testing.assert_allclose(held.predicted[out], expected, rtol=1e-6)
    error = np.sqrt(np.mean((expected / runs['loss'][out] - 1) ** 2))
    np.testing.assert_allclose(held.relative_error, error, rtol=1e-3)
    for groups in ([1] * len(out), [None] * len(out)):
        with pytest.raises(ValueError, match='groups has only'):
            compare([ChinchillaLaw], runs, groups=groups, num_starts=1)


def test_held_out_error_is_the_relative_error():
    runs = table(noise=0.01)
    expected = np.sqrt(np.mean((LAW.loss(**{name: runs[name] for name in 'NDEMB'}) / runs['loss'] - 1) ** 2))
    np.testing.assert_allclose(held_out_error(LAW, runs), expected, rtol=1e-12)


def test_a_start_may_know_less_than_the_runs():
    """The published laws lack what their papers lack: Kaplan's epsilon, the constants of tensors."""
    fit(KaplanLaw, grid_of(PUBLISHED_KAPLAN, **AXES), start=PUBLISHED_KAPLAN, num_starts=1)
    fit_capybara(table(TENSOR, blocks=(32, 'tensor')), start=LAW, num_starts=1)


def test_every_law_begins_a_search_with_a_law_of_its_own():
    for law, columns in ((ChinchillaLaw, 'ND'), (KaplanLaw, 'ND'), (KumarLaw, 'NDP'), (BitwidthLaw, 'NDb')):
        assert law.COLUMNS == tuple(columns) == tuple(inspect.signature(law.loss).parameters)[1:]
