"""The optimizer against AdamW written out in NumPy: what is clipped, what decays, and how fast each learns."""

import functools
import re

import jax
import numpy as np
import optax
import pytest
from parameter_trees import assert_identical_trees, flatten, nest
from small_experiments import VOCABULARY, make_experiment, random_batch, small_config

from experiments import methods
from experiments.training import optimizers, steps
from experiments.training.experiment import init_state

SETTINGS = dict(total_steps=100, optimizer__warmup_steps=10, optimizer__learning_rate=1e-3)  # falling to 6e-5
KERNEL, SCALE, BIAS = 'layers/mlp/up/kernel', 'layers/mlp_norm/scale', 'layers/mlp/up/bias'
SHAPES = {'embed/embedding': (7, 4), KERNEL: (2, 4, 6), SCALE: (2, 4), BIAS: (2, 6), 'final_norm/scale': (4,)}
# Axes over which Adam-mini takes its mean: a token's row, an output neuron's column, a layer's norm.
BLOCK_AXES = {'embed/embedding': 1, KERNEL: 1, SCALE: 1, BIAS: (), 'final_norm/scale': 0}


def random_tree(seed, size):
    generator = np.random.default_rng(seed)
    leaves = {path: generator.normal(0, size, shape).astype(np.float32) for path, shape in SHAPES.items()}
    bitwidths = {KERNEL: 1 + abs(generator.normal(0, size, (2, 1, 1))).astype(np.float32)}  # none goes below 0
    return {'params': nest(leaves), 'bitwidths': bitwidths}


def schedule(step, peak, final, warmup, total):
    """The learning rate of a step, counted from 0."""
    if step < warmup:
        return peak * step / warmup
    return final + (peak - final) * (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2


def adamw(value, gradients, learning_rates, decay, b1, b2, eps, mean=lambda squares: squares):
    """Loshchilov and Hutter (arXiv 1711.05101), algorithm 2, in float64; the `mean` of Adam-mini is over its blocks."""
    value, m, v = value.astype(np.float64), 0.0, 0.0
    for t, (gradient, learning_rate) in enumerate(zip(gradients, learning_rates), start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * mean(gradient**2)
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        value = value - learning_rate * (step + decay * value)
    return value


def run(config, gradients):
    return run_optimizer(make_optimizer(config), gradients)[0]


def make_optimizer(config):
    return optimizers.make_optimizer(config, methods.find(config.method).make_transform(config))


def run_optimizer(optimizer, gradients):
    values = random_tree(0, 1.0)
    state, update = jax.jit(optimizer.init)(values), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, values)
        values = jax.tree.map(np.add, values, updates)
    return values, state


@pytest.mark.parametrize('name', ['adamw', 'adam_mini'])
def test_weights_and_bitwidths(name):
    """Weights are clipped by their own norm; the bitwidths' enormous gradient neither counts nor is clipped.

    Whatever the weights have, the bitwidths have AdamW.
    """
    config = small_config(
        **SETTINGS,
        optimizer__name=name,
        optimizer__weight_decay=0.2,
        optimizer__clip_norm=0.5,
        optimizer__eps=1e-3,
        quantization__learning_rate=0.05,
        quantization__weight_decay=0.3,
    )
    gradients = [random_tree(seed, size) for seed, size in ((1, 3.0), (2, 0.01), (3, 1.0))]
    for gradient in gradients:
        gradient['bitwidths'][KERNEL] *= 1e4
    values, start = run(config, gradients), random_tree(0, 1.0)

    norms = [np.sqrt(sum((leaf.astype(float) ** 2).sum() for leaf in flatten(g['params']).values())) for g in gradients]
    assert norms[0] > 0.5 > norms[1]
    clipped = [jax.tree.map(lambda x, n=n: x * min(1, 0.5 / n), g['params']) for g, n in zip(gradients, norms)]
    moments = dict(b1=0.9, b2=0.95, eps=1e-3)
    rates = [schedule(step, 1e-3, 6e-5, 10, 100) for step in range(3)]
    for path, value in flatten(values['params']).items():
        decay = 0.2 if path in (KERNEL, 'embed/embedding') else 0.0
        axes = BLOCK_AXES[path] if name == 'adam_mini' else ()
        expected = adamw(
            flatten(start['params'])[path],
            [flatten(g)[path] for g in clipped],
            rates,
            decay,
            **moments,
            mean=functools.partial(np.mean, axis=axes, keepdims=True),
        )
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7, err_msg=path)
    expected = adamw(
        start['bitwidths'][KERNEL], [g['bitwidths'][KERNEL] for g in gradients], [0.05] * 3, 0.3, **moments
    )
    np.testing.assert_allclose(values['bitwidths'][KERNEL], expected, rtol=1e-6)


