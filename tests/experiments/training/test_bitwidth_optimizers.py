"""Which optimizer bitwidths have, from when on, what it refuses, and the signal that its averages tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_experiments import make_experiment, random_batch, random_state, small_config

import gaussq_jax as gq
from configs import tiny
from experiments.training import bitwidth_metrics, bitwidth_optimizers, steps
from experiments.training.experiment import init_state

DESCENT = dict(optimizer='descent', price=0.05, fall=0.2, start=0.5, learning_rate=0.0, weight_decay=0.0)


def config_of(**quantization):
    changes = {f'quantization__{name}': value for name, value in quantization.items()}
    return small_config(**changes, total_steps=100, optimizer__warmup_steps=10)


def test_descent_is_the_librarys():
    """With shares of the steps as numbers of them."""
    experiment = make_experiment(config_of(**DESCENT, b_init=8.0, b_target=3.0))
    state = experiment.init().transform_state
    expected = gq.bitwidth_descent(experiment.transform, price=0.05, steps=20, start=50)
    got = bitwidth_optimizers.make(experiment.config, experiment.transform)
    gradients = jax.tree.map(lambda b: -jnp.arange(b.size, dtype=jnp.float32).reshape(b.shape) / 1e4, state)
    states = [optimizer.init(state) for optimizer in (got, expected)]
    for _ in range(52):
        (one, states[0]), (other, states[1]) = (
            optimizer.update(gradients, of, state) for optimizer, of in zip((got, expected), states)
        )
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(one))


def test_adamw_waits_too():
    """Until the step it is told; its averages begin with the first step."""
    experiment = make_experiment(config_of(start=0.03))
    optimizer, b_i = bitwidth_optimizers.make(experiment.config, experiment.transform), {'a': jnp.ones((1, 1))}
    state, moved = optimizer.init(b_i), []
    for _ in range(5):
        changes, state = optimizer.update({'a': jnp.ones((1, 1))}, state, b_i)
        moved.append(bool(changes['a'][0, 0] != 0))
    assert moved == [False, False, False, True, True]


@pytest.mark.parametrize('settings', [dict(learning_rate=0.9), DESCENT | dict(b_target=3.0, start=0.0, fall=0.03)])
def test_no_optimizer_takes_b_i_below_zero(settings):
    config = config_of(**settings)
    optimizer = bitwidth_optimizers.make(config, gq.gaussian_weight_sampling(6, config.quantization.b_target))
    b_i = {'a': jnp.array([[0.2, 5.0]])}
    state = optimizer.init(b_i)
    for _ in range(2):
        changes, state = optimizer.update({'a': jnp.zeros((1, 2)) + 1e-6}, state, b_i)
        b_i = jax.tree.map(jnp.add, b_i, changes)
    assert 0 <= b_i['a'][0, 0] < 1e-6 and 1 < b_i['a'][0, 1] < 5


def test_what_learns_nothing_has_adamw_whatever_the_defaults():
    """Its state has been that of AdamW since version 0.1.0, by which checkpoints know it."""
    of = lambda config: bitwidth_optimizers.make(config, gq.cast_params())
    config = small_config('method=bf16,smoke')
    late = small_config('method=bf16,smoke', quantization__start=0.5, quantization__optimizer='descent')
    assert jax.tree.structure(of(config).init({})) == jax.tree.structure(of(late).init({}))


@pytest.mark.parametrize('settings', [DESCENT, dict(penalty=3.0)])
def test_signal_to_noise(settings):
    """Against the mean and spread of gradients that are drawn anew, at bitwidths that don't move.

    The weights stay, the text and the noise change: what one step's gradient is, and how far it is from their mean.
    """
    experiment = make_experiment(config_of(**settings))
    state, optimizer = random_state(experiment), bitwidth_optimizers.make(experiment.config, experiment.transform)
    generator = np.random.default_rng(0)
    mean, spread = 3e-3, 1e-2
    pull = bitwidth_metrics.penalty_gradient(experiment, state.transform_state)
    bitwidths = experiment.transform.bitwidths(state.transform_state)
    of_bitwidths, told = optimizer.init(state.transform_state), []
    update = jax.jit(optimizer.update)
    for n in range(600):
        draw = lambda b, p: jnp.float32(-mean + spread * generator.normal(size=b.shape)) * 2 + p
        gradients = jax.tree.map(draw, state.transform_state, pull)
        _, of_bitwidths = update(gradients, of_bitwidths, state.transform_state)
        if n >= 200 and n % 10 == 0:
            opt_state = state.opt_state._replace(inner_states={'bitwidths': of_bitwidths})
            told.append(float(bitwidth_optimizers.signal_to_noise(opt_state, bitwidths, pull, experiment.config)))
    assert np.sqrt(np.mean(np.square(told))) == pytest.approx(mean / spread, rel=0.15)


def test_shares_that_make_one():
    """Whatever 1 - .8 is in binary."""
    for start, fall in ((0.8, 0.2), (0.9, 0.1)):
        bitwidth_optimizers.check(config_of(**DESCENT | dict(start=start, fall=fall)).quantization)


def test_bitwidths_that_are_nan_are_reported_as_such():
    experiment = make_experiment(config_of())
    state = random_state(experiment)
    state = state._replace(transform_state=jax.tree.map(lambda b: jnp.full_like(b, jnp.nan), state.transform_state))
    metrics, histograms = bitwidth_metrics.make_report(experiment)(state)
    assert np.isnan(metrics['bits/mean']) and np.isnan(metrics['bits/stored'])
    assert not any(np.any(counts) for _, counts in histograms.values())


def test_the_report_of_a_state():
    """Percentiles, the formats' bits, and means by layer and matrix, of the bitwidths that the state has."""
    experiment = make_experiment(config_of())
    state = init_state(experiment)
    state, _ = steps.make_train_step(experiment)(state, random_batch(experiment))
    state = state._replace(transform_state=random_state(experiment).transform_state)
    metrics, histograms = bitwidth_metrics.make_report(experiment)(state)
    of_leaves = {path: 4 + 2 * np.asarray(b_i) for path, b_i in state.transform_state.items()}
    blocks = np.concatenate([leaf.ravel() for leaf in of_leaves.values()])
    expected = {'mean': np.mean, 'min': np.min, 'max': np.max}
    expected |= {f'p{q}': lambda blocks, q=q: np.percentile(blocks, q) for q in (10, 90)}
    expected |= {'stored': lambda blocks: np.mean([gq.format_for_bitwidth(float(b)).bits for b in blocks])}
    for name, of_blocks in expected.items():
        assert metrics[f'bits/{name}'] == pytest.approx(of_blocks(blocks), rel=1e-6), name
    np.testing.assert_allclose(
        metrics['bits/matrix/up'], of_leaves['layers/mlp/up/kernel'].mean(axis=(1, 2)), rtol=1e-6
    )
    assert set(histograms) == {
        f'bits/histogram/{name}' for name in ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
    }
    edges, counts = histograms['bits/histogram/gate']
    np.testing.assert_array_equal(counts, np.histogram(of_leaves['layers/mlp/gate/kernel'], edges)[0])


