"""Laws of the precision of operands, of rounding after training, and of quantization-aware training."""

import math

import numpy as np
import pytest

from gaussq_jax.scaling_laws import PUBLISHED_QAT, ChinchillaLaw, KumarOperandsLaw, QATLaw, ScalingLaw, fit

TERMS = dict(n=4299.0, alpha=0.4965, d=18060.0, beta=0.4965, epsilon=2.7648)
TRAINED = KumarOperandsLaw(**TERMS, gamma_w=2.7, gamma_a=2.2, gamma_kv=1.0)
POST = dict(post=0.06, post_D=0.5, post_N=0.34, post_gamma=0.6, post_w=0.9, post_a=1.1, post_kv=0.5)
ROUNDED = TRAINED.replace(**POST)


def formula(law, N, D, bits, P_post):
    """Equations (3), (4), (8), (9) and (11) of arXiv 2411.04330, number by number."""
    gammas = law.gamma_w, law.gamma_a, law.gamma_kv
    N_eff = N * math.prod(1 - math.exp(-P / gamma) for P, gamma in zip(bits, gammas))
    loss = law.n / N_eff**law.alpha + law.d / D**law.beta + law.epsilon
    if P_post < math.inf:
        weights = law.post_w, law.post_a, law.post_kv
        differ = math.prod(1 - math.exp(-c * max(P - P_post, 0)) for c, P in zip(weights, bits))
        loss += law.post * D**law.post_D / N_eff**law.post_N * math.exp(-P_post / law.post_gamma) * differ
    return loss


@pytest.mark.parametrize('P_post', [math.inf, 3, 4, 8])
@pytest.mark.parametrize('bits', [(16, 16, 16), (4, 8, 6), (8, 4, 3.5)])
def test_operands_are_their_formula(bits, P_post):
    for N, D in ((3e7, 1.5e9), (2.2e8, 2.6e10)):
        np.testing.assert_allclose(ROUNDED.loss(N, D, *bits, P_post), formula(ROUNDED, N, D, bits, P_post), rtol=1e-12)
    if P_post == math.inf:
        np.testing.assert_array_equal(TRAINED.loss(3e7, 1.5e9, *bits), ROUNDED.loss(3e7, 1.5e9, *bits, np.inf))
    else:
        with pytest.raises(ValueError, match=r'^P_post: the law does not know what rounding after training adds'):
            TRAINED.loss(3e7, 1.5e9, *bits, P_post)


def test_what_is_not_rounded_costs_nothing():
    unquantized = ChinchillaLaw(**TERMS).loss(1e8, 1e10)
    np.testing.assert_array_equal(ROUNDED.loss(1e8, 1e10, np.inf, np.inf, np.inf, [np.inf, np.inf]), unquantized)
    at_once = ROUNDED.loss(1e8, 1e10, 8, 8, 8, [4, 8, np.inf])
    assert at_once[0] > at_once[1] == at_once[2]
    loss = lambda D: ROUNDED.loss(1e8, D, 16, 16, 16, 3)
    D = ROUNDED.critical_data_size(1e8, P_w=16, P_a=16, P_kv=16, P_post=3)  # past some tokens, more of them hurt
    assert 1e9 < D < 1e11
    np.testing.assert_array_less(loss(D), loss(D * np.array([0.9, 1.1])))
    assert TRAINED.critical_data_size(1e8, P_w=16, P_a=16, P_kv=16) == np.inf


def test_rounding_is_fitted_where_runs_are_rounded():
    rows = [(N, D, P, 16.0, 16.0) for N in (3e7, 1e8, 3e8) for D in (1e9, 1e10, 1e11) for P in (3.0, 4.0, 6.0, 16.0)]
    columns = dict(zip(('N', 'D', 'P_w', 'P_a', 'P_kv'), map(np.array, zip(*rows))))
    fixed = dict(gamma_a=2.2, gamma_kv=1.0)
    result = fit(KumarOperandsLaw, columns | {'loss': TRAINED.loss(**columns)}, fixed=fixed)
    assert result.names == (*TERMS, 'gamma_w') and result.law.post is None
    np.testing.assert_allclose(result.law.gamma_w, 2.7, rtol=1e-3)
    columns |= {'P_post': np.where(columns['P_w'] > 6, 3.0, np.inf)}
    fixed |= {name: value for name, value in POST.items() if name not in ('post', 'post_D')}
    result = fit(KumarOperandsLaw, columns | {'loss': ROUNDED.loss(**columns)}, fixed=fixed)
    np.testing.assert_allclose([result.law.post, result.law.post_D], [0.06, 0.5], rtol=1e-3)


@pytest.mark.parametrize(
    ('bits', 'added'),
    [
        ('w4a4', [0.04409, 0.05728, 0.06355]),
        ('w4a16', [0.01864, 0.02100, 0.02201]),
        ('w16a4', [0.02872, 0.03996, 0.04555]),
    ],
)
def test_published_qat(bits, added):
    """Table 1 of arXiv 2505.14302, 595M weights on 100B tokens, groups of 32, 128 and 256; and what its text says."""
    law = PUBLISHED_QAT[bits]
    base = law.loss(595e6, 100e9, 1)
    np.testing.assert_allclose(base, 2.7407, atol=5e-5)
    np.testing.assert_allclose(law.loss(595e6, 100e9, [32, 128, 256]) - base, added, atol=6e-6)


def test_qat_turns_where_its_loss_is_least():
    law, N, B = PUBLISHED_QAT['w4a4'], np.array([1e7, 1e9]), np.array([32, 256])
    D = law.critical_data_size(N, B)
    losses = law.loss(N, D * np.exp(np.linspace(-1, 1, 201))[:, None], B)
    np.testing.assert_array_equal(np.argmin(losses, axis=0), 100)
    np.testing.assert_allclose(ScalingLaw.critical_data_size(law, N, B=B), D, rtol=1e-4)
    assert law.critical_data_size(1e9, 1) == np.inf == ScalingLaw.critical_data_size(law, 1e9, B=1)
    with pytest.raises(ValueError, match=r"^B='channel' or 'tensor': this law takes the number of values"):
        law.loss(1e9, 1e10, [32, 'channel'])


def test_qat_is_found_in_its_runs():
    rows = [(N, D, B) for N in (7e7, 3e8, 6e8) for D in (1e10, 3e10, 1e11) for B in (1, 32, 64, 128, 256)]
    N, D, B = zip(*rows)
    runs = {'N': N, 'D': D, 'B': B, 'loss': PUBLISHED_QAT['w4a4'].loss(N, D, B)}
    law = fit(QATLaw, runs, fixed={'beta': 'alpha'}).law
    for name, value in PUBLISHED_QAT['w4a4'].constants().items():
        np.testing.assert_allclose(law.constants()[name], value, rtol=1e-3)