def test_defaults_are_optax_adamw():
    """Bit for bit, and the same state tree: a checkpoint says which optimizer wrote it by its leaves."""
    config = small_config(**SETTINGS)
    moments = dict(b1=config.optimizer.b1, b2=config.optimizer.b2, eps=config.optimizer.eps)
    schedule, quantization = optimizers.learning_rate_schedule(config), config.quantization
    weights = optax.adamw(schedule, weight_decay=0.1, mask=optimizers.has_weight_decay, **moments)
    bitwidths = optax.adamw(quantization.learning_rate, weight_decay=quantization.weight_decay, **moments)
    expected = optax.partition(
        {'params': optax.chain(optax.clip_by_global_norm(1.0), weights), 'bitwidths': bitwidths},
        lambda tree: {name: jax.tree.map(lambda _, name=name: name, subtree) for name, subtree in tree.items()},
    )
    gradients = [random_tree(seed, 1.0) for seed in (1, 2, 3)]
    got, expected = (run_optimizer(optimizer, gradients) for optimizer in (make_optimizer(config), expected))
    assert_identical_trees(*(jax.tree.map(np.asarray, tree) for tree in (got, expected)))


def test_bfloat16_moments_are_of_the_weights_only():
    optimizer = make_optimizer(small_config(optimizer__state_dtype='bfloat16'))
    state = flatten(jax.eval_shape(optimizer.init, random_tree(0, 1.0)))
    dtypes = {'params': set(), 'bitwidths': set()}
    for path, leaf in state.items():
        if match := re.search('/(mu|nu)/(params|bitwidths)/', path):
            dtypes[match[2]].add(str(leaf.dtype))
    assert dtypes == {'params': {'bfloat16'}, 'bitwidths': {'float32'}}


@pytest.mark.parametrize(
    ('name', 'state_dtype'),
    [
        ('adam_mini', 'bfloat16'),
        pytest.param('muon', 'bfloat16', marks=pytest.mark.slow),
        pytest.param('adam_mini', 'float32', marks=pytest.mark.slow),
        pytest.param('adamw', 'bfloat16', marks=pytest.mark.slow),
        pytest.param('adamw', 'float32', marks=pytest.mark.slow),
    ],
)
def test_learns(name, state_dtype):
    """One batch, many times over: in each way of optimizing, a model learns it by heart."""
    config = small_config('smoke,method=bf16', optimizer__name=name, optimizer__state_dtype=state_dtype)
    config.optimizer.learning_rate, config.total_steps = 1e-2, 30
    experiment = make_experiment(config)
    state, train_step, losses = init_state(experiment), steps.make_train_step(experiment), []
    for _ in range(config.total_steps):
        state, metrics = train_step(state, random_batch(experiment))
        losses.append(float(metrics['train/loss']))
    assert abs(losses[0] - np.log(VOCABULARY)) < 0.1
    assert losses[-1] < 0.1


