"""The laws say what their papers print, take columns in whatever form they come, and refuse what is impossible."""

import ast
import dataclasses
import math
import pathlib
from typing import ClassVar

import numpy as np
import pytest

from gaussq_jax import scaling_laws
from gaussq_jax.scaling_laws import (
    CHINCHILLA_AS_FIRST_PUBLISHED,
    PUBLISHED_CAPYBARA,
    PUBLISHED_KAPLAN,
    BitwidthLaw,
    CapybaraLaw,
    ChinchillaLaw,
    KaplanLaw,
    KumarLaw,
)

RELATIVE = 1e-13
KUMAR = KumarLaw(n=69.2343, alpha=0.2368, d=68973.0621, beta=0.5162, epsilon=1.9061, gamma=2.1)
BITWIDTH = BitwidthLaw(n=69.2343, alpha=0.2368, d=68973.0621, beta=0.5162, epsilon=1.9061, gamma=9e4, kappa=3.3)
TENSOR = dataclasses.replace(PUBLISHED_CAPYBARA, tensor_scale=11.0, tensor_exponent=0.07)


def name_of(law):
    return type(law).__name__


def terms(law, N, D):
    return law.n / math.pow(N, law.alpha) + law.d / math.pow(D, law.beta) + law.epsilon


def capybara(law, N, D, E, M, log2_B):
    precision = law.gamma * math.pow(E + 0.5, law.delta) * math.pow(M + 0.5, law.nu)
    return terms(law, N, D) + math.pow(D, law.beta) / math.pow(N, law.alpha) * log2_B / precision


def random_runs(count, seed=0):
    """Scalars, one tuple a run: N, D, E, M."""
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(4, 13, count), 10 ** rng.uniform(6, 16, count)
    return zip(N.tolist(), D.tolist(), rng.integers(0, 9, count).tolist(), rng.integers(0, 11, count).tolist())


def test_capybara_is_its_formula():
    for N, D, E, M in random_runs(40):
        for B, log2_B in ((1, 0), (2, 1), (32, 5), (100, math.log2(100)), (65536, 16), ('channel', 13.1567)):
            expected = capybara(PUBLISHED_CAPYBARA, N, D, E, M, log2_B)
            np.testing.assert_allclose(PUBLISHED_CAPYBARA.loss(N, D, E, M, B), expected, rtol=RELATIVE)


def test_a_tensor_counts_as_a_power_of_the_tokens_per_parameter():
    for N, D, E, M in random_runs(40, seed=1):
        expected = capybara(TENSOR, N, D, E, M, 11.0 * math.pow(D / N, 0.07))
        np.testing.assert_allclose(TENSOR.loss(N, D, E, M, 'tensor'), expected, rtol=RELATIVE)


def test_chinchilla_is_its_formula():
    for N, D, *_ in random_runs(40):
        expected = terms(CHINCHILLA_AS_FIRST_PUBLISHED, N, D)
        np.testing.assert_allclose(CHINCHILLA_AS_FIRST_PUBLISHED.loss(N, D), expected, rtol=RELATIVE)


@pytest.mark.parametrize('epsilon', [0.0, 0.7])
def test_kaplan_is_its_formula(epsilon):
    law = dataclasses.replace(PUBLISHED_KAPLAN, epsilon=epsilon)
    for N, D, *_ in random_runs(40):
        expected = math.pow(math.pow(6.4e13 / N, 0.076 / 0.103) + 1.8e13 / D, 0.103) + epsilon
        np.testing.assert_allclose(law.loss(N, D), expected, rtol=RELATIVE)


def test_kumar_is_its_formula():
    for N, D, E, M in random_runs(40):
        expected = terms(KUMAR, N * (1 - math.exp(-(1 + E + M) / 2.1)), D)
        np.testing.assert_allclose(KUMAR.loss(N, D, 1 + E + M), expected, rtol=1e-12)


def test_few_effective_parameters_keep_their_digits():
    """1 - exp(-P/gamma) for P far below gamma is P/gamma, not the rounding of 1 - 1."""
    law = dataclasses.replace(KUMAR, gamma=1e14)
    np.testing.assert_allclose(law.loss(1e9, 1e11, 4), terms(law, 1e9 * 4e-14, 1e11), rtol=1e-12)


