"""Scaling laws of low-precision training: fit one to runs, and ask it what to train.

    python -m experiments.scaling_law plan --compute=1e24 --hardware=h100 --days=30  # which N, D and precision, and how
    python -m experiments.scaling_law critical --model=1B                    # past how many tokens more hurt
    python -m experiments.scaling_law predict --model=7b --tokens=100B --format=e4m3,e2m1 --block_size=64
    python -m experiments.scaling_law layout                                 # the best format for a number of bits
    python -m experiments.scaling_law exchange --model=1B --bits=8           # weights for bits, at the same cost
    python -m experiments.scaling_law worth --model=1B --tokens=20B --law=quartet  # how many weights of BF16 that is
    python -m experiments.scaling_law fit runs/tiny-law/results.csv --output=law.json
    python -m experiments.scaling_law fit wandb.csv --law_name=effective --columns=loss=eval/loss --where=dataset=c4
    python -m experiments.scaling_law compare runs/tiny-law/results.csv      # laws, by their errors on runs held out
    python -m experiments.scaling_law report runs/tiny-law/results.csv --output=report.html

The law is the one that the Capybara paper (arXiv 2501.02423) has published, or another published one (--law=quartet);
with --law=law.json one that `fit` wrote; with --runs=TABLE one fitted on the spot, as by `fit TABLE`. A fitted law has
95 % intervals, by a bootstrap over groups of runs: those of one N, D and seed, and those of one N and run, if the table
says seed and run (or run_id, or run_name). --law_name=my_laws.py:MyLaw is a law of one's own: docs/scaling_laws.md.

A table of runs is CSV, JSON, JSON lines or Parquet: the results.csv of experiments.sweep, an export of Weights and
Biases, MLflow or pandas, or one with the columns N (weights of the linear layers), D (tokens), loss, and what the law
knows of precision: E and M or format, B (block size), b (bitwidth of sampled weights), forward and backward (recipes).
Amounts may be written 1e9, 1B or 1.5T; --model also takes a size of configs/capybara.py.
"""

import functools
import json
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments import cli
from experiments.files import paths
from experiments.files.foreign_text import escaped
from experiments.laws import (
    asked_laws,
    asked_points,
    comparisons,
    known_laws,
    law_choices,
    questions,
    stored_laws,
    studies,
)
from experiments.laws.answers import Answer, plain
from experiments.laws.notation import parse_amount
from experiments.laws.plans import hardware, plan_text, training_plans
from experiments.laws.plans.serving import Serving
from gaussq_jax.scaling_laws import ERRORS
from gaussq_jax.scaling_laws.fitting import OBJECTIVES


def define_flags(args: flags.FlagValues):
    """Defines the flags of all commands; in `args` then stands what they say, as `args.model`."""
    kinds = flags.DEFINE_string, flags.DEFINE_list, flags.DEFINE_float, flags.DEFINE_enum, flags.DEFINE_bool
    string, several_of, number, one_of, switch = (functools.partial(kind, flag_values=args) for kind in kinds)
    repeated = functools.partial(flags.DEFINE_multi_string, flag_values=args)
    published = ', '.join(known_laws.PUBLISHED)
    string('law', None, f'A law that `fit --output` has written, or a published one: {published}.')
    string('runs', None, 'A table of runs to fit the law to.')
    string('law_name', 'capybara', f'The law to fit: {", ".join(law_choices.LAWS)}; or my_laws.py:MyLaw.')
    several_of('fixed', [], 'Constants not to fit: a number or the name of another, as gamma=1,beta=alpha.')
    several_of('laws', None, 'compare: the laws; by default all that every run of the table serves.')
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
        'Runs to hold out, by which laws are compared, several ways: folds, five parts of the pairs of N and D; sizes,'
        ' of the N; one, each pair in turn; size:R, the models above 1/R of the largest; compute:R, the runs above 1/R'
        f' of the most compute; largest:K, those of the K largest N; none. By default {comparisons.USUAL_WAYS}.'
    )
    string('held_out', None, held_out)
    string('columns', '', 'What the columns of the table are called: N=params,D=tokens,loss=eval/loss.')
    repeated('where', [], 'Runs of the table to keep: dataset=c4. May be given several times.')
    switch('best_of', False, 'Keep the best of runs that differ in what no law knows, as the learning rate.')
    string('recipes', '', 'What recipes of the table are to be read as: QuEST=mxfp4. For plan, their formats.')
    several_of('model', None, 'N, or a size of configs/capybara.py; several, unless for plan.')
    several_of('tokens', None, 'D; several, unless for plan.')
    several_of('format', ['bf16', 'e4m3', 'e3m2', 'e2m1'], 'Formats: ExMy, bf16, or names of ml_dtypes.')
    several_of('block_size', ['128'], 'How many values share a scale: numbers, channel or tensor.')
    several_of('bits', None, 'P; for the bitwidth law, b.')
    several_of('new_bits', ['4', '6', '8', '16'], 'exchange: the P to change to.')
    several_of('forward', None, 'Recipes of the forward pass; by default all that the law knows.')
    several_of('backward', ['bf16'], 'Recipes of the backward pass.')
    repeated('input', [], 'What else the law takes, by its name: P_w=4,8. May be given several times.')
    string('compute', None, 'plan: C, in operations as 6 N D at 16 bits.')
    priced = 'plan: where operations are paid for; ideal is the C = 6/16 N D P of the Capybara paper.'
    one_of('hardware', 'ideal', tuple(hardware.HARDWARE), priced)
    number('mfu', 0.4, "plan: the part of a device's peak that the training attains.")
    number('days', None, 'plan: tell how many devices it takes to be done in so many days.')
    string('serve_tokens', None, 'plan: tokens that the model is to serve, which the budget is for, too.')
    string('serve_format', 'bf16', 'plan: of weights and activations where it serves; or int4-weights.')
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
    print(json.dumps(plain(answer.data), indent=1, allow_nan=False) if args.json else escaped('\n'.join(answer.lines)))


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
        of_runs = {*HOW_TO_FIT, *TABLE}.difference(['law_name'] * ('law' in given), ['recipes'] * (name == 'plan'))
        if 'runs' not in given and (useless := sorted(given.intersection(of_runs))):
            raise ValueError(f'--{useless[0]} is of a fit to --runs, which is not given')


