"""What the Capybara law says of bits: the best layout of so many, and the best number of them for a cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import UNKNOWN, block_name, format_name, value_text
from experiments.laws.page.axes import cost_text, digits, log_axis
from experiments.laws.page.settings import Setting, block_title, blocks_of
from experiments.laws.page.tables import cell, table
from experiments.laws.plans.precisions import MOST_BITS
from experiments.laws.studies import Study
from experiments.reports.pictures import evenly_chosen
from gaussq_jax.scaling_laws import CapybaraLaw
from gaussq_jax.scaling_laws.capybara import COST_PER_BIT

BITS_MARKED = (4, 8)
MOST_BLOCKS, NUM_COSTS, HIGHEST = 3, 60, 20


def best_bits(study: Study, known: KnownLaw, settings: Sequence[Setting]) -> dict[str, Any] | None:
    """Charts of both, and a table of the costs at which 4 and 8 bits are best; None by other laws."""
    if not isinstance(known.law, CapybaraLaw):
        return None
    blocks = evenly_chosen(blocks_of(settings), MOST_BLOCKS)
    return {'layout': layout(known), 'precision': precision(study, known, blocks)}


def layout(known: KnownLaw) -> dict[str, Any]:
    """E and M over P: the best real ones as lines, the best whole ones as points."""
    P = np.arange(3, MOST_BITS + 1)
    real, whole = known.value(lambda law: law.optimal_layout(P)), known.value(lambda law: law.best_format(P))
    if np.isnan(whole).all():
        return {'remark': f'The best format is {known.says_unknown}.', 'curves': []}
    ends = known.interval(lambda law: np.array(law.optimal_layout(P)))
    curves = [
        {
            'label': name,
            'look': i,
            'x': P.tolist(),
            'y': digits(real[i]),
            'band': None if ends is None else digits(ends[:, i]),
            'points': [
                {'x': bits, 'y': value, 'text': f'{bits} bits: {format_name(int(E), int(M))} is the best format'}
                for bits, value, E, M in zip(P.tolist(), whole[i].tolist(), *whole)
                if np.isfinite(value)
            ],
        }
        for i, name in enumerate(('exponent bits E', 'mantissa bits M'))
    ]
    formats = [UNKNOWN if np.isnan(E) else format_name(int(E), int(M)) for E, M in whole.T]
    rows = [[cell(str(bits), bits), cell(name)] for bits, name in zip(P, formats)]
    return {'remark': None, 'curves': curves, 'table': table(['bits', 'best format'], rows)}


def precision(study: Study, known: KnownLaw, blocks: Sequence[Any]) -> dict[str, Any]:
    """The best P over C, a curve a block size, with its crossings of 4 and 8 bits."""
    columns = study.table.columns
    costs = COST_PER_BIT * columns['N'] * columns['D'] * (1 + columns['E'] + columns['M'])
    try:
        crossings = {block: [crossing(known.law, block, bits) for bits in BITS_MARKED] for block in blocks}
    except ValueError as error:
        return {'remark': f'This law has no best number of bits: {error}.', 'curves': []}
    if not blocks:
        return {'remark': 'No runs are quantized.', 'curves': []}
    every = np.array([*np.ravel(list(crossings.values())), costs.min(), costs.max()])
    C = np.geomspace(max(every.min() / 30, 1e-3 * costs.min()), min(every.max() * 30, 1e25 * costs.max()), NUM_COSTS)
    curves, rows = [], []
    for i, (block, values) in enumerate(crossings.items()):
        best = lambda law, block=block: law.compute_optimal(C, block).P
        ends = known.interval(best)
        band = None if ends is None else digits(ends)
        curve = {'label': block_title(block), 'look': i, 'x': digits(C), 'y': digits(known.value(best)), 'band': band}
        curves.append(curve | {'points': []})
        ends = known.interval(lambda law, block=block: np.array([crossing(law, block, bits) for bits in BITS_MARKED]))
        cells = [
            cell(value_text(value, None if ends is None else ends[:, j], '{:.2g}'.format), value)
            for j, value in enumerate(values)
        ]
        rows.append([cell(block_name(block)), *cells])
    is_open = any(each['text'] == UNKNOWN for row in rows for each in row)
    heights = [y for curve in curves for y in curve['y'] if y is not None]
    return {
        'remark': f'The best number of bits is {known.says_unknown}.' if is_open else None,
        'curves': curves if heights else [],
        'axis': log_axis(C[0], C[-1], 'C = 6/16 N D P (operations, as 6 N D at 16 bits)', cost_text),
        'domain': [0, min(HIGHEST, max([10, *heights]))],
        'marked': list(BITS_MARKED),
        'runs': digits([costs.min(), costs.max()]),
        'table': table(['block', *(f'C at which {bits} bits are best' for bits in BITS_MARKED)], rows),
    }


def crossing(law: CapybaraLaw, block: Any, bits: float) -> float:
    """C for which so many bits are best: ln P is linear in ln C."""
    one, other = (float(law.compute_optimal(C, block).P) for C in (1e10, 1e20))
    power = np.log10(bits / one) / np.log10(other / one)
    return 10.0 ** np.clip(10 + 10 * power, -300, 300)
