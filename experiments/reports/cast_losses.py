"""What casting trained weights to few bits costs, over the seeds of each training: tables and a picture."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.reports import confidence, palette, pictures
from experiments.reports.markdown import markdown_table

UNQUANTIZED = 'bfloat16'
ERROR, SENSITIVITY, LEARNED = 'error', 'sensitivity', 'learned'  # how formats are chosen; with a budget behind it
UNIFORM = 'one format'
EQUAL_SIZE = {6.25: 'float6_e3m2fn', 5.25: 'e2m2', 4.25: 'float4_e2m1fn'}  # budgets, and what takes as much
LOOKS = {UNIFORM: '-', ERROR: ':', SENSITIVITY: '--', LEARNED: '-'}


class Cast(NamedTuple):
    """The weights of a run, cast and evaluated; a row of cast_down.csv."""

    run: str
    N: int  # weights of the linear layers
    method: str
    bitwidths: str  # how they are learned; empty where they aren't
    b_target: str  # the same
    format: str  # empty where the training has none
    seed: int
    step: int
    checkpoint: str  # SHA-256 of its manifest
    eval_batches: int  # -1 is the whole validation split
    cast: str  # a format's name, 'learned', or how formats were chosen and the budget
    loss: float  # nats a token
    bits_per_byte: float
    stored_bits: float  # mean of the quantized weights, scales included
    file_bytes: int


class Training(NamedTuple):
    """Runs that differ in their seed only, by what their weights were cast to."""

    losses: dict[str, dict[int, float]]  # nats a token, by seed
    bits: dict[str, float]  # mean stored bits


def group(casts: Sequence[Cast]) -> dict[int, dict[str, Training]]:
    """By model size, the trainings by what is told of them, in the order of the casts.

    Raises:
      ValueError: for two runs that differ in nothing that is told; for trainings without a loss in BF16.
    """
    runs, losses, bits = {}, {}, {}
    for cast in casts:
        name = ' '.join(
            filter(None, (cast.method, cast.bitwidths, cast.b_target, cast.format and short_name(cast.format)))
        )
        if (key := (cast.N, name, cast.cast, cast.seed)) in runs:
            raise ValueError(
                f'{runs[key]} and {cast.run} differ in something else than N, method, bitwidths, b_target, format and'
                ' seed: cast them down in a sweep of their own'
            )
        runs[key] = cast.run
        losses.setdefault((cast.N, name), {}).setdefault(cast.cast, {})[cast.seed] = cast.loss
        bits.setdefault((cast.N, name), {}).setdefault(cast.cast, []).append(cast.stored_bits)
    sizes = {}
    for (N, name), by_cast in losses.items():
        if UNQUANTIZED not in by_cast:
            raise ValueError(f'{name} has no loss in {UNQUANTIZED}, to which others are compared')
        mean_bits = {cast: float(np.mean(of_seeds)) for cast, of_seeds in bits[N, name].items()}
        sizes.setdefault(N, {})[name] = Training(by_cast, mean_bits)
    return sizes


def kind(cast: str) -> str:
    """How the formats of a cast were chosen: one of `LOOKS`."""
    first = cast.partition(' ')[0]
    return first if first in LOOKS else UNIFORM


def markdown(sizes: dict[int, dict[str, Training]]) -> str:
    """Tables of each model size: losses, what a cast adds, and learned formats beside their rivals."""
    return '\n\n'.join(f'N = {N:,}\n\n{_tables(trainings)}' for N, trainings in sizes.items())


def draw(sizes: dict[int, dict[str, Training]], output: pathlib.Path):
    """A column a model size. Above, the loss added to that of the first training in BF16; below, to a run's own.

    Of the first training all kinds of casts are shown, of the others what was learned, or else one format for all.
    """
    with plt.rc_context(pictures.STYLE):
        figure, panels = plt.subplots(
            *(2, len(sizes)), figsize=(1 + 5 * len(sizes), 8), squeeze=False, sharex=True, layout='constrained'
        )
        for (N, trainings), (above, below) in zip(sizes.items(), panels.T):
            first, *_ = trainings.values()
            _draw_losses(above, trainings, lambda _, first=first: first.losses[UNQUANTIZED])
            _draw_losses(below, trainings, lambda training: training.losses[UNQUANTIZED])
            above.set_title(f'N = {N:,}', fontsize=10)
            below.set_xlabel('stored bits a weight, scales included')
        panels[0, 0].set_ylabel(f'nats above {next(iter(trainings))} in BF16, same seed')
        panels[1, 0].set_ylabel('nats above the same run in BF16')
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False)
        pictures.save(figure, output)
        plt.close(figure)


def short_name(name: str) -> str:
    """'float6_e3m2fn' -> 'E3M2', 'e1m1' -> 'E1M1', 'bfloat16' -> 'BF16', 'learned 6.25' -> 'learned ≤ 6.25'."""
    if name == UNQUANTIZED:
        return 'BF16'
    if name.startswith('float'):
        return name.partition('_')[2].removesuffix('fn').upper()
    return name.upper() if kind(name) == UNIFORM else name.replace(' ', ' ≤ ')


def _tables(trainings: dict[str, Training]) -> str:
    casts = list(dict.fromkeys(cast for training in trainings.values() for cast in training.losses))
    first, *_ = trainings
    others = {name: training for name, training in trainings.items() if name != first}
    unquantized = lambda training, _: training.losses[UNQUANTIZED]
    of_first = lambda _, cast: trainings[first].losses.get(cast, {})
    learned = [cast for cast in casts if kind(cast) == LEARNED and cast != LEARNED]
    bound = {  # where learned formats are really of that size
        name: training._replace(
            losses={c: x for c, x in training.losses.items() if training.bits[c] > _budget(c) - 0.25}
        )
        for name, training in trainings.items()
    }
    interval_of = f'mean ± half the width of its {confidence.CONFIDENCE:.0%} confidence interval over the seeds'
    paired = 'seed by seed, in bold where the interval excludes 0'
    tables = {
        f'Validation loss in nats a token, {interval_of} (bits of a quantized weight, scales included)': (
            _loss_table(trainings, casts)
        ),
        f"What the cast adds to the loss of the same run's weights in BF16, {paired}": (
            _difference_table(trainings, [cast for cast in casts if cast != UNQUANTIZED], unquantized)
        ),
        f'The difference from {first} after the same cast, {paired}': _difference_table(others, casts, of_first),
    }
    rivals = {'one format of that size': lambda budget: EQUAL_SIZE.get(budget, '')}
    rivals |= {f'formats by {how}': lambda budget, how=how: f'{how} {budget:g}' for how in (ERROR, SENSITIVITY)}
    for what, rival in rivals.items():
        of = lambda training, cast, rival=rival: training.losses.get(rival(_budget(cast)), {})
        of_reference = lambda _, cast, of=of: of(trainings[first], cast)
        title = f'The difference of learned formats from {what}'
        tables[f'{title} of the same run, {paired}'] = _difference_table(bound, learned, of)
        tables[f'{title} of {first}, {paired}'] = _difference_table(bound, learned, of_reference)
    return '\n\n'.join(f'{title}:\n\n{table}' for title, table in tables.items() if table)


def _budget(cast: str) -> float:
    """Of learned and chosen formats; 0 where there is none."""
    return float(cast.partition(' ')[2] or 0)


def _draw_losses(panel: plt.Axes, trainings: dict[str, Training], base: Callable[[Training], dict[int, float]]):
    """A curve a training and kind of cast, of what is narrower than BF16."""
    for i, (name, training) in enumerate(trainings.items()):
        kinds = {kind(cast) for cast in training.losses if cast != UNQUANTIZED}
        shown = LOOKS if i == 0 else [LEARNED if LEARNED in kinds else UNIFORM]
        for of_kind in (of_kind for of_kind in LOOKS if of_kind in kinds and of_kind in shown):
            points = []
            for cast, losses in training.losses.items():
                if kind(cast) == of_kind and cast != UNQUANTIZED:
                    rise = confidence.mean(confidence.paired_differences(losses, base(training)))
                    points.append((training.bits[cast], rise.value, rise.half_width or 0))
            bits, means, halves = np.array(sorted(points)).T
            look = palette.look(i) | dict(linestyle=LOOKS[of_kind], label=f'{name}, {of_kind}')
            look |= dict(markerfacecolor='white') if of_kind in (ERROR, SENSITIVITY) else {}
            panel.errorbar(bits, means, halves, markersize=5, linewidth=1.1, elinewidth=1, capsize=2, **look)
    panel.axhline(0, color='black', linewidth=0.6)
    panel.grid(alpha=0.3)


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
