"""Scaling laws of low-precision training: fit one to runs, and ask it what to train.

    python -m experiments.scaling_law plan --compute=1e24 --gpu=h100 --days=30   # which N, D, bits and format, and how
    python -m experiments.scaling_law critical --model=1B                        # past how many tokens more hurt
    python -m experiments.scaling_law predict --model=7b --tokens=100B --format=e4m3,e2m1 --block_size=64
    python -m experiments.scaling_law layout                                     # the best format for a number of bits
    python -m experiments.scaling_law exchange --model=1B --bits=8               # weights for bits, at the same cost
    python -m experiments.scaling_law fit runs/tiny-law/results.csv --output=law.json
    python -m experiments.scaling_law report runs/tiny-law/results.csv --output=report.html

The law is the one that the Capybara paper (arXiv 2501.02423) has published; with --law=law.json one that `fit` wrote;
with --runs=TABLE one fitted on the spot, as by `fit TABLE`. A fitted law gives 95 % intervals, by a bootstrap over
groups of runs: those of one N, D and seed, and those of one N and run, if the table says seed and run (or run_id, or
run_name).

A table of runs is CSV, JSONL or Parquet: the results.csv of experiments.sweep, or one with the columns N (weights of
the linear layers), D (tokens), E and M (bits of exponent and mantissa) or format, B (block size) and loss; or b, the
bitwidth of sampled weights, for --law_name=bitwidth. Amounts may be written 1e9, 1B or 1.5T; --model also takes a size
of configs/capybara.py. Cost is C = 6/16 N D P: the 6 N D of 16-bit training, in proportion to the P bits.
"""

import functools
import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import cli
from experiments.devices import device_specs
from experiments.files import paths
from experiments.laws import known_laws, studies, training_plans
from experiments.laws.answers import Answer, Point, Quantity, cells_of, columns_of, plain, tabulate
from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import (
    UNKNOWN,
    format_name,
    human,
    parse_amount,
    parse_bits,
    parse_block,
    parse_layout,
    parse_model,
)
from gaussq_jax.scaling_laws import ERRORS
from gaussq_jax.scaling_laws.fitting import OBJECTIVES


def define_flags(args: flags.FlagValues):
    """Defines the flags of all commands; in `args` then stands what they say, as `args.model`."""
    kinds = flags.DEFINE_string, flags.DEFINE_list, flags.DEFINE_float, flags.DEFINE_enum, flags.DEFINE_bool
    string, several_of, number, one_of, switch = (functools.partial(kind, flag_values=args) for kind in kinds)
    string('law', None, 'A law that `fit --output` has written.')
    string('runs', None, 'A table of runs to fit the law to.')
    one_of('law_name', 'capybara', tuple(known_laws.LAWS), 'The law to fit.')
    switch('exclude_e0', False, 'Fit without the runs of E = 0, of which law and quantizer differ.')
    least = 'What a fit makes least: squares of residuals, or Huber of these or of their logs.'
    one_of('objective', 'squares', OBJECTIVES, least)
    switch('robust', False, 'The same as --objective=huber: outliers count less.')
    assumed = (
        'What errors and intervals take for granted: that groups of runs are independent (cr3), that runs are (hc3), or'
        ' that their residuals are of one size too (plain).'
    )
    one_of('errors', 'cr3', tuple(ERRORS), assumed)
    held_out = (
        'Runs to hold out, by which laws are compared: none; folds, five parts of the pairs of N and D, and of the N;'
        ' one, each of these in turn; largest:K, those of the K largest N.'
    )
    string('held_out', 'folds', held_out)
    several_of('model', None, 'N, or a size of configs/capybara.py; several, unless for plan.')
    several_of('tokens', None, 'D; several, unless for plan.')
    several_of('format', ['bf16', 'e4m3', 'e3m2', 'e2m1'], 'Formats: ExMy, bf16, or names of ml_dtypes.')
    several_of('block_size', ['128'], 'How many values share a scale: numbers, channel or tensor.')
    several_of('bits', None, 'P; for the bitwidth law, b.')
    several_of('new_bits', ['4', '6', '8', '16'], 'exchange: the P to change to.')
    string('compute', None, 'plan: C, in operations as 6 N D at 16 bits.')
    one_of('gpu', None, ('a100', 'h100', 'h200', 'b200'), 'plan: tell how long it takes on these.')
    number('mfu', 0.4, "plan: the part of a GPU's peak that the training attains.")
    number('days', None, 'plan: tell how many GPUs it takes to be done in so many days.')
    string('output', None, 'fit: a JSON file for the law. report: the HTML file.')
    switch('json', False, 'Print one JSON object, and nothing else.')


