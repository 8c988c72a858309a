"""Descent of bitwidths against closed forms: where the loss would rise by as much as fewer bits save."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gaussq_jax as gq
from gaussq_jax.bitwidth_descent import _shrunk

PQT = gq.gaussian_weight_sampling(b_init=8, b_target=3, dtype=jnp.float32)
SPAN = 5.0
PRICE = 0.05
VARIANCE = 0.325412762586331  # of R
STORED_BITS = {3: 4, 4: 6, 5: 7, 6: 8, 7: 9, 8: 11, 9: 12, 10: 16}  # of e2m1, e3m2, .., bfloat16


def descend(optimizer, gradient_of, b_i, updates, transform=PQT):
    """b_t after each of so many updates; `gradient_of(b_t, n)` is that by b_t."""
    state, update, seen = optimizer.init(b_i), jax.jit(optimizer.update), []
    for n in range(updates):
        gradients = jax.tree.map(lambda g: SPAN * jnp.asarray(g, jnp.float32), gradient_of(transform.bitwidths(b_i), n))
        changes, state = update(gradients, state, b_i)
        b_i = jax.tree.map(jnp.add, b_i, changes)
        seen.append(jax.tree.map(np.asarray, transform.bitwidths(b_i)))
    return seen


@pytest.mark.parametrize('worth', [1.0, 10.0, 30.0, 300.0, 2e3, 1e4, 6e4, 2e5, 2e6])
def test_goes_to_the_format_that_is_worth_its_bits(worth):
    """Noise of b_t bits adds w 4^-b_t to the loss, a bit of one of the two blocks price / 2; the other's w is small."""
    best = min(STORED_BITS, key=lambda b: worth * 4.0**-b + PRICE / 2 * STORED_BITS[b])
    worths = np.array([[worth], [0.1]])
    gradient_of = lambda b_t, n: {'a': -2 * math.log(2) * worths * 4.0 ** -b_t['a']}
    seen = descend(gq.bitwidth_descent(PQT, price=PRICE, steps=20), gradient_of, {'a': jnp.ones((2, 1))}, 60)
    np.testing.assert_allclose(seen[-1]['a'], [[best], [3.0]], rtol=1e-5)


def test_finds_the_formats_of_sampled_weights():
    """L = h/2 |W_hat - W|^2, of mean h/2 n E[R^2] A^2 4^(1 - b_t) for each block: by real noise and gradients.

    Worths a fifth lower or a quarter higher ask for the same formats.
    """
    h = np.array([0.362, 1.025, 4.098, 92.7], np.float32)
    params = {'up': {'kernel': jax.random.uniform(jax.random.key(0), (128, 32), minval=-1.0).at[::32, 0].set(1.0)}}
    optimizer, b_i = gq.bitwidth_descent(PQT, price=4.0, steps=40), PQT.init(params)

    def loss(b_i, key):
        w_hat = PQT.apply(key, params, b_i)['up']['kernel']
        return jnp.sum(np.repeat(h, 32)[:, None] / 2 * (w_hat - params['up']['kernel']) ** 2)

    @jax.jit
    def step(carry, key):
        b_i, state = carry
        changes, state = optimizer.update(jax.grad(loss)(b_i, key), state, b_i)
        b_i = jax.tree.map(jnp.add, b_i, changes)
        return (b_i, state), PQT.bitwidths(b_i)['up/kernel'].ravel()

    _, seen = jax.lax.scan(step, (b_i, optimizer.init(b_i)), jax.random.split(jax.random.key(1), 400))
    worths = h / 2 * 1024 * VARIANCE * 4
    best = lambda w: min(STORED_BITS, key=lambda b: w * 4.0**-b + 4.0 / 4 * STORED_BITS[b])
    assert [best(w * factor) for w in worths for factor in (0.8, 1.25)] == [4, 4, 5, 5, 6, 6, 8, 8]
    np.testing.assert_allclose(seen[-1], [4, 5, 6, 8], rtol=1e-6)


def test_noise_is_averaged_over_steps_and_blocks():
    """Each block finds its matrix's format, though the noise of one step's gradient is eight times its signal."""
    generator, worths = np.random.default_rng(0), {'a': 0.15 * 4.0**4, 'b': 4.0**4}
    shape, noise_to_signal = (2, 4, 8), 8.0
    blocks = 2 * math.prod(shape)

    def gradient_of(b_t, n):
        of = lambda worth, b: (
            worth * 4.0**-b + noise_to_signal * worth * 4.0**-4 * 2.0 ** (4 - b) * generator.normal(size=shape)
        )
        return {name: -2 * math.log(2) * of(worth, b_t[name]) for name, worth in worths.items()}

    b_i = {name: jnp.ones(shape) for name in worths}
    seen = descend(gq.bitwidth_descent(PQT, price=0.35 * blocks, steps=40), gradient_of, b_i, 500)[-1]
    best = lambda worth: min(STORED_BITS, key=lambda b: worth * 4.0**-b + 0.35 * STORED_BITS[b])
    assert [best(worth) for worth in worths.values()] == [3, 5]
    assert np.mean(np.isclose(seen['a'], 3)) > 0.95 and np.mean(np.isclose(seen['b'], 5)) > 0.8


