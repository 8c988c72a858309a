"""What is told of learned bitwidths while they are learned."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import gaussq_jax as gq
from experiments.training import bitwidth_optimizers, optimizers
from experiments.training.experiment import Experiment, TrainState
from gaussq_jax.bitwidths import LEAST_BITS, MOST_BITS, STORED_BITS
from gaussq_jax.param_tree import short_names

EDGES = np.arange(1, MOST_BITS + 1.25, 0.25)  # of the bins of histograms, in bits; the last bin has what is above, too


class Histogram(NamedTuple):
    """How many blocks of a matrix have which bitwidths."""

    edges: np.ndarray  # (bins + 1,), in bits
    counts: np.ndarray  # (bins,)


def of_state(transform: gq.ParamTransform, state: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """'bits/mean', 'bits/min' and 'bits/max' over all blocks; {} where none are learned."""
    bitwidths = jax.tree.leaves(transform.bitwidths(state))
    if not bitwidths:
        return {}
    return {
        'bits/mean': gq.bitwidth_penalty(bitwidths),
        'bits/min': functools.reduce(jnp.minimum, map(jnp.min, bitwidths)),
        'bits/max': functools.reduce(jnp.maximum, map(jnp.max, bitwidths)),
    }


def penalty_gradient(experiment: Experiment, state: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The gradient by b_i of `config.quantization.penalty` times the mean bitwidth."""
    penalty = experiment.config.quantization.penalty
    if not penalty or not state:
        return jax.tree.map(jnp.zeros_like, state)
    return jax.grad(lambda b_i: penalty * gq.bitwidth_penalty(experiment.transform.bitwidths(b_i)))(state)


def make_report(experiment: Experiment) -> Callable[[TrainState], tuple[dict[str, Any], dict[str, Histogram]]]:
    """A function state -> metrics, histograms of each kind of matrix; nothing where no bitwidths are learned.

    The metrics are in bits: those of `of_state`; 'bits/p10' and 'bits/p90', percentiles over all blocks; 'bits/stored',
    the mean of the formats that the blocks would be stored in, scales not counted; 'bits/matrix/<name>', an array of
    the mean of each layer. 'bits/signal_to_noise' is that of one step's gradient by b_t, as the optimizer has averaged
    it: the root of the ratio of the sums of squares over all blocks.
    """
    transform = experiment.transform
    if not experiment.num_blocks:
        return lambda state: ({}, {})
    replicated = NamedSharding(experiment.mesh, PartitionSpec())

    @optimizers.in_default_modes
    @functools.partial(jax.jit, out_shardings=replicated)
    def measure(state: TrainState):
        bitwidths = transform.bitwidths(state.transform_state)
        names = short_names(bitwidths)
        blocks = jnp.concatenate([jnp.ravel(leaf) for leaf in bitwidths.values()])
        stored = jnp.asarray([*STORED_BITS.values()], jnp.float32)
        whole = jnp.clip(jnp.ceil(jnp.round(blocks * 1024) / 1024), LEAST_BITS, MOST_BITS).astype(jnp.int32)
        p10, p90 = jnp.percentile(blocks, jnp.array([10, 90], blocks.dtype))
        pull = penalty_gradient(experiment, state.transform_state)
        metrics = of_state(transform, state.transform_state) | {
            'bits/p10': p10,
            'bits/p90': p90,
            'bits/stored': jnp.sum(stored[whole - LEAST_BITS]) / blocks.size + 0 * jnp.sum(blocks),  # NaN of NaN
            'bits/signal_to_noise': bitwidth_optimizers.signal_to_noise(
                state.opt_state, bitwidths, pull, experiment.config
            ),
        }
        counts = {}
        for path, leaf in bitwidths.items():
            layers = leaf.reshape(-1, leaf.shape[-2] * leaf.shape[-1])
            metrics[f'bits/matrix/{names[path]}'] = jnp.mean(layers, axis=1)
            inside = jnp.clip(leaf, float(EDGES[0]), float(EDGES[-1]))
            counts[f'bits/histogram/{names[path]}'] = jnp.histogram(inside, jnp.asarray(EDGES, jnp.float32))[0]
        return metrics, counts

    def report(state):
        metrics, counts = jax.device_get(measure(state))
        return metrics, {name: Histogram(EDGES, of_matrix) for name, of_matrix in counts.items()}

    return report
