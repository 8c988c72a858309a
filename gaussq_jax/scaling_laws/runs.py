"""The columns of a table of runs, as a law takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gaussq_jax.scaling_laws.capybara import BlockSizes
from gaussq_jax.scaling_laws.laws import ScalingLaw, at_least, positive, positive_or_infinite


def read_columns(law: type[ScalingLaw], runs: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """What the law's `loss` takes, in its order, and the runs' losses.

    Args:
      law: its class.
      runs: columns of one length by name. P is 1 + E + M where it isn't there.

    Returns:
      float64 arrays by column, of shape (runs,), B as BlockSizes; and the losses, (runs,).

    Raises:
      ValueError: for a column that is missing or of another length; and for what is no number or an impossible one,
        with the row it stands in, counted from 0.
    """
    names = [*law.COLUMNS, 'loss']
    if 'P' in names and 'P' not in runs and 'E' in runs and 'M' in runs:
        E, M = (_read(name, runs[name], at_least, 0) for name in 'EM')
        runs = {**{name: runs[name] for name in runs}, 'P': 1 + E + M}
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
    columns = {name: _read(name, runs[name], *_READERS.get(name, (positive,))) for name in names}
    return columns, columns.pop('loss')


def unseen_constants(columns: Mapping[str, Any]) -> set[str]:
    """Constants of block sizes of which these columns say nothing."""
    if 'B' not in columns:
        return set()
    blocks = columns['B']
    unseen = set()
    if not (np.any(blocks.is_channel) and np.any(blocks.log2 > 0)):
        unseen.add('log2_channel')  # else gamma alone takes in what a channel counts as
    if not np.any(blocks.is_tensor):
        unseen |= {'tensor_scale', 'tensor_exponent'}
    return unseen


def _read(name, values, reader, *arguments):
    """All at once; then, if that fails, one by one, to say where."""
    values = np.asarray(values, object)
    try:
        return reader(name, values, *arguments)
    except ValueError:
        for row, value in enumerate(values):
            try:
                reader(name, value, *arguments)
            except ValueError as error:
                raise ValueError(f'row {row} of the runs: {error}') from None
        raise


_READERS = {
    'E': (at_least, 0),
    'M': (at_least, 0),
    'b': (positive_or_infinite,),
    'B': (lambda name, values: BlockSizes.parse(values),),
}
