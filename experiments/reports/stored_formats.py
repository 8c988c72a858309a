"""In which formats weights are stored: what that takes, and why learned bitwidths come to theirs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import gaussq_jax as gq
from experiments.reports import quantization
from gaussq_jax.bitwidths import LEAST_BITS, MOST_BITS
from gaussq_jax.packed import Layout, budget_below, weights_of_formats
from gaussq_jax.packed.layout import as_they_act, weights_of_tiles
from gaussq_jax.param_tree import is_floating
from gaussq_jax.text_table import text_table

BFLOAT16 = 'bfloat16'
UNIFORM = ('bfloat16', 'float8_e4m3fn', 'float6_e3m2fn', 'float4_e2m1fn')  # of which sizes are told


class StoredIn(NamedTuple):
    """The weights of the blocks whose bitwidths ask for one format."""

    fmt: gq.FloatFormat
    share: float  # of all weights that have bitwidths
    low: float  # bitwidths, in bits
    mean: float  # over these weights
    high: float


def leaf_table(params: Any, layout: Layout, size: gq.ModelSize) -> str:
    """A line a leaf, one for all that are quantized, and one for all."""
    lines = [('leaf', 'weights', 'bitwidth', 'stored bits', 'bytes', 'formats')]
    leaves = gq.leaves_by_path(params)
    for path, leaf in leaves.items():
        formats = leaf.dtype.name
        if path in layout:
            numbers = weights_of_formats(leaf, layout[path]).reshape(-1, len(layout[path].formats)).sum(0)
            formats = quantization.share_formats({fmt.name: int(n) for fmt, n in zip(layout[path].formats, numbers)})
        elif is_floating(leaf):
            formats = BFLOAT16
        of_leaf = size.leaves[path]
        lines.append((path, *_cells(leaf.size, of_leaf.mean_bitwidth, of_leaf.total_bytes, formats)))
    if layout:
        quantized = sum(leaves[path].size for path in layout)
        num_bytes = sum(size.leaves[path].total_bytes for path in layout)
        lines.append(('quantized', *_cells(quantized, size.mean_bitwidth, num_bytes)))
    lines.append(('all', *_cells(sum(leaf.size for leaf in leaves.values()), math.nan, size.total_bytes)))
    return text_table(lines, left=(0, 5))


def reasons(transform: gq.ParamTransform, params: Any, state: Any) -> list[str]:
    """Why learned bitwidths are stored as they are, a line a format: which have it, and what would get the next one."""
    layout, bitwidths = transform.learned_layout(params, state), transform.bitwidths(state)
    rules = dict(block_size=transform.block_size, rules=transform.rules, unnamed=transform.unnamed)
    budget = lambda fmt: budget_below(params, bitwidths, fmt, **rules)
    stored = stored_in(gq.leaves_by_path(params), layout, bitwidths)
    found = []
    for of_format in stored:
        in_all = None
        if (most := budget(of_format.fmt)) is not None:
            formats = transform.formats_within_budget(params, state, most)
            in_all = transform.model_size(params, state, formats=formats).mean_stored_bits
        found.append(reason(of_format, most, in_all))
    return found


def stored_in(leaves: Mapping[str, Any], layout: Layout, bitwidths: Mapping[str, Any]) -> list[StoredIn]:
    """The formats that bitwidths ask for, the narrowest first; of a layout without a budget.

    Args:
      leaves: {path: array, or what has its shape}, of the weights.
      layout: as of `gq.learned_layout`.
      bitwidths: those that it is of.
    """
    of_formats: dict[gq.FloatFormat, list[np.ndarray]] = {}
    for path, of_leaf in layout.items():
        blocks = np.asarray(bitwidths[path], np.float64)
        shape = of_leaf.rule.matrix_shape(leaves[path].shape)
        weights = np.broadcast_to(weights_of_tiles(shape, of_leaf.tile), blocks.shape)
        for i, fmt in enumerate(of_leaf.formats):
            here = of_leaf.indices == i
            of_formats.setdefault(fmt, []).append(np.stack([blocks[here], weights[here]]))
    found = {fmt: np.concatenate(parts, axis=1) for fmt, parts in of_formats.items()}
    total = sum(weights.sum() for _, weights in found.values())
    narrowest_first = sorted(found.items(), key=lambda item: (item[0].bits, item[0].mantissa_bits))
    return [
        StoredIn(fmt, weights.sum() / total, bits.min(), np.average(bits, weights=weights), bits.max())
        for fmt, (bits, weights) in narrowest_first
    ]


def reason(stored: StoredIn, budget: float | None, in_all: float | None) -> str:
    """What is stored in a format, and why not in a narrower one.

    Args:
      stored: of one format.
      budget: within which the same is stored in narrower formats; None if there is none.
      in_all: what is then stored, mean bits of all quantized weights; None as `budget`.

    Example:
      >>> stored = StoredIn(gq.format_for_bitwidth(4.25), 1.0, 4.07, 4.25, 4.45)
      >>> for part in reason(stored, 6.02, 6.0156).split('. '):
      ...     print(part.replace('; ', ';\\n'))
      e3m3, 7 bits: 100 % of the weights, with bitwidths of 4.070 to 4.450
      Their mean, 4.250, is 0.250 above 4, the most that e3m2, 6 bits, holds;
      --budget=6.02 stores them in e3m2 or narrower, and 6.016 bits a weight in all, as bits that cost no more go, too
    """
    fmt, share = stored.fmt, f'{100 * stored.share:.3g} % of the weights'
    told = f'{fmt.name}, {fmt.bits} bits: {share}, with bitwidths of {stored.low:.3f} to {stored.high:.3f}.'
    limit = min(math.ceil(float(as_they_act(stored.low))), MOST_BITS) - 1
    if limit < LEAST_BITS:
        return f'{told} Up to {LEAST_BITS} have it, and none is narrower'
    narrower = gq.format_for_bitwidth(limit)
    above = f'Their mean, {stored.mean:.3f}, is {stored.mean - limit:.3f} above {limit}'
    told = f'{told} {above}, the most that {narrower.name}, {narrower.bits} bits, holds'
    if budget is None:
        return told
    stored_then = f'stores them in {narrower.name} or narrower, and {in_all:.3f} bits a weight in all'
    return f'{told}; --budget={budget} {stored_then}, as bits that cost no more go, too'


def sizes(transform: gq.ParamTransform, params: Any, state: Any) -> list[tuple[str, float, int]]:
    """(format, mean stored bits of the quantized weights, bytes of all): the learned formats, and uniform ones.

    The bits of what quantizes nothing are those of its only format.
    """
    rows = []
    if transform.bitwidths(state):
        learned = transform.model_size(params, state)
        rows.append(('learned', learned.mean_stored_bits, learned.total_bytes))
    for name in UNIFORM:
        size = gq.layout_size(params, transform.uniform_layout(params, name))
        bits = size.mean_stored_bits if name != BFLOAT16 else 16.0
        rows.append((name, bits, size.total_bytes))
    return rows


def _cells(weights: int, bitwidth: float, num_bytes: int, formats: str = '') -> tuple[str, ...]:
    bits = '' if math.isnan(bitwidth) else f'{bitwidth:.3f}'
    return f'{weights:,}', bits, f'{8 * num_bytes / weights:.3f}', f'{num_bytes:,}', formats
