"""Pictures of runs from their metrics: losses, learned bitwidths, and how far runs are from those in bf16."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.reports import heat_maps, palette
from experiments.reports.pictures import plain
from experiments.reports.run_records import (
    BitwidthHistory,
    RunRecord,
    SeedGroup,
    base_of,
    bitwidth_history,
    curves_of,
    gaps_to,
    group_by_seed,
    has_bitwidths_by_matrix,
    mean_and_range,
)

STYLES = ('-', '--', ':', '-.')  # runs that coincide stay visible
BITS = 'mean bitwidth (bits)'
LEAST_SPAN = 0.5  # bits, of the colours of bitwidths
MOST_ROWS = 40  # of matrices and layers that are high enough for a line between matrices


PANELS = ('bits', 'loss', 'gap')  # of `runs_figure`


def runs_figure(records: Sequence[RunRecord], panels: Sequence[str] = ()) -> Figure:
    """Loss over steps; the learned bitwidths; and the gap to the runs in bf16, if there are such; or these panels only.

    Runs that differ in their seed only are one curve, their mean, on a band from the least of them to the largest. The
    bitwidths are a heat map, of layers by matrices at the last step, of the first run that wrote them; where none did,
    the mean bitwidth over steps. The gap is that of the validation loss, in percent, paired by seed.

    Raises:
      ValueError: for a run without a training loss; for panels that are asked for and can't be had.
    """
    for record in records:
        if not any('train/loss' in line for line in record.lines):
            raise ValueError(f'{record.name} has no training loss in its metrics.jsonl')
    groups = group_by_seed(records)
    looks = {group.label: (palette.color(i), STYLES[i % len(STYLES)]) for i, group in enumerate(groups)}
    mapped = next((record for record in records if has_bitwidths_by_matrix(record)), None)
    gaps = {}
    for group in groups:
        if (base := base_of(group, groups)) and (curves := gaps_to(group, base, 'validation/loss')):
            gaps[group.label] = curves
    learned = any('bits/mean' in line for record in records for line in record.lines)
    found = ['loss', *['bits'] * learned, *['gap'] * bool(gaps)]
    if mapped:
        found = ['bits', 'loss', *found[2:]]
    if lacking := [panel for panel in panels if panel not in found]:
        raise ValueError(
            f'--panels={",".join(panels)}: of {lacking[0]!r} there is nothing; there is {", ".join(found)}'
        )
    panels = [panel for panel in found if panel in panels or not panels]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), squeeze=False, layout='constrained')
    axes = dict(zip(panels, axes[0]))
    if 'loss' in axes:
        loss_panel(axes['loss'], groups, looks)
    if 'bits' in axes and mapped:
        history = bitwidth_history(mapped)
        norm = heat_maps.scale(history.bits[..., -1].flat, least_span=LEAST_SPAN)
        mesh = heat_maps.draw_layers(axes['bits'], history.bits[..., -1], history.names, norm)
        heat_maps.color_bar(mesh, axes['bits'], '')
        axes['bits'].set_title(f'mean bits of {plain(mapped.name)}, step {history.steps[-1]:,.0f}', fontsize=10)
    elif 'bits' in axes:
        mean_bits_panel(axes['bits'], groups, looks)
    if 'gap' in axes:
        gap_panel(axes['gap'], gaps, looks)
    return figure


def bitwidths_figure(records: Sequence[RunRecord]) -> Figure:
    """A row a run: its mean bitwidths at its last step, layers by matrices, and how they came to it; one colour bar.

    Raises:
      ValueError: naming the run, for one that learned none or didn't write them; as `bitwidth_history`.
    """
    histories = [bitwidth_history(record) for record in records]
    norm = heat_maps.scale((value for history in histories for value in history.bits.flat), least_span=LEAST_SPAN)
    heights = [1.0 + 0.32 * min(max(len(history.names), 4), 20) for history in histories]
    figure, axes = plt.subplots(
        *(len(records), 2),
        figsize=(11, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout='constrained',
    )
    for record, history, (now, over_steps) in zip(records, histories, axes):
        mesh = heat_maps.draw_layers(now, history.bits[..., -1], history.names, norm)
        now.set_title(f'{plain(record.name)}, step {history.steps[-1]:,.0f}', fontsize=10)
        history_panel(over_steps, history, norm)
    heat_maps.color_bar(mesh, list(axes.flat), BITS)
    return figure


def history_panel(axes: Axes, history: BitwidthHistory, norm: Normalize):
    """A heat map of mean bitwidths over steps: a group of rows a matrix, in it a row a layer, the first at the top."""
    num_matrices, num_layers, _ = history.bits.shape
    rows = history.bits.reshape(num_matrices * num_layers, -1)
    heat_maps.draw_cells(axes, heat_maps.edges_between(history.steps), rows, norm)
    heat_maps.name_rows(axes, history.names, rows_of_each=num_layers)
    for i in range(1, num_matrices):
        axes.axhline(num_layers * i - 0.5, color='white', linewidth=1.2 if len(rows) <= MOST_ROWS else 0.8)
    axes.set_xlabel('step')
    layers = f', layers 0 to {num_layers - 1} from top to bottom' if num_layers > 1 else ''
    axes.set_title(f'over steps{layers}', fontsize=10)


def loss_panel(axes: Axes, groups: Sequence[SeedGroup], looks: dict[str, Any]):
    """Training losses as thin lines, validation losses as points; the legend has the last validation loss."""
    last, has_band = last_step(groups, 'validation/loss'), False
    for group in groups:
        color, style = looks[group.label]
        steps, mean, _, _ = mean_and_range(curves_of(group, 'train/loss'))
        axes.plot(steps, mean, color=color, alpha=0.35, linewidth=0.9)
        curves = curves_of(group, 'validation/loss')
        steps, mean, low, high = mean_and_range(curves)
        label = plain(group.label) + (f': {mean[-1]:.3f}{at_step(steps, last)}' if len(mean) else '')
        label += f' (mean of {len(curves)} seeds)' if len(curves) > 1 else ''
        axes.plot(steps, mean, style, color=color, marker='o', markersize=4, linewidth=1.6, label=label)
        if len(curves) > 1:
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            has_band = True
    axes.set(xlabel='step', ylabel='loss (nats a token)', yscale='log')
    axes.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter('%g'))
    band = ',\non a band from the least to the largest of the seeds' if has_band else ''
    axes.set_title(f'training (thin), validation without noise (points){band}', fontsize=10)
    axes.legend(frameon=False, title='validation at the end', alignment='left', fontsize=9)


def mean_bits_panel(axes: Axes, groups: Sequence[SeedGroup], looks: dict[str, Any]):
    """The mean bitwidth over all blocks, of the runs that learn bitwidths."""
    for group in groups:
        color, style = looks[group.label]
        steps, mean, low, high = mean_and_range(curves_of(group, 'bits/mean'))
        axes.plot(steps, mean, style, color=color, linewidth=1.6)
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel='step', ylabel=BITS)
    axes.set_title('learned bitwidths', fontsize=10)


def gap_panel(axes: Axes, gaps: dict[str, list[tuple[np.ndarray, np.ndarray]]], looks: dict[str, Any]):
    """How far validation losses are above those in bf16, in percent, seed by seed: their mean, and their range."""
    axes.axhline(0, color=palette.GREY, linewidth=1, zorder=0)
    last = max(steps[-1] for curves in gaps.values() for steps, _ in curves)
    most = max(len(curves) for curves in gaps.values())
    for label, curves in gaps.items():
        color, style = looks[label]
        steps, mean, low, high = mean_and_range(curves)
        told = plain(label) + (f': {_signed(mean[-1])} %{at_step(steps, last)}' if len(mean) else '')
        if len(curves) > 1 and len(mean):
            told += f' ({_signed(low[-1])} to {_signed(high[-1])}, {len(curves)} seeds)'
        elif most > 1:
            told += ' (one seed)' if len(curves) == 1 else ''
        axes.plot(steps, mean, style, color=color, marker='o', markersize=4, linewidth=1.6, label=told)
        if len(curves) > 1:
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel='step', ylabel='validation loss against bf16 (%)')
    seeds = ', mean and range of the seeds' if most > 1 else ', one seed'
    axes.set_title(f'gap to bf16{seeds}', fontsize=10)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (0.1 + 0.07 * len(gaps)) * (high - low))  # room for the legend
    axes.legend(frameon=False, title='at the end', alignment='left', fontsize=9, loc='upper right')


def last_step(groups: Sequence[SeedGroup], metric: str) -> float:
    """The last of any run that has the metric; 0 if none has."""
    return max((steps[-1] for group in groups for steps, _ in curves_of(group, metric)), default=0)


def at_step(steps: np.ndarray, last: float) -> str:
    """Where a curve ends, if others, or other seeds of its own, go on."""
    return '' if steps[-1] == last else f' at step {steps[-1]:,.0f}'


def _signed(value: float) -> str:
    return f'{value:+.2f}'.replace('-', '−')
