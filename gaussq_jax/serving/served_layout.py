"""Which matrices are served in which format, within a budget of bits."""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.block_scaling import Quantizer, fake_quantize
from gaussq_jax.packed.layout import BFLOAT16, Layout, LeafLayout, storable_leaves, uniform_layout
from gaussq_jax.packed.quantized_weights import each_matrix
from gaussq_jax.param_rules import DEFAULT_RULES, Rule
from gaussq_jax.serving.storages import MXFP4, MXFP8, Storage

Place = tuple[str, int]  # a leaf's path, and the index of a matrix in it


class Choice(NamedTuple):
    """What a group of matrices takes and loses in one format."""

    bits: float
    error: float
    storage: Storage | None  # None is bfloat16


def served_layout(
    params: Any,
    mean_bits: float,
    *,
    storages: Sequence[Storage] = (MXFP4, MXFP8),
    fused: Sequence[str] = (),
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
) -> Layout:
    """The layout of the least squared error whose matrices each have one format that servers have.

        minimize  sum (W_hat - W)^2    subject to    mean bits of the weight matrices <= mean_bits

    Each group of matrices that servers fuse has one of the storages or bfloat16. From the fewest bits on, the step that
    takes away most error for its bits comes first (along the lower convex hull of each group's choices), as long as it
    fits into the budget.

    Args:
      params: pytree of weights.
      mean_bits: the most bits that a weight of the matrices takes on average, scales included, as servers store it:
        4.25 in MXFP4, 8.25 in MXFP8, 16 in bfloat16.
      storages: to choose from, besides bfloat16; with scales of powers of two.
      fused: regexes of the paths of leaves whose matrices of one index have one format; see `models.fused_paths`.
      rules, unnamed: how the weights are read, as for `gaussian_weight_sampling`.

    Returns:
      A layout for `quantize_params`, `save_packed`, and the functions `to_...`.

    Raises:
      ValueError: for a budget below what the narrowest formats take, saying what that is; as `uniform_layout`.

    Example:
      >>> params = {'up': {'kernel': jnp.ones((64, 32))}, 'down': {'kernel': 1 + jnp.arange(2048.0).reshape(32, 64)}}
      >>> layout = served_layout(params, 6.25)
      >>> {path: [fmt.name for fmt in of_leaf.formats] for path, of_leaf in layout.items()}
      {'down/kernel': ['float8_e4m3fn'], 'up/kernel': ['float4_e2m1fn']}

    Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers (1988).
    """
    uniform = uniform_layout(params, storages[0].fmt, rules=rules, unnamed=unnamed)
    leaves = storable_leaves(params)
    groups = defaultdict(list)
    for path, of_leaf in uniform.items():
        label = next((regex for regex in fused if re.fullmatch(regex, path)), path)
        for index in range(len(each_matrix(of_leaf.indices))):
            groups[label, index].append((path, index))
    choices = {group: _hull(_choices(group, leaves, uniform, storages)) for group in map(tuple, groups.values())}
    weights = sum(np.prod(leaves[path].shape) for path in uniform)
    chosen = _within(choices, mean_bits * float(weights), float(weights))
    return _layout_of({place: storage for group, storage in chosen.items() for place in group}, uniform)


def _choices(
    group: Iterable[Place], leaves: Mapping[str, Any], uniform: Layout, storages: Sequence[Storage]
) -> list[Choice]:
    """What all storages that hold matrices of these shapes, and bfloat16, make of a group."""
    totals = {storage: [0.0, 0.0] for storage in (*storages, None)}
    for path, index in group:
        matrix = each_matrix(uniform[path].rule.to_matrices(np.asarray(leaves[path])))[index]
        if not np.all(np.isfinite(matrix)):
            raise ValueError(f'{path!r} has infinite or NaN weights, for which a packed format has no codes')
        for storage in [*totals]:
            if storage and matrix.shape[0] % storage.tile[0]:
                del totals[storage]
                continue
            totals[storage][0] += storage.bits(matrix.shape) if storage else BFLOAT16.bits * matrix.size
            totals[storage][1] += float(_squared_error(matrix, storage and storage.fmt))
    return [Choice(bits, error, storage) for storage, (bits, error) in totals.items()]


@functools.partial(jax.jit, static_argnums=1)
def _squared_error(matrix, fmt):
    wide = matrix.astype(jnp.float32)
    if fmt is None:
        return jnp.sum(jnp.square(wide.astype(jnp.bfloat16).astype(jnp.float32) - wide))
    return jnp.sum(jnp.square(fake_quantize(wide, Quantizer(fmt, block_size=32, scale='mx'), axis=0) - wide))


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Those on the lower convex hull of (bits, error), from the fewest bits to the least error."""
    hull = []
    for choice in sorted(choices, key=lambda choice: (choice.bits, choice.error)):
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(before: Choice, after: Choice) -> float:
    """The error that a step takes away, for each bit that it costs."""
    return (before.error - after.error) / (after.bits - before.bits)


def _within(choices: Mapping[Any, list[Choice]], budget: float, weights: float) -> dict[Any, Storage | None]:
    taken = {group: 0 for group in choices}
    total = sum(of_group[0].bits for of_group in choices.values())
    if not total <= budget:
        raise ValueError(f'a budget of {budget / weights:g} bits a weight is below {total / weights:.4g}, the least')
    steps = [
        (-_gain(before, after), group, i)
        for group, of_group in choices.items()
        for i, (before, after) in enumerate(itertools.pairwise(of_group))
    ]
    for _, group, i in sorted(steps):
        cost = choices[group][i + 1].bits - choices[group][i].bits
        if taken[group] == i and total + cost <= budget:
            taken[group], total = i + 1, total + cost
    return {group: choices[group][i].storage for group, i in taken.items()}


def _layout_of(chosen: Mapping[Place, Storage | None], uniform: Layout) -> Layout:
    layout = Layout(kept=uniform.kept)
    for path, of_leaf in uniform.items():
        indices = np.zeros_like(of_leaf.indices)
        formats = [chosen[path, i].fmt if chosen[path, i] else BFLOAT16 for i in range(len(each_matrix(indices)))]
        present = sorted(set(formats), key=lambda fmt: fmt.bits)
        for matrix, fmt in zip(each_matrix(indices), formats):
            matrix[...] = present.index(fmt)
        if present != [BFLOAT16]:
            layout[path] = LeafLayout(of_leaf.rule, of_leaf.tile, tuple(present), indices)
    return layout
