"""The optimizer of bitwidths, from the config: descent towards a price of their bits, or AdamW, as in the paper."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments import methods
from experiments.methods.settings import WAYS
from gaussq_jax.bitwidth_descent import BitwidthDescentState, weight_and_share, worth_and_noise
from gaussq_jax.bitwidths import LEAST_BITS, MOST_BITS

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
    moments = dict(b1=config.optimizer.b1, b2=config.optimizer.b2, eps=config.optimizer.eps)
    adamw = optax.adamw(quantization.learning_rate, weight_decay=quantization.weight_decay, **moments)
    if learns and quantization.start:
        adamw = _from_step(adamw, quantization.start * config.total_steps)
    return _not_below_zero(adamw)


def depends_on_total_steps(config: ConfigDict) -> bool:
    """Whether what bitwidths are after a step depends on how many there are in all."""
    quantization = config.quantization
    if not methods.find(config.method).learns_bitwidths or quantization.b_init == quantization.b_target:
        return False
    return quantization.optimizer == 'descent' or quantization.start > 0


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
            of = f'optimizer={quantization.optimizer!r}, which uses {", ".join(used)}'
            argument = f'the config argument bitwidths={WAYS[quantization.optimizer]}'
            refuse(name, f'would do nothing with {of}; {argument} sets all')
    if not 0 <= quantization.start < 1:
        refuse('start', 'must be at least 0 and less than 1: a share of the steps')
    if quantization.b_init == quantization.b_target:
        return  # constant: nothing is learned
    if quantization.optimizer == 'descent':
        if not quantization.price:
            refuse('price', 'must be positive: without a price no bit is given up')
        if not 0 < quantization.fall <= 1 - quantization.start + 1e-9:
            most = 1 - quantization.start
            refuse('fall', f'must be positive, and at most 1 - start = {most:g}: a share of the steps')
        if not LEAST_BITS <= quantization.b_target <= MOST_BITS:
            refuse('b_target', f'must be of {LEAST_BITS} to {MOST_BITS}, the bits that formats are for')
        return
    if not quantization.learning_rate:
        refuse('learning_rate', 'would leave the bitwidths at b_init; for constant ones set b_target to b_init')
    if quantization.learning_rate >= 1:
        refuse('learning_rate', 'must be less than 1: a step of AdamW would be all of b_init - b_target')
    if quantization.learning_rate * quantization.weight_decay >= 1:
        most = 1 / quantization.learning_rate
        refuse('weight_decay', f'must be less than {most:g}, 1 / learning_rate: b_i would not last a step')


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

    def of_descent(fall, power, square, bits):
        worth, noise = worth_and_noise(fall, power, square, state.count, AVERAGING)
        total, share = weight_and_share(state.count, AVERAGING)
        now = jnp.exp2(-2 * bits)
        return (worth * worth - noise) * now * now, noise * power / total / share * now

    def of_adam(mean, square, pull):
        (of_mean, share), (of_square, _) = (
            weight_and_share(state.count, decay) for decay in (config.optimizer.b1, config.optimizer.b2)
        )
        mean = mean / of_mean
        noise = jnp.maximum(square / of_square - mean * mean, 0) / jnp.maximum(1 - share, 1e-6)
        return jnp.square(mean - pull) - share * noise, noise

    if isinstance(state, BitwidthDescentState):
        measure, trees = of_descent, (state.fall, state.power, state.square, bitwidths)
    else:
        measure, trees = of_adam, (state.mu, state.nu, pull)
    squares = [measure(*leaves) for leaves in zip(*map(jax.tree.leaves, trees))]
    signal, noise = (sum(map(jnp.sum, of_blocks)) for of_blocks in zip(*squares))
    return jnp.sqrt(jnp.maximum(signal, 0) / jnp.maximum(noise, jnp.finfo(jnp.float32).tiny))


def _not_below_zero(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
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