def fit(args: flags.FlagValues, path: str) -> Answer:
    """Fits a law, writes it, and says how good it is."""
    choice, output = asked_laws.choice_of(args), args.output and paths.parse_new(args.output, '--output')
    study = studies.Study.of(choice, asked_laws.table_of(args, choice, path), **asked_laws.how_to_fit(args))
    data = study.describe()
    lines = studies.fit_lines(data)
    if output:
        stored_laws.write_law(output, known_laws.fitted(study.result, study.table))
        lines += ['', f'written to {args.output}; to ask it: --law={shlex.quote(args.output)}']
    return Answer(data, lines)


def compare(args: flags.FlagValues, path: str) -> Answer:
    """Laws by their errors on runs held out."""
    names = args.laws or ()
    choices = {name: law_choices.find(name, '--laws') for name in names} or law_choices.LAWS
    table = comparisons.table_of(choices, path, asked_laws.reading_of(args), must_all=bool(names))
    choices = {name: choice for name, choice in choices.items() if comparisons.serves(table, choice)}
    remarks = dict.fromkeys(
        remark for choice in choices.values() for remark in known_laws.usable(choice, table).remarks
    )
    ways = asked_laws.ways_of(args, table)
    compared = comparisons.compare(list(choices.values()), table, ways, **asked_laws.how_to_fit(args))
    data = {'table': table.path, 'runs': table.num_runs, 'left_out': table.left_out, **compared.describe()}
    lines = [f'runs        {table.num_runs} of {table.path}', *studies.left_out_lines(table.left_out), '']
    data['remarks'] = list(remarks)
    return Answer(data, [*lines, *comparisons.comparison_lines(data), *[''] * bool(remarks), *remarks])


def report(args: flags.FlagValues, path: str) -> Answer:
    """Writes the HTML report of a table of runs."""
    from experiments.laws import html_report  # the other commands don't wait for its template

    table = paths.parse(path, 'a table of runs')
    output = paths.parse_new(args.output or table.with_suffix('.html'), '--output')
    choice = asked_laws.choice_of(args) if args['law_name'].present or args['fixed'].present else None
    laws = html_report.laws_of(path, choice, asked_laws.reading_of(args), exclude_e0=args.exclude_e0)
    how = dict(held_out=args.held_out, compute=args.compute and parse_amount('compute', args.compute))
    data = html_report.write(laws, output, **how, **asked_laws.how_to_fit(args))
    return Answer({'output': str(output), **data}, [f'written to {output}'])


def predict(args: flags.FlagValues) -> Answer:
    """The loss of trainings."""
    known = asked_laws.which_law(args)
    return questions.predict(known, asked_points.points_of(args, known, known.law.COLUMNS))