def test_bitwidth_is_its_formula():
    for N, D, E, M in random_runs(40):
        b = 1 + E + M / 3
        expected = terms(BITWIDTH, N, D) + math.pow(D, 0.5162) / math.pow(N, 0.2368) / (9e4 * math.pow(b, 3.3))
        np.testing.assert_allclose(BITWIDTH.loss(N, D, b), expected, rtol=RELATIVE)


def test_the_published_constants():
    """arXiv 2501.02423, table 2; 2203.15556, equation (10); 2001.08361, equation (1.5)."""
    capybara = dict(n=69.2343, alpha=0.2368, d=68973.0621, beta=0.5162, epsilon=1.9061, gamma=11334.5197)
    assert PUBLISHED_CAPYBARA.constants() == capybara | dict(delta=3.1926, nu=2.9543, log2_channel=13.1567)
    assert CHINCHILLA_AS_FIRST_PUBLISHED.constants() == dict(n=406.4, alpha=0.34, d=410.7, beta=0.28, epsilon=1.69)
    assert PUBLISHED_KAPLAN.constants() == dict(n=6.4e13, alpha=0.076, d=1.8e13, beta=0.103, epsilon=0.0)


@pytest.mark.parametrize(
    ('E', 'M', 'trillions', 'half_of_the_last_digit'), [(8, 7, 1730, 5), (4, 3, 27, 0.5), (2, 1, 0.4, 0.05)]
)
def test_published_critical_data_sizes(E, M, trillions, half_of_the_last_digit):
    """For 1B parameters at B = 128: 1730T, 27T and 0.4T tokens."""
    found = PUBLISHED_CAPYBARA.critical_data_size(1e9, E, M, 128) / 1e12
    assert abs(found - trillions) < half_of_the_last_digit


def test_published_losses():
    """Chinchilla's own 70B on 1.4T and Gopher's 280B on 300B; Kaplan's infinite data at 1.5B."""
    np.testing.assert_allclose(
        CHINCHILLA_AS_FIRST_PUBLISHED.loss([70e9, 280e9], [1.4e12, 300e9]), [1.937, 1.993], atol=6e-4
    )
    np.testing.assert_allclose(PUBLISHED_KAPLAN.loss(1.5e9, 1e30), (6.4e13 / 1.5e9) ** 0.076, rtol=1e-9)


def test_chinchilla_optimum_is_the_least_loss_at_its_cost():
    C = np.array([1e18, 5.76e23, 1e30])
    N, D = CHINCHILLA_AS_FIRST_PUBLISHED.compute_optimal(C)
    np.testing.assert_allclose(6 * N * D, C, rtol=1e-12)
    factors = np.exp(np.linspace(-1, 1, 201))[:, None]
    losses = CHINCHILLA_AS_FIRST_PUBLISHED.loss(N * factors, D / factors)
    np.testing.assert_array_equal(np.argmin(losses, axis=0), 100)


def test_no_penalty_at_blocks_of_one_and_at_infinite_bits():
    N, D = np.array([1e6, 1e9]), np.array([1e9, 1e13])
    unquantized = ChinchillaLaw(n=69.2343, alpha=0.2368, d=68973.0621, beta=0.5162, epsilon=1.9061).loss(N, D)
    np.testing.assert_array_equal(PUBLISHED_CAPYBARA.loss(N, D, 2, 1, 1), unquantized)
    np.testing.assert_array_equal(BITWIDTH.loss(N, D, np.inf), unquantized)


def test_bitwidth_critical_data_size_is_the_least_loss():
    N, b = np.array([1e6, 1e9, 1e11]), np.array([2.0, 4.0, 6.5])
    D = BITWIDTH.critical_data_size(N, b)
    losses = BITWIDTH.loss(N, D * np.exp(np.linspace(-1, 1, 201))[:, None], b)
    np.testing.assert_array_equal(np.argmin(losses, axis=0), 100)


