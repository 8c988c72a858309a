"""What casting trained weights to few bits costs, over the seeds of each training: tables and a picture."""

import collections
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.reports import confidence, palette, pictures
from experiments.reports.markdown import markdown_table

UNQUANTIZED, LEARNED = 'bfloat16', 'learned'
EQUAL_SIZE = {'learned 6.25': 'float6_e3m2fn', 'learned 4.25': 'float4_e2m1fn'}


class Cast(NamedTuple):
    """The weights of a run, cast and evaluated; a row of cast_down.csv."""

    run: str
    method: str
    b_target: str  # empty where nothing is sampled
    format: str  # empty where the training has none
    seed: int
    step: int
    checkpoint: str  # SHA-256 of its manifest
    eval_batches: int  # -1 is the whole validation split
    cast: str  # the format's name, 'learned' or 'learned BUDGET'
    loss: float  # nats a token
    bits_per_byte: float
    stored_bits: float  # mean of the quantized weights, scales included
    file_bytes: int


class Training(NamedTuple):
    """Runs that differ in their seed only, by what their weights were cast to."""

    losses: dict[str, dict[int, float]]  # nats a token, by seed
    bits: dict[str, float]  # mean stored bits


def group(casts: Sequence[Cast]) -> dict[str, Training]:
    """The trainings by what is told of them, in the order of the casts.

    Raises:
      ValueError: for two runs that differ in nothing that is told; for trainings without a loss in BF16.
    """
    runs, losses, bits = {}, {}, {}
    for cast in casts:
        name = ' '.join(filter(None, (cast.method, cast.b_target, cast.format and short_name(cast.format))))
        if (key := (name, cast.cast, cast.seed)) in runs:
            raise ValueError(
                f'{runs[key]} and {cast.run} differ in something else than method, b_target, format and seed: cast them'
                ' down in a sweep of their own'
            )
        runs[key] = cast.run
        losses.setdefault(name, {}).setdefault(cast.cast, {})[cast.seed] = cast.loss
        bits.setdefault(name, {}).setdefault(cast.cast, []).append(cast.stored_bits)
    if lacking := [name for name, by_cast in losses.items() if UNQUANTIZED not in by_cast]:
        raise ValueError(f'{lacking[0]} has no loss in {UNQUANTIZED}, to which others are compared')
    means = lambda by_cast: {cast: float(np.mean(of_seeds)) for cast, of_seeds in by_cast.items()}
    return {name: Training(losses[name], means(bits[name])) for name in losses}


def markdown(trainings: dict[str, Training]) -> str:
    """Tables of the losses; of what the cast adds to each run's loss in BF16; of comparisons at equal size."""
    casts = list(dict.fromkeys(cast for training in trainings.values() for cast in training.losses))
    first, *_ = trainings
    others = {name: training for name, training in trainings.items() if name != first}

    unquantized = lambda training, _: training.losses[UNQUANTIZED]
    of_first = lambda _, cast: trainings[first].losses.get(EQUAL_SIZE.get(cast, cast), {})
    uniform = lambda training, cast: training.losses.get(EQUAL_SIZE[cast], {})
    interval_of = f'mean ± half the width of its {confidence.CONFIDENCE:.0%} confidence interval over the seeds'
    paired = 'seed by seed, in bold where the interval excludes 0'
    tables = {
        f'Validation loss in nats a token, {interval_of} (bits of a quantized weight, scales included)': (
            _loss_table(trainings, casts)
        ),
        f"What the cast adds to the loss of the same run's weights in BF16, {paired}": (
            _difference_table(trainings, [cast for cast in casts if cast != UNQUANTIZED], unquantized)
        ),
        f'The difference from {first} at the same size, {paired}': _difference_table(others, casts, of_first),
        f"The difference of learned formats from the same run's uniform format of that size, {paired}": (
            _difference_table(trainings, [cast for cast in casts if cast in EQUAL_SIZE], uniform)
        ),
    }
    return '\n\n'.join(f'{title}:\n\n{table}' for title, table in tables.items() if table)


def draw(trainings: dict[str, Training], output: pathlib.Path):
    """Left: loss over stored bits; right: what each cast adds, the smallest last. Learned formats are hollow."""
    with plt.rc_context(pictures.STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=[5, 7], layout='constrained')
        _draw_losses(panels[0], trainings)
        _draw_rises(panels[1], trainings)
        handles, labels = panels[0].get_legend_handles_labels()
        hollow = plt.Line2D([], [], color=palette.GREY, linestyle=':', marker='o', markerfacecolor='white')
        figure.legend(
            [*handles, hollow], [*labels, 'learned formats'], loc='outside lower center', ncols=8, frameon=False
        )
        pictures.save(figure, output)
        plt.close(figure)


def short_name(name: str) -> str:
    """'float6_e3m2fn' -> 'E3M2', 'e1m1' -> 'E1M1', 'bfloat16' -> 'BF16', 'learned 6.25' -> 'learned ≤ 6.25'."""
    if name == UNQUANTIZED:
        return 'BF16'
    if name.startswith('float'):
        return name.partition('_')[2].removesuffix('fn').upper()
    return name.replace('learned ', 'learned ≤ ') if _is_learned(name) else name.upper()


