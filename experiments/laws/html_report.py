"""A table of runs and the scaling laws fitted to it, as one HTML file that needs no other."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

from experiments.laws import known_laws, studies
from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import UNKNOWN, block_name, format_name, human, value_text
from experiments.laws.studies import Study
from experiments.laws.training_plans import MOST_BITS
from experiments.reports import palette, pictures
from experiments.reports.html_page import heading, image, page, paragraph, table
from gaussq_jax.atomic_files import replace_file
from gaussq_jax.scaling_laws import BitwidthLaw, CapybaraLaw
from gaussq_jax.scaling_laws.capybara import COST_PER_BIT

STYLE = {**pictures.STYLE, 'svg.hashsalt': 'scaling laws'}
MOST_PANELS, MOST_CURVES, MOST_ROWS = 5, 6, 3
BITS_MARKED = (4, 8)

MODEL_AND_DATA = 'L = n / N<sup>alpha</sup> + d / D<sup>beta</sup> + epsilon + (D<sup>beta</sup> / N<sup>alpha</sup>)'
CAPYBARA = (
    f'{MODEL_AND_DATA} log<sub>2</sub>(B) / (gamma (E + ½)<sup>delta</sup> (M + ½)<sup>nu</sup>) is the loss of N'
    ' weights trained on D tokens where operands of the matrix products are floats of E exponent and M mantissa bits, B'
    ' of which share a scale: the Capybara law (arXiv 2501.02423).'
)
BITWIDTH = (
    f'{MODEL_AND_DATA} / (gamma b<sup>kappa</sup>) is the loss of N weights trained on D tokens with the noise of'
    ' rounding to b bits: the same law, where b stands for exponent and mantissa bits.'
)
LINES = (
    'Points are runs and lines the law, dotted where it extrapolates. A triangle marks D_crit, past which more tokens'
    ' raise the loss.'
)


class Curve(NamedTuple):
    """Runs that differ in N and D only, and what the law says of them."""

    label: str
    inputs: dict[str, Any]  # of the law, besides N and D
    mask: np.ndarray  # of the runs


def write(path: str, output: pathlib.Path, *, exclude_e0: bool = False, **how: str) -> dict[str, Any]:
    """Fits the laws that the runs serve, and writes the report; returns what it tells, as JSON has it.

    Runs that have a format are for the Capybara law, those with sampled weights for the bitwidth law.

    Args:
      path: of the table of runs.
      output: the HTML file.
      exclude_e0, **how: as for Study.of.

    Raises:
      ValueError: if neither can be fitted.
    """
    sections, data, reasons = [], {}, []
    for family in (CapybaraLaw, BitwidthLaw):
        try:
            study = Study.of(family, path, exclude_e0=exclude_e0 and family is CapybaraLaw, **how)
        except ValueError as error:
            reasons.append(error)
            continue
        known = known_laws.fitted(study.result, study.table)
        data[known.name] = study.describe()
        with plt.rc_context(STYLE):
            sections += law_section(study, known, data[known.name])
    if not data:
        raise reasons[0]
    title = f'Scaling laws of {pathlib.Path(path).name}'
    replace_file(output, page(title, sections))
    return data


def law_section(study: Study, known: KnownLaw, data: dict[str, Any]) -> list[str]:
    """What there is to see of the Capybara law, or of the bitwidth law."""
    of_formats = isinstance(known.law, CapybaraLaw)
    curves, blocks = capybara_curves(study) if of_formats else (bitwidth_curves(study), [None])
    parts = [
        heading('Floating-point quantized training' if of_formats else 'Sampled weights'),
        f'<p>{CAPYBARA if of_formats else BITWIDTH}</p>',
        *fit_section(study, data),
        *runs_section(study, curves, data['seed_noise']),
        heading('Loss and tokens', 3),
        paragraph(LINES),
    ]
    for block in blocks:
        of_block = [curve for curve in curves if curve.inputs.get('B') in (None, 1.0, block)]
        parts.append(loss_figure(study, known, of_block, block))
    parts += critical_table(study, known, curves)
    if of_formats:
        parts += [heading('The best layout of a number of bits', 3), *layout_figure(known)]
        parts += [heading('The best number of bits for a budget', 3), *precision_figure(study, known, blocks)]
    return parts


def capybara_curves(study: Study) -> tuple[list[Curve], list[Any]]:
    """A curve for each format and block size, the most precise format first; and the block sizes."""
    columns, law = study.table.columns, study.result.law
    settings = dict.fromkeys(zip(columns['E'].tolist(), columns['M'].tolist(), columns['B'].tolist()))
    curves = []
    for E, M, B in sorted(
        settings, key=lambda s: ((s[0] + 0.5) ** -law.delta * (s[1] + 0.5) ** -law.nu, *by_size(s[2]))
    ):
        mask = (columns['E'] == E) & (columns['M'] == M) & (columns['B'] == B)
        curves.append(Curve(format_name(int(E), int(M)), {'E': E, 'M': M, 'B': B}, mask))
    blocks = sorted({B for _, _, B in settings if B != 1}, key=by_size)
    return curves, pictures.evenly_chosen(blocks, MOST_ROWS)


def bitwidth_curves(study: Study) -> list[Curve]:
    """A curve for each bitwidth, the most bits first."""
    of_runs = study.table.columns['b']
    name = lambda b: 'not sampled' if np.isinf(b) else f'{b:g} bits'
    return [Curve(name(b), {'b': b}, of_runs == b) for b in np.unique(of_runs)[::-1]]


def by_size(block: float | str) -> tuple[bool, float | str]:
    """Sorts numbers before 'channel' and 'tensor'."""
    return isinstance(block, str), block


def fit_section(study: Study, data: dict[str, Any]) -> list[str]:
    """Constants, errors, rivals, noise."""
    methods = ', '.join(f'{number} {method}' for method, number in data['methods'].items())
    left_out = ', '.join(f'{number} {reason}' for reason, number in data['left_out'].items())
    told = f'{data["runs"]} runs' + f' ({methods})' * bool(methods) + f'; left out: {left_out}' * bool(left_out)
    told += f'; fitted by {data["objective"]}' * (data['objective'] != 'squares')
    residuals = f'The residuals are {data["rmse"]:.3g} nats (root mean square).'
    if noise := data['seed_noise']:
        residuals += (
            f' Seeds differ by {noise["standard_deviation"]:.3g} nats: the standard deviation over the seeds of'
            f' {noise["settings"]} settings, pooled, with {noise["degrees_of_freedom"]} degrees of freedom.'
        )
    else:
        residuals += ' No setting was run with several seeds: the noise is not known apart from them.'
    parts = [paragraph(f'{told}. {residuals}')]
    if data['undetermined']:
        names = ', '.join(data['undetermined'])
        parts.append(paragraph(f'These runs do not determine {names}: other values fit about as well.', 'warning'))
    parts += [heading('Constants', 3), table(*studies.constants_table(data))]
    parts.append(paragraph(f'Errors and intervals are {studies.errors_text(data)}.'))
    pairs = ', '.join(f'{one} and {other} {value:+.3f}' for one, other, value in data['correlations'])
    parts += [paragraph(f'The strongest correlations: {pairs}.')] * bool(pairs)
    parts.append(heading('Against other laws', 3))
    if isinstance(data['comparison'], str):
        return [*parts, paragraph(f'No errors on runs held out: {data["comparison"]}.')]
    about = (
        'Runs that were held out are predicted by the law fitted to the others; those of one N and D, or of one N, are'
        ' held out together. Errors are relative, root mean square. N is the harder: predictions of the least and the'
        ' largest extrapolate.'
    )
    header, rows = studies.comparison_table(data)
    return [*parts, *[paragraph(about)] * any('held out' in name for name in header), table(header, rows)]


def runs_section(study: Study, curves: Sequence[Curve], noise: dict[str, float] | None) -> list[str]:
    """Predicted against actual losses, and the residuals, which the seeds' noise would keep in a band."""
    columns, result = study.table.columns, study.result
    figure, (fit, tokens, weights) = plt.subplots(1, 3, figsize=(11, 4.2), layout='constrained')
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for i, label in enumerate(labels):
        mask = np.any([curve.mask for curve in curves if curve.label == label], axis=0)
        style = dict(linestyle='', markersize=5, alpha=0.8, label=label, **palette.look(i))
        fit.plot(result.predicted[mask], columns['loss'][mask], **style)
        tokens.plot(columns['D'][mask], result.residuals[mask], **style)
        weights.plot(columns['N'][mask], result.residuals[mask], **style)
    ends = columns['loss'].min(), columns['loss'].max()
    fit.plot(ends, ends, color=palette.GREY, linewidth=1, zorder=0)
    fit.set(xlabel='predicted loss (nats a token)', ylabel='loss (nats a token)', title='predicted and actual')
    tokens.set(xlabel='D (tokens)', ylabel='loss less prediction (nats)', title='residuals over tokens')
    weights.set(xlabel='N (weights of linear layers)', title='residuals over weights')
    for panel, name in ((tokens, 'D'), (weights, 'N')):
        panel.axhline(0, color=palette.GREY, linewidth=1, zorder=0)
        if noise:
            sigma = noise['standard_deviation']
            panel.axhspan(-sigma, sigma, color=palette.PALE, linewidth=0, zorder=0, label='± noise of the seeds')
        amounts(panel, columns[name])
    figure.legend(*tokens.get_legend_handles_labels(), loc='outside lower center', ncols=9, frameon=False)
    return [heading('Predicted and actual', 3), image(figure, 'losses against predictions, and residuals')]