class Command(NamedTuple):
    """A function of parsed flags, and of a table of runs if it takes one; the flags it needs, and those it may have."""

    run: Callable[..., Answer]
    takes_table: bool
    needed: tuple[str, ...]
    optional: tuple[str, ...]


def main(argv: list[str], args: flags.FlagValues = flags.FLAGS):
    with cli.user_errors():
        name, *arguments = argv[1:] or ['']
        if name not in COMMANDS:
            raise ValueError(f'say what to do: {", ".join(COMMANDS)} (not {name!r})')
        check_command_line(name, arguments, args)
        answer = COMMANDS[name].run(args, *arguments)
    print(json.dumps(plain(answer.data), indent=1, allow_nan=False) if args.json else '\n'.join(answer.lines))


def check_command_line(name: str, arguments: Sequence[str], args: flags.FlagValues):
    """Refuses what a command can't do without, and what it has no use for.

    Raises:
      ValueError: naming it, and what the command takes.
    """
    command = COMMANDS[name]
    known = command.needed + command.optional
    usage = f'{name}{" TABLE" * command.takes_table} takes {", ".join(f"--{flag}" for flag in known)}'
    if len(arguments) != command.takes_table:
        what = 'needs one table of runs' if command.takes_table else f'has no use for {" ".join(arguments)!r}'
        raise ValueError(f'{name} {what}: {usage}')
    given = {flag for each in COMMANDS.values() for flag in each.needed + each.optional if args[flag].present}
    if useless := sorted(given - set(known)):
        raise ValueError(f'{name} has no use for --{useless[0]}: {usage}')
    if missing := [flag for flag in command.needed if flag not in given]:
        raise ValueError(f'{name} needs --{missing[0]}: {usage}')
    if not command.takes_table:
        if {'law', 'runs'} <= given:
            raise ValueError('--law and --runs are two laws: give one of them')
        if 'runs' not in given and (useless := sorted(given.intersection(HOW_TO_FIT))):
            raise ValueError(f'--{useless[0]} is of a fit to --runs, which is not given')


def fit(args: flags.FlagValues, path: str) -> Answer:
    """Fits a law, writes it, and says how good it is."""
    study = studies.Study.of(known_laws.LAWS[args.law_name], path, **study_settings(args))
    data = study.describe()
    lines = studies.fit_lines(data)
    if args.output:
        known_laws.write_law(args.output, known_laws.fitted(study.result, study.table))
        lines += ['', f'written to {args.output}; to ask it: --law={shlex.quote(args.output)}']
    return Answer(data, lines)


def report(args: flags.FlagValues, path: str) -> Answer:
    """Writes the HTML report of a table of runs."""
    from experiments.laws import html_report  # which draws: the other commands don't wait for matplotlib

    table = paths.parse(path, 'a table of runs')
    output = paths.parse(args.output, '--output') if args.output else table.with_suffix('.html')
    data = html_report.write(path, output, **study_settings(args))
    return Answer({'output': str(output), **data}, [f'written to {output}'])


def predict(args: flags.FlagValues) -> Answer:
    """The loss of trainings."""
    known = which_law(args)
    points = points_of(args, known, known.law.COLUMNS)
    remarks = [remark for point in points for remark in known.remarks(N=point['N'], D=point['D'])]
    if known.draws and known.scatter is None:
        remarks.append(f'intervals are of the law; runs scatter about it by {known.noise:.2g} nats')
    loss = Quantity(lambda law, columns: law.loss(**columns), '{:.4f}'.format, is_loss=True)
    return tabulate(known, points, {'loss': loss}, remarks)


