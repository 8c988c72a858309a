"""The optima of the Capybara law: closed forms against the minimum of the loss itself, and the figures published."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.optimize

from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA, CapybaraLaw, ChinchillaLaw

LAW = PUBLISHED_CAPYBARA
TENSOR = dataclasses.replace(LAW, tensor_scale=11.0, tensor_exponent=0.07)
BLOCKS = (2, 128, 'channel', 'tensor')
AGREEMENT = 1e-6


def random_law(seed):
    """A law with its least loss of all budgets k N D P near these N, D and P; epsilon, which moves none, small."""
    rng = np.random.default_rng(seed)
    alpha, beta = rng.uniform(0.1, 0.8, 2)
    delta, nu = rng.uniform(1.0, 5.0, 2)
    N, D, P = 10 ** rng.uniform(6, 12), 10 ** rng.uniform(8, 14), rng.uniform(6, 20)
    q = 10 ** rng.uniform(-4, -1)
    best = ((delta + nu) / P) ** (delta + nu) / (delta**delta * nu**nu)
    law = CapybaraLaw(
        n=(delta + nu) * q / alpha * N**alpha,
        alpha=alpha,
        d=(delta + nu) * q / beta * D**beta,
        beta=beta,
        epsilon=0.01 * q,
        gamma=10 * best * D**beta / N**alpha / q,
        delta=delta,
        nu=nu,
        tensor_scale=10 ** rng.uniform(0.5, 1.5) * (N / D) ** 0.05,
        tensor_exponent=rng.uniform(0.02, 0.08),
    )
    return law, N, D, P


LAWS = [random_law(seed) for seed in range(10)]


def minimum(function, start):
    """Where a function of a vector is least: BFGS, then the root of its differences, of sixth order."""
    weights = np.array([-1, 9, -45, 45, -9, 1]) / 60
    steps = 0.004 * np.array([-3, -2, -1, 1, 2, 3])

    def gradient(x):
        return [
            sum(weight * function(x + step * axis) for weight, step in zip(weights, steps)) / 0.004
            for axis in np.eye(len(x))
        ]

    rough = scipy.optimize.minimize(function, np.asarray(start, float), jac=gradient, method='BFGS').x
    root = scipy.optimize.root(gradient, rough, tol=1e-13)
    assert np.max(np.abs(root.fun)) < 1e-9
    return root.x


def split(P, share):
    """E and M by the share of P that E + 1/2 has: its logit."""
    share = 1 / (1 + math.exp(-share))
    return share * P - 0.5, (1 - share) * P - 0.5


def loss_of_bits(law, N, D, P, share, B):
    """The logarithm of the loss, in which no direction is flat."""
    E, M = split(P, share)
    if E < 0 or M < 0:  # the loss has none
        return 1e3 - min(E, M)
    return float(np.log(law.loss(N, D, E, M, B)))


@pytest.mark.parametrize('B', BLOCKS)
@pytest.mark.parametrize(('law', 'N', 'D', 'P'), LAWS, ids=range(len(LAWS)))
def test_closed_forms_are_the_least_loss(law, N, D, P, B):
    """All of N, D, P and the split into E and M free, under the cost; then with N given; then D; then the format."""
    k = 6 / 16
    C = k * N * D * P

    def of_budget(x):
        return loss_of_bits(law, math.exp(x[0]), math.exp(x[1]), C / k / math.exp(x[0] + x[1]), x[2], B)

    log_N, log_D, share = minimum(of_budget, (math.log(N), math.log(D), 0.0))
    best = law.compute_optimal(C, B)
    free_P = C / k / math.exp(log_N + log_D)
    np.testing.assert_allclose([best.N, best.D, best.P], [math.exp(log_N), math.exp(log_D), free_P], rtol=AGREEMENT)
    np.testing.assert_allclose(best.loss, math.exp(of_budget((log_N, log_D, share))), rtol=1e-12)
    np.testing.assert_allclose(law.optimal_layout(best.P), split(free_P, share), rtol=AGREEMENT, atol=AGREEMENT)

    def of_model(x):
        return loss_of_bits(law, N, C / k / N / math.exp(x[0]), math.exp(x[0]), x[1], B)

    log_P, _ = minimum(of_model, (math.log(P), 0.0))
    np.testing.assert_allclose(law.optimal_precision_for_model(N, C, B), math.exp(log_P), rtol=AGREEMENT)

    if B != 'tensor':
        for budget in (C, 30 * C):  # the answer is the same at any

            def of_data(x, budget=budget):
                return loss_of_bits(law, budget / k / D / math.exp(x[0]), D, math.exp(x[0]), x[1], B)

            log_P, _ = minimum(of_data, (math.log(P), 0.0))
            np.testing.assert_allclose(law.optimal_precision_for_data(D, B), math.exp(log_P), rtol=AGREEMENT)

    E, M = 2, 3
    log_D = minimum(lambda x: np.log(law.loss(N, math.exp(x[0]), E, M, B)), [math.log(D)])[0]
    np.testing.assert_allclose(law.critical_data_size(N, E, M, B), math.exp(log_D), rtol=AGREEMENT)

    product = C / k / (1 + E + M)
    log_N = minimum(lambda x: np.log(law.loss(math.exp(x[0]), product / math.exp(x[0]), E, M, B)), [math.log(N)])[0]
    best = law.compute_optimal_for_format(C, E, M, B)
    np.testing.assert_allclose([best.N, best.D], [math.exp(log_N), product / math.exp(log_N)], rtol=AGREEMENT)
    np.testing.assert_allclose(best.loss, law.loss(best.N, best.D, E, M, B), rtol=1e-12)
    assert best.P == 1 + E + M


@pytest.mark.parametrize(('law', 'N', 'D', 'P'), LAWS, ids=range(len(LAWS)))
def test_the_real_layout_is_the_least_loss(law, N, D, P):
    share = minimum(lambda x: loss_of_bits(law, N, D, P, x[0], 32), [0.0])[0]
    np.testing.assert_allclose(law.optimal_layout(P), split(P, share), rtol=AGREEMENT)


def test_closed_forms_as_printed():
    """With g_rho = 160.697, as in the paper's section 4."""
    n, alpha, d, beta, delta, nu = 69.2343, 0.2368, 68973.0621, 0.5162, 3.1926, 2.9543
    s, g_rho, k, log2_B = delta + nu, 160.697, 6 / 16, 7
    g_D, g_N = (s - alpha) / (alpha * g_rho * n), (beta + s) / (d * beta * g_rho)
    digits = dict(rtol=1e-5)  # of g_rho
    for C in (1e18, 1e24, 1e33):
        for D in (1e9, 1e12, 1e15):
            np.testing.assert_allclose(
                LAW.optimal_precision_for_data(D, 128), (g_D * D**beta * log2_B) ** (1 / s), **digits
            )
        for N in (1e7, 1e10, 1e13):
            power = g_N * (C / k) ** (2 * beta) * N ** -(alpha + 2 * beta) * log2_B
            np.testing.assert_allclose(
                LAW.optimal_precision_for_model(N, C, 128), power ** (1 / (s + 2 * beta)), **digits
            )
        bracket = beta * (s - alpha) * d / (alpha * (s + beta) * n)
        power = C / k * bracket ** (1 / alpha) * (g_D * log2_B) ** ((alpha + beta) / (alpha * beta))
        expected = power ** (1 / (1 + s * (alpha + beta) / (alpha * beta)))
        np.testing.assert_allclose(LAW.compute_optimal(C, 128).P, expected, **digits)


