"""What a law says is best at each cost C = 6 N D: curves of equal cost, and the price at which a format pays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import UNKNOWN, human
from experiments.laws.page.axes import cost_text, digits, log_axis
from experiments.laws.page.curves import drawn_settings
from experiments.laws.page.residuals import origins
from experiments.laws.page.settings import Setting, groups_of, reference_inputs, stacked
from experiments.laws.studies import Study
from gaussq_jax.scaling_laws import optimal_training
from gaussq_jax.scaling_laws.optima import OPERATIONS

NUM_COSTS, NUM_SIZES = 33, 40  # of the slider, and of a curve of equal cost
BEYOND = 10.0  # the cost of the largest run, times which the slider goes
NEAR = 1.3  # times or divided by which a run's cost is shown at a cost
MOST_SETTINGS = 10
CHEAPEST, NUM_PRICES = 1e-3, 100  # the least price that is looked for, and how many costs are tried


def best_at(law: Any, C: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """N, D and loss of the best training at each cost, (3, settings, costs)."""
    best = optimal_training(law, np.asarray(C, float), **stacked(settings, 1))
    return np.stack([np.broadcast_to(each, (len(settings), np.size(C))) for each in best])


def worthwhile_prices(law: Any, C: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """The price, relative to an operation in BF16, below which a setting pays at each cost, (settings, costs).

    At this price its best loss is that of what is not quantized, at the same cost. 0 where there is none.
    """
    C = np.asarray(C, float)
    reference = optimal_training(law, C, **reference_inputs(law)).loss
    costs = np.geomspace(C.min() / 2, C.max() / CHEAPEST, NUM_PRICES)
    prices = np.empty((len(settings), C.size))
    for of_setting, losses in zip(prices, best_at(law, costs, settings)[2]):
        falling = np.minimum.accumulate(losses)[::-1]
        needed = np.exp(np.interp(reference, falling, np.log(costs)[::-1], left=np.inf))
        of_setting[:] = C / needed
    return prices


def equal_costs(study: Study, known: KnownLaw, settings: Sequence[Setting], compute: float) -> dict[str, Any] | str:
    """Curves of loss over N at equal cost, with the best N and D, for a slider of costs; or why there are none."""
    columns, law = study.table.columns, known.law
    of_runs = OPERATIONS * columns['N'] * columns['D']
    C = np.geomspace(of_runs.min(), max(BEYOND * of_runs.max(), compute), NUM_COSTS)
    start = int(np.argmin(np.abs(np.log(C / compute))))
    C[start] = compute
    shown = [settings[i] for i in drawn_settings(settings, max(1, MOST_SETTINGS // len(groups_of(settings))))]
    try:
        N, D, loss = known.value(lambda law: best_at(law, C, shown))
        has_prices = reference_inputs(law) is not None
        prices = known.value(lambda law: worthwhile_prices(law, C, shown)) if has_prices else None
    except ValueError as error:
        return str(error)
    if np.isnan(loss).all():
        return f'what is best is {known.says_unknown}'
    of_N = columns['N'].min(), columns['N'].max(), *N[np.isfinite(N)]
    axis = log_axis(min(of_N) / 1.5, max(of_N) * 1.5, 'N (weights of linear layers)')
    sizes = np.geomspace(*axis['domain'], NUM_SIZES)
    heights = law.loss(N=sizes, D=C[:, None] / (OPERATIONS * sizes), **stacked(shown, 2))
    heights = np.broadcast_to(heights, (len(shown), NUM_COSTS, NUM_SIZES))
    of_settings, names = [], origins(study)
    for s, setting in enumerate(shown):
        curve = {'name': setting.name, 'N': digits(N[s]), 'loss': digits(loss[s]), 'curves': digits(heights[s], 5)}
        curve['readout'] = [
            readout(setting, *amounts, None if prices is None else prices[s, k])
            for k, amounts in enumerate(zip(N[s], D[s], loss[s]))
        ]
        curve['points'] = []
        for i in np.flatnonzero(setting.mask):
            size, cost, of_run = columns['N'][i], of_runs[i], columns['loss'][i]
            text = f'{names[i]}\n{setting.run_text(size, columns["D"][i])}\nloss {of_run:.4f}'
            curve['points'].append({**dict(zip(('N', 'C', 'loss'), digits([size, cost, of_run]))), 'text': text})
        of_settings.append(curve)
    seen = columns['loss'][np.any([setting.mask for setting in shown], axis=0)]
    low, high = np.nanmin(loss, initial=seen.min()), seen.max()
    return {
        'costs': [
            {'value': value, 'label': f'C = {cost_text(value)}{beyond(value, of_runs)}{best}'}
            for value, best in zip(C.tolist(), best_settings(shown, loss))
        ],
        'start': start,
        'sizes': digits(sizes),
        'near': NEAR,
        'axis': axis,
        'domain': digits([low - 0.06 * (high - low), high + 0.06 * (high - low)]),
        'columns': ['setting', 'best N', 'best tokens', 'loss', *['pays below a price of'] * has_prices],
        'settings': of_settings,
    }


def readout(setting: Setting, N: float, D: float, loss: float, price: float | None) -> list[str]:
    """Cells of what is best."""
    cells = [UNKNOWN] * 3 if np.isnan(loss) else [human(N), human(D), f'{loss:.4f}']
    return [setting.name, *cells, *([] if price is None else [price_text(setting, price)])]


def price_text(setting: Setting, price: float) -> str:
    """The price below which a setting pays."""
    if setting.is_reference:
        return 'it is the reference'
    return UNKNOWN if np.isnan(price) else f'{min(price, 1.0):.3f}' if price > 0 else 'at no price'


def beyond(C: float, of_runs: np.ndarray) -> str:
    """How far a cost is beyond the runs."""
    return f' ({C / of_runs.max():.2g} times the largest run)' if 1.01 * of_runs.max() < C else ''


def best_settings(settings: Sequence[Setting], losses: np.ndarray) -> list[str]:
    """The setting of least loss at each cost, if there are several."""
    if len(settings) < 2:
        return [''] * losses.shape[1]
    least = np.argmin(np.nan_to_num(losses, nan=np.inf), axis=0)
    return ['' if np.isnan(losses[:, k]).all() else f': least loss in {settings[i].name}' for k, i in enumerate(least)]
