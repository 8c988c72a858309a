"""Errors by what they assume of runs: against fits without each group; and draws and predictions by these errors."""

import dataclasses

import numpy as np
import pytest
from runs_of_laws import formats_grid, grid, refit, with_noise

from gaussq_jax.scaling_laws import (
    CHINCHILLA_AS_FIRST_PUBLISHED,
    PUBLISHED_CAPYBARA,
    ChinchillaLaw,
    ScalingLaw,
    Scatter,
    fit,
    fit_capybara,
    held_out,
    hold_out,
)
from gaussq_jax.scaling_laws.errors import delete_groups, number_labels, run_groups


def logarithms(result):
    return np.array([np.log(value) if name != 'epsilon' else value for name, value in result.law.constants().items()])


# What they are


@pytest.mark.parametrize('objective', ['squares', 'huber'])
@pytest.mark.parametrize('errors', ['cr3', 'hc3'])
def test_they_are_those_of_the_jackknife(errors, objective):
    """The sum of squares of what the constants change by in fits without each group, where noise is small."""
    columns = grid(6, 6)
    seed = np.arange(36) % 12
    runs = {name: np.tile(column, 2) for name, column in columns.items()} | {'seed': np.tile(seed, 2)}
    noise = 1e-5 * np.random.default_rng(0).standard_normal(72) * np.geomspace(1, 20, 72)
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, runs, noise)
    result = refit(CHINCHILLA_AS_FIRST_PUBLISHED, runs, errors=errors, objective=objective)
    assert (result.errors, result.num_groups) == (errors, {'cr3': 36, 'hc3': 72}[errors])
    # Huber's function counts a run by the scale of all: so it is kept here.
    problem, start = result._problem, result._problem.point(result.law)
    changes, deleted = [], np.zeros(72)
    for group in range(result.num_groups):
        rest, mine = result.groups != group, result.groups == group
        part = {name: column[rest] for name, column in problem.columns.items()}
        without = dataclasses.replace(problem, columns=part, loss=problem.loss[rest], weights=problem.weights[rest])
        law = without.law(without.solve(start, dict(xtol=1e-15, ftol=1e-15, gtol=1e-15)).x)
        changes.append(logarithms(dataclasses.replace(result, law=law)) - logarithms(result))
        deleted[mine] = runs['loss'][mine] - law.loss(runs['N'][mine], runs['D'][mine])
    errors = np.sqrt(np.sum(np.square(changes), axis=0))
    rtol = {'squares': 1e-3, 'huber': 0.1}[objective]  # of huber, runs move across delta
    np.testing.assert_allclose(np.sqrt(np.diag(result.covariance)), errors, rtol=rtol)
    atol = rtol * np.abs(deleted).max()
    np.testing.assert_allclose(result.scatter.residuals, deleted, rtol=rtol, atol=atol)


def test_they_are_those_of_ordinary_least_squares_where_the_law_is_linear():
    """Of epsilon alone, the mean: HC3 is sum e^2 / (1 - 1/r)^2 / r^2, CR3 the same of sums over groups."""
    runs = grid(4, 3)
    noise = np.random.default_rng(0).normal(0, 0.1, 12)
    fixed = {name: value for name, value in CHINCHILLA_AS_FIRST_PUBLISHED.constants().items() if name != 'epsilon'}
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, runs, noise)
    residuals = noise - noise.mean()
    found = fit(ChinchillaLaw, runs, fixed=fixed).standard_errors['epsilon']
    np.testing.assert_allclose(found**2, np.sum(residuals**2) / (1 - 1 / 12) ** 2 / 144, rtol=1e-6)
    groups = np.repeat(['a', 'b', 'c'], [2, 4, 6])
    found = fit(ChinchillaLaw, runs, fixed=fixed, groups=groups)
    sums = np.array([residuals[groups == group].sum() / (1 - n / 12) / 12 for group, n in zip('abc', (2, 4, 6))])
    np.testing.assert_allclose(found.standard_errors['epsilon'] ** 2, np.sum(sums**2), rtol=1e-6)
    assert (found.num_groups, found.degrees_of_freedom) == (3, 2)


