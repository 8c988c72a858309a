"""All that a page tells of a law fitted to a table of runs: one dictionary, as JSON has it."""

from collections.abc import Sequence
from typing import Any

from experiments.laws import studies
from experiments.laws.answers import plain
from experiments.laws.known_laws import KnownLaw
from experiments.laws.law_choices import UNQUANTIZED
from experiments.laws.page import tables
from experiments.laws.page.axes import cost_text
from experiments.laws.page.best_bits import best_bits
from experiments.laws.page.budgets import equal_costs
from experiments.laws.page.curves import token_curves
from experiments.laws.page.residuals import residual_data
from experiments.laws.page.settings import Setting, blocks_of, settings_of
from experiments.laws.page.settings import looks as looks_of
from experiments.laws.page.verdict import default_compute, verdict
from experiments.laws.plans.training_plans import hardware_rows
from experiments.laws.studies import Study


def law_page(
    study: Study,
    known: KnownLaw,
    comparison: dict[str, Any] | None,
    *,
    compute: float | None = None,
) -> dict[str, Any]:
    """The data of a law's part of a page, in the order in which it is shown.

    Args:
      study: the fit.
      known: the same law, with its draws.
      comparison: with other laws, as Comparison.describe tells it; None if there is none.
      compute: C = 6 N D of the plan; by default twice that of the largest run.
    """
    described, settings = study.describe(), settings_of(study)
    compute, looks = compute or default_compute(study), looks_of(settings)
    residuals = residual_data(study, settings, looks)
    prices = hardware_rows(known, compute, **plan_inputs(settings))
    return plain(
        {
            'name': known.name,
            'title': study.result.title,
            'formula': formula(type(known.law)),
            'runs': runs_text(described),
            'verdict': verdict(study, known, settings, compute, residuals, prices),
            'tokens': token_curves(study, known, settings, looks),
            'costs': equal_costs(study, known, settings, compute),
            'residuals': residuals,
            'constants': tables.constants(described),
            'errors': f'Errors and intervals are {studies.errors_text(described)}.',
            'correlations': ', '.join(f'{one} and {other} {r:+.3f}' for one, other, r in described['correlations']),
            'comparison': tables.comparison(comparison),
            'reasons': reasons(comparison),
            'critical': tables.critical(known, settings, study.table.columns['N']),
            'bits': best_bits(study, known, settings),
            'hardware': tables.hardware(prices),
            'compute': cost_text(compute),
        }
    )


def plan_inputs(settings: Sequence[Setting]) -> dict[str, Any]:
    """What a plan takes: the least block size of the settings, and of the first what isn't of precision."""
    others = {name: value for name, value in settings[0].inputs.items() if name not in UNQUANTIZED}
    blocks = blocks_of(settings)
    return {'inputs': others} | ({'block_size': blocks[0]} if blocks else {})


def formula(law: type) -> str:
    """What the law says, in the first line of its docstring."""
    lines = (law.__doc__ or '').strip().splitlines()
    if law.__doc__ is None or lines[0].startswith(f'{law.__name__}('):  # as dataclasses write it
        return ''
    indented = [line.strip() for line in lines if line.startswith('        ') and '=' in line]
    return ' '.join(dict.fromkeys([lines[0], *indented[:1]]))


def reasons(comparison: dict[str, Any] | None) -> list[str]:
    """Why laws have no errors on runs held out, where they have none."""
    if comparison is None:
        return ['no law was compared with others']
    told = [
        f'{law["law"]}, {way["way"]}: {reason}'
        for law in comparison['laws']
        for way, reason in zip(comparison['held_out'], law['reasons'])
        if reason
    ]
    return told if comparison['held_out'] else ['no runs were held out']


def runs_text(described: dict[str, Any]) -> str:
    """How many runs there are, and which were left out."""
    methods = ', '.join(f'{number} {method}' for method, number in described['methods'].items())
    left_out = ', '.join(f'{number} {reason}' for reason, number in described['left_out'].items())
    told = f'{described["runs"]} runs' + f' ({methods})' * bool(methods) + f'; left out: {left_out}' * bool(left_out)
    return told + f'; fitted by {described["objective"]}' * (described['objective'] != 'squares')
