"""Which trainings a sweep is: from its base config and its grids to a list of runs, each with its name and command."""

import collections
import itertools
import json
import pathlib
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

from experiments.training import branches, optimizers

TRAIN = (sys.executable, '-m', 'experiments.train')
LONGEST_NAME = 255  # of a directory, in bytes


class SweepRun(NamedTuple):
    """One training of a sweep."""

    name: str
    fields: dict[str, Any]  # what its grid sets; arguments of the base config with their colon
    config: dict[str, Any]  # what train makes of them: every field by its dotted name
    workdir: pathlib.Path
    command: list[str]  # … -m experiments.train --config=… --config.<field>=<value> … --workdir=…
    stem: str | None = None  # the name of the run that it branches off


def make_runs(base: str, grids: Iterable[Mapping[str, Iterable]], workdir: pathlib.Path) -> list[SweepRun]:
    """The runs of a sweep, in the order of its grids; the last field of a grid varies fastest.

    Raises:
      ValueError: for a base config that can't be made, a field that it hasn't, a value of another type, an empty list
        or grid, a run that occurs twice, a name too long for a directory.
    """
    defaults = resolve([f'--config={base}'])
    last_parts = collections.Counter(field.split('.')[-1] for field in defaults)
    sweep, columns = {}, {}
    for number, grid in enumerate(grids):
        if not isinstance(grid, Mapping) or not grid:
            raise ValueError(f'grids[{number}]={grid!r} must map fields to lists of values')
        lists = [check_values(f'grids[{number}]', field, values, defaults) for field, values in grid.items()]
        for values in itertools.product(*lists):
            fields = dict(zip(grid, values))
            # The last part of a field where the base config has no other such, whatever the sweep's other fields are.
            short = {field: last if last_parts[last := field.split('.')[-1]] == 1 else field for field in fields}
            name = ','.join(
                f'{short[field].lstrip(":")}={urllib.parse.quote(str(fields[field]), safe="+")}' for field in fields
            )
            if len(name) > LONGEST_NAME:
                raise ValueError(f'grids[{number}]: {name} is too long for a directory; set fewer fields')
            of_base = [f'{field[1:]}={value}' for field, value in fields.items() if field.startswith(':')]
            config = base + (',' if ':' in base else ':') * bool(of_base) + ','.join(of_base)
            settings = {field: value for field, value in fields.items() if not field.startswith(':')}
            arguments = [f'--config={config}', *(f'--config.{field}={value}' for field, value in settings.items())]
            command = [*TRAIN, *arguments, f'--workdir={workdir / name}']
            run = SweepRun(name, fields, resolve(arguments), workdir / name, command)
            twin = sweep.setdefault(json.dumps(run.config), run)
            if twin is not run:
                raise ValueError(f'grids[{number}]: {name} is the same run as {twin.name}; a run may occur only once')
            if clash := [field for field in fields if columns.setdefault(field.lstrip(':'), field) != field]:
                one, other = clash[0], columns[clash[0].lstrip(':')]
                raise ValueError(f'grids[{number}]: {one!r} and {other!r} would be one column; vary one of them')
    if not sweep:
        raise ValueError(f'grids={grids!r} must be a list of mappings from fields to lists of values')
    return list(sweep.values())


def with_branches(sweep: Sequence[SweepRun]) -> list[SweepRun]:
    """The same runs, trained with fewer steps: of those that differ in how they end alone, all are branches of one.

    That is the one whose learning rate falls last. What runs come to doesn't change by a bit (`training.branches`).

    Raises:
      ValueError: no two runs are so; a run can't be a branch, or its stem would keep no checkpoint for it.
    """
    own = ('total_steps', *(f'optimizer.{name}' for name in branches.OF_DECAY))
    families, stems = {}, {}
    for run in sweep:
        alike = json.dumps({field: value for field, value in run.config.items() if field not in own})
        families.setdefault(alike, []).append(run)
    for family in families.values():
        stem = max(family, key=_decay_start)
        stems |= {run.name: stem for run in family if run is not stem}
    if not stems:
        raise ValueError(f'branches=True would do nothing: no two runs differ in {", ".join(own)} alone')
    return [_branch(run, stems[run.name]) if run.name in stems else run for run in sweep]


def _branch(run: SweepRun, stem: SweepRun) -> SweepRun:
    config = run.config | {'branch_from': str(stem.workdir)}
    optimizers.check_branch(_nested(config))
    period, start = config['keep_period'], _decay_start(run)
    if not 0 < period <= start:
        raise ValueError(
            f'branches=True: the decay of {run.name} begins at step {start}, and with keep_period={period} no'
            f' checkpoint is kept for it until then; allowed are 1 to {start}'
        )
    *command, workdir = run.command
    command += [f'--config.branch_from={stem.workdir}', workdir]
    return run._replace(config=config, command=command, stem=stem.name)


def _decay_start(run: SweepRun) -> int:
    return optimizers.decay_start(_nested(run.config))


def _nested(config: Mapping[str, Any]) -> ConfigDict:
    return ConfigDict(traverse_util.unflatten_dict(dict(config), sep='.'))


def check_values(where: str, field: str, values: Any, defaults: Mapping[str, Any]) -> list:
    """The values of a field, in its type; ValueError where that can't be."""
    is_argument = field.startswith(':')  # which the base config itself checks
    if not is_argument and (field not in defaults or field == 'name'):
        allowed = ', '.join(name for name in defaults if name != 'name')
        raise ValueError(f'{where}: the base config has no field {field!r} to vary; it has {allowed}')
    if isinstance(values, str) or not isinstance(values, Iterable) or not (values := list(values)):
        raise ValueError(f'{where}[{field!r}]={values!r} must be a list of values, and not empty')
    values = [value.item() if hasattr(value, 'item') else value for value in values]  # NumPy's
    if is_argument:
        return values
    kind = type(defaults[field])
    values = [float(value) if kind is float and type(value) is int else value for value in values]
    for value in values:
        if type(value) is not kind:
            raise ValueError(f'{where}[{field!r}]: {value!r} must be of type {kind.__name__}, as {defaults[field]!r}')
    return values


def resolve(arguments: list[str]) -> dict[str, Any]:
    """The config that train makes of these arguments, as JSON has it, every field by its dotted name."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=arguments)
    try:
        values(['train', *arguments])
    except flags.Error as error:  # what a config file raises comes with its traceback: the last line says it
        raise ValueError(' '.join(arguments) + ': ' + str(error).rstrip().splitlines()[-1]) from error
    return traverse_util.flatten_dict(json.loads(json.dumps(config.value.to_dict())), sep='.')
