"""Compare the settings of a sweep over its seeds, as a Markdown table.

    python -m experiments.compare --workdir=runs/formats

A row a setting, that is all runs that differ in their seed only: mean and standard error over the seeds; the difference
from the first row; and where one field alone has changed, the difference from the row above. Differences are taken seed
by seed, and those within two standard errors of nothing are marked as not separated. Runs that diverged are left out,
and counted.
"""

import math
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments import cli
from experiments.files import csv_files, foreign_text, paths
from experiments.methods import METHODS, unused_settings

WORKDIR = flags.DEFINE_string('workdir', None, "The sweep's directory.", required=True)
METRIC = flags.DEFINE_string('metric', 'validation/loss', 'A column of its results.csv.')

SEPARATED = 2  # standard errors


class Setting(NamedTuple):
    """The runs that share all fields but the seed."""

    fields: dict[str, str]
    by_seed: dict[str, float]  # of the runs that are done
    diverged: list[str]  # the names of those that have no loss
    missing: list[str]  # the names of those that are not done yet, or failed


def main(argv):
    del argv
    with cli.user_errors():
        settings = read_settings(paths.parse(WORKDIR.value, '--workdir') / 'results.csv', METRIC.value)
    print(foreign_text.escaped(markdown(settings, METRIC.value)))
    if diverged := [name for setting in settings for name in setting.diverged]:
        print(foreign_text.escaped(f'\ndiverged, and left out: {", ".join(diverged)}'))
    if missing := [name for setting in settings for name in setting.missing]:
        sys.exit(foreign_text.escaped(f'not done, and left out: {", ".join(missing)}'))


def read_settings(path: pathlib.Path, metric: str) -> list[Setting]:
    """The settings in a results.csv, in its order; its fields stand between status and seconds.

    Fields that the method of a run has no use for are empty.

    Raises:
      ValueError: if there is no such column, or no run that is done.
    """
    lines = list(csv_files.read(path))
    rows = [row for _, row in lines]
    columns = csv_files.in_words(rows[0] if rows else ())
    if lacking := [name for name in ('name', 'status', 'seconds', metric) if rows and name not in rows[0]]:
        raise ValueError(f'{path} has no {lacking[0]!r}; its columns are {columns}')
    if all(row['status'] != 'done' for row in rows):
        raise ValueError(f'{path} has no {metric!r} of a run that is done; its columns are {columns}')
    names = list(rows[0])
    fields = [name for name in names[names.index('status') + 1 : names.index('seconds')] if name != 'seed']
    settings = {}
    for where, row in lines:
        unused = unused_settings(row['method']) if row.get('method') in METHODS else ()
        key = tuple('' if field.rpartition('.')[2] in unused else row[field] for field in fields)
        setting = settings.setdefault(key, Setting(dict(zip(fields, key)), {}, [], []))
        if row['status'] == 'done':
            setting.by_seed[row.get('seed', '')] = _number(f'{path}, {where}', metric, row[metric])
        else:
            (setting.diverged if row['status'] == 'diverged' else setting.missing).append(row['name'])
    return list(settings.values())


def _number(where: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'{where}: {name} is {text[:80]!r}, and no number') from None


def markdown(settings: list[Setting], metric: str) -> str:
    """The table."""
    fields = list(settings[0].fields)
    lines = [[*(field.rpartition('.')[2] for field in fields), 'seeds', metric, 'to the first row', 'to the row above']]
    lines.append(['---'] * len(lines[0]))
    for setting, above in zip(settings, [None, *settings]):
        done, diverged = len(setting.by_seed), len(setting.diverged)
        count = done + diverged + len(setting.missing)
        seeds = str(count) if done == count else f'{done} of {count}'
        seeds += f', {diverged} diverged' if diverged else ''
        mean, error = mean_and_error(list(setting.by_seed.values()))
        first = above and difference(setting, settings[0])
        neighbour = above and sum(setting.fields[field] != above.fields[field] for field in fields) == 1
        previous = difference(setting, above) if neighbour else ''
        loss = f'{mean:.4f} ± {error:.4f}'
        lines.append([*setting.fields.values(), seeds, loss, first or '', previous])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def difference(setting: Setting, other: Setting) -> str:
    """Mean difference in per cent of the other's mean, over the seeds that both have."""
    seeds = [seed for seed in setting.by_seed if seed in other.by_seed]
    if not seeds:
        return 'no seed in common'
    mean, error = mean_and_error([setting.by_seed[seed] - other.by_seed[seed] for seed in seeds])
    base = np.mean([other.by_seed[seed] for seed in seeds])
    separated = abs(mean) > SEPARATED * error  # False with one seed, whose error is not known
    return f'{mean / base:+.2%} ± {error / base:.2%}' + ('' if separated else ', not separated')


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error; NaN for the error of one value."""
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


if __name__ == '__main__':
    cli.start(main)
