"""Which matrices are served in which format, within a budget of bits."""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.block_scaling import fake_quantize
from gaussq_jax.packed.layout import BFLOAT16, Layout, LeafLayout, storable_leaves, uniform_layout
from gaussq_jax.packed.quantized_weights import each_matrix
from gaussq_jax.param_rules import DEFAULT_RULES, Rule
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.serving.storages import MXFP4, MXFP8, Storage

STEPS = 20_000  # that a budget is counted in, if it has more bits than that beyond the least
Place = tuple[str, int]  # a leaf's path, and the index of a matrix in it


class Choice(NamedTuple):
    """What a group of matrices takes and loses in one format."""

    bits: int
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

    Each group of matrices that servers fuse has one of the storages or bfloat16. The choice is the best one, by dynamic
    programming over the groups, where the sizes of the groups have a common divisor of at least 1/20000 of what the
    budget has beyond the least. Else bits are counted in such steps, rounded up, and what they leave of the budget goes
    to where it takes away most error for its bits.

    Args:
      params: pytree of weights.
      mean_bits: the most bits that a weight of the matrices takes on average, scales included, as servers store it:
        4.25 in MXFP4, 8.25 in MXFP8, 16 in bfloat16.
      storages: to choose from, besides bfloat16: those of MX, with scales of powers of two for 32 inputs.
      fused: regexes of the paths of leaves whose matrices of one index have one format; see `models.fused_paths`.
      rules, unnamed: how the weights are read, as for `gaussian_weight_sampling`.

    Returns:
      A layout for `quantize_params`, `save_packed`, and the functions `to_...`.

    Raises:
      ValueError: for a budget below what the narrowest formats take, saying what that is; for other storages, and
        regexes that match nothing; as `uniform_layout`.

    Example:
      >>> params = {'up': {'kernel': jnp.ones((64, 32))}, 'down': {'kernel': 1 + jnp.arange(2048.0).reshape(32, 64)}}
      >>> layout = served_layout(params, 6.25)
      >>> {path: [fmt.name for fmt in of_leaf.formats] for path, of_leaf in layout.items()}
      {'down/kernel': ['float8_e4m3fn'], 'up/kernel': ['float4_e2m1fn']}

    Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers (1988), for the problem.
    """
    _check(mean_bits, storages, fused)
    uniform = uniform_layout(params, storages[0].fmt, rules=rules, unnamed=unnamed)
    leaves = storable_leaves(params)
    if unmatched := [regex for regex in fused if not any(re.fullmatch(regex, path) for path in leaves)]:
        raise ValueError(f'fused={unmatched[0]!r} matches none of the leaves, {", ".join(leaves)}')
    groups = defaultdict(list)
    for path, of_leaf in uniform.items():
        label = next((regex for regex in fused if re.fullmatch(regex, path)), path)
        for index in range(len(each_matrix(of_leaf.indices))):
            groups[label, index].append((path, index))
    choices = [_choices(group, leaves, uniform, storages) for group in groups.values()]
    weights = sum(math.prod(leaves[path].shape) for path in uniform)
    chosen = _best_within(choices, mean_bits, weights)
    return _layout_of({place: one.storage for group, one in zip(groups.values(), chosen) for place in group}, uniform)


def _check(mean_bits: Any, storages: Sequence[Storage], fused: Sequence[str]):
    """ValueError for arguments that can't be."""
    if isinstance(mean_bits, bool) or not isinstance(mean_bits, int | float):
        raise ValueError(f'mean_bits={mean_bits!r} must be a number')
    if not storages or any((storage.tile, storage.scale) != (MXFP4.tile, MXFP4.scale) for storage in storages):
        names = ', '.join(storage.name for storage in storages) or 'none'
        raise ValueError(f'storages are {names}: allowed are some with powers of two for 32 inputs, such as MXFP4')
    if isinstance(fused, str) or not all(isinstance(regex, str) for regex in fused):
        raise ValueError(f'fused={fused!r} must be a sequence of regexes')
    for regex in fused:
        try:
            re.compile(regex)
        except re.error as error:
            raise ValueError(f'fused={regex!r} is no regular expression: {error}') from None


