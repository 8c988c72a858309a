"""The training step: the same on every mesh and in every number of parts, and gradients that are the loss's own."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from small_experiments import (
    VOCABULARY,
    keep_gradients,
    make_experiment,
    random_batch,
    random_state,
    random_tokens,
    small_config,
)

from configs import gpt2
from experiments.training import evaluation, steps
from experiments.training.experiment import init_state, with_fixed_weights

KEY = jax.random.key(5)
MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2)]
# Two kinds of layer, which lie on the mesh in the two ways there are: few compile faster. No pull on the bitwidths.
TWO_PARTS = dict(quantization__parts='layers/(attention/out|mlp/up)/kernel', quantization__weight_decay=0.0)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def assert_trees_close(got, expected, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), host(got), host(expected))


def run_steps(experiment, count=3):
    """Initial weights as the model sees them; then the losses of some steps, and the state after them."""
    state = random_state(experiment)
    weights = jax.jit(experiment.transform.apply)(KEY, state.params, state.transform_state)
    train_step, losses = steps.make_train_step(experiment), []
    for seed in range(count):
        state, metrics = train_step(state, random_batch(experiment, seed))
        losses.append(float(metrics['train/loss']))
    return weights, losses, state


@functools.cache
def on_one_device():
    return run_steps(make_experiment(small_config(**TWO_PARTS)))


@pytest.mark.parametrize('sizes', [MESHES[2], *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in MESHES[:2])])
def test_a_mesh_changes_no_bit_of_the_weights_and_no_loss(sizes):
    experiment = make_experiment(small_config(**TWO_PARTS), sizes)
    weights, losses, state = run_steps(experiment)
    expected_weights, expected_losses, expected_state = on_one_device()

    up = state.params['layers']['mlp']['up']['kernel']
    assert len(up.sharding.device_set) == 8 and up.is_fully_replicated == (sizes[1:] == (1, 1))
    assert_identical_trees(host(weights), host(expected_weights))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    # Adam divides by the size of the gradient, and so passes on the rounding of the smallest ones.
    assert_trees_close(state.params, expected_state.params, atol=1e-4)
    assert_trees_close(state.transform_state, expected_state.transform_state, atol=1e-4)


def test_every_bitwidth_learns_without_any_pull():
    """The gradient of b_i arrives: with neither decay nor penalty, every block's bitwidth has moved."""
    experiment = make_experiment(small_config(**TWO_PARTS))
    before, (_, _, after) = random_state(experiment).transform_state, on_one_device()
    assert len(before) == 2
    for path, b_i in before.items():
        assert (np.asarray(after.transform_state[path]) != np.asarray(b_i)).all()


def test_initial_state_is_created_sharded_with_the_same_bits():
    single, sharded = (init_state(make_experiment(small_config(), sizes)) for sizes in [(1, 1, 1), (2, 2, 2)])
    assert_identical_trees(host(sharded), host(single))
    for params in (sharded.params, sharded.opt_state.inner_states['params'].inner_state[1][0].mu['params']):
        up, down = (params['layers']['mlp'][name]['kernel'] for name in ('up', 'down'))
        assert up.sharding.shard_shape(up.shape) == (2, 40, 72) and down.sharding.shard_shape(down.shape) == (2, 72, 40)
        assert params['final_norm']['scale'].is_fully_replicated
    assert int(single.step) == 0
    assert all((np.asarray(b_i) == 1).all() for b_i in single.transform_state.values())


def with_fixed_noise(experiment, calls=None):
    """The experiment, its noise that of KEY whatever the step; its calls of the transform are counted."""

    def apply(key, params, state):
        if calls is not None:
            calls.append(key)
        return experiment.transform.apply(None if key is None else KEY, params, state)

    return dataclasses.replace(experiment, transform=experiment.transform._replace(apply=apply))


