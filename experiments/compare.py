"""Compare the settings of a sweep over its seeds, as a Markdown table.

    python -m experiments.compare --workdir=runs/formats
    python -m experiments.compare --workdir=runs/bitwidths --metric=validation/loss,bits/stored
    python -m experiments.compare --workdir=runs/recipes --where=size=tiny-1m --where=total_steps=600

A row a setting, that is all runs that differ in their seed only: the fields in which rows differ; the mean over the
seeds ± half the width of its 95 % confidence interval (Student's); the difference from the first row; and where one
field alone has changed, the difference from the row above. Differences are taken seed by seed, in per cent of the
other's mean, and are bold where the interval excludes 0. One seed has no interval. Runs that diverged are left out, and
counted.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments import cli
from experiments.files import csv_files, foreign_text, paths
from experiments.methods import METHODS, unused_settings
from experiments.reports import confidence
from experiments.reports.markdown import markdown_table

WORKDIR = flags.DEFINE_string('workdir', None, "The sweep's directory, or its results.csv.", required=True)
METRIC = flags.DEFINE_list('metric', ['validation/loss'], 'Columns of its results.csv; a table for each.')
WHERE = flags.DEFINE_multi_string('where', [], 'FIELD=VALUE that runs must have; may be repeated.')


class SeedGroup(NamedTuple):
    """The runs that share all fields but the seed."""

    fields: dict[str, str]
    by_seed: dict[str, float]  # of the runs that are done
    diverged: list[str]  # the names of those that have no loss
    missing: list[str]  # the names of those that are not done yet, or failed


def main(argv):
    del argv
    with cli.user_errors():
        path = paths.parse(WORKDIR.value, '--workdir')
        results = path if path.is_file() else path / 'results.csv'
        tables = {metric: chosen(read_groups(results, metric), WHERE.value) for metric in METRIC.value}
    print('\n\n'.join(foreign_text.escaped(markdown(groups, metric)) for metric, groups in tables.items()))
    groups = next(iter(tables.values()))
    if diverged := [name for group in groups for name in group.diverged]:
        print(foreign_text.escaped(f'\ndiverged, and left out: {", ".join(diverged)}'))
    if missing := [name for group in groups for name in group.missing]:
        sys.exit(foreign_text.escaped(f'not done, and left out: {", ".join(missing)}'))


def read_groups(path: pathlib.Path, metric: str) -> list[SeedGroup]:
    """The runs of a results.csv by their settings, in its order; its fields stand between status and seconds.

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
    groups = {}
    for where, row in lines:
        unused = unused_settings(row['method']) if row.get('method') in METHODS else ()
        key = tuple('' if field.rpartition('.')[2] in unused else row[field] for field in fields)
        group = groups.setdefault(key, SeedGroup(dict(zip(fields, key)), {}, [], []))
        if row['status'] == 'done':
            try:
                group.by_seed[row.get('seed', '')] = float(row[metric])
            except ValueError:
                raise ValueError(f'{path}, {where}: {metric} is {row[metric][:80]!r}, and no number') from None
        else:
            (group.diverged if row['status'] == 'diverged' else group.missing).append(row['name'])
    return list(groups.values())


def chosen(groups: list[SeedGroup], where: Sequence[str]) -> list[SeedGroup]:
    """Those whose fields have these values, 'FIELD=VALUE'; a field may be named by its last part.

    Raises:
      ValueError: for another text, a field that isn't there, and if none is left; naming --where.
    """
    for text in where:
        name, equals, value = text.partition('=')
        fields = [field for field in groups[0].fields if name in (field, field.rpartition('.')[2])]
        if not equals or len(fields) != 1:
            allowed = csv_files.in_words(groups[0].fields)
            raise ValueError(f'--where={text}: it must be FIELD=VALUE, of one of these fields: {allowed}')
        values = {group.fields[fields[0]] for group in groups}
        if value not in values:
            raise ValueError(f'--where={text}: no run has that; they have {csv_files.in_words(sorted(values))}')
        groups = [group for group in groups if group.fields[fields[0]] == value]
    return groups


def markdown(groups: list[SeedGroup], metric: str) -> str:
    """The table."""
    fields = list(groups[0].fields)
    differ = [field for field in fields if len({group.fields[field] for group in groups}) > 1 or len(groups) == 1]
    rows = []
    for group, above in zip(groups, [None, *groups]):
        done, diverged = len(group.by_seed), len(group.diverged)
        count = done + diverged + len(group.missing)
        seeds = str(count) if done == count else f'{done} of {count}'
        seeds += f', {diverged} diverged' if diverged else ''
        mean = confidence.mean([*group.by_seed.values()]).text('.4f') if done else ''
        is_neighbour = above and sum(group.fields[field] != above.fields[field] for field in fields) == 1
        to_first = difference(group, groups[0]) if above else ''
        to_above = difference(group, above) if is_neighbour else ''
        rows.append([*map(group.fields.get, differ), seeds, mean, to_first, to_above])
    names = [field.rpartition('.')[2] for field in differ]
    return markdown_table([*names, 'seeds', metric, 'to the first row', 'to the row above'], rows)


def difference(group: SeedGroup, other: SeedGroup) -> str:
    """Mean difference in per cent of the other's mean, over the seeds that both have."""
    differences = confidence.paired_differences(group.by_seed, other.by_seed)
    if not differences:
        return 'no seed in common'
    base = abs(np.mean([loss for seed, loss in other.by_seed.items() if seed in group.by_seed]))
    if not 0 < base < np.inf:
        return ''
    text = confidence.mean(np.divide(differences, base)).marked_text('+.2%')
    is_all = len(differences) in (1, max(len(group.by_seed), len(other.by_seed)))
    return text if is_all else f'{text} ({len(differences)} seeds in common)'


if __name__ == '__main__':
    cli.start(main)
