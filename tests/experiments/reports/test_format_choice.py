"""Formats chosen by error, against every choice that there is, and the weights of that error."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_experiments import make_experiment, random_state, small_config

import gaussq_jax as gq
from experiments.data import loading, token_data
from experiments.reports import format_choice
from experiments.training.steps import token_losses

SIDE = 4
PARAMS = {
    'up': {'kernel': jax.random.normal(jax.random.key(0), (8, 4)) * jnp.repeat(jnp.array([1.0, 30.0]), SIDE)[:, None]},
    'down': {'kernel': jax.random.normal(jax.random.key(1), (4, 4))},
}
UNIFORM = gq.uniform_layout(PARAMS, 'e2m1', block_size=SIDE)


def lost_by(formats, weights=None):
    """Sum of squared errors if the three blocks have these formats, in order of paths."""
    leaves, total, place = gq.leaves_by_path(PARAMS), 0.0, iter(formats)
    for path in UNIFORM:
        leaf = leaves[path]
        for start in range(0, leaf.shape[0], SIDE):
            block = leaf[start : start + SIDE]
            quantizer = gq.Quantizer(next(place), block_size=(SIDE, SIDE), scale='mx')
            weight = 1.0 if weights is None else gq.leaves_by_path(weights)[path][start : start + SIDE]
            total += float(jnp.sum(weight * jnp.square(gq.fake_quantize(block, quantizer) - block)))
    return total


def chosen(budget, by_matrix, weights=None):
    """The layout, and the formats of the three blocks."""
    lost = format_choice.errors(PARAMS, UNIFORM, SIDE, weights=weights)
    layout = format_choice.within_budget(PARAMS, UNIFORM, lost, SIDE, budget, by_matrix=by_matrix)
    return layout, [of_leaf.formats[i] for of_leaf in layout.values() for i in of_leaf.indices.ravel()]


@pytest.mark.parametrize('weights', [None, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1 / leaf.size), PARAMS)])
def test_no_other_choice_of_that_size_loses_less(weights):
    """What a price decides is the best of all choices of at most as many bits."""
    assert set(UNIFORM) == {'down/kernel', 'up/kernel'}
    for budget in (5.0, 6.0, 7.5, 9.0):
        layout, formats = chosen(budget, False, weights)
        assert gq.layout_size(PARAMS, layout).mean_stored_bits <= budget
        bits = sum(fmt.bits for fmt in formats)
        others = itertools.product(format_choice.FORMATS, repeat=3)
        least = min(lost_by(other, weights) for other in others if sum(fmt.bits for fmt in other) <= bits)
        assert lost_by(formats, weights) == pytest.approx(least, rel=1e-5)


def test_a_matrix_may_have_one_format():
    _, formats = chosen(7.0, True)
    assert formats[1] == formats[2] != formats[0]


def test_a_budget_that_nothing_keeps_is_refused():
    with pytest.raises(ValueError, match='a budget of 4 bits a weight is below what e2m1 takes'):
        chosen(4.0, False)


def test_squared_gradients():
    """The mean over batches of the square, by jax.grad of the loss of one batch after the other."""
    experiment = make_experiment(small_config('method=bf16,smoke'))
    state, config = random_state(experiment), experiment.config
    tokens = np.random.default_rng(0).integers(0, 61, 3 * config.batch_size * config.sequence_length + 1)
    data = token_data.in_memory(tokens.astype(np.uint16))
    got = format_choice.squared_gradients(experiment, state, loading.one_source(data, data))
    weights = experiment.transform.apply(None, state.params, {})
    squares = []
    for n in range(3):
        rows = [(n * config.batch_size + i) * config.sequence_length for i in range(config.batch_size)]
        batch = np.stack([tokens[row : row + config.sequence_length + 1] for row in rows])
        loss = lambda weights, batch=batch: jnp.mean(
            token_losses(experiment.model, weights, {'tokens': jnp.asarray(batch)})
        )
        squares.append(jax.tree.map(lambda g: np.square(np.asarray(g, np.float64)), jax.grad(loss)(weights)))
    expected = jax.tree.map(lambda *of_batches: np.mean(of_batches, axis=0), *squares)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-9), got, expected)