@functools.cache
def first_gradients(**changes):
    """Loss and gradients of one step from the random state, as the optimizer gets them."""
    config = small_config(**TWO_PARTS, **changes)
    experiment = with_fixed_noise(make_experiment(config, optimizer=keep_gradients()))
    state, metrics = steps.make_train_step(experiment)(random_state(experiment), random_batch(experiment))
    return float(metrics['train/loss']), host(state.opt_state), metrics


def reference_loss(experiment, key, params, bitwidths, tokens):
    """Mean negative log-likelihood in one piece."""
    weights = experiment.transform.apply(key, params, bitwidths)
    log_probabilities = jax.nn.log_softmax(experiment.model.apply({'params': weights}, tokens[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1))


@functools.cache
def reference_gradients():
    """The same by differentiating the loss as a whole; and the loss with other noise."""
    experiment = make_experiment(small_config(**TWO_PARTS))
    state, tokens = random_state(experiment), random_tokens(experiment.config)
    loss = jax.jit(jax.value_and_grad(functools.partial(reference_loss, experiment), (1, 2)))
    value, (d_params, d_bitwidths) = loss(KEY, state.params, state.transform_state, tokens)
    other, _ = loss(jax.random.key(6), state.params, state.transform_state, tokens)
    return float(value), host({'params': d_params, 'bitwidths': d_bitwidths}), float(other)


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_gradients_are_those_of_the_loss():
    """dW is the gradient with respect to W_hat, and pulling it back gives db: what autodiff gives for the whole."""
    loss, gradients, metrics = first_gradients()
    expected_loss, expected, _ = reference_gradients()
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = jax.tree.map(relative_error, gradients, expected)
    assert max(jax.tree.leaves(errors)) < 1e-3, errors
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradients['params'])))
    assert float(metrics['train/gradient_norm']) == pytest.approx(norm, rel=1e-6)


def test_microbatches_see_the_same_noise_and_add_up():
    """In four parts: the same loss within float32 rounding, the same gradients within that of a part to bfloat16."""
    loss, gradients, _ = first_gradients(microbatches=4)
    expected_loss, expected, _ = first_gradients()
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert abs(loss - reference_gradients()[2]) > 1e-4 * loss  # other noise would show
    errors = jax.tree.map(relative_error, gradients, expected)
    assert max(jax.tree.leaves(errors)) < 2**-7, errors


def test_weights_are_sampled_once_a_step():
    config = small_config(**TWO_PARTS, microbatches=4)
    calls = []
    experiment = with_fixed_noise(make_experiment(config), calls)
    steps.make_train_step(experiment).trace(experiment.abstract_state, random_batch(experiment))
    assert len(calls) == 1


def test_penalty_pulls_every_bitwidth_alike():
    _, gradients, metrics = first_gradients(quantization__penalty=3.0)
    _, expected, expected_metrics = first_gradients()
    assert_identical_trees(gradients['params'], expected['params'])
    blocks = sum(b_i.size for b_i in expected['bitwidths'].values())
    for path, gradient in gradients['bitwidths'].items():
        pull = 3.0 * (6 - 4) / blocks  # d mean(b_t) / d b_i = (b_init - b_target) / number of blocks
        np.testing.assert_allclose(gradient, expected['bitwidths'][path] + pull, rtol=1e-5, atol=1e-7)
    assert metrics['train/loss'] == expected_metrics['train/loss']  # the loss that is shown is the text's alone


def test_metrics_of_a_step():
    metrics = first_gradients()[2]
    assert set(metrics) == {'train/loss', 'train/gradient_norm', 'learning_rate', 'bits/gradient_norm'}