def test_published_optimal_precision():
    """5.005 bits at 1e24, and 4 to 8 bits between 1.6e20 and 8.2e31, at B = 128."""
    assert abs(LAW.compute_optimal(1e24, 128).P - 5.005) < 5e-4
    for P, digits, exponent in ((4, 1.6, 20), (8, 8.2, 31)):
        log_C = scipy.optimize.brentq(lambda x: LAW.compute_optimal(10**x, 128).P - P, 10, 40)  # noqa: B023
        assert abs(10 ** (log_C - exponent) - digits) < 0.05


@pytest.mark.parametrize(('P', 'E', 'M'), [(4, 2, 1), (6, 3, 2), (8, 4, 3), (16, 8, 7)])
def test_published_layouts(P, E, M):
    assert LAW.best_format(P) == (E, M)


def test_the_best_format_is_the_best_of_all():
    """Against every E and M of as many bits, for laws that want all exponent, all mantissa and everything between."""
    rng = np.random.default_rng(0)
    P = np.arange(2, 41)
    for delta, nu in [(1, 1), (20, 0.1), (0.1, 20), *np.exp(rng.uniform(-3, 3, (60, 2))).tolist()]:
        law = dataclasses.replace(LAW, delta=delta, nu=nu)
        E, M = law.best_format(P)
        assert E.dtype.kind == M.dtype.kind == 'i'
        np.testing.assert_array_equal(1 + E + M, P)
        assert np.all(E >= 0) and np.all(M >= 0)
        for bits, exponent, mantissa in zip(P.tolist(), E.tolist(), M.tolist()):
            every = np.arange(bits)
            scores = delta * np.log(every + 0.5) + nu * np.log(bits - 1 - every + 0.5)
            assert delta * np.log(exponent + 0.5) + nu * np.log(mantissa + 0.5) >= scores.max() - 1e-12