def critical(args: flags.FlagValues) -> Answer:
    """D_crit, past which more data hurts, and the loss there."""
    known = which_law(args, 'capybara', 'bitwidth')
    points = points_of(args, known, [column for column in known.law.COLUMNS if column != 'D'])
    size = lambda law, columns: law.critical_data_size(**columns)
    loss = lambda law, columns: law.loss(**columns, D=np.minimum(size(law, columns), 1e100))  # infinite for B = 1
    remarks = [remark for point in points for remark in known.remarks(N=point['N'])]
    for point, D in itertools.product(points, several(args, 'D')):
        columns = columns_of([point])
        most = known.value(functools.partial(size, columns=columns)).item()
        if most < D:
            there, least = known.law.loss(**columns, D=D).item(), loss(known.law, columns).item()
            remarks.append(
                f'TOO MANY TOKENS for {" ".join(cells_of(point).values())}: {human(D)} give a loss of {there:.4f},'
                f' {human(most)} one of {least:.4f}'
            )
    quantities = {'critical tokens': Quantity(size, human), 'loss there': Quantity(loss, '{:.4f}'.format)}
    return tabulate(known, points, quantities, remarks)


def layout(args: flags.FlagValues) -> Answer:
    """The best exponent and mantissa bits for each number of bits."""
    known = which_law(args, 'capybara')
    points = product(args, 'P') or [{'P': bits} for bits in np.arange(3.0, 17.0)]
    quantities = {
        'best E': Quantity(lambda law, columns: law.optimal_layout(**columns)[0], '{:.2f}'.format),
        'best M': Quantity(lambda law, columns: law.optimal_layout(**columns)[1], '{:.2f}'.format),
    }
    for point in points:
        if point['P'] % 1:
            point['format'] = ''
        else:
            E, M = known.value(lambda law, P=point['P']: law.best_format(P))
            point['format'] = UNKNOWN if np.isnan(E) else format_name(int(E), int(M))
    return tabulate(known, points, quantities)


def exchange(args: flags.FlagValues) -> Answer:
    """The N for which other bits are best at the cost at which these bits are best for this N."""
    known = which_law(args, 'capybara')
    quantities = {'new N': Quantity(lambda law, columns: law.precision_model_exchange(**columns), human)}
    return tabulate(known, product(args, ('N', 'P', 'new_P')), quantities)


def plan(args: flags.FlagValues) -> Answer:
    """What to train for a budget, and how."""
    for name in ('mfu', 'days'):
        if args[name].present and not args.gpu:
            raise ValueError(f'--{name} is of a --gpu, which is not given')
    if not 0 < args.mfu <= 1:
        raise ValueError(f'--mfu={args.mfu:g} must be above 0, and at most 1')
    if args.days is not None and not 0 < args.days < np.inf:
        raise ValueError(f'--days={args.days:g} must be above 0')
    for name in ('block_size', 'model', 'tokens'):
        if args[name].value is not None and len(args[name].value) != 1:
            raise ValueError(f'--{name}={",".join(args[name].value)}: plan takes one')
    if args.model and args.tokens:
        raise ValueError('--model and --tokens leave no choice but the bits; give one of them, or neither')
    compute = parse_amount('compute', args.compute)
    (block_size,) = several(args, 'B')
    (N,), (D,) = several(args, 'N') or [None], several(args, 'D') or [None]
    made = training_plans.make_plan(which_law(args, 'capybara'), compute, block_size, N=N, D=D)
    gpu = args.gpu and device_specs.find(args.gpu)._replace(name=args.gpu)
    return Answer(*training_plans.describe(made, gpu, args.mfu, args.days))


