"""What to train, how sure that is, and what isn't known: in sentences, before all else."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import UNKNOWN, human, interval_text, value_text
from experiments.laws.page.axes import cost_text
from experiments.laws.page.budgets import best_at, price_text, worthwhile_prices
from experiments.laws.page.settings import Setting, reference_inputs
from experiments.laws.page.tables import cell, number, priced_options, table
from experiments.laws.studies import Study
from experiments.reports.pictures import evenly_chosen
from gaussq_jax.scaling_laws.optima import OPERATIONS

SLIGHTLY = 2.0  # times the largest run: the budget, if none is given
MOST_OPTIONS = 12
MOST_NAMES = 5
FAR = 10.0  # times beyond the runs, from where a plan is no more than a guess
BIG_MISFIT = 2.0  # times the noise of the seeds


def default_compute(study: Study) -> float:
    """A cost slightly beyond that of the largest run, with two digits."""
    columns = study.table.columns
    return float(f'{SLIGHTLY * OPERATIONS * np.max(columns["N"] * columns["D"]):.2g}')


def verdict(
    study: Study,
    known: KnownLaw,
    settings: Sequence[Setting],
    compute: float,
    residuals: dict[str, Any],
    prices: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Sentences of what to train, of how sure, and of what isn't known; and a table of the options."""
    train, sure, options, best = plan(known, settings, compute)
    train += hardware_sentences(prices)
    unknown = []
    if known.undetermined:
        names = ', '.join(known.undetermined)
        unknown.append(f'These runs do not determine {names}: other values fit about as well.')
    if best:
        unknown += [sentence(remark) for remark in known.remarks(**best) if remark.startswith('extrapolated')]
    unknown += residuals['remarks']
    unknown += unpriced(prices)
    unknown += coverage(study, known, settings)
    return {'train': train, 'sure': [*sure, *fit_sentences(study, residuals)], 'unknown': unknown, 'options': options}


def plan(known: KnownLaw, settings: Sequence[Setting], compute: float):
    """What to train for a cost: sentences, how sure, a table of all settings, and N and D."""
    budget = f'For C = {cost_text(compute)} operations (6 N D)'
    try:
        values = known.value(lambda law: best_at(law, [compute], settings)[..., 0])
    except ValueError as error:
        return [f'{budget}, no plan follows from the law: {error}.'], [], None, None
    if np.isnan(values).all():
        return [f'{budget}, what to train is {known.says_unknown}.'], [], None, None
    ends = known.interval(lambda law: best_at(law, [compute], settings)[..., 0])
    i = int(np.nanargmin(values[2]))
    N, D, loss = values[:, i].tolist()
    what = f' ({settings[i].name})' * bool(settings[i].inputs)
    train = [
        f'{budget}, train N = {human(N)} weights on D = {human(D)} tokens{what}: a loss of {loss:.4f} nats a token.'
    ]
    if (far := distance(known, N=N, D=D)) > FAR:
        train.append(f'That is {far:,.0f} times beyond the runs behind the law: do not rely on it.')
    if len(settings) > 1:
        train.append('That is the least loss if an operation costs the same in every setting.')
    if ends is None:
        sure = ['How sure that is, is not known: the law has no intervals here.']
    else:
        of_N, of_D, of_loss = (
            interval_text(ends[:, k, i], write) for k, write in enumerate((human, human, '{:.4f}'.format))
        )
        sure = [f'95 % intervals: N {of_N}, D {of_D}, the loss {of_loss}.']
        of_run = known.prediction_interval(lambda law: law.loss(N=N, D=D, **settings[i].inputs))
        if of_run is not None:
            sure.append(f'The loss of one run of this N and D: {interval_text(of_run, "{:.4f}".format)} (95 %).')
        sure.append(sentence(known.says_assumed))
    return train, sure, options_table(known, settings, compute, values, ends), {'N': N, 'D': D}


def distance(known: KnownLaw, **amounts: float) -> float:
    """How many times N or D, whichever is farther, is beyond those of the runs behind the law."""
    return max(max(value / known.ranges[name][1], known.ranges[name][0] / value) for name, value in amounts.items())


