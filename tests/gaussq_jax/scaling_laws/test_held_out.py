"""Runs held out: what is predicted of them, and by which law best."""

import numpy as np
import pytest
from runs_of_laws import AXES, FEW, LAW, SIZES, grid_of, rows, table

from gaussq_jax.scaling_laws import (
    CHINCHILLA_AS_FIRST_PUBLISHED,
    CapybaraLaw,
    ChinchillaLaw,
    KaplanLaw,
    KumarLaw,
    compare,
    fit,
    held_out_error,
    hold_out,
)


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
    runs = grid_of(CHINCHILLA_AS_FIRST_PUBLISHED, **AXES)
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