def test_groups_of_a_run_each_are_hc3():
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, grid(4, 4), np.random.default_rng(0).normal(0, 0.01, 16))
    one, other = (refit(CHINCHILLA_AS_FIRST_PUBLISHED, runs, errors=errors) for errors in ('cr3', 'hc3'))
    assert one.errors == other.errors == 'hc3' and one.degrees_of_freedom == other.degrees_of_freedom == 11
    np.testing.assert_array_equal(one.covariance, other.covariance)


def test_groups_are_of_the_same_batches_or_of_one_run():
    N, D = np.array([1e6, 1e6, 1e6, 1e6, 2e6, 2e6]), np.array([1e9, 1e9, 1e9, 2e9, 1e9, 3e9])

    def groups(seed, run):
        seed, run = (labels and number_labels('label', labels, 6) for labels in (seed, run))
        return run_groups(N, D, seed, run).tolist()

    assert groups(None, None) == [0, 0, 0, 1, 2, 3]
    assert groups([0, 0, 1, 0, 0, 0], None) == groups([0.0, 0, 1, 0, 0, 0], None) == [0, 0, 1, 2, 3, 4]
    assert groups([0, 1, 2, 0, 0, 0], list('abcbde')) == [0, 1, 2, 1, 3, 4]  # b has checkpoints
    assert groups([0, 0, 1, 0, 0, 0], list('abcbde')) == [0, 0, 1, 0, 2, 3]
    assert groups([0, 1, 2, 0, 0, 0], ['x'] * 6) == [0] * 4 + [1, 1]  # a run has one N
    assert groups([0, 1, 2, 0, 0, 0], ['', None, '', np.nan, '', '']) == list(range(6))