def test_norms_and_biases_never_decay():
    """By name, scanned or not: a scanned norm's scale has two axes, like a matrix."""
    decays = flatten(optimizers.has_weight_decay(random_tree(0, 1.0)['params']))
    assert {path for path, decay in decays.items() if decay} == {'embed/embedding', KERNEL}


def test_schedule():
    config = small_config(total_steps=50, optimizer__warmup_steps=5, optimizer__final_learning_rate=1e-4)
    learning_rate = optimizers.learning_rate_schedule(config)
    expected = [schedule(step, 6e-4, 1e-4, 5, 50) for step in range(51)]
    np.testing.assert_allclose([learning_rate(step) for step in range(51)], expected, rtol=1e-5, atol=1e-10)


def test_wsd():
    """Warm-up, then the peak itself to the last step before the decay, which is 1 - sqrt."""
    changes = dict(total_steps=50, optimizer__warmup_steps=5, optimizer__final_learning_rate=1e-4)
    for decay_steps in (0, 10, 30):
        config = small_config(**changes, optimizer__schedule='wsd', optimizer__decay_steps=decay_steps)
        start = 50 - (decay_steps or 10)
        assert optimizers.decay_start(config) == start
        rates = np.array([optimizers.learning_rate_schedule(config)(step) for step in range(51)])
        warmup, decay = 6e-4 * np.arange(5) / 5, np.sqrt(np.arange(51 - start) / (50 - start))
        np.testing.assert_allclose(rates[:5], warmup, rtol=1e-6)
        assert (rates[5:start] == np.float32(6e-4)).all()
        np.testing.assert_allclose(rates[start:], 1e-4 + 5e-4 * (1 - decay), rtol=1e-5)


def test_without_learned_bitwidths():
    """The baseline's state is empty, and is optimised all the same."""
    optimizer, values = make_optimizer(small_config()), {**random_tree(0, 1.0), 'bitwidths': {}}
    updates, _ = optimizer.update(values, optimizer.init(values), values)
    assert updates['bitwidths'] == {}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(optimizer__warmup_steps=100),
            'warmup_steps=100 must be .* less than config.total_steps=100',
        ),
        (dict(optimizer__name='adam'), "config.optimizer.name='adam': allowed are 'adamw', 'adam_mini', 'muon'"),
        (
            dict(optimizer__state_dtype='float16'),
            "config.optimizer.state_dtype='float16': allowed are 'float32', 'bfloat16'",
        ),
        (dict(optimizer__warmup_steps=-1), 'config.optimizer.warmup_steps=-1 must be at least 0'),
        (dict(optimizer__learning_rate=0.0), 'config.optimizer.learning_rate=0.0 must be positive'),
        (dict(optimizer__final_learning_rate=1.0), 'final_learning_rate=1.0 between 0 and that'),
        (dict(optimizer__final_learning_rate=-1.0), 'final_learning_rate=-1.0 between 0 and that'),
        (dict(optimizer__schedule='linear'), "config.optimizer.schedule='linear': allowed are 'cosine', 'wsd'"),
        (dict(optimizer__decay_steps=9), "config.optimizer.decay_steps=9 would do nothing with schedule='cosine'"),
        (
            dict(optimizer__schedule='wsd', optimizer__decay_steps=91),
            'config.optimizer.decay_steps=91: the decay takes 91 steps, .* warmup_steps=10 must be at most .*=100',
        ),
        (dict(optimizer__schedule='wsd', optimizer__decay_steps=-1), 'decay_steps=-1 must be at least 1'),
        (dict(branch_from='runs/a'), "config.branch_from='runs/a' takes .*schedule='wsd', not 'cosine'"),
        (
            dict(branch_from='runs/a', optimizer__schedule='wsd', quantization__start=0.5),
            "config.branch_from='runs/a': when the bitwidths of config.method='gaussws' fall is a share of total_steps",
        ),
        (dict(optimizer__learning_rate=float('nan')), 'config.optimizer.learning_rate=nan must be positive'),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(small_config(**{**SETTINGS, **changes}))