def _draw_losses(panel: plt.Axes, trainings: dict[str, Training]):
    """A curve a training over its uniform formats, and one over its learned ones."""
    for i, (name, training) in enumerate(trainings.items()):
        for is_learned, look in ((False, dict(linestyle='-', label=name)), (True, dict(linestyle=':'))):
            casts = [cast for cast in training.losses if _is_learned(cast) == is_learned]
            points = sorted((training.bits[cast], *_point([*training.losses[cast].values()])) for cast in casts)
            if points:
                bits, means, halves = np.array(points).T
                bits *= 2 ** _dodge(i, trainings, 0.2)  # side by side, for those that coincide
                panel.errorbar(bits, means, halves, **_style(i, is_learned), **look)
    ticks = {bits: short_name(cast) for cast, bits in training.bits.items() if not _is_learned(cast)}
    panel.set_xscale('log', base=2)
    panel.set_xticks(list(ticks), [f'{name}\n{bits:.4g}' for bits, name in ticks.items()])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    panel.set(xlabel='stored bits a weight, scales included', ylabel='nats a token', title='validation loss')


def _draw_rises(panel: plt.Axes, trainings: dict[str, Training]):
    """A column a cast, in it a point a training."""
    bits = collections.defaultdict(list)
    for cast, of_cast in itertools.chain(*(training.bits.items() for training in trainings.values())):
        bits[cast].append(of_cast)
    casts = sorted(set(bits) - {UNQUANTIZED}, key=lambda cast: (-np.mean(bits[cast]), _is_learned(cast)))
    ranges = {cast: dict.fromkeys(f'{value:.3g}' for value in (min(bits[cast]), max(bits[cast]))) for cast in casts}
    labels = [short_name(cast).partition(' ') for cast in casts]
    labels = [f'{name}\n{budget or "–".join(ranges[cast])}' for cast, (name, _, budget) in zip(casts, labels)]
    for i, training in enumerate(trainings.values()):
        for column, cast in enumerate(casts):
            if cast in training.losses:
                rises = confidence.paired_differences(training.losses[cast], training.losses[UNQUANTIZED])
                mean, half = _point(rises, scale=1000)
                place = column + _dodge(i, trainings, 0.7)
                panel.errorbar(place, mean, half, **_style(i, _is_learned(cast)))
    for column in range(len(casts) - 1):
        panel.axvline(column + 0.5, color=palette.PALE, linewidth=0.6)
    panel.axhline(0, color='black', linewidth=0.6)
    panel.set_xticks(range(len(casts)), labels)
    panel.tick_params(axis='x', length=0)
    panel.set_xlim(-0.5, len(casts) - 0.5)
    panel.grid(axis='y', alpha=0.3)
    panel.set_xlabel('stored bits a weight, scales included')
    panel.set(ylabel='thousandths of a nat a token', title="rise over the loss of the same run's weights in BF16")


def _point(values: Sequence[float], scale: float = 1) -> tuple[float, float]:
    """A mean and half the width of its interval, 0 where there is none."""
    mean, half_width = confidence.mean(values)
    return scale * mean, scale * (half_width or 0)


def _style(i: int, is_learned: bool) -> dict[str, object]:
    hollow = dict(markerfacecolor='white') if is_learned else {}
    return palette.look(i) | dict(markersize=5, linewidth=1.1, elinewidth=1, capsize=2) | hollow


def _dodge(i: int, trainings: dict[str, Training], width: float) -> float:
    """The place of the i-th training among all, of -width / 2 to width / 2."""
    return width * ((i + 0.5) / len(trainings) - 0.5)


def _is_learned(cast: str) -> bool:
    return cast.startswith(LEARNED)


def _loss_cell(losses: Sequence[float]) -> str:
    """Without a word on one seed: how many there are has a column of its own."""
    if len(losses) < 2:
        return ''.join(f'{loss:.4f}' for loss in losses)
    return confidence.mean(losses).text('.4f')


def _loss_table(trainings: dict[str, Training], casts: Sequence[str]) -> str:
    """A row a training, a column a cast; the bits stand in the header where all rows have the same."""
    header = ['training', 'seeds']
    rows = [[name, str(len(training.losses[UNQUANTIZED]))] for name, training in trainings.items()]
    for cast in casts:
        losses = [[*training.losses.get(cast, {}).values()] for training in trainings.values()]
        cells = [_loss_cell(of_seeds) for of_seeds in losses]
        bits = [f'{training.bits[cast]:.4g}' if cast in training.bits else '' for training in trainings.values()]
        same = len(set(filter(None, bits))) == 1
        header.append(short_name(cast) + (f' ({next(filter(None, bits))})' if same else ''))
        for row, cell, number in zip(rows, cells, bits):
            row.append(cell if same or not cell else f'{cell} ({number})')
    return _without_empty(header, rows)


def _difference_table(
    trainings: dict[str, Training], casts: Sequence[str], base: Callable[[Training, str], dict[int, float]]
) -> str:
    """A row a training, a column a cast: its losses less those of `base(training, cast)`, seed by seed."""
    rows = []
    for name, training in trainings.items():
        of_casts = [
            confidence.paired_differences(training.losses.get(cast, {}), base(training, cast)) for cast in casts
        ]
        rows.append([name, *(confidence.mean(each).marked_text('+.4f') if each else '' for each in of_casts)])
    return _without_empty(['training', *map(short_name, casts)], rows)


def _without_empty(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the rows and columns that have nothing in them; '' if all."""
    rows = [row for row in rows if any(row[1:])]
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    of_kept = lambda line: [line[i] for i in kept]
    return markdown_table(of_kept(header), list(map(of_kept, rows))) if rows else ''
