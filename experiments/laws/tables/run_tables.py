"""Tables of runs, as scaling laws are fitted to them: of our sweeps, and as other programs export them."""

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.files import paths
from experiments.laws.tables import column_names, run_choice, table_files, table_remarks
from experiments.laws.tables.reading import AS_IT_IS, Reading
from experiments.laws.tables.run_cells import NUMBERS, NumberReader, read_run

OF_A_RUN = 'loss', 'name', 'run', 'seed'  # columns that say nothing of what was trained
TEXTS = 'format', 'method', 'forward', 'backward', 'seed', 'name', 'run'


class RunTable(NamedTuple):
    """Runs that are done, with a finite loss."""

    path: str
    # N, D, loss, E, M, b, P, P_w, P_a, P_kv, P_post and what a law of one's own needs are float64, NaN where a run has
    # none; B has numbers, 'channel', 'tensor' and None, where a run has none; TEXTS are text, empty where not known.
    columns: dict[str, np.ndarray]
    left_out: dict[str, int]  # why -> how many runs
    names: tuple[str, ...]  # the columns of the file
    remarks: tuple[str, ...]  # what a reader must be told
    origins: np.ndarray  # where each run stands: its name, or its run, or its line

    @property
    def num_runs(self) -> int:
        return len(self.columns['loss'])

    def where(self, mask: np.ndarray, reason: str) -> 'RunTable':
        """The runs of a mask; the others are left out for this reason."""
        if mask.all():
            return self
        left_out = collections.Counter(self.left_out) + collections.Counter({reason: int(np.sum(~mask))})
        columns = {name: column[mask] for name, column in self.columns.items()}
        return self._replace(columns=columns, left_out=left_out, origins=self.origins[mask])


def read_runs(path: str | pathlib.Path, reading: Reading = AS_IT_IS) -> RunTable:
    """The runs of a table, of CSV (with commas, semicolons, tabs or bars), JSON, JSON lines or Parquet.

    It has the columns N, D and loss, or C, the FLOPs, for D = C / (6 N); and those of E, M, P, B and b that there are.
    Columns that the file has by other names are found, and told in `remarks`. Of losses, one of held-out text comes
    before one of training. Of a sweep's results.csv, E and M are those of the format, and b is the mean bitwidth of
    sampled weights. E8M7 with B = 1 stands for the method bf16, and for bfloat16 without a block size. P is 1 + E + M
    unless there is a column P. `forward` and `backward` are recipes, in lower case: the table's own, or else what
    method, format and blocks are, for both.
    Runs that are not done, those without N, D or a loss, those whose loss is not finite, those that `reading` has no
    use for, and all but the last step of a run's history, are left out and counted.

    Args:
      path: of the file.
      reading: which columns and runs to take.

    Raises:
      ValueError: naming file and line (of Parquet and of an array of JSON, the row): for a column that is missing, or
        that might be one of several; for text in a number, one that must be positive and isn't, one that has two
        readings; a format or a block size that isn't there, or not that of the format; a damaged line or file, an empty
        file, an unknown ending; for what `reading` asks of the table and it doesn't have.

    Example:
      table = read_runs('wandb.csv', Reading({'loss': 'eval/c4/loss'}, where=(('dataset', 'c4'),), best_of=True))
    """
    path = paths.parse(path, 'a table of runs')
    if unusable := sorted({*reading.extra} & {'B', 'C', 'status', *TEXTS}):
        raise ValueError(f'{unusable[0]} is no column of numbers for a law of your own')
    reading = reading._replace(extra=tuple(name for name in reading.extra if name not in NUMBERS))
    file = table_files.read(path, lambda names: column_names.find(path, names, reading).used)
    found = column_names.find(path, file.names, reading)
    left_out = collections.Counter()
    lines = run_choice.having(path, file.lines, found.where, left_out)
    _check_alike(path, lines, found.several)
    numbers = [ours for ours in (*NUMBERS, 'C', *reading.extra) if ours in found.columns]
    cells_of = lambda ours: (cells.get(found.columns[ours]) for _, cells in lines)
    number = NumberReader({ours: cells_of(ours) for ours in numbers}, file.has_decimal_commas)
    runs = []
    for where, line in lines:
        cells = {ours: line.get(theirs) for ours, theirs in found.columns.items()}
        try:
            run = read_run(cells, number, reading.extra)
        except ValueError as error:
            raise ValueError(f'{path}, {where}: {error}') from None
        if isinstance(run, str):
            left_out[run] += 1
        else:
            runs.append({**run, '_line': where})
    remarks = [*found.remarks, *run_choice.rename(path, runs, reading.recipes)]
    runs, told = run_choice.choose(path, runs, found.columns, reading, left_out)
    kinds = {**dict.fromkeys((*NUMBERS, *reading.extra), float), 'B': object, **dict.fromkeys(TEXTS, str)}
    columns = {column: np.array([run[column] for run in runs], kind) for column, kind in kinds.items()}
    remarks += [*told, *table_remarks.of_units(columns)]
    return RunTable(str(path), columns, dict(left_out), file.names, tuple(remarks), _origins(runs))