def test_blocks_that_noise_explains_have_the_mean_of_their_matrix():
    c = jnp.asarray([[[1.0, 3.0], [2.0, 2.0]], [[8.0, 16.0], [12.0, 12.0]]])  # variances of .5 and 8
    np.testing.assert_allclose(_shrunk(c, jnp.zeros_like(c)), c)
    half = _shrunk(c, jnp.full_like(c, 0.25))
    np.testing.assert_allclose(half[0], [[1.5, 2.5], [2, 2]])
    np.testing.assert_allclose(half[1], 12 + (1 - 0.25 / 8) * (c[1] - 12))
    np.testing.assert_allclose(_shrunk(c, jnp.full_like(c, 1.0))[0], np.full((2, 2), 2.0))


def test_what_is_not_held_falls_in_so_many_steps():
    """And starts when it is told to; it stays at b_target, where a gradient brings it back."""
    optimizer = gq.bitwidth_descent(PQT, price=PRICE, steps=10, start=5)
    gradient_of = lambda b_t, n: {'a': np.full((1, 1), 0.0 if n < 20 else -1.0)}
    seen = [float(b_t['a'][0, 0]) for b_t in descend(optimizer, gradient_of, {'a': jnp.ones((1, 1))}, 30)]
    np.testing.assert_allclose(seen[:15], [8.0] * 5 + [8 - 0.5 * n for n in range(1, 11)], rtol=1e-6)
    assert seen[15:20] == [3.0] * 5 and seen[29] > 4


@pytest.mark.parametrize('b', [2, 4])
def test_constant_bitwidths_stay(b):
    transform = gq.gaussian_weight_sampling(b_init=b, b_target=b)
    optimizer, b_i = gq.bitwidth_descent(transform, price=PRICE, steps=10), {'a': jnp.ones((2, 2))}
    changes, state = optimizer.update({'a': jnp.zeros((2, 2))}, optimizer.init(b_i), b_i)
    np.testing.assert_array_equal(changes['a'], np.zeros((2, 2)))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))


def test_works_as_an_optimizer_of_optax():
    """In a chain and in a partition, beside the optimizer of the weights."""
    bitwidths = optax.chain(optax.scale(1.0), gq.bitwidth_descent(PQT, price=PRICE, steps=10))
    optimizer = optax.partition({'w': optax.sgd(1.0), 'b': bitwidths}, {'w': 'w', 'b': {'x/kernel': 'b'}})
    values = {'w': jnp.ones(3), 'b': {'x/kernel': jnp.ones((1, 2))}}
    gradients = {'w': jnp.ones(3), 'b': {'x/kernel': jnp.zeros((1, 2))}}
    changes, _ = jax.jit(optimizer.update)(gradients, optimizer.init(values), values)
    np.testing.assert_array_equal(changes['w'], -np.ones(3))
    np.testing.assert_allclose(changes['b']['x/kernel'], np.full((1, 2), -0.1), rtol=1e-6)


def test_a_target_between_formats():
    """Nothing goes below it, nor to a format that it is above of."""
    transform = gq.gaussian_weight_sampling(b_init=6, b_target=3.5)
    gradient_of = lambda b_t, n: {'a': np.zeros((1, 1))}
    optimizer = gq.bitwidth_descent(transform, price=PRICE, steps=10)
    seen = descend(optimizer, gradient_of, {'a': jnp.ones((1, 1))}, 30, transform)
    assert seen[-1]['a'][0, 0] == pytest.approx(4)
    with pytest.raises(ValueError, match=r'b_target=2.5 must be at least 3'):
        gq.bitwidth_descent(gq.gaussian_weight_sampling(b_target=2.5), price=PRICE, steps=10)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(price=0.0), 'price=0.0 must be positive'),
        (dict(price=math.nan), 'price=nan must be positive'),
        (dict(steps=0), 'steps=0 must be positive'),
        (dict(steps=math.inf), 'steps=inf must be positive and finite'),
        (dict(start=-1), 'start=-1 must be at least 0'),
        (dict(averaging=1.0), 'averaging=1.0 must be at least 0 and less than 1'),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        gq.bitwidth_descent(PQT, **{'price': 0.1, 'steps': 10, **changes})
