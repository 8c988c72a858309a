"""The columns of a table of runs, as a law takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gaussq_jax.scaling_laws.inputs import read_input
from gaussq_jax.scaling_laws.law import ScalingLaw


def read_columns(law: type[ScalingLaw], runs: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """What the law's `loss` takes, in its order, and the runs' losses.

    Args:
      law: its class.
      runs: columns of one length by name. P is 1 + E + M where it isn't there, others are what the law's DEFAULTS say.

    Returns:
      float64 arrays by column, of shape (runs,), B as BlockSizes, recipes as Recipes; and the losses, (runs,).

    Raises:
      ValueError: for a column that is missing or of another length; and for what is no number or an impossible one,
        with the row it stands in, counted from 0.
    """
    names = [*law.COLUMNS, 'loss']
    num_runs = len(runs['loss']) if 'loss' in runs and np.ndim(runs['loss']) == 1 else 0
    given = {name: [value] * num_runs for name, value in law.DEFAULTS.items()}
    runs = given | {name: runs[name] for name in runs}
    if 'P' in names and 'P' not in runs and 'E' in runs and 'M' in runs:
        E, M = (_read(name, runs[name]) for name in 'EM')
        runs |= {'P': 1 + E + M}
    if missing := [name for name in names if name not in runs]:
        present = ', '.join(map(str, runs)) or 'none'
        raise ValueError(
            f'the runs have no column {missing[0]!r}: a {law.__name__} takes {", ".join(names)}; there are {present}'
        )
    for name in names:
        if np.ndim(runs[name]) != 1:
            raise ValueError(
                f'the column {name!r} of the runs has shape {np.shape(runs[name])}: it must be a value a run'
            )
    lengths = {name: len(runs[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f'the columns of the runs must be of one length: {lengths}')
    columns = {name: _read(name, runs[name]) for name in names}
    return columns, columns.pop('loss')


def _read(name, values):
    """All at once; then, if that fails, one by one, to say where."""
    values = np.asarray(values, object)
    try:
        return read_input(name, values)
    except ValueError:
        for row, value in enumerate(values):
            try:
                read_input(name, value)
            except ValueError as error:
                raise ValueError(f'row {row} of the runs: {error}') from None
        raise