def loss_figure(study: Study, known: KnownLaw, curves: Sequence[Curve], block: Any) -> str:
    """Loss over tokens: a panel a model size, a curve a format."""
    columns, law = study.table.columns, known.law
    curves = pictures.evenly_chosen(curves, MOST_CURVES)
    sizes = pictures.evenly_chosen(np.unique(columns['N']).tolist(), MOST_PANELS)
    low, high = known.ranges['D']
    critical = critical_sizes(law, curves, sizes)
    seen = critical[critical < 100 * high]
    D, lows = np.geomspace(low / 1.5, max(2 * high, 2 * seen.max(initial=0)), 120), []
    figure, panels = plt.subplots(
        *(1, len(sizes)), figsize=(max(4, 11 * len(sizes) / 4), 3.6), sharey=True, squeeze=False, layout='constrained'
    )
    for N, panel, turns in zip(sizes, panels[0], critical.T):
        for i, (curve, turn) in enumerate(zip(curves, turns)):
            loss = law.loss(N=N, D=D, **curve.inputs)
            style = palette.look(i)
            inside = (low <= D) & (high >= D)
            panel.plot(D, loss, ':', linewidth=1, color=style['color'])
            panel.plot(D[inside], loss[inside], linewidth=1.4, color=style['color'])
            here = curve.mask & (columns['N'] == N)
            points = columns['D'][here], columns['loss'][here]
            panel.plot(*points, linestyle='', markersize=5, label=curve.label, **style)
            if turn < D[-1]:
                panel.plot(turn, law.loss(N=N, D=turn, **curve.inputs), 'v', color='k', markersize=7, zorder=4)
        panel.set(xlabel='D (tokens)', title=f'N = {human(N)}')
        amounts(panel)
        lows.append(min(law.loss(N=N, D=np.minimum(turn, D[-1]), **curve.inputs) for curve, turn in zip(curves, turns)))
    margin = 0.08 * (columns['loss'].max() - min(lows))
    panel.set_ylim(min(lows) - margin, columns['loss'].max() + margin)
    figure.get_layout_engine().set(wspace=0.06)
    panels[0, 0].set_ylabel('loss (nats a token)')
    if block is not None:
        figure.suptitle(block_title(block), fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=9, frameon=False)
    return image(figure, f'loss over tokens, {block}')


