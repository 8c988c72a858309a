"""The training step of fqt: its gradients are those written out by hand, and its random bits are never used twice."""

import functools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from small_experiments import keep_gradients, make_experiment, random_batch, random_state, random_tokens, small_config

import gaussq_jax as gq
from experiments import methods
from experiments.training import evaluation, steps

# A block of 24 tokens is a sequence, so that P6 is the same in every part of the batch and on every mesh.
ARGUMENT = 'smoke,method=fqt,format=e4m3,block_size=24,targets=P2+P4+P6'
MATRICES_OF_A_LAYER = 7


# --- by hand ------------------------------------------------------------------------------------------

QUANTIZER = gq.Quantizer('e4m3', block_size=24)


@jax.custom_vjp
def linear(x, w):
    """Y = X P2(W) of (tokens, in) and (in, out)."""
    return x @ gq.fake_quantize(w, QUANTIZER, axis=0)


def linear_backward(residuals, dy):
    """dX = dY P4(W)^T and dW = P6(X)^T dY, with scales along what is summed over."""
    x, w = residuals
    return dy @ gq.fake_quantize(w, QUANTIZER, axis=1).T, gq.fake_quantize(x, QUANTIZER, axis=0).T @ dy


linear.defvjp(lambda x, w: (linear(x, w), (x, w)), linear_backward)


def norm(x, scale):
    return x * scale / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def rotate(x):
    """(batch, length, heads, size) as complex numbers x[i] + i x[i + size/2], turned by position 10000^(-2i/size)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    turned = jax.lax.complex(x[..., :half], x[..., half:]) * jnp.exp(1j * angle)[:, None]
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def loss_by_hand(weights, tokens, num_heads):
    """Mean negative log-likelihood of a Llama, layer after layer."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    batch, length = inputs.shape
    x = weights['embed']['embedding'][inputs]
    hidden = x.shape[-1]
    apply = lambda kernel, x: linear(x.reshape(batch * length, -1), kernel['kernel']).reshape(batch, length, -1)
    mask = jnp.tril(jnp.ones((length, length), bool))
    for i in range(weights['layers']['attention_norm']['scale'].shape[0]):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], weights['layers'])
        y = norm(x, layer['attention_norm']['scale'])
        project = lambda kernel, y=y: apply(kernel, y).reshape(batch, length, num_heads, -1)
        query, key, value = (project(layer['attention'][name]) for name in ('query', 'key', 'value'))
        scores = jnp.einsum('blhd,bmhd->bhlm', rotate(query), rotate(key)) / np.sqrt(hidden / num_heads)
        attended = jnp.einsum('bhlm,bmhd->blhd', jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)), value)
        x = x + apply(layer['attention']['out'], attended)
        y = norm(x, layer['mlp_norm']['scale'])
        gate, up = apply(layer['mlp']['gate'], y), apply(layer['mlp']['up'], y)
        x = x + apply(layer['mlp']['down'], gate / (1 + jnp.exp(-gate)) * up)
    scores = norm(x, weights['final_norm']['scale']) @ weights['lm_head']['kernel']
    chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - chosen)


@functools.cache
def gradients_by_hand():
    experiment = make_experiment(small_config(ARGUMENT))
    state, config = random_state(experiment), experiment.config
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), state.params)
    loss = jax.jit(jax.value_and_grad(functools.partial(loss_by_hand, num_heads=config.model.num_heads)))
    return jax.tree.map(np.asarray, loss(weights, random_tokens(config)))


def gradients_of_the_step(argument=ARGUMENT, sizes=(1, 1, 1), **changes):
    """Loss and gradients of one step from the random state, as the optimizer gets them."""
    experiment = make_experiment(small_config(argument, **changes), sizes, optimizer=keep_gradients())
    state, metrics = steps.make_train_step(experiment)(random_state(experiment), random_batch(experiment))
    return float(metrics['train/loss']), jax.tree.map(np.asarray, state.opt_state['params'])