def test_arguments_broadcast_in_float64():
    N, D = np.float32([[2**20], [2**30]]), np.int64([10**9, 10**10, 10**11])
    loss = PUBLISHED_CAPYBARA.loss(N, D, 4, np.int8(3), [16, 'channel', '64'])
    assert loss.shape == (2, 3) and loss.dtype == np.float64
    for i, j in np.ndindex(2, 3):
        expected = capybara(PUBLISHED_CAPYBARA, 2.0 ** (20, 30)[i], float(D[j]), 4, 3, (4, 13.1567, 6)[j])
        np.testing.assert_allclose(loss[i, j], expected, rtol=RELATIVE)


def test_a_number_gives_a_number():
    """It formats and compares as one."""
    for loss in (
        CHINCHILLA_AS_FIRST_PUBLISHED.loss(1e9, 1e11),
        PUBLISHED_KAPLAN.loss(1e9, 1e11),
        KUMAR.loss(1e9, 1e11, 8),
        BITWIDTH.loss(1e9, 1e11, 8),
        PUBLISHED_CAPYBARA.loss(1e9, 1e11, 4, 3, 128),
        PUBLISHED_CAPYBARA.loss(1e9, 1e11, 4, 3, 'channel'),
    ):
        assert np.ndim(loss) == 0 and loss.dtype == np.float64
        assert f'{loss:.3f}' == f'{float(loss):.3f}'


BLOCKS = {
    'number': 128,
    'number as text': '128',
    'channel': 'channel',
    'tensor': 'tensor',
    'numbers': [16, 32.5],
    'texts': ['16', 'channel', 'tensor', '1'],
    'mixed list': [1, 'tensor', 16, 'channel'],
    'nested': [['channel', 8], ['tensor', '4']],
    'array of texts': np.array(['tensor', '16', 'channel']),
    'array of objects': np.array([16, 'channel', '32', np.str_('tensor')], object),
    'float32': np.float32([2, 3]),
}


@pytest.mark.parametrize('B', BLOCKS.values(), ids=BLOCKS)
def test_blocks_in_every_form(B):
    counted = np.asarray(B, object)
    N, D = 3e8, 2e11
    words = {'channel': 13.1567, 'tensor': 11.0 * (D / N) ** 0.07}

    def log2(block):
        return words[block] if block in words else math.log2(float(block))

    expected = [capybara(TENSOR, N, D, 3, 2, log2(block)) for block in counted.ravel().tolist()]
    loss = TENSOR.loss(N, D, 3, 2, B)
    assert np.shape(loss) == counted.shape
    np.testing.assert_allclose(np.ravel(loss), expected, rtol=RELATIVE)


def test_an_unknown_tensor_is_an_error_and_not_a_penalty_of_zero():
    for method, arguments in (
        (PUBLISHED_CAPYBARA.loss, (1e9, 1e11, 4, 3, [16, 'tensor'])),
        (PUBLISHED_CAPYBARA.critical_data_size, (1e9, 4, 3, 'tensor')),
        (PUBLISHED_CAPYBARA.compute_optimal, (1e24, 'tensor')),
        (PUBLISHED_CAPYBARA.compute_optimal_for_format, (1e24, 4, 3, 'tensor')),
        (PUBLISHED_CAPYBARA.optimal_precision_for_model, (1e9, 1e24, 'tensor')),
        (PUBLISHED_CAPYBARA.optimal_precision_for_data, (1e11, 'tensor')),
    ):
        with pytest.raises(ValueError, match="B='tensor'"):
            method(*arguments)


IMPOSSIBLE = [-1, math.nan, math.inf, -math.inf, 'many', None, [1, 'x'], 1 + 2j, [[1, 2], [3]]]
GOOD = dict(N=1e9, D=1e11, E=4, M=3, B=128, P=8, b=4.0)