class NotAvailable:
    """As pandas.NA, whose comparisons are neither true nor false."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError('boolean value of NA is ambiguous')

    __hash__ = None


def test_labels_are_numbered():
    assert number_labels('run', ['b', None, 'a', np.nan, '', 'b', NotAvailable()], 7).tolist() == [
        0,
        -1,
        1,
        -1,
        -1,
        0,
        -1,
    ]
    assert number_labels('groups', zip([1, 1, 2], [0, 0, 0]), 3).tolist() == [0, 0, 1]
    assert number_labels('groups', np.array([[1, 0], [1, 0], [2, 0]]), 3).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ('columns', 'message'),
    [
        (dict(seed=[0] * 3), 'seed has 3 labels, for 16 runs'),
        (dict(seed=[]), 'seed has 0 labels'),
        (dict(run=0), 'run=0 must be a label a run'),
        (dict(run='0' * 16), 'must be a label a run'),
    ],
)
def test_columns_of_another_length_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        fit(ChinchillaLaw, with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, grid(4, 4), 0) | columns)


def test_other_columns_are_no_concern(monkeypatch):
    """Also where runs are left out."""
    runs = with_noise(PUBLISHED_CAPYBARA, formats_grid(3, 4), 0) | {'source': 'my sweep', 'notes': [1, 2]}
    options = dict(include_e0=False, start=PUBLISHED_CAPYBARA, num_starts=0)
    assert fit_capybara(runs, **options).num_runs == 96
    assert fit_capybara(runs, groups=list(zip(runs['N'], runs['D'])), **options).num_groups == 12


def test_a_law_of_ones_own_needs_neither_sizes_nor_epsilon():
    @dataclasses.dataclass(frozen=True)
    class Power(ScalingLaw):
        scale: float
        power: float

        COLUMNS = ('D',)

        @classmethod
        def random(cls, rng, columns, loss):
            return cls(float(np.exp(rng.normal())), float(rng.uniform(0.1, 0.9)))

        def _loss(self, D):
            return self.scale * D**-self.power

    D = np.geomspace(1, 100, 12)
    runs = {'D': D, 'loss': 3 * D**-0.5 * np.exp(np.random.default_rng(0).normal(0, 0.01, 12))}
    result = fit(Power, runs)
    assert result.num_groups == 12 and abs(result.law.power - 0.5) < 4 * result.standard_errors['power'] < 0.1


def test_undetermined_is_by_students_t():
    """By groups that are few: a factor of 7 at 95 %."""
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, grid(6, 6), np.random.default_rng(2).normal(0, 0.03, 36))
    for groups in (np.arange(36) // 6, np.arange(36) // 9):
        result = refit(CHINCHILLA_AS_FIRST_PUBLISHED, runs, groups=groups)
        wide = {name for name, (low, high) in result.confidence_intervals().items() if not high < 49 * low}
        assert wide - {'epsilon'} <= set(result.undetermined)
        assert result.degrees_of_freedom == max(groups)


def test_checkpoints_of_a_run_are_held_out_together():
    runs = {'N': np.repeat([1e8, 1e9, 1e10], 8), 'D': np.tile(np.geomspace(1e9, 1e12, 4), 6)}
    runs['run'] = np.arange(24) // 4
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, runs, np.random.default_rng(0).normal(0, 0.01, 24))
    folds = held_out._folds(
        run_groups(runs['N'], runs['D'], None, number_labels('run', runs['run'], 24)).tolist(), None, 0
    )
    assert folds.tolist() == np.repeat([0, 1, 2], 8).tolist()  # two runs of one N share each N and D
    result = fit(ChinchillaLaw, runs, start=CHINCHILLA_AS_FIRST_PUBLISHED, num_starts=0)
    (by_run,) = hold_out([result], runs, num_starts=2)
    (by_hand,) = hold_out([result], runs, groups=folds.tolist(), num_starts=2)
    np.testing.assert_array_equal(by_run.predicted, by_hand.predicted)


def test_columns_of_the_runs_make_the_groups():
    """Also where runs of them are left out."""
    runs = formats_grid(3, 4)
    noise = np.random.default_rng(0).normal(0, 0.001, len(runs['N']))
    runs = with_noise(PUBLISHED_CAPYBARA, runs, noise)
    assert refit(PUBLISHED_CAPYBARA, runs).num_groups == 12
    assert refit(PUBLISHED_CAPYBARA, runs | {'seed': np.arange(96) % 2}).num_groups == 24
    assert refit(PUBLISHED_CAPYBARA, runs | {'seed': np.arange(96), 'run': np.arange(96) // 4}).num_groups == 24
    runs['E'][:4] = 0
    options = dict(include_e0=False, start=PUBLISHED_CAPYBARA, num_starts=0)
    result = fit_capybara(runs | {'seed': np.arange(96)}, **options)
    assert (result.num_runs, result.num_groups) == (92, 92)
    result = fit_capybara(runs | {'seed': np.arange(96), 'run': [''] * 94 + ['a', 'a']}, **options)
    assert (result.num_runs, result.num_groups) == (92, 91)
    assert fit_capybara(runs, groups=np.arange(96) // 3, **options).num_groups == 31


def test_what_one_group_alone_says_has_no_error():
    """One run of a channel decides what a channel counts as: how far off that run is, no other can say."""
    runs = formats_grid(4, 4)
    B = runs['B'].astype(object)
    B[7] = 'channel'
    runs = with_noise(PUBLISHED_CAPYBARA, runs | {'B': B}, 0)
    runs['loss'] = runs['loss'] + np.random.default_rng(0).normal(0, 0.001, len(B))
    result = refit(PUBLISHED_CAPYBARA, runs)
    assert result.undetermined == ('log2_channel',)
    assert result.standard_errors['log2_channel'] == np.inf > result.standard_errors['gamma']
    loss = lambda law: law.loss(1e9, 1e11, 1, 2, ['channel', 64])
    np.testing.assert_array_equal(result.determination.is_unknown(loss), [True, False])
    np.testing.assert_array_equal(np.isnan(result.interval(loss, [result.law])), [[True, False]] * 2)
    np.testing.assert_array_equal(np.isnan(result.prediction_interval(loss, [result.law])), [[True, False]] * 2)
    plain = refit(PUBLISHED_CAPYBARA, runs, errors='plain')
    assert plain.undetermined == () and not plain.determination.is_unknown(loss).any()


def test_where_nothing_is_determined_nothing_moves():
    ones = np.ones(4)
    deletions = delete_groups(np.empty((4, 0)), ones, ones, ones, np.arange(4))
    assert deletions.moves.shape == (4, 0) and deletions.lone.shape == (0, 0)
    np.testing.assert_array_equal(deletions.residuals, ones)


def test_runs_of_one_group_say_nothing_of_errors():
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, grid(4, 4), np.random.default_rng(0).normal(0, 0.01, 16))
    result = refit(CHINCHILLA_AS_FIRST_PUBLISHED, runs, groups=['x'] * 16)
    assert set(result.undetermined) == set(result.names) and np.isinf(list(result.standard_errors.values())).all()


def test_weights_are_in_proportion_and_noisier_runs_count_less():
    columns, rng = grid(6, 6), np.random.default_rng(0)
    size = rng.uniform(0.001, 0.02, 36)
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, columns, size * rng.standard_normal(36))
    one, other = (refit(CHINCHILLA_AS_FIRST_PUBLISHED, runs, weights=times / size**2) for times in (1, 1e-4))
    np.testing.assert_allclose(list(one.standard_errors.values()), list(other.standard_errors.values()), rtol=1e-4)
    alike = refit(CHINCHILLA_AS_FIRST_PUBLISHED, runs)
    assert one.standard_errors['beta'] < 0.8 * alike.standard_errors['beta']
    np.testing.assert_allclose(one.scatter.residuals, other.scatter.residuals * 100, rtol=1e-4)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(errors='hc1'), "errors='hc1' must be one of cr3, hc3, plain"),
        (dict(errors='hc3', groups=[0] * 16), "groups are for errors='cr3', not 'hc3'"),
        (dict(groups=[0] * 3), 'groups has 3 labels, for 16 runs'),
        (dict(groups=[0] * 15 + [np.nan]), 'groups has no label for row 15 of the runs'),
    ],
)
def test_impossible_errors_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit(ChinchillaLaw, with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, grid(4, 4), 0), **options)


# Draws and predictions


@pytest.mark.parametrize('objective', ['squares', 'log_huber'])
@pytest.mark.parametrize('errors', ['plain', 'hc3', 'cr3'])
def test_draws_spread_as_errors_say(errors, objective):
    """Over a law that is as good as linear, by Student's t: its variance is v / (v - 2) times that of the errors."""
    noise = 1e-4 * np.random.default_rng(3).standard_normal(64)
    columns = {name: np.tile(column, 4) for name, column in grid(4, 4).items()}
    columns['seed'] = np.arange(64) % 32 if errors == 'cr3' else np.arange(64)
    result = refit(
        CHINCHILLA_AS_FIRST_PUBLISHED, with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, columns, noise), objective=objective
    )
    result = refit(result.law, with_noise(result.law, columns, noise), errors=errors, objective=objective)
    draws = np.array([list(law.constants().values()) for law in result.bootstrap(600)])
    v = result.degrees_of_freedom
    assert v == (31 if errors == 'cr3' else 59)
    spread = np.std(draws, axis=0) * np.sqrt((v - 2) / v)
    np.testing.assert_allclose(spread, list(result.standard_errors.values()), rtol=0.15)