def test_noise_is_a_function_of_seed_and_step():
    """Evaluated with noise, a state gives the loss of the step that it takes next; another step or seed doesn't."""
    experiment = make_experiment(small_config(**TWO_PARTS))
    other_seed = make_experiment(small_config(**TWO_PARTS, seed=1))
    batch = random_batch(experiment)
    evaluated = {**batch, 'mask': np.ones(batch['tokens'][:, 1:].shape, np.float32)}
    evaluate = evaluation.make_evaluation(experiment)
    first, again, next_step = (
        evaluate(random_state(experiment, step), [evaluated], noise=True)['loss'] for step in (7, 7, 8)
    )
    seed_1 = evaluation.make_evaluation(other_seed)(random_state(other_seed), [evaluated], noise=True)['loss']
    assert first == again
    assert min(abs(first - next_step), abs(first - seed_1), abs(next_step - seed_1)) > 1e-5
    train_step = steps.make_train_step(experiment)
    for step, loss in ((7, first), (8, next_step)):
        _, metrics = train_step(random_state(experiment, step), batch)
        assert float(metrics['train/loss']) == pytest.approx(loss, rel=1e-6)


def test_only_methods_with_noise_draw_it():
    multiplier = str(0xD2511F53)  # of Philox

    def program(method):
        experiment = make_experiment(small_config(f'smoke,method={method}'))
        step = steps.make_train_step(experiment).trace(experiment.abstract_state, random_batch(experiment))
        return str(step.jaxpr)

    assert multiplier in program('gaussws') and multiplier in program('diffq')
    for method in ('bf16', 'qat', 'fqt'):
        assert multiplier not in program(method) and 'random_bits' not in program(method)


def residual_bytes(experiment):
    """What the backward pass of the whole loss keeps, in bytes, by dtype and shape."""
    state = experiment.abstract_state
    tokens = random_tokens(experiment.config)
    loss = lambda params, bitwidths: reference_loss(experiment, KEY, params, bitwidths, tokens)
    pull_back = jax.eval_shape(lambda *values: jax.vjp(loss, *values)[1], state.params, state.transform_state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back))


@pytest.mark.parametrize('method', ['gaussws', 'diffq'])
def test_sampling_keeps_one_float_a_block(method):
    """W_hat costs 2 bytes a parameter, as the baseline's weights do; the backward pass keeps b_i and a step a block."""
    experiment = make_experiment(small_config(f'smoke,method={method}'))
    state = experiment.abstract_state
    weights, pull_back = jax.eval_shape(
        lambda *values: jax.vjp(functools.partial(experiment.transform.apply, KEY), *values),
        state.params,
        state.transform_state,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}
    residuals = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.size > 1]
    assert experiment.num_blocks == 2 * (4 * 3 * 3 + 3 * 3 * 5)
    assert sum(leaf.size for leaf in residuals) == 2 * experiment.num_blocks
    assert all(leaf.dtype.itemsize <= 4 for leaf in residuals)

    scalars = 64 * len(state.transform_state)  # a leaf's key, origin and the like
    baseline = residual_bytes(make_experiment(small_config('smoke,method=bf16')))
    assert 0 < residual_bytes(experiment) - baseline <= 8 * experiment.num_blocks + scalars


def test_evaluation_is_the_masked_mean_over_all_batches():
    """Of the rounded weights, noise off, against NumPy in float64; what the mask leaves out counts for nothing."""
    experiment = make_experiment(small_config('smoke,parts=down'), (2, 2, 2))
    state = random_state(experiment)
    generator = np.random.default_rng(1)
    batches = [
        {'tokens': random_tokens(experiment.config, seed), 'mask': generator.integers(0, 2, (8, 24)).astype(np.float32)}
        for seed in (0, 1)
    ]
    batches[1]['mask'][2:] = 0
    got = evaluation.make_evaluation(experiment)(state, batches)

    weights = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), state.params)
    losses = []
    for batch in batches:
        logits = np.asarray(experiment.model.apply({'params': weights}, batch['tokens'][:, :-1]), np.float64)
        log_sum = np.log(np.exp(logits).sum(-1))
        chosen = np.take_along_axis(logits, batch['tokens'][:, 1:, None], axis=-1)[..., 0]
        losses.append(((log_sum - chosen) * batch['mask']).sum())
    tokens = sum(batch['mask'].sum() for batch in batches)
    assert got['tokens'] == tokens and got['loss'] == pytest.approx(sum(losses) / tokens, rel=1e-6)


