"""What there is to say of a law fitted to a table of runs: its constants, errors and noise, and where it fails."""

import collections
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.files import foreign_text
from experiments.laws import known_laws
from experiments.laws.law_choices import LawChoice
from experiments.laws.notation import human, interval_text, recipe_name
from experiments.laws.tables.run_tables import RunTable, seed_noise
from gaussq_jax import scaling_laws
from gaussq_jax.text_table import text_table

STRONGEST = 5  # correlations that are told
WORST = 5  # residuals that are
MOST_LETTERS = 80  # of a run's name


class Study(NamedTuple):
    """A law fitted to a table of runs."""

    choice: LawChoice
    table: RunTable
    result: scaling_laws.FitResult

    @classmethod
    def of(cls, choice: LawChoice, table: RunTable, *, objective: str = 'squares', errors: str = 'cr3') -> 'Study':
        """Fits a law to a table that `runs_for` has read; ValueError as scaling_laws.fit."""
        return cls(choice, table, known_laws.fit(choice, table, objective=objective, errors=errors))

    def describe(self) -> dict[str, Any]:
        """All that there is to say of it, as JSON has it."""
        result, errors = self.result, self.result.standard_errors
        intervals = result.confidence_intervals()
        constants = {
            name: {
                'value': value,
                'fitted': name in result.names,
                'fixed': result.fixed.get(name),
                'standard_error': errors.get(name),
                'interval': intervals.get(name),
                'determined': name not in result.undetermined,
            }
            for name, value in result.law.constants().items()
        }
        pairs = [
            (result.names[i], result.names[j], float(result.correlations[i, j]))
            for i, j in zip(*np.triu_indices(len(result.names), 1))
        ]
        pairs = sorted((pair for pair in pairs if math.isfinite(pair[2])), key=lambda pair: -abs(pair[2]))
        return {
            'law': result.title,
            'table': self.table.path,
            'runs': result.num_runs,
            'objective': result.objective,
            'errors': result.errors,
            'groups': result.num_groups,
            'methods': dict(collections.Counter(filter(None, self.table.columns['method'].tolist())).most_common()),
            'left_out': self.table.left_out,
            'constants': constants,
            'rmse': result.rmse,
            'noise': result.noise,
            'seed_noise': seed_noise(self.table),
            'correlations': pairs[:STRONGEST],
            'undetermined': list(result.undetermined),
            'worst': self.worst(),
            'remarks': list(self.table.remarks),
        }

    def worst(self) -> list[dict[str, Any]]:
        """The runs that are farthest from the law."""
        columns, residuals = self.table.columns, self.result.residuals
        return [
            {
                'run': str(self.table.origins[i]),
                'recipe': recipe_name(columns['forward'][i], columns['backward'][i]),
                'N': float(columns['N'][i]),
                'D': float(columns['D'][i]),
                'loss': float(columns['loss'][i]),
                'residual': float(residuals[i]),
                'in_noise': float(residuals[i] / self.result.noise) if self.result.noise else None,
            }
            for i in np.argsort(-np.abs(residuals), kind='stable')[:WORST]
        ]


def fit_lines(data: dict[str, Any]) -> list[str]:
    """What Study.describe tells, for people."""
    told = ', '.join(f'{number} {method}' for method, number in data['methods'].items())
    lines = [f'law         {data["law"]}', f'runs        {data["runs"]} of {data["table"]}{": " * bool(told)}{told}']
    lines += left_out_lines(data['left_out'])
    header, rows = constants_table(data)
    lines += ['', text_table([header, *rows]), '']
    lines.append(f'errors      {errors_text(data)}')
    lines.append(f'residuals   {data["rmse"]:.3g} nats, root mean square')
    if noise := data['seed_noise']:
        lines.append(
            f'seeds       differ by {noise["standard_deviation"]:.3g} nats: standard deviation over the seeds of'
            f' {noise["settings"]} settings, {noise["degrees_of_freedom"]} degrees of freedom'
        )
    pairs = ', '.join(f'{one} and {other} {value:+.3f}' for one, other, value in data['correlations'])
    lines.append(f'correlated  {pairs or "unknown"}')
    if data['undetermined']:
        lines.append(f'NOT KNOWN   {", ".join(data["undetermined"])}: to these runs other values fit about as well')
    rows = [('the worst', 'recipe', 'N', 'tokens', 'loss', 'residual (nats)', 'in standard deviations')]
    for run in data['worst']:
        deviations = '' if run['in_noise'] is None else f'{run["in_noise"]:+.1f}'
        amounts = human(run['N']), human(run['D']), f'{run["loss"]:.4f}', f'{run["residual"]:+.4f}'
        rows.append((foreign_text.printable(run['run'])[:MOST_LETTERS], run['recipe'], *amounts, deviations))
    return [*lines, '', text_table(rows), *[''] * bool(data['remarks']), *data['remarks']]


def left_out_lines(left_out: dict[str, int]) -> list[str]:
    """How many runs are left out, and why."""
    return [f'            left out: {number} {reason}' for reason, number in left_out.items()]


def errors_text(description: dict[str, Any]) -> str:
    """The errors that Study.describe tells of, and what they assume."""
    errors, groups = description['errors'], description['groups']
    told = f', {groups} groups (runs of one N, D and seed, or checkpoints of one)' if errors == 'cr3' else ''
    return f'{errors}{told}: {scaling_laws.ERRORS[errors]}'


def constants_table(description: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and rows of the constants that Study.describe tells."""
    rows = []
    for name, constant in description['constants'].items():
        cells = [name, f'{constant["value"]:.6g}']
        if not constant['fitted']:
            fixed = constant['fixed']
            rows.append([*cells, '', '', f'= {fixed}' if isinstance(fixed, str) else 'not fitted'])
        elif not math.isfinite(constant['standard_error']):
            rows.append([*cells, '', '', 'NOT DETERMINED'])
        else:
            error = f'± {constant["standard_error"]:.2g}'
            if constant['value']:  # epsilon may be 0
                error += f' ({constant["standard_error"] / constant["value"]:.2g})'
            known = '' if constant['determined'] else 'NOT DETERMINED'
            rows.append([*cells, error, interval_text(constant['interval'], '{:.4g}'.format), known])
    return ('constant', 'value', 'standard error (relative)', '95 % interval', ''), rows