def test_nothing_is_reported_where_nothing_is_learned():
    experiment = make_experiment(small_config('method=bf16,smoke'))
    assert bitwidth_metrics.make_report(experiment)(experiment.init()) == ({}, {})


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(optimizer='sgd'), "quantization.optimizer='sgd' must be 'descent' or 'adamw'"),
        (dict(price=0.1), "quantization.price=0.1 would do nothing with optimizer='adamw', which uses learning_rate"),
        (dict(fall=0.1), 'quantization.fall=0.1 would do nothing'),
        (dict(start=1.0), 'quantization.start=1.0 must be at least 0 and less than 1'),
        (dict(learning_rate=0.0), 'quantization.learning_rate=0.0 would leave the bitwidths at b_init'),
        (dict(learning_rate=1.0), 'quantization.learning_rate=1.0 must be less than 1'),
        (
            dict(learning_rate=0.5, weight_decay=2.0),
            'quantization.weight_decay=2.0 must be less than 2, 1',
        ),
        (dict(penalty=-1.0), 'quantization.penalty=-1.0 must not be negative'),
        (dict(penalty=float('nan')), 'quantization.penalty=nan must not be negative, and finite'),
        ({**DESCENT, 'price': 0.0}, 'quantization.price=0.0 must be positive'),
        ({**DESCENT, 'penalty': 0.1}, "quantization.penalty=0.1 would do nothing with optimizer='descent'"),
        ({**DESCENT, 'fall': 0.0}, 'quantization.fall=0.0 must be positive, and at most 1 - start = 0.5'),
        ({**DESCENT, 'b_init': 12.0, 'b_target': 11.0}, 'quantization.b_target=11.0 must be of 3 to 10'),
        ({**DESCENT, 'fall': 0.6}, 'quantization.fall=0.6 must be positive, and at most 1 - start = 0.5'),
        ({**DESCENT, 'b_target': 2.5}, 'quantization.b_target=2.5 must be of 3 to 10'),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=f'^config.{message}'):
        make_experiment(config_of(**settings))


@pytest.mark.parametrize('bits', [2, 12])
@pytest.mark.parametrize('way', ['price', 'decay'])
def test_constant_bitwidths_go_with_either_way(way, bits):
    config = tiny.get_config(f'bitwidths={way},b_init={bits},b_target={bits},smoke')
    experiment = make_experiment(config)
    state, _ = steps.make_train_step(experiment)(init_state(experiment), random_batch(experiment))
    metrics, _ = bitwidth_metrics.make_report(experiment)(state)
    assert metrics['bits/max'] == metrics['bits/min'] == bits
    if way == 'price':
        assert all(bool(jnp.all(b_i == 1)) for b_i in state.transform_state.values())
