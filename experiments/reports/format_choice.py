"""Formats chosen for trained weights without having been learned: the rivals of learned bitwidths."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gaussq_jax as gq
from experiments.data import batching, loading
from experiments.data.loading import Data
from experiments.training import meshes
from experiments.training.experiment import Experiment, TrainState
from experiments.training.steps import token_losses
from gaussq_jax.bitwidths import STORED_BITS
from gaussq_jax.packed import Layout, LeafLayout
from gaussq_jax.packed.layout import weights_of_tiles

FORMATS = tuple(gq.format_for_bitwidth(bits) for bits in STORED_BITS if bits < 9)  # of learned ones, to 11 bits
BATCHES = 64  # of the training split, for squared gradients
HALVINGS = 40  # of the price that keeps a budget


def errors(params: Any, uniform: Layout, block_size: int, *, weights: Any = None) -> dict[str, np.ndarray]:
    """What each of FORMATS would lose of each square block: sum of weight * (quantized - value)^2.

    Args:
      params: the tree.
      uniform: a layout of it, for which leaves are quantized and how they are read.
      block_size: side of the blocks, which share a power-of-two scale.
      weights: a tree like `params`; None for ones.

    Returns:
      {path: float64 (batch.., block rows, block columns, formats)}.
    """
    leaves, of_weights = gq.leaves_by_path(params), weights and gq.leaves_by_path(weights)
    found = {}
    for path, of_leaf in uniform.items():
        matrices = of_leaf.rule.to_matrices(leaves[path]).astype(jnp.float32)
        weight = of_leaf.rule.to_matrices(of_weights[path]) if weights else jnp.ones_like(matrices)
        by_format = []
        for fmt in FORMATS:
            quantized = gq.fake_quantize(matrices, gq.Quantizer(fmt, block_size=(block_size,) * 2, scale='mx'))
            by_format.append(_sum_of_blocks(np.asarray(weight * jnp.square(quantized - matrices)), block_size))
        found[path] = np.stack(by_format, axis=-1)
    return found


def within_budget(
    params: Any, uniform: Layout, lost: dict[str, np.ndarray], block_size: int, budget: float, *, by_matrix: bool
) -> Layout:
    """The layout of the least loss whose quantized weights take at most so many bits, scales and names included.

    A price of a bit decides for each block, or for each matrix, and is the least that keeps the budget.

    Args:
      params, uniform, block_size: as for `errors`, which gave `lost`.
      budget: the most bits a quantized weight may take on average.
      by_matrix: one format for all blocks of a matrix.

    Raises:
      ValueError: for a budget below what E2M1 takes.
    """
    leaves, bits = gq.leaves_by_path(params), np.array([fmt.bits for fmt in FORMATS])
    shapes = {path: of_leaf.rule.matrix_shape(leaves[path].shape) for path, of_leaf in uniform.items()}
    counts = {path: weights_of_tiles(shape, (block_size,) * 2)[..., None] for path, shape in shapes.items()}

    def layout_at(price: float) -> Layout:
        layout = Layout(kept=uniform.kept)
        for path, of_leaf in uniform.items():
            totals = lost[path] + price * bits * counts[path]
            if by_matrix:
                totals = np.broadcast_to(totals.sum(axis=(-3, -2), keepdims=True), totals.shape)
            present, indices = np.unique(np.argmin(totals, axis=-1), return_inverse=True)
            indices = indices.reshape(totals.shape[:-1]).astype(np.uint8)
            layout[path] = LeafLayout(of_leaf.rule, (block_size,) * 2, tuple(FORMATS[i] for i in present), indices)
        return layout

    fits = lambda layout: gq.layout_size(params, layout).mean_stored_bits <= budget
    high = max(float(of_leaf.max()) for of_leaf in lost.values()) or 1.0
    low = high * 1e-12
    if not fits(layout_at(high)):
        raise ValueError(f'a budget of {budget:g} bits a weight is below what e2m1 takes')
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(layout_at(middle)) else (middle, high)
    return layout_at(high)


def squared_gradients(experiment: Experiment, state: TrainState, data: Data) -> Any:
    """The mean over batches of the training split of the squared gradient of the loss, noise off; like the params.

    Of several sources, each has its share of BATCHES, at least one, and its weight in the mean.
    """
    config = experiment.config
    weights = experiment.transform.apply(None, state.params, state.transform_state)
    rows, source_weights = loading.train_rows(data, config)

    @jax.jit
    def square(total, weights, batch):
        def mean_loss(weights):
            return jnp.sum(batch['mask'] * token_losses(experiment.model, weights, batch)) / jnp.sum(batch['mask'])

        gradients = jax.grad(mean_loss)(weights)
        return jax.tree.map(lambda sum_, g: sum_ + jnp.square(g.astype(jnp.float32)), total, gradients)

    def mean_of(source: str):
        total = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
        number = 0
        for batch in batching.validation_batches(
            rows[source],
            global_batch_size=config.batch_size // config.microbatches,
            max_batches=max(1, round(source_weights[source] * BATCHES)),
        ):
            total = square(total, weights, meshes.to_devices(batch, experiment.mesh))
            number += 1
        return jax.tree.map(lambda sum_: float(source_weights[source]) * (sum_ / number), total)

    return jax.tree.map(lambda *means: sum(means[1:], start=means[0]), *map(mean_of, rows))


def _sum_of_blocks(values: np.ndarray, block_size: int) -> np.ndarray:
    """(.., m, n) -> (.., ceil(m / B), ceil(n / B)), float64."""
    for axis in (-2, -1):
        values = np.add.reduceat(values, range(0, values.shape[axis], block_size), axis=axis, dtype=np.float64)
    return values
