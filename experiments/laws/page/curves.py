"""What a law says of loss over tokens, beside the runs: the gap to what is not quantized, or the loss itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import human
from experiments.laws.page.axes import cost_text, digits, log_axis
from experiments.laws.page.residuals import origins
from experiments.laws.page.settings import Setting, groups_of, input_names, reference_inputs, stacked
from experiments.laws.page.tables import critical_sizes
from experiments.laws.studies import Study
from experiments.reports.pictures import evenly_chosen
from gaussq_jax.scaling_laws.optima import OPERATIONS

MOST_PANELS, MOST_CURVES, NUM_POINTS = 6, 6, 32
FAR = 30.0  # times the most tokens of the runs, up to which D_crit is shown
LOSS, GAP = 'loss (nats a token)', 'loss less that of BF16 (nats)'


def token_curves(study: Study, known: KnownLaw, settings: Sequence[Setting], looks: dict[str, int]) -> dict[str, Any]:
    """Panels of curves and points over tokens and compute.

    By a law that knows precision: the gap to its loss of what is not quantized; by another, the loss. A panel a model
    size, and a curve a setting; or one panel, and a curve a model size, by a law that knows N and D alone.
    """
    sizes = np.unique(study.table.columns['N'])
    has_gap, by_size = reference_inputs(known.law) is not None, bool(input_names(known.law))
    drawn = drawn_settings(settings)
    chosen = evenly_chosen(sizes.tolist(), MOST_PANELS if by_size else MOST_CURVES)
    low, high = known.ranges['D']
    turns = known.value(lambda law: critical_sizes(law, settings, np.array(chosen)))
    near = turns[np.isfinite(turns) & (turns < FAR * high)]
    D = np.geomspace(low / 1.5, max(2 * high, 1.5 * near.max(initial=0)), NUM_POINTS)
    curves = [
        curve
        for i, N in enumerate(chosen)
        for curve in curves_of_size(known, settings, drawn, N, D, turns[:, i], looks, has_gap)
    ]
    points = run_points(study, known, settings, looks, has_gap)
    if not by_size:
        for each in (*curves, *points):
            is_chosen = each['N'] in chosen
            each['look'] = chosen.index(each['N']) if is_chosen else None
            each['label'] = f'N = {human(each["N"])}' if is_chosen else 'another N'
    if not curves or not points:
        return {'is_gap': has_gap, 'remark': f'The gap is {known.says_unknown}.' if has_gap else known.says_unknown}
    panels = [
        {
            'title': f'N = {human(N)}' if N else '',
            'curves': [curve for curve in curves if N in (None, curve['N'])],
            'points': [point for point in points if N in (None, point['N'])],
            'axes': {
                'D': log_axis(D[0], D[-1], 'D (tokens)'),
                'C': log_axis(
                    OPERATIONS * D[0] * (N or chosen[0]),
                    OPERATIONS * D[-1] * (N or chosen[-1]),
                    'C = 6 N D (operations)',
                    cost_text,
                ),
            },
        }
        for N in (chosen if by_size else [None])
    ]
    shown = [y for curve in curves for y, inside in zip(curve['y'], curve['inside']) if inside and y is not None]
    shown += [point['y'] for point in points] + [curve['turn']['y'] for curve in curves if curve['turn']]
    margin = 0.06 * (max(shown) - min(shown) or 1.0)
    return {
        'is_gap': has_gap,
        'remark': None,
        'title': GAP if has_gap else LOSS,
        'domain': digits([min(shown) - margin, max(shown) + margin]),
        'groups': groups_of(settings),
        'legend': legend(curves + points),
        'panels': panels,
        'has_bands': any(curve['band'] for curve in curves),
        'has_turns': any(curve['turn'] for curve in curves),
    }


def drawn_settings(settings: Sequence[Setting], most: int = MOST_CURVES) -> list[int]:
    """The places of the settings for which there is room, in each group; and of the reference."""
    drawn = []
    for group in groups_of(settings):
        places = [i for i, setting in enumerate(settings) if setting.group == group and not setting.is_reference]
        drawn += evenly_chosen(places, most)
    return sorted({*drawn, *(i for i, setting in enumerate(settings) if setting.is_reference or not setting.inputs)})


def curves_of_size(
    known: KnownLaw,
    settings: Sequence[Setting],
    drawn: Sequence[int],
    N: float,
    D: np.ndarray,
    turns: np.ndarray,
    looks: dict[str, int],
    has_gap: bool,
) -> list[dict[str, Any]]:
    """A curve a setting, with its 95 % interval where there is one, and where more tokens begin to hurt."""
    shown = [settings[i] for i in drawn]

    def heights(law, D=D):
        loss = law.loss(N=N, D=D, **stacked(shown, 1))
        loss = loss - law.loss(N=N, D=D, **reference_inputs(law)) if has_gap else loss
        return np.broadcast_to(loss, (len(shown), D.shape[-1]))

    values, ends = known.value(heights), known.interval(heights)
    of_turns = np.where(np.isfinite(turns[list(drawn)]), turns[list(drawn)], D[-1])[:, None]
    marked = known.value(lambda law: heights(law, of_turns))[:, 0]
    low, high = known.ranges['D']
    curves = []
    for j, (setting, y) in enumerate(zip(shown, values)):
        if (setting.is_reference and has_gap) or np.isnan(y).all():
            continue
        turn = float(of_turns[j, 0])
        is_seen = turn < D[-1] and np.isfinite(marked[j])
        curves.append(
            {
                'N': N,
                'label': setting.label,
                'group': setting.group,
                'look': looks[setting.label],
                'D': digits(D),
                'C': digits(OPERATIONS * N * D),
                'y': digits(y),
                'inside': ((low <= D) & (high >= D)).tolist(),
                'band': None if ends is None else digits(ends[:, j]),
                'turn': {
                    **dict(zip(('D', 'C', 'y'), digits([turn, OPERATIONS * N * turn, marked[j]]))),
                    'text': f'{setting.name}: past D_crit = {human(turn)} more tokens raise the loss',
                }
                if is_seen
                else None,
            }
        )
    return curves


def run_points(
    study: Study, known: KnownLaw, settings: Sequence[Setting], looks: dict[str, int], has_gap: bool
) -> list[dict[str, Any]]:
    """The runs, but those whose gap isn't known."""
    columns, points, names = study.table.columns, [], origins(study)
    heights = columns['loss']
    if has_gap:
        of_law = lambda law: law.loss(N=columns['N'], D=columns['D'], **reference_inputs(law))
        heights = heights - known.value(of_law)
    for setting in settings:
        for i in np.flatnonzero(setting.mask & np.isfinite(heights)):
            N, D, loss, y = (float(column[i]) for column in (columns['N'], columns['D'], columns['loss'], heights))
            text = f'{names[i]}\n{setting.run_text(N, D)}\nloss {loss:.4f}'
            text += f', {y:+.4f} to BF16 by the law' * has_gap
            look = {'look': looks[setting.label], 'label': setting.label, 'group': setting.group}
            points.append({'N': N, **dict(zip('DCy', digits([D, OPERATIONS * N * D, y]))), **look, 'text': text})
    return points


def legend(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The looks of what is shown, each once."""
    labels = {each['look']: each['label'] for each in shown if each['look'] is not None}
    return [{'look': look, 'label': labels[look] or 'all runs'} for look in sorted(labels)]