def hardware_sentences(prices: Sequence[dict[str, Any]]) -> list[str]:
    """What is best at the prices of each hardware, if there is anything to choose between."""
    best, there = {}, {}
    for row in prices:
        if row['loss'] is not None and row['hardware'] != 'ideal':
            there.setdefault(row['option'])
            least = best.setdefault(row['hardware'], row)
            best[row['hardware']] = min(least, row, key=lambda row: row['loss'])
    if len(there) < 2:
        return []
    devices = {}
    for hardware, row in best.items():
        devices.setdefault(row['option'], []).append(hardware)
    told = '; '.join(f'{option} on {", ".join(names)}' for option, names in devices.items())
    everywhere = f'At the prices of hardware {next(iter(devices))} is best on all of it.'
    return [everywhere if len(devices) == 1 else f'At the prices of hardware, the best is {told}.']


def unpriced(prices: Sequence[dict[str, Any]]) -> list[str]:
    """Why some of what could be trained isn't in the plan against hardware."""
    priced = priced_options(prices)
    without = (row for row in prices if row['option'] not in priced and row['hardware'] != 'ideal')
    reasons = list(dict.fromkeys(row['note'].replace(f' of {row["hardware"]}', '') for row in without))
    if not reasons:
        return []
    more = f'; and {len(reasons) - MOST_NAMES} more' * (len(reasons) > MOST_NAMES)
    return [f'Not all has a price on hardware: {"; ".join(reasons[:MOST_NAMES])}{more}.']


def options_table(known: KnownLaw, settings: Sequence[Setting], compute: float, values: np.ndarray, ends):
    """The best training in each setting, at this cost."""
    if len(settings) < 2:
        return None
    has_reference = reference_inputs(known.law) is not None
    if has_reference:
        prices = known.value(lambda law: worthwhile_prices(law, np.array([compute]), settings)[:, 0])
    rows = []
    for i in evenly_chosen(range(len(settings)), MOST_OPTIONS):
        N, D, loss = values[:, i].tolist()
        text = value_text(loss, None if ends is None else ends[:, 2, i], '{:.4f}'.format)
        cells = [cell(settings[i].name), number(N), number(D), cell(UNKNOWN if math.isnan(loss) else text, loss)]
        rows.append([*cells, *([cell(price_text(settings[i], prices[i]), prices[i])] if has_reference else [])])
    loss = 'loss' if ends is None else 'loss (95 %)'
    rows.sort(key=lambda row: row[3].get('sort', math.inf))
    return table(['setting', 'best N', 'best tokens', loss, *['pays below a price of'] * has_reference], rows)


def fit_sentences(study: Study, residuals: dict[str, Any]) -> list[str]:
    """How well the law fits."""
    rmse, noise = study.result.rmse, residuals['noise']
    if not noise:
        told = f'The residuals are {rmse:.3g} nats (root mean square); no setting in the table has several seeds.'
        return [f'{told} The noise is not known apart from them.']
    told = f'The residuals are {rmse:.3g} nats (root mean square); seeds differ by {noise:.3g} nats.'
    if rmse > BIG_MISFIT * noise:
        return [f'{told} So the law misses something that is {rmse / noise:.2g} times the noise.']
    return [told]


def coverage(study: Study, known: KnownLaw, settings: Sequence[Setting]) -> list[str]:
    """What the runs don't show."""
    told = []
    for name, one, several in (('N', 'model size', 'model sizes'), ('D', 'number of tokens', 'numbers of tokens')):
        if (number := len(np.unique(study.table.columns[name]))) < 3:
            few = f'{number} {one if number == 1 else several}'
            told.append(f'The runs have only {few}: little shows how the loss goes with {name}.')
    if reference_inputs(known.law) is not None and not any(setting.is_reference for setting in settings):
        told.append('No run of the table is in BF16: gaps are to what the law says of it.')
    return told


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f'{text[:1].upper()}{text[1:]}.' if text else ''
