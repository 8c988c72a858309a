"""Which bits to take away from learned bitwidths, so that the model is within a budget; and what budgets do."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gaussq_jax.bitwidths import LEAST_BITS, MOST_BITS, format_for_bitwidth
from gaussq_jax.formats import FloatFormat
from gaussq_jax.packed.layout import (
    Formats,
    as_they_act,
    check_bitwidths,
    layout_of_bitwidths,
    storable_leaves,
)
from gaussq_jax.packed.size import size_of_leaves
from gaussq_jax.param_reading import checked_readings
from gaussq_jax.param_rules import DEFAULT_RULES, Rule
from gaussq_jax.weight_sampling import check_block_size


def formats_within_budget(
    params: Any,
    bitwidths: Mapping[str, jax.Array],
    mean_stored_bits: float,
    *,
    block_size: int = 32,
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
) -> Formats:
    """The function b_t -> format that takes bits away where they cost least, until the model is within a budget.

    A block of bitwidth b bears noise of variance proportional to 4^-b; stored by n bits, its share is 4^(b - n) times
    that. Bits are taken in the order of what they cost,

        (4^(b - n + 1) - 4^(b - n)) / (bits of n's format - bits of (n - 1)'s),

    from `format_for_bitwidth(b)` down, and equal bitwidths are treated alike. Where the budget allows for all that
    `format_for_bitwidth` asks for, nothing is taken.

    Args:
      params, bitwidths, block_size, rules, unnamed: as for `learned_layout`.
      mean_stored_bits: the most that a quantized weight may take on average, scales and names of formats included, as
        `ModelSize.mean_stored_bits`.

    Returns:
      A function for the argument `formats` of `learned_layout` and `model_size`.

    Raises:
      ValueError: for a budget below what is stored if all blocks have the narrowest format, E2M1; as `learned_layout`.

    Example:
      >>> params = {'up': {'kernel': jnp.ones((64, 32))}}
      >>> bitwidths = {'up/kernel': jnp.array([[4.0], [5.0]])}
      >>> formats = formats_within_budget(params, bitwidths, 6.1)
      >>> formats(4.0).name, formats(5.0).name
      ('e2m1', 'e3m3')
    """
    stored_bits = _stored_after_cuts(params, bitwidths, block_size, rules, unnamed)
    costs = _costs(bitwidths)
    if stored_bits(0.0) <= mean_stored_bits:
        return _cut(0.0)
    least = stored_bits(costs[-1])
    if not mean_stored_bits >= least:
        raise ValueError(f'a budget of {mean_stored_bits:g} bits a weight is below {least:.4g}, all blocks in e2m1')
    low, high = 0, len(costs) - 1  # a cut that leaves too much, and one that doesn't
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if stored_bits(costs[middle]) <= mean_stored_bits else (middle, high)
    return _cut(costs[high])


def budget_below(
    params: Any,
    bitwidths: Mapping[str, jax.Array],
    fmt: FloatFormat,
    *,
    block_size: int = 32,
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
) -> float | None:
    """A budget within which each block whose bitwidth asks for a format is stored in a narrower one.

    Of all that `formats_within_budget` does, it is what takes least away and yet narrows all of these: what is then
    stored, rounded up to as few decimals as lead there, two at the least. Bits that cost no more go, too.

    Args:
      params, bitwidths, block_size, rules, unnamed: as for `learned_layout`.
      fmt: a format of `format_for_bitwidth`.

    Returns:
      The budget, in bits a weight, scales and names of formats included; None where no block asks for the format, or
      none is narrower.

    Raises:
      ValueError: as `learned_layout`.

    Example:
      >>> params = {'up': {'kernel': jnp.ones((64, 32))}}
      >>> bitwidths = {'up/kernel': jnp.array([[4.0], [4.25]])}
      >>> budget_below(params, bitwidths, format_for_bitwidth(4.25))
      6.01
    """
    stored_bits = _stored_after_cuts(params, bitwidths, block_size, rules, unnamed)
    of_format = [level for level in _levels(bitwidths) if format_for_bitwidth(level) == fmt]
    first_steps = [cost for level in of_format for _, cost in [*_steps_down(level)][:1]]
    if not first_steps:
        return None
    needed = stored_bits(max(first_steps))
    too_much = stored_bits(max(cost for cost in _costs(bitwidths) if cost < max(first_steps)))
    rounded_up = (math.ceil(needed * 10**digits) / 10**digits for digits in range(2, 16))
    return next((budget for budget in rounded_up if needed <= budget < too_much), None)


def _stored_after_cuts(
    params: Any, bitwidths: Mapping[str, jax.Array], block_size: int, rules: Sequence[Rule], unnamed: str
) -> Callable[[float], float]:
    """The mean stored bits if all bits are taken that cost at most so much; ValueError as `learned_layout`."""
    block_size = check_block_size(block_size)
    readings, leaves = checked_readings(params, rules, unnamed=unnamed), storable_leaves(params)
    check_bitwidths(readings, bitwidths, block_size)
    layout = lambda most: layout_of_bitwidths(readings, bitwidths, _cut(most), block_size)
    return lambda most: size_of_leaves(leaves, layout(most)).mean_stored_bits


def _levels(bitwidths: Mapping[str, Any]) -> list[float]:
    """The bitwidths that occur, as they act."""
    return np.unique(np.concatenate([as_they_act(of_leaf).ravel() for of_leaf in bitwidths.values()])).tolist()


def _costs(bitwidths: Mapping[str, Any]) -> list[float]:
    """Of all bits that can be taken away, what they cost, the cheapest first; 0 is that of none."""
    return sorted({0.0, *(cost for level in _levels(bitwidths) for _, cost in _steps_down(level))})


def _steps_down(bitwidth: float) -> Iterator[tuple[FloatFormat, float]]:
    """The next narrower format and the cost of a bit that it saves, again and again, from the bitwidth's own format."""
    bits = math.ceil(min(max(bitwidth, LEAST_BITS), MOST_BITS))
    while bits > LEAST_BITS:
        wide, narrow = format_for_bitwidth(bits), format_for_bitwidth(bits - 1)
        yield narrow, 3 * 4.0 ** (min(bitwidth, MOST_BITS) - bits) / (wide.bits - narrow.bits)
        bits -= 1


def _cut(most: float) -> Formats:
    """The function b_t -> format that has taken all bits that cost at most so much."""

    @functools.cache
    def formats(bitwidth: float) -> FloatFormat:
        bitwidth = float(as_they_act(bitwidth))
        fmt = format_for_bitwidth(bitwidth)
        for narrower, cost in _steps_down(bitwidth):
            if cost > most:
                break
            fmt = narrower
        return fmt

    return formats
