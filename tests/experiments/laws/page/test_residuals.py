"""Residuals: a shape that is there is told of, and noise is not."""

import re
import types

import numpy as np
import pytest
import scipy.stats

from experiments.laws.law_choices import LAWS
from experiments.laws.page import residuals
from experiments.laws.page.settings import Setting
from gaussq_jax.scaling_laws import CHINCHILLA_REFIT


def study(values, *, N, D, groups=None, names=('epsilon',)):
    """As much of a Study as `shapes` reads, of Chinchilla's law with these constants fitted."""
    result = types.SimpleNamespace(residuals=values, law=CHINCHILLA_REFIT, names=names, fixed={})
    result.predicted = CHINCHILLA_REFIT.loss(N, D)
    result.groups, result.num_runs = np.arange(len(values)) if groups is None else groups, len(values)
    table = types.SimpleNamespace(columns={'N': N, 'D': D})
    return types.SimpleNamespace(result=result, table=table, choice=LAWS['chinchilla'])


N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e8, 1e10, 7), np.geomspace(1e9, 1e12, 7)))
NOISE = np.random.default_rng(0).normal(0, 0.01, (200, len(N)))
ONE = [Setting('', '', {}, np.ones(len(N), bool), False)]


def test_the_test_is_an_f_test():
    for explained, left, terms, spare in ((1.0, 2.0, 2, 10), (0.1, 5.0, 3, 40)):
        expected = scipy.stats.f.sf((explained / terms) / (left / spare), terms, spare)
        assert residuals.chance(explained, left, terms, spare) == pytest.approx(expected, rel=1e-12)


def test_noise_has_no_shape():
    """At 1 %, of three tests: 6 of 200 are expected."""
    told = sum(bool(residuals.shapes(study(noise, N=N, D=D), ONE)) for noise in NOISE)
    assert told <= 12


def test_what_the_fit_takes_off_the_residuals_counts():
    """Of noise, once N and D are fitted, each of the tests tells of a shape in 1 % of tables: 15 of 3 * 500."""
    names = ('n', 'alpha', 'd', 'beta', 'epsilon')
    moves = residuals.tangents(study(NOISE[0], N=N, D=D, names=names))
    epsilon, alpha = moves[:, 4], -CHINCHILLA_REFIT.n * N**-CHINCHILLA_REFIT.alpha * np.log(N)
    np.testing.assert_allclose(epsilon, 1, rtol=1e-6)
    np.testing.assert_allclose(moves[:, 1], alpha, rtol=1e-3)
    fitted, _ = np.linalg.qr(moves / np.linalg.norm(moves, axis=0))
    noise = np.random.default_rng(1).normal(0, 0.01, (500, len(N)))
    left = noise - noise @ fitted @ fitted.T
    told = [residuals.shapes(study(values, N=N, D=D, names=names), ONE) for values in left]
    assert 6 <= sum(map(len, told)) <= 28


def test_settings_of_some_groups_alone_count_as_often():
    """Their share of the groups' noise is taken off, too: 1 % of 500."""
    rng = np.random.default_rng(2)
    groups, names = np.sort(rng.integers(0, 12, len(N))), rng.integers(0, 4, len(N))
    settings = [Setting(str(i), '', {}, names == i, False) for i in range(4)]
    noise = rng.normal(0, 0.01, (500, len(N))) + rng.normal(0, 0.03, (500, 12))[:, groups]
    told = [residuals.shapes(study(values, N=N, D=D, groups=groups), settings) for values in noise]
    assert 1 <= sum('by setting' in remark for remarks in told for remark in remarks) <= 12


@pytest.mark.parametrize(
    ('shape', 'told'),
    [
        (
            0.02 * (np.log10(D) - 10.5) ** 2,
            r'^Residuals bend over D.* above the law at both ends, and below it in the middle',
        ),
        (
            -0.02 * (np.log10(D) - 10.5) ** 2,
            r'^Residuals bend over D.* above the law in the middle, and below it at both ends',
        ),
        (
            0.03 * np.log10(N),
            r'^Residuals follow N.* above the law at the greatest N, and below it at the least',
        ),
        (
            -0.03 * np.log10(N),
            r'^Residuals follow N.* above the law at the least N, and below it at the greatest',
        ),
    ],
)
def test_a_shape_is_told_in_words(shape, told):
    remarks = residuals.shapes(study(NOISE[0] + shape - shape.mean(), N=N, D=D), ONE)
    assert any(re.search(told, remark) for remark in remarks)


def test_a_shape_that_the_constants_hide_is_no_parabola():
    """Of a parabola, a fit leaves what the law can't follow: waves, and no more of the parabola itself."""
    names = ('n', 'alpha', 'd', 'beta', 'epsilon')
    moves = residuals.tangents(study(NOISE[0], N=N, D=D, names=names))
    fitted, _ = np.linalg.qr(moves / np.linalg.norm(moves, axis=0))
    values = NOISE[0] / 100 + 0.2 * (np.log10(N) - 9) ** 2
    told = residuals.shapes(study(values - fitted @ (fitted.T @ values), N=N, D=D, names=names), ONE)
    assert re.search(r'^Residuals have a shape over N, by up to .*: the runs bend in another way than the law', told[0])


def test_runs_that_depend_on_each_other_count_once():
    """Ten runs of each group with its noise alone are no more evidence than one."""
    few = slice(None, None, 7)
    repeated = lambda values: np.repeat(values[few], 10)
    groups = np.repeat(np.arange(len(N[few])), 10)
    told = [
        residuals.shapes(study(repeated(noise), N=repeated(N), D=repeated(D), groups=groups), ONE) for noise in NOISE
    ]
    assert sum(map(bool, told)) <= 12


def test_settings_that_lie_apart_are_named():
    mask = np.arange(len(N)) % 2 == 0
    settings = [Setting('e1m1', '', {}, mask, False), Setting('e2m1', '', {}, ~mask, False)]
    apart = NOISE[0] + np.where(mask, 0.02, -0.02)
    (remark,) = [r for r in residuals.shapes(study(apart, N=N, D=D), settings) if 'setting' in r]
    assert 'e1m1 by +0.019' in remark and 'e2m1 by -0.017' in remark  # with the mean of the noise
    assert not [r for noise in NOISE[:5] for r in residuals.shapes(study(noise, N=N, D=D), settings) if 'setting' in r]