def test_more_bits_and_smaller_blocks_never_hurt():
    layouts = [LAW.best_format(P) for P in range(2, 20)]
    losses = np.array([[LAW.loss(1e9, 1e12, E, M, B) for E, M in layouts] for B in (2, 16, 128, 1024)])
    assert np.all(np.diff(losses, axis=1) < 0) and np.all(np.diff(losses, axis=0) > 0)


def test_all_methods_broadcast():
    C, B = np.geomspace(1e18, 1e28, 3)[:, None], [16, 'channel', '128', 'tensor']
    best = TENSOR.compute_optimal(C, B)
    in_format = TENSOR.compute_optimal_for_format(C, 2, 1, B)
    critical = TENSOR.critical_data_size([[1e6], [1e9], [1e12]], 2, 1, B)
    of_model = TENSOR.optimal_precision_for_model([[1e6], [1e9], [1e12]], C, B)
    exchanged = TENSOR.precision_model_exchange([[1e6], [1e9], [1e12]], 8, 4, B)
    for values in (*best, *in_format, critical, of_model, exchanged):
        assert values.shape == (3, 4) and values.dtype == np.float64
    of_data = LAW.optimal_precision_for_data([[1e9], [1e12]], B[:3])
    assert of_data.shape == (2, 3)
    for i, j in np.ndindex(3, 4):
        one = C[i, 0], B[j]
        N = (1e6, 1e9, 1e12)[i]
        np.testing.assert_allclose([x[i, j] for x in best], TENSOR.compute_optimal(*one), rtol=1e-12)
        np.testing.assert_allclose(
            [x[i, j] for x in in_format], TENSOR.compute_optimal_for_format(one[0], 2, 1, one[1]), rtol=1e-12
        )
        np.testing.assert_allclose(critical[i, j], TENSOR.critical_data_size(N, 2, 1, B[j]), rtol=1e-12)
        np.testing.assert_allclose(of_model[i, j], TENSOR.optimal_precision_for_model(N, *one), rtol=1e-12)
        np.testing.assert_allclose(exchanged[i, j], TENSOR.precision_model_exchange(N, 8, 4, B[j]), rtol=1e-12)


def test_the_cost_counts_by_its_factor():
    """6 N D at 16 bits; another k is another budget."""
    for best in (LAW.compute_optimal(1e24, 128), LAW.compute_optimal_for_format(1e24, 4, 3, 128)):
        np.testing.assert_allclose(6 / 16 * best.N * best.D * best.P, 1e24, rtol=1e-12)
    np.testing.assert_allclose(LAW.compute_optimal(2e24, 128, k=0.75), LAW.compute_optimal(1e24, 128), rtol=1e-12)
    np.testing.assert_allclose(
        LAW.compute_optimal_for_format(2e24, 4, 3, 128, k=0.75),
        LAW.compute_optimal_for_format(1e24, 4, 3, 128),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        LAW.optimal_precision_for_model(1e9, 2e24, 128, k=0.75), LAW.optimal_precision_for_model(1e9, 1e24, 128)
    )