INPUTS = {  # of laws, each with its flag and what parses that
    'N': ('model', parse_model),
    'D': ('tokens', parse_amount),
    'E': ('format', parse_layout),
    'B': ('block_size', parse_block),
    'P': ('bits', parse_bits),
    'b': ('bits', parse_amount),
    'new_P': ('new_bits', parse_bits),
}
HOW_TO_FIT = ('law_name', 'exclude_e0', 'objective', 'robust', 'errors')
WHICH_LAW = ('law', 'runs', *HOW_TO_FIT)
COMMANDS = {
    'fit': Command(fit, True, (), (*HOW_TO_FIT, 'held_out', 'output', 'json')),
    'predict': Command(predict, False, ('model', 'tokens'), ('format', 'block_size', 'bits', *WHICH_LAW, 'json')),
    'critical': Command(critical, False, ('model',), ('tokens', 'format', 'block_size', 'bits', *WHICH_LAW, 'json')),
    'layout': Command(layout, False, (), ('bits', *WHICH_LAW, 'json')),
    'plan': Command(
        plan, False, ('compute',), ('model', 'tokens', 'block_size', 'gpu', 'mfu', 'days', *WHICH_LAW, 'json')
    ),
    'exchange': Command(exchange, False, ('model', 'bits'), ('new_bits', *WHICH_LAW, 'json')),
    'report': Command(report, True, (), ('exclude_e0', 'objective', 'robust', 'errors', 'held_out', 'output', 'json')),
}


def study_settings(args: flags.FlagValues) -> dict[str, Any]:
    """What the flags say of a study."""
    return dict(
        exclude_e0=args.exclude_e0,
        objective=objective(args),
        errors=args.errors,
        held_out=args.held_out,
    )


def objective(args: flags.FlagValues) -> str:
    """What a fit makes least.

    Raises:
      ValueError: for --robust beside another --objective.
    """
    if args.robust and args['objective'].present and args.objective != 'huber':
        raise ValueError(f'--robust is --objective=huber, and --objective={args.objective} is given: give one of them')
    return 'huber' if args.robust else args.objective


def which_law(args: flags.FlagValues, *allowed: str) -> KnownLaw:
    """The law that the flags say, one of these."""
    if args.runs:
        family = known_laws.LAWS[args.law_name]
        table = known_laws.runs_for(family, args.runs, exclude_e0=args.exclude_e0)
        result = known_laws.fit(family, table, objective=objective(args), errors=args.errors)
        known = known_laws.fitted(result, table)
    else:
        known = known_laws.read_law(args.law) if args.law else known_laws.PUBLISHED
    if allowed and known.name not in allowed:
        raise ValueError(f'this question is one for the law {" or ".join(allowed)}, not for {known.origin}')
    return known


def points_of(args: flags.FlagValues, known: KnownLaw, columns: Sequence[str]) -> list[Point]:
    """The points that are asked for, as the law's loss takes them: every model with all tokens, formats, ..."""
    columns = [column for column in columns if column in INPUTS]  # M comes with E
    used = [INPUTS[column][0] for column in columns]
    for name in ('format', 'block_size', 'bits'):
        if args[name].present and name not in used:
            takes = ', '.join(known.law.COLUMNS)
            raise ValueError(f'--{name} has no meaning for the law {known.name}, which takes {takes}')
    if missing := [name for name in used if not args[name].value]:
        raise ValueError(f'the law {known.name} needs --{missing[0]}')
    points = product(args, columns)
    return [{**point, **dict(zip('EM', point['E']))} if 'E' in point else point for point in points]


def product(args: flags.FlagValues, columns: Sequence[str]) -> list[Point]:
    """Every combination of what the flags of these inputs give."""
    return [dict(zip(columns, point)) for point in itertools.product(*(several(args, name) for name in columns))]


def several(args: flags.FlagValues, column: str) -> list[Any]:
    """What stands in the flag of an input, which is a list, parsed."""
    flag, parse = INPUTS[column]
    return [parse(flag, text.strip()) for text in args[flag].value or ()]


if __name__ == '__main__':
    define_flags(flags.FLAGS)
    cli.start(main, takes_arguments=True)