@pytest.mark.parametrize(
    ('sizes', 'microbatches'), [((1, 1, 1), 2), ((2, 2, 2), 1)], ids=['two parts', 'eight devices']
)
def test_gradients_are_those_written_out_by_hand(sizes, microbatches):
    """A float32 sum in another order turns the rounding of a few activations; the weights handed over are bfloat16,
    and so are their gradients."""
    loss, gradients = gradients_of_the_step(sizes=sizes, microbatches=microbatches)
    expected_loss, expected = gradients_by_hand()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    errors = jax.tree.map(lambda got, e: np.linalg.norm(got - e) / np.linalg.norm(e), gradients, expected)
    assert max(jax.tree.leaves(errors)) < 2**-7, errors


def test_without_quantization_they_would_not_be():
    """The comparison above can fail."""
    _, gradients = gradients_of_the_step('smoke,method=bf16')
    _, expected = gradients_by_hand()
    errors = jax.tree.map(lambda got, e: np.linalg.norm(got - e) / np.linalg.norm(e), gradients, expected)
    assert min(jax.tree.leaves(errors['layers']['mlp'])) > 2**-6


# --- stochastic rounding ------------------------------------------------------------------------------


def keys_of_steps(seed, numbers):
    """The keys that a linear layer's matmul is given in training steps of two microbatches, one set for each step."""
    drawn = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, lhs, rhs, *arguments, **options):
            key = jax.random.key_data(self.make_rng('quantization'))
            jax.debug.callback(lambda words: drawn.append(tuple(words.tolist())), key)
            return jax.lax.dot_general(lhs, rhs, *arguments, **options)

    def make_dot_general_cls(config, *, training, sums_gradients):
        return Spy if training else None

    with unittest.mock.patch.object(methods, 'make_dot_general_cls', make_dot_general_cls):
        config = small_config('smoke,method=fqt,rounding=stochastic', seed=seed, microbatches=2)
        experiment = make_experiment(config, optimizer=optax.set_to_zero())
        train_step = steps.make_train_step(experiment)
        for step in numbers:
            drawn.clear()
            jax.block_until_ready(train_step(random_state(experiment, step), random_batch(experiment)))
            jax.effects_barrier()
            yield list(drawn)


def test_no_key_is_used_twice():
    """Not by two linear layers, two layers, two microbatches, two steps or two seeds; the same step has the same."""
    first, again, next_step = keys_of_steps(0, (7, 7, 8))
    (other_seed,) = keys_of_steps(1, (7,))
    assert len(first) == 2 * 2 * MATRICES_OF_A_LAYER  # microbatches, layers
    assert set(again) == set(first)
    every = {*first, *next_step, *other_seed}
    assert len(every) == len(first) + len(next_step) + len(other_seed) == 3 * len(first)


def test_training_rounds_stochastically_and_evaluation_to_nearest():
    """The loss of the same weights and tokens differs from step to step; outside of training it doesn't."""

    def make(rounding):
        argument = f'smoke,method=fqt,format=e2m1,targets=P1+P2,rounding={rounding}'
        return make_experiment(small_config(argument), optimizer=optax.set_to_zero())

    def evaluations(experiment):
        evaluate = evaluation.make_evaluation(experiment)
        evaluated = {**batch, 'mask': np.ones(batch['tokens'][:, 1:].shape, np.float32)}
        return {evaluate(random_state(experiment, step), [evaluated])['loss'] for step in (7, 7, 8)}

    experiment = make('stochastic')
    batch, train_step = random_batch(experiment), steps.make_train_step(experiment)
    first, again, next_step = (
        float(train_step(random_state(experiment, step), batch)[1]['train/loss']) for step in (7, 7, 8)
    )
    (evaluated,) = evaluations(experiment)
    assert first == again
    assert min(abs(first - next_step), abs(first - evaluated), abs(next_step - evaluated)) > 1e-4
    assert evaluations(make('nearest_even')) == {evaluated}