@pytest.mark.parametrize('B', BLOCKS)
def test_the_exchange_keeps_bits_best_at_their_cost(B):
    for N, C, new_P in ((1e9, 1e21, 4), (3e10, 1e24, 12.5), (1e6, 1e19, 30)):
        P = TENSOR.optimal_precision_for_model(N, C, B)
        new_N = TENSOR.precision_model_exchange(N, P, new_P, B)
        np.testing.assert_allclose(TENSOR.optimal_precision_for_model(new_N, C, B), new_P, rtol=1e-10)
        np.testing.assert_allclose(TENSOR.precision_model_exchange(new_N, new_P, P, B), N, rtol=1e-10)


@pytest.mark.parametrize(('E', 'M'), [(4, 3), (2, 1), (8, 7), (0, 7), (1, 0)])
@pytest.mark.parametrize('B', [1, 2, 128, 'channel', 'tensor'])
def test_every_budget_has_an_optimum_in_a_format(E, M, B):
    """From less than one operation to more than there will be: no direction is better, and the cost is spent."""
    C = np.concatenate([np.geomspace(1e-3, 1e40, 44), [1.0, 3.0, (1 + E + M) * 6 / 16]])
    best = TENSOR.compute_optimal_for_format(C, E, M, B)
    assert np.all(np.isfinite(best))
    np.testing.assert_allclose(6 / 16 * best.N * best.D * (1 + E + M), C, rtol=1e-12)
    np.testing.assert_array_equal(best.P, np.full(len(C), 1 + E + M))
    terms = dataclasses.replace(TENSOR, epsilon=1e-30)
    at = terms.loss(best.N, best.D, E, M, B)
    for factor in (1.001, 1 / 1.001):
        assert np.all(terms.loss(best.N * factor, best.D / factor, E, M, B) > at)


def test_without_a_penalty_the_optimum_is_the_one_of_chinchilla():
    chinchilla = ChinchillaLaw(n=LAW.n, alpha=LAW.alpha, d=LAW.d, beta=LAW.beta, epsilon=LAW.epsilon)
    C = np.geomspace(1e15, 1e30, 6)
    np.testing.assert_allclose(
        LAW.compute_optimal_for_format(C, 8, 7, 1)[:2], chinchilla.compute_optimal(C), rtol=AGREEMENT
    )


@pytest.mark.parametrize('seed', range(5))
def test_formats_of_laws_far_from_the_published_one(seed):
    """The search for N finds it wherever it is: N and D of one budget may be a factor of 1e40 apart."""
    rng = np.random.default_rng(seed)
    for shift in (1e-20, 1.0, 1e20):
        law, N, D, P = random_law(rng.integers(1000))
        # The same law for N' = N / shift and D' = D shift.
        law = dataclasses.replace(
            law,
            n=law.n / shift**law.alpha,
            d=law.d * shift**law.beta,
            gamma=law.gamma * shift ** (law.alpha + law.beta),
        )
        best = law.compute_optimal_for_format(6 / 16 * N * D * P, 4, 3, 128)
        back = law.loss(best.N * np.exp([-1e-2, 0, 1e-2]), best.D * np.exp([1e-2, 0, -1e-2]), 4, 3, 128)
        assert np.argmin(back) == 1 and abs(np.log(best.N * shift / N)) < 20


@pytest.mark.parametrize('B', [1 + 1e-9, 2, 'channel', 'tensor'])
def test_every_budget_has_an_optimum(B):
    C = np.geomspace(1e-3, 1e40, 44)
    best = TENSOR.compute_optimal(C, B)
    assert np.all(np.isfinite(best)) and np.all(np.array(best) > 0)
    np.testing.assert_allclose(6 / 16 * best.N * best.D * best.P, C, rtol=1e-10)
    assert np.all(np.diff(best.loss) < 0) and np.all(np.diff(best.P) > 0)
    N = np.geomspace(1e-3, 1e30, 12)[:, None]
    for values in (
        TENSOR.optimal_precision_for_model(N, C, B),
        TENSOR.critical_data_size(N, 2, 1, B),
        LAW.optimal_precision_for_data(C, 2 if B == 'tensor' else B),
    ):
        assert np.all(np.isfinite(values)) and np.all(values > 0)


def test_without_a_penalty_there_is_no_critical_data_size():
    critical = LAW.critical_data_size(1e9, 4, 3, [1, 2])
    assert critical[0] == np.inf and np.isfinite(critical[1])