def _choices(
    group: Iterable[Place], leaves: Mapping[str, Any], uniform: Layout, storages: Sequence[Storage]
) -> list[Choice]:
    """What all storages that hold matrices of these shapes, and bfloat16, make of a group; the fewest bits first."""
    totals = {storage: (0, 0.0) for storage in (*storages, None)}
    for path, index in group:
        matrix = each_matrix(uniform[path].rule.to_matrices(np.asarray(leaves[path])))[index]
        if not np.all(np.isfinite(matrix)):
            raise ValueError(f'{path!r} has infinite or NaN weights, for which a packed format has no codes')
        for storage, (bits, error) in [*totals.items()]:
            if storage and matrix.shape[0] % storage.tile[0]:
                del totals[storage]
                continue
            own = int(storage.bits(matrix.shape)) if storage else BFLOAT16.bits * matrix.size
            totals[storage] = bits + own, error + _squared_error(matrix, storage and storage.fmt)
    found = [Choice(bits, error, storage) for storage, (bits, error) in totals.items()]
    return sorted(found, key=lambda choice: choice[:2])


def _squared_error(matrix, fmt) -> float:
    """In float64, so that neither large nor small weights are beyond it."""
    return float(np.sum(np.square(np.subtract(_rounded(matrix, fmt), matrix, dtype=np.float64))))


@functools.partial(jax.jit, static_argnums=1)
def _rounded(matrix, fmt):
    wide = matrix.astype(jnp.float32)
    if fmt is None:
        return wide.astype(jnp.bfloat16).astype(jnp.float32)
    return fake_quantize(wide, Quantizer(fmt, block_size=32, scale='mx'), axis=0)


def _best_within(choices: Sequence[Sequence[Choice]], mean_bits: float, weights: int) -> list[Choice]:
    """One choice of each group, of the least sum of errors that the budget allows.

    least[s] is the least error of the groups so far in s steps of bits beyond the fewest that they can take.
    """
    fewest = sum(of_group[0].bits for of_group in choices)
    if not fewest <= mean_bits * weights:
        raise ValueError(f'a budget of {mean_bits:g} bits a weight is below {fewest / weights:.4g}, the least')
    extra = [[choice.bits - of_group[0].bits for choice in of_group] for of_group in choices]
    room = math.floor(min(mean_bits * weights, sum(of_group[-1].bits for of_group in choices))) - fewest
    step = math.gcd(*(bits for of_group in extra for bits in of_group)) or 1
    step *= max(1, -(-room // (step * STEPS)))
    least, taken = np.zeros(room // step + 1), []
    for of_group, bits in zip(choices, extra):
        candidates = np.full((len(of_group), least.size), np.inf)
        for row, choice, steps in zip(candidates, of_group, (-(-beyond // step) for beyond in bits)):
            row[steps:] = least[: max(least.size - steps, 0)] + choice.error
        taken.append(np.argmin(candidates, axis=0).astype(np.uint8))
        least = candidates.min(axis=0)
    numbers, left = [], least.size - 1
    for bits, of_steps in zip(extra[::-1], taken[::-1]):
        numbers.insert(0, int(of_steps[left]))
        left -= -(-bits[numbers[0]] // step)
    return _spend_the_rest(choices, numbers, math.floor(mean_bits * weights))


def _spend_the_rest(choices: Sequence[Sequence[Choice]], numbers: list[int], budget: int) -> list[Choice]:
    """The choices of these numbers, and wider ones in the place of some, as long as the budget allows."""
    left = budget - sum(of_group[number].bits for of_group, number in zip(choices, numbers))
    gain = lambda now, wider: (now.error - wider.error) / (wider.bits - now.bits)
    upgrades = [
        (gain(of_group[number], of_group[wider]), i, wider)
        for i, (of_group, number) in enumerate(zip(choices, numbers))
        for wider in range(number + 1, len(of_group))
        if of_group[wider].bits > of_group[number].bits
    ]
    for gained, i, wider in sorted(upgrades, reverse=True):
        cost = choices[i][wider].bits - choices[i][numbers[i]].bits
        if gained > 0 and 0 < cost <= left:
            numbers[i], left = wider, left - cost
    return [of_group[number] for of_group, number in zip(choices, numbers)]


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
