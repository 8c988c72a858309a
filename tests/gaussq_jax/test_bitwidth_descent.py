"""Descent of bitwidths against closed forms: where the loss would rise by as much as fewer bits save."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gaussq_jax as gq
from gaussq_jax.bitwidth_descent import _shrunk, weight_and_share

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


def test_blocks_are_drawn_together_as_far_as_noise_explains_their_differences():
    """The random-effects estimate of DerSimonian and Laird, matrix by matrix, in float64."""
    generator = np.random.default_rng(0)
    worth = generator.normal(5, 1, (3, 4, 5))
    noise = np.stack([np.full((4, 5), 1e-4), generator.uniform(0.1, 10, (4, 5)), np.full((4, 5), 100.0)])
    shrunk = np.asarray(_shrunk(jnp.asarray(worth), jnp.asarray(noise)))
    for w, v, got in zip(worth, noise, shrunk):
        weights = 1 / np.maximum(v, 1e-6 * np.max(w**2))
        mean = np.sum(weights * w) / np.sum(weights)
        q = np.sum(weights * (w - mean) ** 2)
        between = max(q - (w.size - 1), 0) / (np.sum(weights) - np.sum(weights**2) / np.sum(weights))
        np.testing.assert_allclose(got, mean + between / (between + 1 / weights) * (w - mean), rtol=1e-4)
    np.testing.assert_allclose(shrunk[0], worth[0], rtol=1e-3)
    np.testing.assert_allclose(shrunk[2], np.mean(worth[2]), rtol=1e-5)
    for alone in (0.0, 1e-15, 1.0, 1e15):
        one = jnp.full((1, 1), alone)
        assert _shrunk(one, one) == one and np.all(np.isfinite(_shrunk(jnp.full((2, 2), alone), jnp.zeros((2, 2)))))


def test_a_block_that_asks_for_much_leaves_the_others_of_its_matrix_alone():
    """Its estimate is the noisiest, by 4^6, and says nothing of the others."""
    generator, noise_to_signal = np.random.default_rng(0), 4.0
    worth = np.full((8, 8), 40.0)
    worth[3, 3] = 0.6 * 4.0**9
    at_best = np.where(worth > 40, 4.0**-9, 4.0**-3)

    def gradient_of(b_t, n):
        b = b_t['a']
        noise = noise_to_signal * worth * at_best * np.sqrt(4.0**-b / at_best) * generator.normal(size=worth.shape)
        return {'a': -2 * math.log(2) * (worth * 4.0**-b + noise)}

    optimizer = gq.bitwidth_descent(PQT, price=0.35 * worth.size, steps=135, start=500)
    ended = descend(optimizer, gradient_of, {'a': jnp.ones((8, 8))}, 800)[-1]['a']
    assert ended[3, 3] > 5 and np.mean(ended[worth == 40]) < 3.4  # 4 if all were drawn to their mean alike


def test_what_is_not_held_falls_in_so_many_steps():
    """And starts when it is told to; it stays at b_target, where a gradient brings it back."""
    optimizer = gq.bitwidth_descent(PQT, price=PRICE, steps=10, start=5)
    gradient_of = lambda b_t, n: {'a': np.full((1, 1), 0.0 if n < 20 else -1.0)}
    seen = [float(b_t['a'][0, 0]) for b_t in descend(optimizer, gradient_of, {'a': jnp.ones((1, 1))}, 30)]
    np.testing.assert_allclose(seen[:15], [8.0] * 5 + [8 - 0.5 * n for n in range(1, 11)], rtol=1e-6)
    assert seen[15:20] == [3.0] * 5 and seen[29] > 4


@pytest.mark.parametrize('steps', [7, 10, 47, 135])
@pytest.mark.parametrize(('fmt', 'most'), [(None, 10), ('e3m3', 5)])
def test_a_block_rests_at_the_most_that_its_format_holds(fmt, most, steps):
    """And comes down from there as soon as it is told to: b_i doesn't run away meanwhile."""
    transform = gq.gaussian_weight_sampling(b_init=5, b_target=3, fmt=fmt)
    b_i, gradient_of = {'a': jnp.ones((1, 1))}, lambda b_t, n: {'a': -1e9 * 4.0 ** -b_t['a'] * (n < 400)}
    seen = descend(gq.bitwidth_descent(transform, price=PRICE, steps=steps), gradient_of, b_i, 600, transform)
    rested = [float(b_t['a'][0, 0]) for b_t in seen[350:400]]
    np.testing.assert_allclose(rested, most, atol=2**-11)
    assert seen[-1]['a'][0, 0] < most


def test_what_is_not_finite_is_seen():
    """NaN in one gradient is NaN in the weights, where training notices it; and not the fewest bits."""
    gradient_of = lambda b_t, n: {'a': np.array([[np.nan if n == 3 else -1.0, -1.0]])}
    seen = descend(gq.bitwidth_descent(PQT, price=PRICE, steps=10), gradient_of, {'a': jnp.ones((1, 2))}, 5)
    assert np.all(np.isfinite(seen[2]['a'])) and np.isnan(seen[3]['a'][0, 0])


def test_variances_of_averages_from_the_first_step_on():
    """Of means of 1, 2, 10 and 200 draws with the weights of an average that began with 0, in closed form."""
    for n in (1, 2, 10, 200):
        weights = 0.01 * 0.99 ** np.arange(n)
        total, share = weight_and_share(jnp.int32(n), 0.99)
        np.testing.assert_allclose(total, weights.sum(), rtol=1e-4)
        np.testing.assert_allclose(share, np.sum(weights**2) / weights.sum() ** 2, rtol=1e-4)


@pytest.mark.parametrize('b', [2, 4, 12])
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
    update, state = jax.jit(optimizer.update), optimizer.init(values)
    for _ in range(2):  # of the first step alone, the noise isn't known, and bitwidths stay
        changes, state = update(gradients, state, values)
    np.testing.assert_array_equal(changes['w'], -np.ones(3))
    np.testing.assert_allclose(changes['b']['x/kernel'], np.full((1, 2), -0.1), rtol=1e-6)


def test_a_target_between_formats():
    """A block falls to the next whole bitwidth above it."""
    transform = gq.gaussian_weight_sampling(b_init=6, b_target=3.5)
    gradient_of = lambda b_t, n: {'a': np.zeros((1, 1))}
    optimizer = gq.bitwidth_descent(transform, price=PRICE, steps=10)
    seen = descend(optimizer, gradient_of, {'a': jnp.ones((1, 1))}, 30, transform)
    assert seen[-1]['a'][0, 0] == pytest.approx(4)
    for b_init, b_target in ((6, 2.5), (12, 11)):
        with pytest.raises(ValueError, match=rf'b_target={b_target} must be of 3 to 10'):
            gq.bitwidth_descent(gq.gaussian_weight_sampling(b_init, b_target), price=PRICE, steps=10)
    with pytest.raises(ValueError, match='learns no bitwidths'):
        gq.bitwidth_descent(gq.cast_params(), price=PRICE, steps=10)


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
