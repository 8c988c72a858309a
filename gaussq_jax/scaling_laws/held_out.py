"""Which law predicts best what it was not fitted to."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gaussq_jax.scaling_laws.fitting import FitResult, fit
from gaussq_jax.scaling_laws.laws import ChinchillaLaw, ScalingLaw
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
        return self.law.title()


def compare(
    laws: Iterable[type[ScalingLaw]],
    runs: Mapping[str, Any],
    *,
    groups: Any = None,
    objective: str = 'squares',
    num_starts: int = 16,
    seed: int = 0,
) -> list[HeldOut]:
    """Laws by the error of their predictions of runs held out, the best first: they are fitted, then as `hold_out`.

    Args:
      laws: classes.
      runs: with the columns of all of them.
      groups: as for `hold_out`.
      objective, num_starts, seed: as for `fit`.

    Raises:
      ValueError: as `fit` and `hold_out` do.
    """
    how = dict(objective=objective, num_starts=num_starts, seed=seed)
    return hold_out([fit(law, runs, **how) for law in laws], runs, groups=groups, **how)


def hold_out(
    results: Iterable[FitResult],
    runs: Mapping[str, Any],
    *,
    groups: Any = None,
    objective: str = 'squares',
    num_starts: int = 16,
    seed: int = 0,
) -> list[HeldOut]:
    """Fitted laws by the error of their predictions of runs held out, the best first.

    Each group of runs is held out in turn, and predicted by the law fitted to the others.

    Args:
      results: of `fit` to these runs, with these options.
      runs: with the columns of all the laws.
      groups: a label a run. By default runs of one N and one D are a group, in all formats and seeds. With N for
        labels, predictions are of a model size never seen, the least and the largest too: a harder test.
      objective, num_starts, seed: as for `fit`. Without a group, the search starts from the law of all runs and a
        quarter of the random starts.

    Raises:
      ValueError: as `fit` does, of the runs without a group; for a single group.
    """
    columns, _ = read_columns(ChinchillaLaw, runs)
    labels = list(zip(*columns.values()) if groups is None else groups)
    if len(labels) != len(columns['N']):
        raise ValueError(f'groups has {len(labels)} labels, for {len(columns["N"])} runs')
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    if len(numbers) < 2:
        raise ValueError(f'groups has only {list(numbers)}: to hold one out takes another')
    groups = np.array([numbers[label] for label in labels])
    how = dict(objective=objective, num_starts=-(-num_starts // 4), seed=seed)
    return sorted((_held_out(result, runs, groups, how) for result in results), key=lambda held: held.relative_error)


def held_out_error(law: ScalingLaw, runs: Mapping[str, Any]) -> float:
    """Root mean square of law / loss - 1 over runs, which mean something if the law was not fitted to them."""
    columns, loss = read_columns(type(law), runs)
    return _relative_error(law.loss(*columns.values()), loss)


def _held_out(result, runs, groups, how):
    law = type(result.law)
    columns = {name: np.asarray(runs[name], object) for name in runs}
    predicted = np.empty(len(groups))
    for group in range(max(groups) + 1):
        out = groups == group
        others = {name: column[~out] for name, column in columns.items()}
        fitted = fit(law, others, start=result.law, **how).law
        held, _ = read_columns(law, {name: column[out] for name, column in columns.items()})
        predicted[out] = fitted.loss(*held.values())
    return HeldOut(law, result, predicted, _relative_error(predicted, result.predicted + result.residuals))


def _relative_error(predicted, loss):
    return float(np.sqrt(np.mean((predicted / loss - 1) ** 2)))