def select(table: RunTable, columns: Sequence[str]) -> RunTable:
    """The runs that have all of these columns, the rest left out and counted; a recipe every run has.

    Raises:
      ValueError: if no run has one of them.
    """
    for column in columns:
        if column not in table.columns:
            raise column_names.missing(table.path, table.names, column)
        values = table.columns[column].astype(object)
        has = np.array([value is not None and value == value for value in values], bool)  # NaN equals nothing
        if not has.any():
            if table.num_runs and not {*column_names.names_of(column)} & {*table.names}:
                raise column_names.missing(table.path, table.names, column)
            told = ''.join(f'; {count} {reason}' for reason, count in table.left_out.items())
            raise ValueError(f'{table.path} has no run that is done and has {column}{told}')
        without = dict.fromkeys(table.columns['method'][~has])
        methods = f' ({", ".join(without)})' if any(without) else ''
        table = table.where(has, f'without {column}{methods}')
    return table


def seed_noise(table: RunTable) -> dict[str, float] | None:
    """How much the losses of runs differ that differ in their seed only, pooled over such settings.

    Returns:
      standard_deviation, in nats; of how many settings; degrees_of_freedom, the runs less the settings. None where no
      setting was run more than once.
    """
    settings = collections.defaultdict(dict)
    columns = [map(str, column) for name, column in table.columns.items() if name not in OF_A_RUN]
    for *setting, name, seed, loss in zip(*columns, *(table.columns[name] for name in ('name', 'seed', 'loss'))):
        of_sweep, seeds = re.subn(r'seed=\d+', '', name)  # a sweep's names tell of all that it varies
        settings[of_sweep if seeds else tuple(setting)].setdefault(seed, []).append(loss)
    several = [
        [loss for losses in by_seed.values() for loss in losses]
        for by_seed in settings.values()
        if len(by_seed) > 1 and all(len(losses) == 1 for losses in by_seed.values())
    ]
    if not several:
        return None
    degrees = sum(map(len, several)) - len(several)
    squares = sum(np.var(losses) * len(losses) for losses in several)
    deviation = float(np.sqrt(squares / degrees))
    return {'standard_deviation': deviation, 'settings': len(several), 'degrees_of_freedom': degrees}


def _check_alike(path: pathlib.Path, lines: Sequence[table_files.Line], several: Mapping[str, Sequence[str]]):
    """Raises ValueError for columns of which any may be meant, and which do not hold the same."""
    differ = {
        ours: names
        for ours, names in several.items()
        if any(str(cells.get(name)) != str(cells.get(names[0])) for _, cells in lines for name in names[1:])
    }
    if differ:
        raise column_names.ask(path, differ)


def _origins(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The names of runs, or their ids; where they stand, for those that have none, or one that others have too."""
    labels = [run['name'] or run['run'] for run in runs]
    times = collections.Counter(labels)
    both = [(label, run['_line']) if times[label] > 1 else (label,) for label, run in zip(labels, runs)]
    return np.array([', '.join(filter(None, parts)) or run['_line'] for parts, run in zip(both, runs)], str)