def critical_sizes(law: Any, curves: Sequence[Curve], sizes: Sequence[float]) -> np.ndarray:
    """D_crit, (curves, sizes); infinite for what is not quantized."""
    rows = [law.critical_data_size(N=np.array(sizes), **curve.inputs) for curve in curves]
    return np.array(rows).reshape(len(curves), len(sizes))


def critical_table(study: Study, known: KnownLaw, curves: Sequence[Curve]) -> list[str]:
    """D_crit of the runs' formats and model sizes."""
    curves = [curve for curve in curves if curve.inputs.get('B') != 1 and curve.inputs.get('b') != np.inf]
    if not curves:
        return []
    sizes = pictures.evenly_chosen(np.unique(study.table.columns['N']).tolist(), MOST_PANELS)
    values = critical_sizes(known.law, curves, sizes)
    ends = known.interval(lambda law: critical_sizes(law, curves, sizes))
    rows = []
    for i, curve in enumerate(curves):
        cells = [value_text(value, None if ends is None else ends[:, i, j], human) for j, value in enumerate(values[i])]
        blocks = [block_name(curve.inputs['B'])] if 'B' in curve.inputs else []
        rows.append([', '.join([curve.label, *blocks]), *cells])
    most = human(known.ranges['D'][1])
    about = f'D_crit in tokens, with 95 % intervals; the runs go to {most}, and what is beyond is extrapolated.'
    return [paragraph(about), table(['', *(f'N = {human(N)}' for N in sizes)], rows)]


