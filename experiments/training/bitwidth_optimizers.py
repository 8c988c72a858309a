"""The optimizer of bitwidths, from the config: descent towards a price of their bits, or AdamW, as in the paper."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments import methods
from gaussq_jax.bitwidth_descent import BitwidthDescentState, worth_and_noise
from gaussq_jax.bitwidths import LEAST_BITS

AVERAGING = 0.99  # of descent
USED = {'descent': ('price', 'fall'), 'adamw': ('learning_rate', 'weight_decay', 'penalty')}


def make(config: ConfigDict, transform: gq.ParamTransform) -> optax.GradientTransformation:
    """The optimizer of b_i; its gradients are those of the loss and of `config.quantization.penalty`.

    Neither makes b_i negative: b_t stays at b_target or above.

    Raises:
      ValueError: for settings that are out of their range, that can't work, or that would do nothing; naming the field.
    """
    quantization = config.quantization
    learns = methods.find(config.method).learns_bitwidths
    if learns:
        check(quantization)
    if learns and quantization.optimizer == 'descent':
        steps, start = quantization.fall * config.total_steps, quantization.start * config.total_steps
        optimizer = gq.bitwidth_descent(
            transform, price=quantization.price, steps=steps, start=start, averaging=AVERAGING
        )
        return optax.GradientTransformation(*optimizer)
    adamw = optax.adamw(quantization.learning_rate, weight_decay=quantization.weight_decay, **_moments(config))
    return _bounded(adamw if not quantization.start else _from_step(adamw, quantization.start * config.total_steps))


def check(quantization: ConfigDict):
    """Raises ValueError as `make`."""

    def refuse(name, why):
        raise ValueError(f'config.quantization.{name}={quantization[name]!r} {why}')

    if quantization.optimizer not in USED:
        refuse('optimizer', f'must be {" or ".join(map(repr, USED))}')
    used = USED[quantization.optimizer]
    for name in (name for names in USED.values() for name in names):
        if not 0 <= quantization[name] < math.inf:
            refuse(name, 'must not be negative, and finite')
        if name not in used and quantization[name]:
            others = ', '.join(used)
            refuse(
                name, f"would do nothing with optimizer='{quantization.optimizer}', which uses {others}; set it to 0"
            )
    if not 0 <= quantization.start < 1:
        refuse('start', 'must be at least 0 and less than 1: a share of the steps')
    if quantization.b_init == quantization.b_target:
        return  # constant: nothing is learned
    if quantization.optimizer == 'descent':
        if not quantization.price:
            refuse('price', 'must be positive: without a price no bit is given up')
        if not 0 < quantization.fall <= 1 - quantization.start:
            refuse(
                'fall', f'must be positive, and at most 1 - start = {1 - quantization.start:g}: a share of the steps'
            )
        if quantization.b_target < LEAST_BITS:
            refuse('b_target', f'must be at least {LEAST_BITS}: fewer bits have no narrower format, and save nothing')
        return
    if not quantization.learning_rate:
        refuse('learning_rate', 'would leave the bitwidths at b_init; for constant ones set b_target to b_init')
    if quantization.learning_rate >= 1:
        refuse('learning_rate', 'must be less than 1: one step of AdamW would go from b_init to b_target and beyond')
    if quantization.learning_rate * quantization.weight_decay >= 1:
        most = 1 / quantization.learning_rate
        refuse('weight_decay', f'must be less than {most:g}, 1 / learning_rate: one step would take b_i to 0 or beyond')


def signal_to_noise(opt_state: Any, bitwidths: Any, pull: Any, config: ConfigDict) -> jax.Array:
    """How large the loss's gradient by b_t is beside what one step's adds to it: root of the ratio of sums of squares.

    Args:
      opt_state: of `optimizers.make_optimizer`'s optimizer, whose averages these are.
      bitwidths: b_t, a tree with the leaves of b_i.
      pull: another, what the gradients by b_i had of the penalty.
    """
    is_ours = lambda node: isinstance(node, BitwidthDescentState | optax.ScaleByAdamState)
    nodes = jax.tree.leaves(opt_state.inner_states['bitwidths'], is_leaf=is_ours)
    state = next(node for node in nodes if is_ours(node))
    if isinstance(state, BitwidthDescentState):
        averages, of_leaf = (state.fall, state.power, state.square, bitwidths), _of_descent
        decays = (AVERAGING,)
    else:
        averages, of_leaf = (state.mu, state.nu, pull), _of_adam
        decays = (config.optimizer.b1, config.optimizer.b2)
    steps = jnp.maximum(state.count, 1).astype(jnp.float32)
    unbiased = [1 - decay**steps for decay in decays]
    share = (1 - decays[0]) / (1 + decays[0])  # of the variance of one step, what an average has
    sums = [of_leaf(*leaves, *unbiased, share) for leaves in zip(*map(jax.tree.leaves, averages))]
    signal, noise = (sum(jnp.sum(of_leaf) for of_leaf in squares) for squares in zip(*sums))
    return jnp.sqrt(jnp.maximum(signal, 0) / jnp.maximum(noise, jnp.finfo(jnp.float32).tiny))


def _of_descent(fall, power, square, bits, unbiased, share):
    """Squares of signal and noise of each block."""
    worth, noise = worth_and_noise(fall, power, square, unbiased, share)
    now = jnp.exp2(-2 * bits)
    return (worth * worth - noise) * now * now, noise * (power / unbiased) / share * now


def _of_adam(mean, square, pull, of_mean, of_square, share):
    """The same."""
    mean = mean / of_mean
    noise = jnp.maximum(square / of_square - mean * mean, 0) / (1 - share)
    return jnp.square(mean - pull) - share * noise, noise


def _moments(config: ConfigDict) -> dict[str, float]:
    optimizer = config.optimizer
    return dict(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)


def _bounded(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, which takes no b_i below 0; it has the same state, by which checkpoints know it."""

    def update(gradients, state, b_i=None):
        updates, state = optimizer.update(gradients, state, b_i)
        return jax.tree.map(lambda u, b: jnp.where(b + u < 0, -b, u), updates, b_i), state

    return optax.GradientTransformation(optimizer.init, update)


def _from_step(optimizer: optax.GradientTransformation, start: float) -> optax.GradientTransformation:
    """The same optimizer, which changes nothing in the first `start` steps but its averages."""

    def init(b_i):
        return jnp.zeros((), jnp.int32), optimizer.init(b_i)

    def update(gradients, state, b_i=None):
        count, inner = state
        updates, inner = optimizer.update(gradients, inner, b_i)
        return jax.tree.map(lambda u: jnp.where(count < start, 0, u), updates), (count + 1, inner)

    return optax.GradientTransformation(init, update)
