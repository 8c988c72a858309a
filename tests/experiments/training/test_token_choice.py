"""Which tokens are drawn, and how often: as NumPy has it in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.token_choice import NOT_FINITE, Sampling, choose, keep_likeliest

LOGITS = np.random.default_rng(0).normal(0, 2, 12).astype(np.float32)
CHOICES = [(None, None), (3, None), (1, None), (99, None), (None, 0.7), (None, 1.0), (None, 1e-6), (5, 0.8), (2, 0.99)]


def probabilities(logits, temperature, top_k, top_p):
    """One token after the other, from the likeliest on."""
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    likeliest = sorted(range(len(p)), key=lambda i: -p[i])[:top_k]
    p /= p[likeliest].sum()
    kept = []
    for i in likeliest:
        kept.append(i)
        if top_p is not None and p[kept].sum() >= top_p:
            break
    return np.where(np.isin(np.arange(len(p)), kept), p / p[kept].sum(), 0)


@pytest.mark.parametrize(('top_k', 'top_p'), CHOICES)
def test_probabilities_of_what_is_left(top_k, top_p):
    for temperature in (0.5, 1.0, 3.0):
        expected = probabilities(LOGITS, temperature, top_k, top_p)
        left = jax.nn.softmax(keep_likeliest(jnp.asarray(LOGITS) / temperature, top_k, top_p))
        np.testing.assert_array_equal(left > 0, expected > 0)
        np.testing.assert_allclose(left, expected, rtol=1e-5)


def test_a_tiny_top_p_leaves_the_likeliest():
    """Also one that float32 doesn't have."""
    left = keep_likeliest(jnp.asarray(LOGITS), None, 1e-50)
    assert np.flatnonzero(np.isfinite(left)).tolist() == [LOGITS.argmax()]


def test_a_top_p_of_one_leaves_all():
    """Though sums in float32 reach 1 before the last tokens."""
    logits = jnp.array([-40.0, 0.0, -41.0])
    assert np.isfinite(keep_likeliest(logits, None, 1.0)).tolist() == [True, True, True]
    assert np.isfinite(keep_likeliest(logits, 2, 1)).tolist() == [True, True, False]


@pytest.mark.parametrize('temperature', [0.0, 1.0])
@pytest.mark.parametrize('wrong', [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_logits_that_are_not_finite_give_no_token(temperature, wrong):
    """Of their row alone; a token whose logit is -inf is one that is never drawn."""
    logits, names = jnp.array([[1.0, -np.inf], wrong, [-np.inf, 1.0]]), np.zeros(3, np.int32)
    tokens = choose(logits, jax.random.key(0), names, names, Sampling(temperature))
    assert tokens.tolist() == [0, NOT_FINITE, 1]


def test_of_equal_tokens_the_first_stay():
    assert np.isfinite(keep_likeliest(jnp.zeros(5), 2, None)).tolist() == [True, True, False, False, False]
    assert np.isfinite(keep_likeliest(jnp.zeros(4), None, 0.5)).tolist() == [True, True, False, False]


@pytest.mark.parametrize(('top_k', 'top_p'), [(None, None), (4, None), (6, 0.8)])
def test_how_often_tokens_are_drawn(top_k, top_p):
    number, sampling = 4000, Sampling(1.5, top_k, top_p)
    logits, positions = jnp.tile(LOGITS, (number, 1)), np.arange(number, dtype=np.int32)
    tokens = np.asarray(choose(logits, jax.random.key(0), np.zeros(number, np.int32), positions, sampling))
    expected = probabilities(LOGITS, 1.5, top_k, top_p)
    frequencies = np.bincount(tokens, minlength=len(LOGITS)) / number
    assert np.all(frequencies[expected == 0] == 0)
    assert np.all(np.abs(frequencies - expected) <= 4 * np.sqrt(expected / number))


def test_a_token_depends_on_its_row_and_position_alone():
    draw = lambda rows, positions: np.asarray(
        choose(jnp.zeros((len(rows), 1000)), jax.random.key(0), np.int32(rows), np.int32(positions), Sampling(1.0))
    ).tolist()
    first, second, third = draw([5, 6, 5], [1, 1, 2])
    assert len({first, second, third}) == 3
    assert draw([9, 5, 6], [1, 2, 1])[1:] == [third, second] and draw([5], [1]) == [first]


@pytest.mark.parametrize('temperature', [0, 1e-6])
def test_without_temperature_it_is_the_likeliest(temperature):
    logits = jnp.stack([jnp.asarray(LOGITS), -jnp.asarray(LOGITS)]) * 1e4
    tokens = choose(logits, jax.random.key(0), np.zeros(2, np.int32), np.zeros(2, np.int32), Sampling(temperature))
    assert tokens.dtype == jnp.int32 and tokens.tolist() == [LOGITS.argmax(), LOGITS.argmin()]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ((-1.0,), r'temperature=-1.0: allowed are 0 and numbers from 1e-06 to 1e\+06'),
        ((1e-9,), 'temperature=1e-09: allowed'),
        ((1e300,), r'temperature=1e\+300: allowed'),
        ((float('nan'),), 'temperature=nan: allowed'),
        ((float('inf'),), 'temperature=inf: allowed'),
        ((1.0, 0), 'top_k=0: allowed are integers from 1 on'),
        ((1.0, 1.5), 'top_k=1.5: allowed'),
        ((1.0, None, 0.0), 'top_p=0.0: allowed are numbers above 0, up to 1'),
        ((1.0, None, 1.01), 'top_p=1.01: allowed'),
        ((0, 5), 'top_k=5 has no meaning with temperature=0'),
        ((0.0, None, 0.5), 'top_p=0.5 has no meaning with temperature=0'),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(*settings)
