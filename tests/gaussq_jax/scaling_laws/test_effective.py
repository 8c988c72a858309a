"""Recipes in weights and tokens of BF16: the formula, what runs tell of it, and what Quartet has published."""

import dataclasses
import re

import numpy as np
import pytest

from gaussq_jax.scaling_laws import (
    PUBLISHED_OUTER_EXPONENT,
    PUBLISHED_QUARTET,
    ChinchillaLaw,
    EffectiveLaw,
    OuterExponentLaw,
    compare,
    fit,
    hold_out,
)

LAW = EffectiveLaw(
    n=482.0, alpha=0.35, d=2085.0, beta=0.37, epsilon=1.8, gamma=1.0, eff_N={'a': 0.5, 'b': 0.9}, eff_D={'a': 0.8}
)
RECIPES = [('bf16', 'bf16'), ('a', 'bf16'), ('b', ''), ('bf16', 'a'), ('a', 'a')]


def runs_of(law, noise=0.0):
    rows = [(N, D, *r) for N in np.geomspace(3e7, 3e9, 4) for D in np.geomspace(1e9, 1e11, 4) for r in RECIPES]
    N, D, forward, backward = zip(*rows)
    loss = law.loss(N, D, forward, backward) + noise * np.random.default_rng(0).standard_normal(len(rows))
    return {'N': N, 'D': D, 'forward': forward, 'backward': backward, 'loss': loss}


def test_a_recipe_counts_as_a_part_of_the_weights_and_of_the_tokens():
    outer = OuterExponentLaw(n=482.0, alpha=0.35, d=2085.0, beta=0.37, epsilon=1.8, gamma=1.0)
    N, D = np.array([1e8, 1e9]), np.array([1e10, 3e10])
    for forward, f in (('bf16', 1.0), ('BF16 ', 1.0), ('', 1.0), ('a', 0.5), ('A', 0.5), ('b', 0.9)):
        for backward, g in (('bf16', 1.0), ('', 1.0), ('a', 0.8)):
            np.testing.assert_array_equal(LAW.loss(N, D, forward, backward), outer.loss(f * N, g * D))
    np.testing.assert_array_equal(LAW.loss(N, D, 'a'), LAW.loss(N, D, 'a', 'bf16'))
    loss = LAW.loss([[1e8], [1e9]], 1e10, ['a', 'bf16', 'b'], [['a'], ['bf16']])
    assert loss.shape == (2, 3) and loss[0, 1] == LAW.loss(1e8, 1e10, 'bf16', 'a')


@pytest.mark.parametrize('recipe', ['c', 1.0, None, ['a', 'c']])
def test_a_recipe_that_is_not_known_is_named(recipe):
    with pytest.raises(
        ValueError, match=r"^forward=.* must be the name of a recipe|knows no recipe 'c', but bf16, a, b$"
    ):
        LAW.loss(1e9, 1e10, recipe)


def test_runs_tell_what_recipes_are_worth():
    runs = runs_of(LAW, noise=0.002)
    result = fit(EffectiveLaw, runs, fixed={'gamma': 1.0})
    assert result.names[-3:] == ('eff_N[a]', 'eff_N[b]', 'eff_D[a]') and result.fixed == {'gamma': 1.0}
    intervals = result.confidence_intervals()
    for name, truth in (('eff_N[a]', 0.5), ('eff_N[b]', 0.9), ('eff_D[a]', 0.8)):
        low, high = intervals[name]
        assert low < truth < high and 0 < result.standard_errors[name] < 0.03, name
        assert abs(result.law.constants()[name] - truth) < 4 * result.standard_errors[name]
    low, high = result.interval(lambda law: law.eff_N['b'] / law.eff_N['a'], result.bootstrap(40))
    assert low < 1.8 < high < 2
    tied = fit(EffectiveLaw, runs, fixed={'gamma': 1.0, 'eff_N[b]': 'eff_N[a]'}).law
    assert tied.eff_N['a'] == tied.eff_N['b']


def test_case_does_not_count_in_names_of_recipes():
    """Nor do brackets in them matter."""
    upper = dataclasses.replace(LAW, eff_N={'A': 0.5, ' b': 0.9}, eff_D={'A': 0.8})
    assert upper == LAW and upper.loss(1e9, 1e10, 'A', 'A') == LAW.loss(1e9, 1e10, 'a', 'a')
    runs = runs_of(LAW)
    names = {'a': 'A [x]=1]', 'b': '[', 'bf16': 'BF16', '': ''}
    renamed = {**runs, **{side: [names[name] for name in runs[side]] for side in ('forward', 'backward')}}
    fixed = {'gamma': 1, 'eff_N[A [x]=1]]': 0.5, 'eff_N[C]': 0.7}
    result = fit(EffectiveLaw, renamed, fixed=fixed, bounds={'eff_D[A [x]=1]]': (0.1, 0.3)}, num_starts=2)
    assert result.law.eff_N == {'a [x]=1]': 0.5, 'c': 0.7, '[': result.law.eff_N['[']}
    assert result.law.eff_D == {'a [x]=1]': pytest.approx(0.3)} and EffectiveLaw.from_constants(result.law.constants())