def test_runs_lie_about_what_laws_predict_as_they_did():
    """Every draw's loss with every residual: enumerated."""
    residuals, predicted = np.array([-0.2, 0.0, 0.1, 0.4]), np.array([[1.0, 10.0], [2.0, 20.0]])
    draws, loss = [0, 1], lambda draw: predicted[draw]
    low, high = Scatter(residuals, False).interval(loss, draws, level=0.75)
    assert low.tolist() == [0.8, 9.8] and np.allclose(high, [2.1, 20.1])
    low, high = Scatter(residuals, True).interval(loss, draws, level=0.75)
    assert np.allclose(low, np.exp(-0.2) * predicted[0]) and np.allclose(high, np.exp(0.1) * predicted[1])
    low, high = Scatter(residuals, False).interval(lambda draw: predicted[draw, 0], draws, level=0.75)
    assert low.shape == high.shape == () and low == 0.8


def test_the_interval_of_a_run_holds_that_of_the_law():
    runs = with_noise(CHINCHILLA_AS_FIRST_PUBLISHED, grid(5, 5), np.random.default_rng(0).normal(0, 0.01, 25))
    result = refit(CHINCHILLA_AS_FIRST_PUBLISHED, runs)
    loss, draws = lambda law: law.loss(np.array([1e9, 1e10]), 1e12), result.bootstrap(100)
    of_law, of_run = result.interval(loss, draws), result.prediction_interval(loss, draws)
    assert np.all(of_run[0] < of_law[0]) and np.all(of_law[1] < of_run[1])
    assert np.all(of_run[1] - of_run[0] > 0.015) and np.all(of_run[1] - of_run[0] < 0.08)
