"""Which law predicts best what it was not fitted to."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gaussq_jax.scaling_laws.errors import number_labels, run_groups
from gaussq_jax.scaling_laws.fit_result import FitResult
from gaussq_jax.scaling_laws.fitting import fit
from gaussq_jax.scaling_laws.law import ScalingLaw
from gaussq_jax.scaling_laws.runs import read_columns
from gaussq_jax.scaling_laws.unquantized import ChinchillaLaw


class HeldOut(NamedTuple):
    """How a law predicts runs that it was not fitted to."""

    law: type[ScalingLaw]
    result: FitResult  # of all runs
    predicted: np.ndarray  # of each run, by the law fitted without its fold; NaN where it's in none, or not known there
    relative_error: float  # root mean square of predicted / loss - 1, over the runs that all laws predict

    @property
    def name(self) -> str:
        """Of the law, with what was fixed."""
        return self.result.title


def compare(
    laws: Iterable[type[ScalingLaw] | tuple[type[ScalingLaw], Mapping[str, float | str]]],
    runs: Mapping[str, Any],
    *,
    groups: Any = None,
    num_folds: int | None = None,
    objective: str = 'squares',
    num_starts: int = 16,
    seed: int = 0,
) -> list[HeldOut]:
    """Laws by the error of their predictions of runs held out, the best first: they are fitted, then as `hold_out`.

    Args:
      laws: classes; or pairs of a class and what `fit` is to fix, as (ChinchillaLaw, {'beta': 'alpha'}).
      runs: with the columns of all of them.
      groups, num_folds: as for `hold_out`.
      objective, num_starts, seed: as for `fit`.

    Raises:
      ValueError: as `fit` and `hold_out` do.
    """
    choices = [law if isinstance(law, tuple) else (law, {}) for law in laws]
    options = dict(num_starts=num_starts, seed=seed)
    results = [fit(law, runs, fixed=fixed, objective=objective, **options) for law, fixed in choices]
    return hold_out(results, runs, groups=groups, num_folds=num_folds, **options)


def hold_out(
    results: Iterable[FitResult],
    runs: Mapping[str, Any],
    *,
    groups: Any = None,
    num_folds: int | None = None,
    num_starts: int = 16,
    seed: int = 0,
    progress: Callable[[list], Iterable] = iter,
) -> list[HeldOut]:
    """Fitted laws by the error of their predictions of runs held out, the best first.

    Each fold is held out in turn, and predicted by the law fitted to the other runs. A run that some law can't predict
    then, as none of the others is of its recipe, counts for none of them.

    Args:
      results: of `fit` to these runs; what was fixed, and the objective, are so again.
      runs: with the columns of all the laws.
      groups: a label a run. By default runs of one N and one D are a group, in all formats and seeds, with all
        checkpoints of a run, where `runs` says `run`. With N for labels, predictions are of a model size never seen,
        the least and the largest too: a harder test. Runs whose label is None are never held out: a label for the runs
        of most compute, and None for others, is the test of an extrapolation.
      num_folds: as many folds, at most, of groups drawn at random of `seed`. By default each group is one: fits without
        number.
      num_starts, seed: as for `fit`. Without a fold, the search starts from the law of all runs and a quarter of the
        random starts.
      progress: is given all fits that there are to do and gives one after the other, as tqdm.tqdm does.

    Raises:
      ValueError: as `fit` does, of the runs without a fold; if a single group, or none, is all runs; for fewer than 2
        folds; if all laws predict no run.
    """
    columns, loss = read_columns(ChinchillaLaw, runs)
    if groups is None:
        run = number_labels('run', runs['run'], len(loss)) if 'run' in runs else None
        groups = run_groups(*columns.values(), None, run).tolist()
    folds = _folds(list(groups), num_folds, seed)
    if len(folds) != len(loss):
        raise ValueError(f'groups has {len(folds)} labels, for {len(loss)} runs')
    results, columns = list(results), {name: np.asarray(runs[name], object) for name in runs}
    options = dict(num_starts=-(-num_starts // 4), seed=seed)
    predicted = np.full((len(results), len(loss)), np.nan)
    for (i, result), fold in progress(list(itertools.product(enumerate(results), range(max(folds) + 1)))):
        out = folds == fold
        part = _part(columns, ~out)
        how = dict(start=result.law, fixed=_fixed(result, part), objective=result.objective)
        fitted = fit(type(result.law), part, **how, **options).law
        predicted[i, out] = _predict(fitted, _part(columns, out))
    known = np.isfinite(predicted).all(axis=0)
    if not known.any():
        raise ValueError('no run that is held out can be predicted by all laws from the others')
    held = [HeldOut(type(r.law), r, p, _relative_error(p[known], loss[known])) for r, p in zip(results, predicted)]
    return sorted(held, key=lambda held: held.relative_error)


def _fixed(result, runs):
    """What was fixed, without what equals a constant that these runs don't tell of."""
    law = type(result.law)
    names = law.constants_of(read_columns(law, runs)[0])
    return {name: value for name, value in result.fixed.items() if not isinstance(value, str) or value in names}


def _predict(law, runs):
    """NaN for the runs of which the law knows nothing."""
    columns, loss = read_columns(type(law), runs)
    try:
        return law.loss(*columns.values())
    except ValueError:
        if len(loss) == 1:
            return np.array([np.nan])
    return np.concatenate([_predict(law, _part(runs, slice(i, i + 1))) for i in range(len(loss))])


def held_out_error(law: ScalingLaw, runs: Mapping[str, Any]) -> float:
    """Root mean square of law / loss - 1 over runs, which mean something if the law was not fitted to them."""
    columns, loss = read_columns(type(law), runs)
    return _relative_error(law.loss(*columns.values()), loss)


def _folds(labels, num_folds, seed):
    """The number of each run's fold, (r,); -1 for none."""
    groups = [label for label in dict.fromkeys(labels) if label is not None]
    if len(set(labels)) < 2:
        raise ValueError(f'groups has only {list(set(labels))}: to hold one out takes another')
    if num_folds is not None:
        if num_folds < 2:
            raise ValueError(f'num_folds={num_folds} must be at least 2')
        places = np.random.default_rng(seed).permutation(len(groups)) % num_folds
    else:
        places = np.arange(len(groups))
    numbers = dict(zip(groups, places.tolist()))
    return np.array([numbers.get(label, -1) for label in labels])


def _part(columns, chosen):
    return {name: column[chosen] for name, column in columns.items()}


def _relative_error(predicted, loss):
    return float(np.sqrt(np.mean((predicted / loss - 1) ** 2)))
