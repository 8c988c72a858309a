"""What a run has written beside its weights: its metrics, its config; and which runs differ in their seed only."""

import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from configs import stored as stored_configs
from experiments.files import foreign_text, json_files
from experiments.reports import pictures
from experiments.training.metrics import read_metrics

MATRIX = 'bits/matrix/'  # before the short name of a matrix: the metric with the mean bitwidth of each layer
NO_SETTINGS = (  # alike or not
    *('seed', 'name', 'branch_from', 'cache_dir', 'data_dir', 'keep_checkpoints', 'keep_period', 'stall_timeout'),
)
MOST_STEPS, MOST_MATRICES = 500, 10**5  # of a history of bitwidths: what can be seen, and what memory holds
OF_THE_METHOD = ('method', 'quantization')  # what runs that are compared with bf16 may differ in, too


class RunRecord(NamedTuple):
    """The record of a run."""

    name: str  # of its directory
    lines: list[dict[str, Any]]  # of metrics.jsonl
    config: dict[str, Any] | None  # of config.json; None where there is none

    @property
    def method(self) -> str | None:
        return self.config and self.config['method']

    @property
    def seed(self) -> int | None:
        return self.config and self.config['seed']


class SeedGroup(NamedTuple):
    """Runs that differ in their seed only, or one run."""

    label: str
    runs: list[RunRecord]


class BitwidthHistory(NamedTuple):
    """How the mean bitwidths of matrices came to what they are."""

    names: list[str]  # short names of the matrices
    steps: np.ndarray  # (steps,)
    bits: np.ndarray  # (matrices, layers, steps); NaN where a matrix is of fewer layers


def read_record(workdir: pathlib.Path, *, needs_metrics: bool = True) -> RunRecord:
    """The record in a workdir; without `needs_metrics`, that of a run that has yet to write some has none.

    Raises:
      ValueError: metrics.jsonl, or config.json, can't be read.
      OSError: there is no metrics.jsonl.
    """
    path = workdir / 'metrics.jsonl'
    config, lines = None, read_metrics(path) if needs_metrics or path.exists() else []
    if (path := workdir / 'config.json').exists():
        config = stored_configs.read(json_files.read(path, method=str, seed=int), path)
    name = foreign_text.printable(workdir.absolute().name).replace('\n', '\\n')
    return RunRecord(name, lines, config)


