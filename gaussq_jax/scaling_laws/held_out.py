"""Which law predicts best what it was not fitted to."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gaussq_jax.scaling_laws.fitting import FitResult, fit
from gaussq_jax.scaling_laws.laws import ScalingLaw
from gaussq_jax.scaling_laws.runs import read_columns


class HeldOut(NamedTuple):
    """How a law predicts runs that it was not fitted to."""

    law: type[ScalingLaw]
    result: FitResult  # of all runs
    predicted: np.ndarray  # of each run, by the law fitted without its group
    relative_error: float  # root mean square of predicted / loss - 1

    @property
    def name(self) -> str:
        """Of the law."""
        return self.law.__name__.removesuffix('Law')


def compare(
    laws: Iterable[type[ScalingLaw]], runs: Mapping[str, Any], *, groups: Any = None, **options
) -> list[HeldOut]:
    """Laws by the error of their predictions of runs held out, the best first.

    Each group of runs is held out in turn, and predicted by the law fitted to the others.

    Args:
      laws: classes.
      runs: with the columns of all of them.
      groups: a label a run; by default N, so that predictions are of a model size never seen, and of the least and the
        largest one, too. Seeds of one setting belong in one group.
      **options: of `fit`, but no weights.
    """
    groups = np.asarray(runs['N'] if groups is None else groups)
    if len(labels := np.unique(groups)) < 2:
        raise ValueError(f'groups has only {labels.tolist()}: to hold one out takes another')
    return sorted((_held_out(law, runs, groups, labels, options) for law in laws), key=lambda held: held.relative_error)


def held_out_error(law: ScalingLaw, runs: Mapping[str, Any]) -> float:
    """Root mean square of law / loss - 1 over runs, which mean something if the law was not fitted to them."""
    columns, loss = read_columns(type(law), runs)
    return _relative_error(law.loss(*columns.values()), loss)


def _held_out(law, runs, groups, labels, options):
    columns = {name: np.asarray(runs[name], object) for name in runs}
    predicted = np.empty(len(groups))
    for label in labels:
        out = groups == label
        fitted = fit(law, {name: column[~out] for name, column in columns.items()}, **options).law
        held, _ = read_columns(law, {name: column[out] for name, column in columns.items()})
        predicted[out] = fitted.loss(*held.values())
    result = fit(law, runs, **options)
    return HeldOut(law, result, predicted, _relative_error(predicted, result.predicted + result.residuals))


def _relative_error(predicted, loss):
    return float(np.sqrt(np.mean((predicted / loss - 1) ** 2)))