WITHOUT_PENALTY = {
    'compute_optimal': lambda law, B: law.compute_optimal(1e24, B),
    'optimal_precision_for_data': lambda law, B: law.optimal_precision_for_data(1e11, B),
    'optimal_precision_for_model': lambda law, B: law.optimal_precision_for_model(1e9, 1e24, B),
}


@pytest.mark.parametrize('method', WITHOUT_PENALTY.values(), ids=WITHOUT_PENALTY)
def test_without_a_penalty_no_precision_is_best(method):
    for B in (1, [128, 1], ['channel', '1']):
        with pytest.raises(ValueError, match='B=1 must be above 1'):
            method(LAW, B)


@pytest.mark.parametrize('name', ['compute_optimal', 'optimal_precision_for_data'])
def test_where_precision_gains_less_than_parameters_none_is_best(name):
    """delta + nu below alpha: N for bits is always a gain, and a formula for the best bits has no meaning."""
    law = dataclasses.replace(LAW, delta=0.1, nu=0.1)
    with pytest.raises(ValueError, match=r'delta \+ nu = 0\.2 is not above 0\.2368'):
        WITHOUT_PENALTY[name](law, 128)


CALLS = {
    'N': [
        lambda x: LAW.critical_data_size(x, 4, 3, 128),
        lambda x: LAW.optimal_precision_for_model(x, 1e24, 128),
        lambda x: LAW.precision_model_exchange(x, 8, 4),
    ],
    'D': [lambda x: LAW.optimal_precision_for_data(x, 128)],
    'C': [
        lambda x: LAW.compute_optimal(x, 128),
        lambda x: LAW.compute_optimal_for_format(x, 4, 3, 128),
        lambda x: LAW.optimal_precision_for_model(1e9, x, 128),
    ],
    'k': [
        lambda x: LAW.compute_optimal(1e24, 128, k=x),
        lambda x: LAW.compute_optimal_for_format(1e24, 4, 3, 128, k=x),
        lambda x: LAW.optimal_precision_for_model(1e9, 1e24, 128, k=x),
    ],
    'E': [
        lambda x: LAW.critical_data_size(1e9, x, 3, 128),
        lambda x: LAW.compute_optimal_for_format(1e24, x, 3, 128),
    ],
    'M': [
        lambda x: LAW.critical_data_size(1e9, 4, x, 128),
        lambda x: LAW.compute_optimal_for_format(1e24, 4, x, 128),
    ],
    'P': [LAW.optimal_layout, LAW.best_format, lambda x: LAW.precision_model_exchange(1e9, x, 4)],
    'new_P': [lambda x: LAW.precision_model_exchange(1e9, 8, x)],
    'B': [
        lambda x: LAW.critical_data_size(1e9, 4, 3, x),
        lambda x: LAW.compute_optimal(1e24, x),
        lambda x: LAW.compute_optimal_for_format(1e24, 4, 3, x),
        lambda x: LAW.optimal_precision_for_data(1e11, x),
        lambda x: LAW.optimal_precision_for_model(1e9, 1e24, x),
        lambda x: LAW.precision_model_exchange(1e9, 8, 4, x),
    ],
}
ZERO_IS_FINE = {'E', 'M'}


@pytest.mark.parametrize(('name', 'calls'), CALLS.items(), ids=CALLS)
def test_impossible_arguments_are_named(name, calls):
    values = [-1, math.nan, math.inf, 'text', [1e9, -5], *([] if name in ZERO_IS_FINE else [0])]
    for call in calls:
        for value in values:
            with pytest.raises(ValueError, match=rf'^{name}=.*must be'):
                call(value)


@pytest.mark.parametrize('P', [1, 1.999, [8, 0.5]])
def test_less_than_two_bits_is_named(P):
    """A sign alone is no format."""
    for call in (*CALLS['P'], *CALLS['new_P']):
        with pytest.raises(ValueError, match=r'^(new_)?P=.* must be .*at least 2'):
            call(P)


@pytest.mark.parametrize('P', [2.5, [4, 6, 7.25]])
def test_no_format_has_a_part_of_a_bit(P):
    with pytest.raises(ValueError, match=r'^P=(2\.5|7\.25) must be whole bits'):
        LAW.best_format(P)