def series(lines: Iterable[dict[str, Any]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have the metric; of several lines of one step, the last."""
    in_order = sorted(lines, key=lambda line: line['step'])
    values = {line['step']: value_of(line, metric) for line in in_order if metric in line}
    return np.array([*values], float), np.array([*values.values()], float)


def value_of(line: dict[str, Any], metric: str) -> float | None:
    """The number that a line has of a metric; None if it has none. ValueError, naming the metric, for a list."""
    if isinstance(value := line.get(metric), list):
        raise ValueError(f'{metric!r:.80} must be a number, not a list, in metrics.jsonl')
    return value


def bitwidth_history(record: RunRecord) -> BitwidthHistory:
    """The mean bitwidth of each matrix of each layer at logged steps, of MOST_STEPS at most, the last among them.

    Raises:
      ValueError: naming the run, if it learned none, or if its version did not write them.
    """
    lines = [line for line in record.lines if any(name.startswith(MATRIX) for name in line)]
    if not lines:
        learns = any('bits/mean' in line for line in record.lines)
        method = f': its method is {record.method}' if record.method else ''
        raise ValueError(
            f'{record.name} has no bitwidths by matrix in its metrics.jsonl: it was written before there were such;'
            ' train it again, or resume it'
            if learns
            else f'{record.name} learned no bitwidths{method}'
        )
    names = [name for name in lines[-1] if name.startswith(MATRIX)]
    by_step = {line['step']: line for line in pictures.evenly_chosen(lines, MOST_STEPS)}
    by_step = dict(sorted(by_step.items()))
    values = [[line.get(name, []) for line in by_step.values()] for name in names]
    if any(not isinstance(layers, list) for of_matrix in values for layers in of_matrix):
        raise ValueError(f'{record.name}: {MATRIX}… must be lists of a number a layer, in metrics.jsonl')
    num_layers = max(len(layers) for of_matrix in values for layers in of_matrix)
    if len(names) * num_layers > MOST_MATRICES:
        raise ValueError(f'{record.name} has bitwidths of {len(names)} matrices of {num_layers} layers: too many')
    bits = np.full((len(names), max(num_layers, 1), len(by_step)), np.nan)
    for matrix, column in np.ndindex(len(names), len(by_step)):
        layers = values[matrix][column]
        bits[matrix, : len(layers), column] = layers
    return BitwidthHistory([name.removeprefix(MATRIX) for name in names], np.array([*by_step], float), bits)


def has_bitwidths_by_matrix(record: RunRecord) -> bool:
    """Whether `bitwidth_history` has something to tell."""
    return any(name.startswith(MATRIX) for line in record.lines for name in line)


def group_by_seed(records: Sequence[RunRecord]) -> list[SeedGroup]:
    """Runs that differ in their seed only, together, in the order of their first ones; those without a config alone.

    Runs of the same seed are not put together.
    """
    groups: dict[Any, list[RunRecord]] = {}
    for record in records:
        key = record.name if record.config is None else settings_of(record.config)
        members = groups.setdefault(key, [])
        if any(member.seed == record.seed for member in members):
            members = groups.setdefault((key, record.name), [])
        members.append(record)
    labels = [_label(runs) for runs in groups.values()]
    if len(set(labels)) < len(labels):
        labels = [', '.join(run.name for run in runs) for runs in groups.values()]
    return [SeedGroup(label, runs) for label, runs in zip(labels, groups.values())]


def settings_of(config: dict[str, Any], without: Iterable[str] = ()) -> str:
    """All that two runs have in common which differ in their seed only, as JSON has it; `without` further fields."""
    left_out = {*NO_SETTINGS, *without}
    return json.dumps({name: value for name, value in config.items() if name not in left_out}, sort_keys=True)


def curves_of(group: SeedGroup, metric: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The `series` of each run of a group that has the metric."""
    return [curve for curve in (series(run.lines, metric) for run in group.runs) if len(curve[0])]


def mean_and_range(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Steps that all curves have; the mean, the least and the largest value there."""
    if not curves:
        return (np.array([]),) * 4
    by_step = [dict(zip(steps.tolist(), values.tolist())) for steps, values in curves]
    shared = sorted(set.intersection(*map(set, by_step)))
    values = np.array([[curve[step] for step in shared] for curve in by_step], float)
    return np.array(shared, float), values.mean(0), values.min(0), values.max(0)


def gaps_to(group: SeedGroup, base: SeedGroup, metric: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps and the gap to `base` in percent of it, a curve for each seed that both have."""
    by_seed = {run.seed: run for run in base.runs}
    curves = []
    for run in group.runs:
        if run.seed in by_seed:
            (steps, values), (its_steps, its_values) = (series(of.lines, metric) for of in (run, by_seed[run.seed]))
            _, ours, theirs = np.intersect1d(steps, its_steps, return_indices=True)
            with np.errstate(all='ignore'):
                curve = 100 * (values[ours] / its_values[theirs] - 1)
            is_drawn = np.isfinite(curve)  # a loss of 0, or one that has diverged, is nothing to draw
            is_drawn &= np.isfinite(its_values[theirs])
            curves.append((steps[ours][is_drawn], curve[is_drawn]))
    return [curve for curve in curves if len(curve[0])]


def base_of(group: SeedGroup, groups: Sequence[SeedGroup], method: str = 'bf16') -> SeedGroup | None:
    """The runs of `method` that differ from a group's in method and seed only; None where there are none."""
    if group.runs[0].config is None or group.runs[0].method == method:
        return None
    same = settings_of(group.runs[0].config, OF_THE_METHOD)
    found = (
        other
        for other in groups
        if other.runs[0].method == method and settings_of(other.runs[0].config, OF_THE_METHOD) == same
    )
    return next(found, None)


def _label(runs: Sequence[RunRecord]) -> str:
    """'gaussws' of gaussws-0, gaussws-1 and gaussws-2; one run's own name."""
    names = [run.name for run in runs]
    stems = {re.sub(rf'([-_.,]?seed[-_=]?|[-_.,=]){run.seed}$', '', run.name) for run in runs}
    if len(runs) == 1:
        return names[0]
    return stems.pop() if len(stems) == 1 and stems != {''} else f'{names[0]} … {names[-1]}'
