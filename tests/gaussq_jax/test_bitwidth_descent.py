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


def descend(optimizer, gradient_of, b_i, updates, transform=PQT):
    """b_t after each of so many updates; `gradient_of(b_t, n)` is that by b_t."""
    state, update, seen = optimizer.init(b_i), jax.jit(optimizer.update), []
    for n in range(updates):
        gradients = jax.tree.map(lambda g: SPAN * jnp.asarray(g, jnp.float32), gradient_of(transform.bitwidths(b_i), n))
        changes, state = update(gradients, state, b_i)
        b_i = jax.tree.map(jnp.add, b_i, changes)
        seen.append(jax.tree.map(np.asarray, transform.bitwidths(b_i)))
    return seen


@pytest.mark.parametrize('best', [3.4, 4.5, 5.0, 6.75, 7.3])
def test_goes_to_where_a_bit_costs_what_it_saves(best):
    """-dL/db_t = c 4^-b_t is slope price / blocks at the best b_t; of the other block, beyond b_target."""
    blocks, slope = 2, 2 if best < 4 or best > 7 else 1
    c = slope * PRICE / blocks * 4**best
    worth = np.array([[c], [c / 4**6]])
    gradient_of = lambda b_t, n: {'a': -worth * 4.0 ** -b_t['a']}
    seen = descend(gq.bitwidth_descent(PQT, price=PRICE, steps=20), gradient_of, {'a': jnp.ones((2, 1))}, 60)
    np.testing.assert_allclose(seen[-1]['a'], [[best], [3.0]], rtol=1e-5)


def test_finds_the_optimum_of_sampled_weights():
    """L = h/2 |W_hat - W|^2, of mean h/2 n E[R^2] A^2 4^(1 - b_t) for each block: by real noise and gradients."""
    h = np.repeat(np.array([2.0, 12.0, 2.0, 60.0], np.float32), 32)[:, None] * np.ones((1, 32), np.float32)
    params = {'up': {'kernel': jax.random.uniform(jax.random.key(0), (128, 32), minval=-1.0).at[::32, 0].set(1.0)}}
    optimizer, b_i = gq.bitwidth_descent(PQT, price=4.0, steps=40), PQT.init(params)

    def loss(b_i, key):
        w_hat = PQT.apply(key, params, b_i)['up']['kernel']
        return jnp.sum(h / 2 * (w_hat - params['up']['kernel']) ** 2)

    @jax.jit
    def step(carry, key):
        b_i, state = carry
        changes, state = optimizer.update(jax.grad(loss)(b_i, key), state, b_i)
        b_i = jax.tree.map(jnp.add, b_i, changes)
        return (b_i, state), PQT.bitwidths(b_i)['up/kernel'].ravel()

    _, seen = jax.lax.scan(step, (b_i, optimizer.init(b_i)), jax.random.split(jax.random.key(1), 600))
    c = 2 * math.log(2) * h[::32, 0] / 2 * 1024 * VARIANCE * 4 * 4 / 4.0  # blocks / price
    slopes = [1, 1, 1, 2]  # of stored bits: the last block is at more than 7 bits
    np.testing.assert_allclose(np.mean(seen[300:], axis=0), np.log2(c / slopes) / 2, atol=0.02)


def test_noise_is_averaged_over_steps_and_blocks():
    """Blocks of one worth stay together, those of two matrices apart, though one step's gradient is mostly noise."""
    generator, worths = np.random.default_rng(0), {'a': 4**3.5 * 2.0, 'b': 4.0**5}
    shape = (2, 4, 8)
    blocks = 2 * math.prod(shape)

    def gradient_of(b_t, n):
        noise = lambda worth: 8 * math.sqrt(worth) * generator.normal(size=shape)
        return {
            name: -PRICE / blocks * (worth * 4.0 ** -b_t[name] + noise(worth) * 2.0 ** -b_t[name])
            for name, worth in worths.items()
        }

    b_i = {name: jnp.ones(shape) for name in worths}
    seen = descend(gq.bitwidth_descent(PQT, price=PRICE, steps=40), gradient_of, b_i, 500)[-1]
    assert seen['a'].mean() == pytest.approx(3.5, abs=0.15) and seen['b'].mean() == pytest.approx(5.0, abs=0.15)
    one_step = 8 / math.sqrt(2 * math.log(2)) / 2 / math.log(2)  # of b_t, by one step's gradient alone
    assert seen['b'].std() < 0.05 * one_step


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


def test_constant_bitwidths_stay():
    transform = gq.gaussian_weight_sampling(b_init=4, b_target=4)
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