@pytest.mark.slow
def test_gpt2_learns_in_bfloat16_in_microbatches_on_a_mesh(caplog):
    """The other family, with all that the large configs have on: the loss of a batch that is repeated falls.

    One program serves all steps, from the fresh state on: nothing of a step is a constant of it.
    """
    config = gpt2.get_config('smoke,method=gaussws,parts=down')
    config.microbatches, config.optimizer.warmup_steps, config.optimizer.learning_rate = 2, 0, 3e-3
    experiment = make_experiment(config, (2, 2, 2))
    state, train_step = init_state(experiment), steps.make_train_step(experiment)
    batch = random_batch(experiment)
    losses = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(8):
            before = state
            state, metrics = train_step(state, batch)
            losses.append(float(metrics['train/loss']))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert int(state.step) == 8
    assert losses[0] == pytest.approx(np.log(VOCABULARY), rel=0.02)
    assert losses[-1] < losses[0] - 0.3
    compilations = [record.getMessage() for record in caplog.records if record.getMessage().startswith('Compiling')]
    assert sum('train_step' in message for message in compilations) == 1, compilations


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(method='fp8'), "config.method='fp8': allowed are 'gaussws', 'diffq', 'qat', 'fqt', 'bf16'"),
        (dict(model__family='bert'), "config.model.family='bert': allowed are 'llama', 'gpt2'"),
        (dict(dtype='float16'), "config.dtype='float16': allowed are 'bfloat16', 'float32'"),
        (dict(quantization__b_target=7.0), 'b_target=7.0, b_init=6.0'),
        (dict(quantization__block_size='0'), 'block_size=0'),
        (dict(quantization__parts='layers/mlp/gates/kernel'), "'layers/mlp/gates/kernel'.* matches no leaf"),
        (dict(quantization__parts='layers/(mlp'), 'is no regular expression'),
        (dict(batch_size=6), 'config.batch_size=6 must be a multiple of config.microbatches=1 times the 4 shard'),
        (dict(microbatches=4), 'config.batch_size=8 must be a multiple of config.microbatches=4 times the 4 shard'),
        (dict(microbatches=0), 'config.microbatches=0 must be at least 1'),
        (dict(seed=2**32), 'config.seed=4294967296 must be of 0 to 4294967295'),
        (dict(seed=-1), 'config.seed=-1 must be of 0 to 4294967295'),
        (dict(total_steps=0), 'config.total_steps=0 must be at least 1'),
        (dict(checkpoint_every=0), 'config.checkpoint_every=0 must be at least 1'),
        (dict(remat_policy='some'), "remat_policy='some' must be None or one of full"),
        (dict(scan_unroll=0), 'scan_unroll=0 must be at least 1'),
        (dict(gradient_reduction='float16'), "config.gradient_reduction='float16': allowed are 'bfloat16', 'float32'"),
        (dict(gradient_reduction='bfloat16'), "gradient_reduction='bfloat16' takes config.dtype='bfloat16'"),
        (dict(resample_weights=True), "resample_weights=True with config.remat_policy='' would keep all weights"),
        (dict(model__num_heads=3), 'num_heads=3 must divide hidden_size=80'),
    ],
)
def test_refuses_a_config_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        make_experiment(small_config(**changes), (2, 2, 2))


def test_fixed_weights_that_are_no_numbers_of_a_model():
    """As a packed file holds whose header was changed: bits of bfloat16 as integers."""
    experiment = make_experiment(small_config())
    weights = jax.tree.map(np.asarray, random_state(experiment).params)
    weights['final_norm']['scale'] = weights['final_norm']['scale'].view(np.int32)
    with pytest.raises(ValueError, match=r'these weights are of no model: final_norm/scale is int32'):
        with_fixed_weights(experiment, weights)
