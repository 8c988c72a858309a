"""What a fit makes least: Huber's function of residuals, or of those of logarithms, beside their squares."""

import numpy as np
import pytest
import scipy.optimize

from gaussq_jax.scaling_laws import CHINCHILLA_AS_FIRST_PUBLISHED, ChinchillaLaw, fit


def log_huber(law, runs):
    """The sum that log_huber makes least, written out."""
    error = np.abs(np.log(law.loss(runs['N'], runs['D'])) - np.log(runs['loss']))
    return float(np.sum(np.where(error < 1e-3, error**2 / 2, 1e-3 * (error - 5e-4))))


def runs_gone_wrong(noise=0.01):
    """Runs of a Chinchilla law, of which one in twenty is off by a tenth, and the first one by a half."""
    rng = np.random.default_rng(5)
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e8, 1e10, 8), np.geomspace(1e9, 1e12, 8)))
    loss = CHINCHILLA_AS_FIRST_PUBLISHED.loss(N, D) * np.exp(rng.normal(0, noise, N.size))
    loss[::20] *= 1.1
    loss[0] *= 1.5
    return {'N': N, 'D': D, 'loss': loss}


def test_log_huber_is_least_by_another_search_too():
    """BFGS over the logarithms of the constants, from a few starts, finds no less."""
    runs, family = runs_gone_wrong(), ChinchillaLaw
    result = fit(family, runs, objective='log_huber')
    found = log_huber(result.law, runs)
    names = tuple(result.law.constants())
    of_point = lambda point: log_huber(family(**dict(zip(names, np.exp(point)))), runs)
    start = np.log([getattr(CHINCHILLA_AS_FIRST_PUBLISHED, name) for name in names])
    for seed in range(3):
        jitter = np.random.default_rng(seed).normal(0, 0.1, len(names))
        least = scipy.optimize.minimize(of_point, start + jitter, method='BFGS').fun
        assert found <= least * (1 + 1e-9)
    assert found < 0.9 * log_huber(fit(family, runs).law, runs)


@pytest.mark.parametrize('objective', ['huber', 'log_huber'])
def test_one_run_far_off_leaves_constants_determined(objective):
    """The others determine them; plain squares put them elsewhere."""
    runs = runs_gone_wrong()
    others = {name: np.delete(column, np.s_[::20]) for name, column in runs.items()}
    clean = fit(ChinchillaLaw, others)
    result = fit(ChinchillaLaw, runs, objective=objective)
    assert result.undetermined == ()
    for name in ('alpha', 'beta', 'epsilon'):
        assert abs(getattr(result.law, name) - getattr(clean.law, name)) < 4 * clean.standard_errors[name]
    np.testing.assert_allclose(result.predicted + result.residuals, runs['loss'], rtol=1e-12)


def test_an_objective_that_is_none():
    with pytest.raises(ValueError, match="objective='l1' must be one of squares, huber, log_huber"):
        fit(ChinchillaLaw, runs_gone_wrong(), objective='l1')