def layout_figure(known: KnownLaw) -> list[str]:
    """E and M over P: the best real ones as lines, the best whole ones as points."""
    P = np.arange(3, MOST_BITS + 1)
    best, whole = known.value(lambda law: law.optimal_layout(P)), known.value(lambda law: law.best_format(P))
    if np.isnan(whole).all():
        return [paragraph(f'The best format is {known.says_unknown}.', 'warning')]
    ends = known.interval(lambda law: np.array(law.optimal_layout(P)))
    figure, panel = plt.subplots(figsize=(7, 4), layout='constrained')
    for i, (name, real) in enumerate(zip(('exponent bits E', 'mantissa bits M'), best)):
        panel.plot(P, real, color=palette.color(i), label=f'{name}, best real number')
        if ends is not None:
            panel.fill_between(P, *ends[:, i], color=palette.color(i), alpha=0.2, linewidth=0)
        look = dict(markersize=8, markerfacecolor='none') if i == 0 else dict(markersize=4)  # both are seen where E = M
        panel.plot(P, whole[i], palette.MARKERS[i], color=palette.color(i), label=f'{name}, best whole number', **look)
    for bits, E, M in zip(P, *whole):
        if np.isnan(E):
            continue
        where = dict(xytext=(0, 8), textcoords='offset points', ha='center')
        panel.annotate(format_name(int(E), int(M)), (bits, max(E, M)), fontsize=8, **where)
    panel.set(xlabel='bits P = 1 + E + M', ylabel='bits', xticks=P)
    panel.legend(frameon=False)
    return [image(figure, 'best exponent and mantissa bits')]


def precision_figure(study: Study, known: KnownLaw, blocks: Sequence[Any]) -> list[str]:
    """The best P over C, a curve a block size, with its crossings of 4 and 8 bits."""
    columns = study.table.columns
    costs = COST_PER_BIT * columns['N'] * columns['D'] * (1 + columns['E'] + columns['M'])
    try:
        crossings = {block: [crossing(known.law, block, bits) for bits in BITS_MARKED] for block in blocks}
    except ValueError as error:
        return [paragraph(f'This law has no best number of bits: {error}.', 'warning')]
    if not blocks:
        return [paragraph('No runs are quantized.')]
    every = np.array([*np.ravel(list(crossings.values())), costs.min(), costs.max()])
    C = np.geomspace(max(every.min() / 30, 1e-3 * costs.min()), min(every.max() * 30, 1e25 * costs.max()), 200)
    figure, panel = plt.subplots(figsize=(7, 4), layout='constrained')
    panel.axvspan(costs.min(), costs.max(), color=palette.PALE, linewidth=0, label='the runs')
    for i, block in enumerate(blocks):
        best = lambda law, block=block: law.compute_optimal(C, block).P
        panel.plot(C, known.value(best), color=palette.color(i), label=block_title(block))
        ends = known.interval(best)
        if ends is not None:
            panel.fill_between(C, *ends, color=palette.color(i), alpha=0.2, linewidth=0)
    for bits in BITS_MARKED:
        panel.axhline(bits, color=palette.GREY, linewidth=1, linestyle='--')
        panel.annotate(f'{bits} bits', (C[0], bits), (2, 3), textcoords='offset points', fontsize=9)
    panel.set(xscale='log', xlabel='C = 6/16 N D P (operations, as 6 N D at 16 bits)', ylabel='best P (bits)')
    panel.set_ylim(0, min(20, max(10, panel.get_ylim()[1])))
    panel.legend(frameon=False)
    rows = []
    for block, values in crossings.items():
        ends = known.interval(lambda law, block=block: np.array([crossing(law, block, bits) for bits in BITS_MARKED]))
        cells = [
            value_text(value, None if ends is None else ends[:, i], '{:.2g}'.format) for i, value in enumerate(values)
        ]
        rows.append([block_name(block), *cells])
    is_open = any(cell == UNKNOWN for row in rows for cell in row)
    return [
        *[paragraph(f'The best number of bits is {known.says_unknown}.', 'warning')] * is_open,
        paragraph('N, D and P are all free. Bands are 95 % intervals; all but the grey is extrapolated.'),
        image(figure, 'best precision over compute'),
        table(['block', *(f'C at which {bits} bits are best' for bits in BITS_MARKED)], rows),
    ]


def crossing(law: CapybaraLaw, block: Any, bits: float) -> float:
    """C for which so many bits are best: ln P is linear in ln C."""
    one, other = (float(law.compute_optimal(C, block).P) for C in (1e10, 1e20))
    power = np.log10(bits / one) / np.log10(other / one)
    return 10.0 ** np.clip(10 + 10 * power, -300, 300)


def block_title(block: float | str) -> str:
    return f'a scale a {block}' if isinstance(block, str) else f'blocks of {block:g}'


def amounts(panel: Any, values: np.ndarray = ()):
    """A logarithmic axis of weights or tokens; if there are few values, they are its ticks."""
    panel.set_xscale('log')
    if 0 < len(ticks := np.unique(values)) <= MOST_PANELS:
        panel.set_xticks(ticks)
    panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    panel.xaxis.set_major_formatter(lambda value, _: human(value))
