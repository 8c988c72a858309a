"""What there is to say of a law fitted to a table of runs: its constants, errors and noise, and its rivals."""

import collections
import functools
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from experiments.laws import known_laws
from experiments.laws.known_laws import fit, needs, runs_for
from experiments.laws.notation import UNKNOWN, interval_text
from experiments.laws.run_tables import RunTable, seed_noise, select
from gaussq_jax import scaling_laws
from gaussq_jax.text_table import text_table

NUM_FOLDS = 5  # of runs held out
STRONGEST = 5  # correlations that are told


class Study(NamedTuple):
    """A law fitted to a table of runs, and other laws beside it."""

    table: RunTable
    result: scaling_laws.FitResult
    comparison: list[dict[str, Any]] | str  # of laws, the best first; or why there is none
    objective: str  # of the fit

    @classmethod
    def of(
        cls,
        family: type[scaling_laws.ScalingLaw],
        path: str | pathlib.Path,
        *,
        exclude_e0: bool,
        objective: str = 'squares',
        errors: str = 'cr3',
        held_out: str = 'folds',
    ) -> 'Study':
        """Fits a law, and compares all laws that the same runs serve by their errors on runs held out.

        Raises:
          ValueError: as runs_for, scaling_laws.fit and ways_to_hold_out do.
        """
        table = runs_for(family, path, exclude_e0=exclude_e0)
        result = fit(family, table, objective=objective, errors=errors)
        others = [other for other in known_laws.LAWS.values() if other is not family and serves(table, other)]
        options = dict(objective=objective, num_starts=known_laws.NUM_STARTS, progress=_progress)
        ways = ways_to_hold_out(held_out, table.columns['N'])
        try:
            results = [result, *(fit(other, table, objective=objective, errors=errors) for other in others)]
            relative = {}
            for name, way in ways.items():
                try:
                    held = scaling_laws.hold_out(results, table.columns, **way, **options)
                except ValueError:
                    if name != 'size_held_out_error':  # there may be too few sizes
                        raise
                    held = []
                relative[name] = {each.name: each.relative_error for each in held}
        except ValueError as error:
            return cls(table, result, str(error), objective)
        comparison = [
            {'law': other.law.title(), 'constants': len(other.names), 'rmse': other.rmse}
            | {name: of_laws.get(other.law.title()) for name, of_laws in relative.items()}
            for other in results
        ]
        comparison.sort(key=lambda law: law[next(iter(ways), 'rmse')])
        return cls(table, result, comparison, objective)

    def describe(self) -> dict[str, Any]:
        """All that there is to say of it, as JSON has it."""
        result, errors = self.result, self.result.standard_errors
        intervals = result.confidence_intervals()
        constants = {
            name: {
                'value': value,
                'fitted': name in result.names,
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
            'law': result.law.title(),
            'table': self.table.path,
            'runs': result.num_runs,
            'objective': self.objective,
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
            'comparison': self.comparison,
        }


def fit_lines(data: dict[str, Any]) -> list[str]:
    """What Study.describe tells, for people."""
    told = ', '.join(f'{number} {method}' for method, number in data['methods'].items())
    lines = [f'law         {data["law"]}', f'runs        {data["runs"]} of {data["table"]}{": " * bool(told)}{told}']
    lines += [f'            left out: {number} {reason}' for reason, number in data['left_out'].items()]
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
    if isinstance(data['comparison'], str):
        return [*lines, '', f'no errors on runs held out: {data["comparison"]}']
    header, rows = comparison_table(data)
    return [*lines, '', text_table([header, *rows])]


HELD_OUT = {  # errors on runs held out, and what to call them
    'held_out_error': 'error on an N and D held out',
    'size_held_out_error': 'error on an N held out',
    'largest_held_out_error': 'error on the largest N held out',
}
_progress = functools.partial(tqdm.tqdm, desc='runs held out', unit='fit', leave=False, delay=1, disable=None)


def ways_to_hold_out(held_out: str, N: np.ndarray) -> dict[str, dict[str, Any]]:
    """The errors to tell, of HELD_OUT, and the options of `scaling_laws.hold_out` for each.

    Args:
      held_out: 'none'; 'one', each pair of N and D, and each N, in turn; 'folds', 5 random parts of them; or
        'largest:K', the runs of the K largest N.
      N: of the runs.

    Raises:
      ValueError: for anything else.
    """
    if match := re.fullmatch(r'largest:([1-9]\d*)', held_out):
        sizes = np.unique(N)
        if int(match[1]) >= len(sizes):
            raise ValueError(f'--held_out={held_out} leaves no run to fit: there are {len(sizes)} model sizes')
        return {'largest_held_out_error': {'groups': [size >= sizes[-int(match[1])] or None for size in N]}}
    if held_out not in ('none', 'one', 'folds'):
        raise ValueError(f'--held_out={held_out!r} must be none, folds, one, or largest:K with a whole number K')
    num_folds = NUM_FOLDS if held_out == 'folds' else None
    ways = {'held_out_error': {}, 'size_held_out_error': {'groups': N.tolist()}}
    return {} if held_out == 'none' else {name: {**way, 'num_folds': num_folds} for name, way in ways.items()}


def serves(table: RunTable, family: type[scaling_laws.ScalingLaw]) -> bool:
    """Whether every run of the table has what a law needs."""
    try:
        return select(table, needs(family)).num_runs == table.num_runs
    except ValueError:
        return False


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
            rows.append([*cells, '', '', 'not fitted'])
        elif not math.isfinite(constant['standard_error']):
            rows.append([*cells, '', '', 'NOT DETERMINED'])
        else:
            error = f'± {constant["standard_error"]:.2g}'
            if constant['value']:  # epsilon may be 0
                error += f' ({constant["standard_error"] / constant["value"]:.2g})'
            known = '' if constant['determined'] else 'NOT DETERMINED'
            rows.append([*cells, error, interval_text(constant['interval'], '{:.4g}'.format), known])
    return ('constant', 'value', 'standard error (relative)', '95 % interval', ''), rows


def comparison_table(description: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and rows of the laws that Study.describe compares."""
    told = [name for name in HELD_OUT if name in description['comparison'][0]]
    percent = lambda error: UNKNOWN if error is None else f'{error:.2%}'
    return ('law', 'constants', 'residuals (nats)', *(HELD_OUT[name] for name in told)), [
        (law['law'], str(law['constants']), f'{law["rmse"]:.4f}', *(percent(law[name]) for name in told))
        for law in description['comparison']
    ]
