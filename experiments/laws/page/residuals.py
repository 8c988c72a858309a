"""What the residuals of a fit look like: run by run, the worst of them, and whether they have a shape."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

from experiments.files import foreign_text
from experiments.laws.known_laws import columns_for
from experiments.laws.page.axes import digits, log_axis
from experiments.laws.page.settings import Setting
from experiments.laws.page.tables import cell, number, table
from experiments.laws.studies import Study
from experiments.laws.tables.run_tables import seed_noise

SURE = 0.01  # the probability at which a shape is told of, that chance made it
MOST_WORST = 10
MOST_LETTERS = 200  # of a run's name
MOST_NAMED = 3  # settings that lie apart
SEEN = 0.5  # the part of a shape that a parabola, or the means of settings, must have to be told of by these
STEP = 1e-5  # of a constant, by which it is moved, relative
NOTHING = 1e-4  # a part of a vector that is lost in rounding, and in what is not linear
AXES = {'N': 'N (weights of linear layers)', 'D': 'D (tokens)', 'predicted': 'predicted loss (nats a token)'}


def residual_data(study: Study, settings: Sequence[Setting], looks: dict[str, int]) -> dict[str, Any]:
    """Points of each run, remarks on their shape, and a table of the worst."""
    columns, result = study.table.columns, study.result
    points, names = [], origins(study)
    for setting in settings:
        for i in np.flatnonzero(setting.mask):
            N, D, loss = (float(columns[name][i]) for name in ('N', 'D', 'loss'))
            text = f'{names[i]}\n{setting.run_text(N, D)}\nloss {loss:.4f}, predicted {result.predicted[i]:.4f}'
            values = digits([N, D, result.predicted[i], result.residuals[i]])
            points.append(dict(zip(('N', 'D', 'predicted', 'residual'), values), look=looks[setting.label], text=text))
    noise = seed_noise(study.table)
    return {
        'points': points,
        'legend': [{'label': label or 'all runs', 'look': look} for label, look in looks.items()],
        'axes': {name: log_axis(*ends(study, name), title) for name, title in AXES.items()},
        'noise': noise and noise['standard_deviation'],
        'remarks': shapes(study, settings),
        'worst': worst(study, settings),
    }


def origins(study: Study) -> Sequence[str]:
    """Where each run stands in its table."""
    return [foreign_text.printable(origin[:MOST_LETTERS]) for origin in study.table.origins.tolist()]


def ends(study: Study, name: str) -> tuple[float, float]:
    values = study.result.predicted if name == 'predicted' else study.table.columns[name]
    return float(values.min()), float(values.max())


def worst(study: Study, settings: Sequence[Setting]) -> dict[str, Any]:
    """The runs that lie farthest from the law."""
    columns, result, rows = study.table.columns, study.result, []
    names, of_settings = origins(study), np.empty(result.num_runs, object)
    for setting in settings:
        of_settings[setting.mask] = setting.name
    for i in np.argsort(-np.abs(result.residuals), kind='stable')[:MOST_WORST]:
        amounts = [number(float(columns[name][i])) for name in 'ND']
        losses = [number(float(value), '{:.4f}'.format) for value in (columns['loss'][i], result.predicted[i])]
        residual = float(result.residuals[i])
        rows.append([cell(names[i]), cell(of_settings[i]), *amounts, *losses, number(residual, '{:+.4f}'.format)])
    return table(['run', 'setting', 'N', 'tokens', 'loss', 'predicted', 'loss less prediction'], rows)


def shapes(study: Study, settings: Sequence[Setting]) -> list[str]:
    """What explains residuals that the law should have explained, by F-tests; one sentence each.

    Over N, D and predictions a parabola in the logarithm, of the means of groups of runs that depend on each other; by
    setting a mean each, of the residuals less their group's mean. Only what the law's own constants can't do counts:
    `tangents` are taken off of both sides, as the fit has taken them off the residuals.
    """
    result, columns, moves = study.result, study.table.columns, tangents(study)
    groups, are_grouped = result.groups, result.num_runs > result.groups.max() + 1
    size = np.bincount(groups)
    mean = lambda values: np.bincount(groups, values) / size
    means_of = lambda matrix: np.stack([mean(column) for column in matrix.T], axis=1)
    remarks, of_groups, moves_of_groups = [], mean(result.residuals), means_of(moves)
    for name, values in (('N', columns['N']), ('D', columns['D']), ('the predicted loss', result.predicted)):
        x = mean(np.log(values))
        if len(np.unique(x.round(9))) > 2 and (remark := bend(name, x, of_groups, moves_of_groups)):
            remarks.append(remark)
    if len(settings) > 1:
        masks = np.stack([setting.mask for setting in settings], axis=1).astype(float)
        within = lambda matrix: matrix - means_of(matrix)[groups] if are_grouped else matrix
        spare = result.num_runs - len(size) * are_grouped
        told, pattern = beyond_chance(within(masks), within(result.residuals[:, None])[:, 0], within(moves), spare)
        means = result.residuals @ masks / masks.sum(axis=0)
        if told and np.sum((masks @ means) ** 2) < SEEN * np.sum(pattern**2):
            remarks.append(
                'Residuals differ by setting, more than chance makes them: not on average, but in how they go with N'
                ' and D.'
            )
        elif told:
            apart = np.argsort(-np.abs(means), kind='stable')[:MOST_NAMED]
            named = ', '.join(f'{settings[i].name} by {means[i]:+.4f} nats' for i in apart)
            remarks.append(f'Residuals differ by setting, more than chance makes them: {named}, on average.')
    return remarks


def tangents(study: Study) -> np.ndarray:
    """How the predictions move with each fitted constant, (r, p)."""
    result, columns = study.result, columns_for(study.choice, study.table)
    constants, inputs = result.law.constants(), {name: columns[name] for name in result.law.COLUMNS}
    moves = []
    for name in result.names:
        step = STEP * (abs(constants[name]) or 1.0)
        moved = {other for other, same in result.fixed.items() if same == name} | {name}
        law = type(result.law).from_constants({k: value + step * (k in moved) for k, value in constants.items()})
        moves.append((law.loss(**inputs) - result.predicted) / step)
    return np.stack(moves, axis=1)


def bend(name: str, x: np.ndarray, residuals: np.ndarray, moves: np.ndarray) -> str | None:
    """What a parabola over x says of residuals, if it says more than chance would."""
    x = (x - x.mean()) / np.ptp(x)
    basis = np.stack([np.ones_like(x), x, x**2], axis=1)
    told, pattern = beyond_chance(basis, residuals, moves, len(x))
    if not told:
        return None
    weights, *_ = np.linalg.lstsq(basis, residuals, rcond=None)
    line, about = basis @ weights, f', by up to {np.abs(pattern).max():.2g} nats and more than chance makes them'
    if np.sum(line**2) < SEEN * np.sum(pattern**2):
        return f'Residuals have a shape over {name}{about}: the runs bend in another way than the law.'
    order = np.argsort(x, kind='stable')
    first, last, turn = line[order[0]], line[order[-1]], -weights[1] / (2 * weights[2] or math.inf)
    if x.min() < turn < x.max():
        high, low = ('at both ends', 'in the middle') if weights[2] > 0 else ('in the middle', 'at both ends')
        return f'Residuals bend over {name}{about}: losses are above the law {high}, and below it {low}.'
    high, low = ('the greatest', 'the least') if last > first else ('the least', 'the greatest')
    where = f'{high} {name}' if len(name) == 1 else f'{high} predictions'
    return f'Residuals follow {name}{about}: losses are above the law at {where}, and below it at {low}.'


def beyond_chance(basis: np.ndarray, residuals: np.ndarray, moves: np.ndarray, spare: int) -> tuple[bool, np.ndarray]:
    """Whether a basis explains more of residuals than chance lets it, beyond what moves of constants do; and that part.

    Args:
      basis: (r, terms).
      residuals: (r,).
      moves: (r, p).
      spare: the degrees of freedom of the residuals before a fit.
    """
    fitted = span(moves)
    beyond = lambda values: values - fitted @ (fitted.T @ values)
    terms, left = span(beyond(basis), np.linalg.norm(basis, axis=0)), beyond(residuals)
    pattern = terms @ (terms.T @ left)
    spare -= fitted.shape[1] + terms.shape[1]
    if not terms.shape[1] or spare <= 0:
        return False, pattern
    return chance(np.sum(pattern**2), np.sum((left - pattern) ** 2), terms.shape[1], spare) < SURE, pattern


def span(vectors: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """An orthonormal basis of columns, less what of them is next to nothing beside their lengths."""
    lengths = np.linalg.norm(vectors, axis=0) if lengths is None else lengths
    basis, values, _ = np.linalg.svd(vectors / np.where(lengths > 0, lengths, 1.0), full_matrices=False)
    return basis[:, values > NOTHING]


def chance(explained: float, left: float, terms: int, spare: int) -> float:
    """The probability that so many terms explain so much of noise: of an F-test."""
    if left <= 0:
        return 1.0 if explained <= 0 else 0.0
    return float(scipy.special.fdtrc(terms, spare, (max(explained, 0.0) / terms) / (left / spare)))