@pytest.mark.parametrize(
    'law', [CHINCHILLA_AS_FIRST_PUBLISHED, PUBLISHED_KAPLAN, KUMAR, BITWIDTH, PUBLISHED_CAPYBARA], ids=name_of
)
@pytest.mark.parametrize('value', IMPOSSIBLE, ids=repr)
def test_impossible_columns_are_named(law, value):
    """The column, what was given, and what is allowed."""
    for name in law.COLUMNS:
        if name == 'b' and value == math.inf:
            continue
        arguments = {column: GOOD[column] for column in law.COLUMNS} | {name: value}
        with pytest.raises(ValueError, match=rf'^{name}=.*must be') as error:
            law.loss(**arguments)
        if not isinstance(value, list):
            text = str(error.value)
            assert any(part in text for part in {str(value), f'{value}', 'nan' if value is None else repr(value)}), text


@pytest.mark.parametrize(
    ('name', 'value'), [('N', 0), ('D', 0.0), ('N', [1, 0]), ('B', 0), ('B', 0.5), ('B', [8, '0'])]
)
def test_zeros_are_named_with_what_is_allowed(name, value):
    allowed = 'at least 1' if name == 'B' else 'above 0'
    with pytest.raises(ValueError, match=rf'^{name}=.*must be .*{allowed}'):
        PUBLISHED_CAPYBARA.loss(**{key: GOOD[key] for key in 'NDEMB'} | {name: value})


@pytest.mark.parametrize('name', ['N', 'D'])
def test_what_a_message_allows_is_allowed(name):
    """A message for -1 must not send the reader to 0, which is another error."""
    with pytest.raises(ValueError, match=rf'^{name}=-1 must be .*above 0'):
        CHINCHILLA_AS_FIRST_PUBLISHED.loss(**dict(N=1e9, D=1e11) | {name: -1})


@pytest.mark.parametrize('block', ['Channel', 'row', '', '16x', 'tensors'])
def test_unknown_blocks_are_named(block):
    for B in (block, [16, block]):
        with pytest.raises(ValueError, match=r"^B=.*must be .*'channel' or 'tensor'") as error:
            PUBLISHED_CAPYBARA.loss(1e9, 1e11, 4, 3, B)
        assert repr(block) in str(error.value)


@pytest.mark.parametrize('value', [0, -0.1, math.nan, math.inf, 'x', [1.0]])
@pytest.mark.parametrize('law', [CHINCHILLA_AS_FIRST_PUBLISHED, PUBLISHED_KAPLAN, KUMAR, BITWIDTH, TENSOR], ids=name_of)
def test_impossible_constants_are_named(law, value):
    for name in law.constants():
        if name == 'epsilon' and value == 0:  # no loss that can't be trained away: Kaplan's law, and some fits
            continue
        with pytest.raises(ValueError, match=rf'{name}=.*must be a finite number'):
            dataclasses.replace(law, **{name: value})


@pytest.mark.parametrize(
    'law', [CHINCHILLA_AS_FIRST_PUBLISHED, PUBLISHED_KAPLAN, KUMAR, BITWIDTH, PUBLISHED_CAPYBARA], ids=name_of
)
def test_a_constant_that_the_law_needs_is_not_none(law):
    """None is for what a law can do without: the constants of tensors."""
    for name in law.constants():
        with pytest.raises(ValueError, match=rf'{name}=None must be a finite number'):
            dataclasses.replace(law, **{name: None})


def test_laws_are_values():
    law = dataclasses.replace(PUBLISHED_CAPYBARA)
    assert law == PUBLISHED_CAPYBARA and hash(law) == hash(PUBLISHED_CAPYBARA)
    assert CapybaraLaw(**law.constants()) == law and KaplanLaw(**PUBLISHED_KAPLAN.constants()) == PUBLISHED_KAPLAN
    with pytest.raises(dataclasses.FrozenInstanceError):
        law.n = 1.0


