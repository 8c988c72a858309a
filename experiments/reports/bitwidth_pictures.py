"""The learned bitwidths of a run, for its report: by layer and matrix, over steps, and over blocks."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gaussq_jax as gq
from experiments.reports import heat_maps, palette, run_pictures
from experiments.reports.html_page import image, paragraph
from experiments.reports.run_records import RunRecord, has_bitwidths_by_matrix, series
from gaussq_jax.packed.layout import as_they_act
from gaussq_jax.param_tree import short_names

BINS = 20  # of the histogram, in a bit: (n - 1/20, n], as a format holds (n - 1, n]
LEAST_RANGE = 0.5  # bits, of its axis
LARGEST = 12.0  # bits: what is beyond is drawn there
SIGNAL = 'bits/signal_to_noise'


def parts(record: RunRecord, bitwidths: Mapping[str, Any]) -> list[str]:
    """The parts of a page.

    Args:
      record: of the run; those of earlier versions have less in them, which is left out, and said.
      bitwidths: {path: bitwidths (layers, .., blocks)} of the newest checkpoint; {} if there is none.
    """
    found = []
    blocks = _of_blocks(bitwidths)
    if num_lost := np.count_nonzero(~np.isfinite(blocks)):
        told = f'{num_lost:,} of {len(blocks):,} blocks have a bitwidth that is NaN or infinite, which is not drawn.'
        found.append(paragraph(told, 'warning'))
    if has_bitwidths_by_matrix(record):
        found.append(image(run_pictures.bitwidths_figure([record]), 'bitwidths by layer and matrix, and over steps'))
    else:
        reason = 'its version did not write them' if record.lines else 'it has yet to log a step'
        found.append(paragraph(f'There are no bitwidths of its matrices over steps: {reason}.'))
        if bitwidths:
            found.append(image(newest_figure(bitwidths), 'bitwidths by layer and matrix'))
    if np.isfinite(blocks).any() or any('bits/mean' in line for line in record.lines):
        found.append(image(blocks_figure(record, bitwidths), 'bitwidths of blocks, and over steps'))
    if record.lines and not any(SIGNAL in line for line in record.lines):
        found.append(paragraph('Its version did not write the signal to noise of the gradient of bitwidths, either.'))
    return found


def newest_figure(bitwidths: Mapping[str, Any]) -> Figure:
    """The mean bitwidths of a checkpoint, layers by matrices."""
    names = short_names(bitwidths)
    means = [
        np.asarray(blocks, float).reshape(-1, *np.shape(blocks)[-2:]).mean((1, 2)) for blocks in bitwidths.values()
    ]
    values = np.full((len(names), max(map(len, means))), np.nan)
    for row, of_matrix in zip(values, means):
        row[: len(of_matrix)] = of_matrix
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.3 * min(max(len(names), 4), 40)), layout='constrained')
    norm = heat_maps.scale(values.flat, least_span=run_pictures.LEAST_SPAN)
    mesh = heat_maps.draw_layers(axes, values, list(names.values()), norm)
    heat_maps.color_bar(mesh, axes, run_pictures.BITS)
    axes.set_title('newest checkpoint', fontsize=10)
    return figure


def blocks_figure(record: RunRecord, bitwidths: Mapping[str, Any]) -> Figure:
    """Percentiles and signal to noise over steps, and the histogram of a checkpoint, as far as there are such."""
    drawn = [
        *[over_steps_panel] * any('bits/mean' in line for line in record.lines),
        *[signal_panel] * any(SIGNAL in line for line in record.lines),
        *[histogram_panel] * bool(np.isfinite(_of_blocks(bitwidths)).any()),
    ]
    figure, axes = plt.subplots(1, len(drawn), figsize=(4 * len(drawn), 3.6), squeeze=False, layout='constrained')
    for draw, panel in zip(drawn, axes[0]):
        draw(panel, bitwidths if draw is histogram_panel else record)
    return figure


def over_steps_panel(axes: Axes, record: RunRecord):
    """The mean over blocks, and how far they are apart."""
    ends = [('bits/min', 'bits/max', 0.15, 'least to largest'), ('bits/p10', 'bits/p90', 0.3, '10 % to 90 % of blocks')]
    for low, high, alpha, label in ends:
        (steps, lows), (_, highs) = series(record.lines, low), series(record.lines, high)
        if len(lows) and len(lows) == len(highs):
            axes.fill_between(steps, lows, highs, color=palette.BLUE, alpha=alpha, linewidth=0, label=label)
    axes.plot(*series(record.lines, 'bits/mean'), color=palette.BLUE, linewidth=1.6, label='mean')
    steps, stored = series(record.lines, 'bits/stored')
    if len(steps):
        axes.plot(steps, stored, '--', color=palette.VERMILION, label='of their formats, mean')
    axes.set(xlabel='step', ylabel='bits')
    axes.set_title('bitwidths of blocks', fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def signal_panel(axes: Axes, record: RunRecord):
    """Whether what the bitwidths learn from is more than noise."""
    axes.plot(*series(record.lines, SIGNAL), color=palette.BLUE, linewidth=1.4)
    axes.set(xlabel='step')
    axes.set_ylim(bottom=0)
    axes.set_title('signal to noise of their gradient', fontsize=10)


def histogram_panel(axes: Axes, bitwidths: Mapping[str, Any]):
    """How many blocks have which bitwidth, with the limits between formats."""
    values = _of_blocks(bitwidths)
    values = as_they_act(values[np.isfinite(values)].clip(0, LARGEST))
    bins, heights = np.unique(np.ceil(values * BINS), return_counts=True)
    axes.bar(bins / BINS, heights, -1 / BINS, align='edge', color=palette.SKY)
    low, high = _ends((bins[0] - 1) / BINS, bins[-1] / BINS)
    axes.set_xlim(low, high)
    limits = [limit for limit in range(3, 10) if low <= limit < high]
    for limit in limits:
        axes.axvline(limit, color=palette.GREY, linewidth=1, linestyle='--')
    for begin, end in zip([low, *limits], [*limits, high]):
        name = gq.format_for_bitwidth((begin + end) / 2).name
        place = dict(xycoords=('data', 'axes fraction'), ha='center', va='bottom', fontsize=8)
        if end - begin > 0.08 * (high - low):
            axes.annotate(name, ((begin + end) / 2, 0.96), **place)
    axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    axes.set(xlabel='bitwidth (bits)', ylabel='blocks')
    axes.set_title('blocks now, and their formats', fontsize=10)


def _of_blocks(bitwidths: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([[], *(np.asarray(blocks, float).ravel() for blocks in bitwidths.values())])


def _ends(low: float, high: float) -> tuple[float, float]:
    """Those of an axis with bars from `low` to `high`: wider, so that the formats at its ends have room for a name."""
    missing = max(2 / BINS, LEAST_RANGE - (high - low)) / 2
    first, last = math.floor(low) + 1, math.ceil(high) - 1  # limits beside the outermost bars
    room = 0.1 * max(high - low, LEAST_RANGE)
    begin, end = low - missing, high + missing
    if first < high:
        begin = min(begin, first - 1.5 * room)
    if last > low:
        end = max(end, last + 1.5 * room)
    return begin, end