@pytest.mark.parametrize('name', ['eff_N', 'eff_N[bf16]', 'eff_N[]', 'eff_N[a', 'alpha[a]', 'eff[a]'])
def test_a_constant_that_can_not_be_is_named(name):
    with pytest.raises(ValueError, match=re.escape(f'fixed[{name!r}]: EffectiveLaw has the constants n, alpha, ')):
        fit(EffectiveLaw, runs_of(LAW), fixed={name: 0.5})


@pytest.mark.parametrize('factors', [0.5, {'bf16': 0.5}, {'a': 0.5, 'A': 0.6}, {4: 0.5}, {'a': -1.0}])
def test_factors_that_can_not_be_are_named(factors):
    with pytest.raises(ValueError, match='eff_N'):
        dataclasses.replace(LAW, eff_N=factors)


def test_ties_go_by_the_runs_that_are_left():
    """What equals a recipe that is held out is fitted by itself; what equals a fixed constant is fixed, too."""
    runs = runs_of(LAW, noise=0.002)
    result = fit(EffectiveLaw, runs, fixed={'gamma': 1.0, 'eff_N[a]': 'eff_N[b]'}, num_starts=4)
    labels = [forward if forward == 'b' else i if i % 7 == 0 else None for i, forward in enumerate(runs['forward'])]
    (held,) = hold_out([result], runs, groups=labels, num_starts=4)
    is_b = np.array([label == 'b' for label in labels])
    assert np.isnan(held.predicted[is_b]).all() and np.isfinite(held.relative_error)
    law = fit(EffectiveLaw, runs, fixed={'beta': 'alpha', 'alpha': 0.35}, num_starts=4).law
    assert law.alpha == law.beta == 0.35


def test_a_recipe_that_is_held_out_counts_for_no_law():
    """Nothing is known of b, all of whose runs are held out together; of a, half of them are."""
    runs = runs_of(LAW, noise=0.002)
    results = [fit(EffectiveLaw, runs, fixed={'gamma': 1}, num_starts=4), fit(ChinchillaLaw, runs, num_starts=4)]
    is_out = lambda forward, N: forward == 'b' or (forward == 'a' and N > 3e8)
    labels = [forward if is_out(forward, N) else None for forward, N in zip(runs['forward'], runs['N'])]
    of_law = {held.name: held for held in hold_out(results, runs, groups=labels, num_starts=4)}
    assert set(of_law) == {'Effective, gamma = 1', 'Chinchilla'}
    with_b = np.array([label == 'b' for label in labels])
    effective = of_law['Effective, gamma = 1'].predicted
    assert np.isnan(effective[with_b]).all() and np.isfinite(of_law['Chinchilla'].predicted[with_b]).all()
    with_a = np.array([label == 'a' for label in labels])
    errors = {name: np.sqrt(np.mean((held.predicted / runs['loss'] - 1)[with_a] ** 2)) for name, held in of_law.items()}
    assert errors == pytest.approx({name: held.relative_error for name, held in of_law.items()}, rel=1e-9)
    best = compare([ChinchillaLaw, (EffectiveLaw, {'gamma': 1})], runs, num_folds=4, num_starts=4)[0]
    assert best.name == 'Effective, gamma = 1' and best.relative_error < 0.002
    with pytest.raises(ValueError, match='no run that is held out can be predicted by all laws'):
        hold_out(results, runs, groups=[label if label == 'b' else None for label in labels], num_starts=4)


def test_published_losses_of_quartet():
    """Table 3 of arXiv 2505.14669: 30M weights at 25 to 400 tokens each; to a hundredth and a half of a nat."""
    tokens = 30e6 * np.array([25, 50, 100, 200, 400])
    loss = PUBLISHED_QUARTET.loss(30e6, tokens, 'mxfp4', 'mxfp4')
    np.testing.assert_allclose(loss, [3.49, 3.38, 3.29, 3.24, 3.20], atol=0.015)
    np.testing.assert_array_equal(
        PUBLISHED_QUARTET.loss(30e6, tokens, 'bf16'), PUBLISHED_OUTER_EXPONENT.loss(30e6, tokens)
    )