def critical(args: flags.FlagValues) -> Answer:
    """D_crit, past which more data hurts, and the loss there."""
    known = asked_laws.which_law(args)
    points = asked_points.points_of(args, known, [column for column in known.law.COLUMNS if column != 'D'])
    return questions.critical(known, points, asked_points.several(args, 'D'))


def layout(args: flags.FlagValues) -> Answer:
    """The best exponent and mantissa bits for each number of bits."""
    points = asked_points.product(args, 'P') or [{'P': bits} for bits in np.arange(3.0, 17.0)]
    return questions.layout(asked_laws.which_law(args), points)


def exchange(args: flags.FlagValues) -> Answer:
    """The N for which other bits are best at the cost at which these bits are best for this N."""
    return questions.exchange(asked_laws.which_law(args), asked_points.product(args, ('N', 'P', 'new_P')))


def worth(args: flags.FlagValues) -> Answer:
    """The weights of an unquantized model that ends at the same loss after as many tokens."""
    known = asked_laws.which_law(args)
    return questions.worth(known, asked_points.points_of(args, known, known.law.COLUMNS))


def plan(args: flags.FlagValues) -> Answer:
    """What to train for a budget, and how."""
    for name in ('mfu', 'days'):
        if args[name].present and args.hardware == 'ideal':
            raise ValueError(f'--{name} is of a --hardware, and ideal is none')
    if args['serve_format'].present and args.serve_tokens is None:
        raise ValueError('--serve_format is of --serve_tokens, which is not given')
    if not 0 < args.mfu <= 1:
        raise ValueError(f'--mfu={args.mfu:g} must be above 0, and at most 1')
    if args.days is not None and not 0 < args.days < np.inf:
        raise ValueError(f'--days={args.days:g} must be above 0')
    for name in ('block_size', 'model', 'tokens'):
        if args[name].value is not None and len(args[name].value) != 1:
            raise ValueError(f'--{name}={",".join(args[name].value)}: plan takes one')
    if args.model and args.tokens:
        raise ValueError('--model and --tokens leave no choice but the precision; give one of them, or neither')
    known = asked_laws.which_law(args)
    if args['block_size'].present and 'E' not in known.law.COLUMNS:
        raise ValueError(f'--block_size is of the formats that a plan chooses, and the law {known.name} knows none')
    compute = parse_amount('compute', args.compute)
    (block_size,) = asked_points.several(args, 'B')
    (N,), (D,) = asked_points.several(args, 'N') or [None], asked_points.several(args, 'D') or [None]
    serve = None
    if args.serve_tokens is not None:
        serve = Serving.parse(parse_amount('serve_tokens', args.serve_tokens), args.serve_format)
    made = training_plans.make_plan(
        known,
        compute,
        hardware.HARDWARE[args.hardware],
        block_size=block_size,
        N=N,
        D=D,
        serve=serve,
        recipes=None if args.runs else asked_laws.reading_of(args).recipes,  # which are names in that table
        inputs=asked_points.inputs_of_plan(args, known),
    )
    return Answer(*plan_text.describe(made, args.mfu, args.days))


HOW_TO_FIT = ('law_name', 'fixed', 'exclude_e0', 'objective', 'robust', 'errors')
TABLE = ('columns', 'where', 'best_of', 'recipes')
WHICH_LAW = ('law', 'runs', *HOW_TO_FIT, *TABLE)
PLAN = ('model', 'tokens', 'block_size', 'input', 'hardware', 'mfu', 'days', 'serve_tokens', 'serve_format')
COMMANDS = {
    'fit': Command(fit, True, (), (*HOW_TO_FIT, *TABLE, 'output', 'json')),
    'compare': Command(compare, True, (), ('laws', 'objective', 'robust', 'errors', 'held_out', *TABLE, 'json')),
    'predict': Command(predict, False, ('model', 'tokens'), (*asked_points.FLAGS, *WHICH_LAW, 'json')),
    'critical': Command(critical, False, ('model',), ('tokens', *asked_points.FLAGS, *WHICH_LAW, 'json')),
    'worth': Command(worth, False, ('model', 'tokens'), (*asked_points.FLAGS, *WHICH_LAW, 'json')),
    'layout': Command(layout, False, (), ('bits', *WHICH_LAW, 'json')),
    'plan': Command(plan, False, ('compute',), (*PLAN, *WHICH_LAW, 'json')),
    'exchange': Command(exchange, False, ('model', 'bits'), ('new_bits', *WHICH_LAW, 'json')),
    'report': Command(report, True, (), ('compute', 'held_out', *HOW_TO_FIT, *TABLE, 'output', 'json')),
}


if __name__ == '__main__':
    define_flags(flags.FLAGS)
    cli.start(main, takes_arguments=True)