def test_the_laws_need_numpy_and_scipy_and_no_jax():
    """What plans a training runs where no accelerator library does anything."""
    imported = set()
    for file in pathlib.Path(scaling_laws.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add('.' * node.level + (node.module or ''))
    ours = {name for name in imported if name.startswith(('gaussq_jax', '.'))}
    assert ours and all(name.startswith('gaussq_jax.scaling_laws') for name in ours)
    others = {name.partition('.')[0] for name in imported - ours}
    assert others <= {
        'numpy',
        'scipy',
        'collections',
        'dataclasses',
        'functools',
        'inspect',
        'itertools',
        'math',
        'numbers',
        'typing',
    }


def test_the_refit_of_chinchilla():
    """arXiv 2404.10102: of its 240 runs, not what was first published; 18 tokens a weight at Chinchilla's budget."""
    refit = dict(n=482.01, alpha=0.3478, d=2085.43, beta=0.3658, epsilon=1.8172)
    assert scaling_laws.CHINCHILLA_REFIT.constants() == refit and not hasattr(scaling_laws, 'PUBLISHED_CHINCHILLA')
    N, D = scaling_laws.CHINCHILLA_REFIT.compute_optimal(5.76e23)
    assert 17 < D / N < 20


@dataclasses.dataclass(frozen=True)
class RepeatingLaw(scaling_laws.PowerLaw):
    """Of a law of one's own, with a column of its own (Muennighoff et al., arXiv 2305.16264)."""

    worth: float

    COLUMNS = ('N', 'D', 'epochs')
    STARTS: ClassVar = {'worth': (1.0, 100.0)}

    def _loss(self, N, D, epochs):
        return self._unquantized(N, D / epochs * (1 + self.worth * (1 - np.exp((1 - epochs) / self.worth))))


def test_a_law_of_ones_own_is_one_dataclass():
    law = RepeatingLaw(n=482.0, alpha=0.348, d=2085.4, beta=0.366, epsilon=1.817, worth=15.0)
    N, D, epochs = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 1e10, 4), np.geomspace(1e9, 1e11, 4), [1, 8, 64]))
    result = scaling_laws.fit(RepeatingLaw, {'N': N, 'D': D, 'epochs': epochs, 'loss': law.loss(N, D, epochs)})
    np.testing.assert_allclose(list(result.law.constants().values()), list(law.constants().values()), rtol=1e-4)
    best = scaling_laws.optimal_training(law, 1e22, epochs=[1, 8])
    assert best.loss[0] < best.loss[1]
    with pytest.raises(TypeError, match="missing a required argument: 'epochs'"):
        law.loss(1e9, 1e10)
    with pytest.raises(ValueError, match=r'^epochs=0 must be a finite number above 0'):
        law.loss(1e9, 1e10, epochs=0)


@dataclasses.dataclass(frozen=True)
class ConstantLaw(scaling_laws.ScalingLaw):
    least: float
    epsilon: float

    COLUMNS = ('N', 'D')

    def _loss(self, N, D):
        return self.least + self.epsilon + 0 * N * D


def test_a_search_needs_to_know_where_to_begin():
    with pytest.raises(ValueError, match=r"ConstantLaw\.STARTS has no 'least', where a search for it is to"):
        scaling_laws.fit(ConstantLaw, {'N': [1, 2, 3], 'D': [1, 2, 3], 'loss': [1, 2, 3]})


def test_outer_exponent_is_its_formula():
    law = scaling_laws.PUBLISHED_OUTER_EXPONENT
    for N, D, *_ in random_runs(40):
        expected = (1.52e5 / math.pow(N, 0.589) + 5.25e5 / math.pow(D, 0.544)) ** 0.274 + 1.35
        np.testing.assert_allclose(law.loss(N, D), expected, rtol=RELATIVE)
    chinchilla = scaling_laws.CHINCHILLA_REFIT
    same = scaling_laws.OuterExponentLaw(**chinchilla.constants(), gamma=1.0)
    np.testing.assert_array_equal(same.loss(1e9, 1e11), chinchilla.loss(1e9, 1e11))


def test_constants_go_to_a_flat_mapping_and_back():
    for law in (PUBLISHED_CAPYBARA, TENSOR, PUBLISHED_KAPLAN, scaling_laws.PUBLISHED_QUARTET):
        assert type(law).from_constants(law.constants()) == law
    quartet = scaling_laws.PUBLISHED_QUARTET
    assert quartet.replace(**{'eff_N[mxfp4]': 0.5}).eff_N == {'mxfp4': 0.5} and quartet.eff_N == {'mxfp4': 0.65}
    with pytest.raises(TypeError, match='unexpected keyword'):
        PUBLISHED_CAPYBARA.replace(kappa=1.0)
