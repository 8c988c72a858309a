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
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import cli
from experiments.devices import device_specs
from experiments.files import paths
from experiments.laws import known_laws, studies, training_plans
from experiments.laws.known_laws import UNKNOWN, KnownLaw, aligned, human, interval_text
from experiments.laws.training_plans import format_name
from gaussq_jax.formats import parse_format
from gaussq_jax.scaling_laws import ERRORS as ASSUMED
from gaussq_jax.scaling_laws.fitting import OBJECTIVES

LAW = flags.DEFINE_string('law', None, 'A law that `fit --output` has written.')
RUNS = flags.DEFINE_string('runs', None, 'A table of runs to fit the law to.')
LAW_NAME = flags.DEFINE_enum('law_name', 'capybara', tuple(known_laws.LAWS), 'The law to fit.')
EXCLUDE_E0 = flags.DEFINE_bool('exclude_e0', False, 'Fit without the runs of E = 0, of which law and quantizer differ.')
OBJECTIVE = flags.DEFINE_enum(
    'objective',
    'squares',
    OBJECTIVES,
    'What a fit makes least: squares of residuals, or Huber of these or of their logs.',
)
ROBUST = flags.DEFINE_bool('robust', False, 'The same as --objective=huber: outliers count less.')
ERRORS = flags.DEFINE_enum(
    'errors',
    'cr3',
    tuple(ASSUMED),
    'What errors and intervals take for granted: that groups of runs are independent (cr3), that runs are (hc3), or'
    ' that their residuals are of one size too (plain).',
)
HELD_OUT = flags.DEFINE_string(
    'held_out',
    'folds',
    'Runs to hold out, by which laws are compared: none; folds, five parts of the pairs of N and D, and of the N; one,'
    ' each of these in turn; largest:K, those of the K largest N.',
)
MODEL = flags.DEFINE_list('model', None, 'N, or a size of configs/capybara.py; several, unless for plan.')
TOKENS = flags.DEFINE_list('tokens', None, 'D; several, unless for plan.')
FORMAT = flags.DEFINE_list('format', ['bf16', 'e4m3', 'e3m2', 'e2m1'], 'Formats: ExMy, bf16, or names of ml_dtypes.')
BLOCK_SIZE = flags.DEFINE_list('block_size', ['128'], 'How many values share a scale: numbers, channel or tensor.')
BITS = flags.DEFINE_list('bits', None, 'P; for the bitwidth law, b.')
NEW_BITS = flags.DEFINE_list('new_bits', ['4', '6', '8', '16'], 'exchange: the P to change to.')
COMPUTE = flags.DEFINE_string('compute', None, 'plan: C, in operations as 6 N D at 16 bits.')
GPU = flags.DEFINE_enum('gpu', None, ('a100', 'h100', 'h200', 'b200'), 'plan: tell how long it takes on these.')
MFU = flags.DEFINE_float('mfu', 0.4, "plan: the part of a GPU's peak that the training attains.")
DAYS = flags.DEFINE_float('days', None, 'plan: tell how many GPUs it takes to be done in so many days.')
OUTPUT = flags.DEFINE_string('output', None, 'fit: a JSON file for the law. report: the HTML file.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object, and nothing else.')


class Answer(NamedTuple):
    """What a command says: to programs, and to people."""

    data: dict[str, Any]
    lines: list[str]


class Quantity(NamedTuple):
    """A function of a law and columns; how to write what it gives; and whether that is the loss of trainings."""

    of: Callable[[Any, dict[str, np.ndarray]], np.ndarray]
    write: Callable[[float], str]
    is_loss: bool = False


class Command(NamedTuple):
    """Whether it takes a table of runs; the flags it needs, and those it may have."""

    takes_table: bool
    needed: tuple[flags.FlagHolder, ...]
    optional: tuple[flags.FlagHolder, ...]


HOW_TO_FIT = (LAW_NAME, EXCLUDE_E0, OBJECTIVE, ROBUST, ERRORS)
WHICH_LAW = (LAW, RUNS, *HOW_TO_FIT)
COMMANDS = {
    'fit': Command(True, (), (*HOW_TO_FIT, HELD_OUT, OUTPUT, JSON)),
    'predict': Command(False, (MODEL, TOKENS), (FORMAT, BLOCK_SIZE, BITS, *WHICH_LAW, JSON)),
    'critical': Command(False, (MODEL,), (TOKENS, FORMAT, BLOCK_SIZE, BITS, *WHICH_LAW, JSON)),
    'layout': Command(False, (), (BITS, *WHICH_LAW, JSON)),
    'plan': Command(False, (COMPUTE,), (MODEL, TOKENS, BLOCK_SIZE, GPU, MFU, DAYS, *WHICH_LAW, JSON)),
    'exchange': Command(False, (MODEL, BITS), (NEW_BITS, *WHICH_LAW, JSON)),
    'report': Command(True, (), (EXCLUDE_E0, OBJECTIVE, ROBUST, ERRORS, HELD_OUT, OUTPUT, JSON)),
}


def main(argv):
    with cli.user_errors():
        name, *arguments = argv[1:] or ['']
        if name not in COMMANDS:
            raise ValueError(f'say what to do: {", ".join(COMMANDS)} (not {name!r})')
        check_command_line(name, arguments)
        answer = globals()[name](*arguments)
    print(json.dumps(plain(answer.data), indent=1, allow_nan=False) if JSON.value else '\n'.join(answer.lines))


def check_command_line(name: str, arguments: list[str]):
    """Refuses what a command can't do without, and what it has no use for.

    Raises:
      ValueError: naming it, and what the command takes.
    """
    command = COMMANDS[name]
    options = [flag.name for flag in (*command.needed, *command.optional)]
    usage = f'{name}{" TABLE" * command.takes_table} takes {", ".join(f"--{option}" for option in options)}'
    if len(arguments) != command.takes_table:
        what = 'needs one table of runs' if command.takes_table else f'has no use for {" ".join(arguments)!r}'
        raise ValueError(f'{name} {what}: {usage}')
    given = {flag.name for each in COMMANDS.values() for flag in (*each.needed, *each.optional) if flag.present}
    if useless := sorted(given - set(options)):
        raise ValueError(f'{name} has no use for --{useless[0]}: {usage}')
    if missing := [flag.name for flag in command.needed if flag.name not in given]:
        raise ValueError(f'{name} needs --{missing[0]}: {usage}')
    if not command.takes_table:
        if {'law', 'runs'} <= given:
            raise ValueError('--law and --runs are two laws: give one of them')
        if 'runs' not in given and (useless := sorted(given & {flag.name for flag in HOW_TO_FIT})):
            raise ValueError(f'--{useless[0]} is of a fit to --runs, which is not given')


def objective() -> str:
    """What a fit makes least.

    Raises:
      ValueError: for --robust beside another --objective.
    """
    if ROBUST.value and OBJECTIVE.present and OBJECTIVE.value != 'huber':
        raise ValueError(f'--robust is --objective=huber, and --objective={OBJECTIVE.value} is given: give one of them')
    return 'huber' if ROBUST.value else OBJECTIVE.value


def fit(path: str) -> Answer:
    """Fits a law, writes it, and says how good it is."""
    how = dict(exclude_e0=EXCLUDE_E0.value, objective=objective(), errors=ERRORS.value, held_out=HELD_OUT.value)
    study = studies.Study.of(known_laws.LAWS[LAW_NAME.value], path, **how)
    data = study.describe()
    told = ', '.join(f'{number} {method}' for method, number in data['methods'].items())
    lines = [f'law         {data["law"]}', f'runs        {data["runs"]} of {path}{": " * bool(told)}{told}']
    lines += [f'            left out: {number} {reason}' for reason, number in data['left_out'].items()]
    lines += ['', *aligned(*studies.constants_table(data)), '']
    lines.append(f'errors      {studies.errors_text(data)}')
    lines.append(f'residuals   {data["rmse"]:.3g} nats, root mean square')
    if noise := data['seed_noise']:
        lines.append(
            f'seeds       differ by {noise["standard_deviation"]:.3g} nats: standard deviation over the seeds of'
            f' {noise["settings"]} settings, {noise["degrees_of_freedom"]} degrees of freedom'
        )
    pairs = ', '.join(f'{one} and {other} {value:+.3f}' for one, other, value in data['correlations'])
    lines.append(f'correlated  {pairs or "unknown"}')
    if data['undetermined']:
        lines.append(f'NOT KNOWN   {", ".join(data["undetermined"])}: to these runs other values fit about as well')
    if isinstance(data['comparison'], str):
        lines += ['', f'no errors on runs held out: {data["comparison"]}']
    else:
        lines += ['', *aligned(*studies.comparison_table(data))]
    if OUTPUT.value:
        known_laws.write_law(OUTPUT.value, known_laws.fitted(study.result, study.table))
        lines += ['', f'written to {OUTPUT.value}; to ask it: --law={shlex.quote(OUTPUT.value)}']
    return Answer(data, lines)


def predict() -> Answer:
    """The loss of trainings."""
    known = which_law()
    points = inputs(known, known.law.COLUMNS)
    remarks = [remark for point in points for remark in known.remarks(N=point['N'], D=point['D'])]
    if known.draws and known.scatter is None:
        remarks.append(f'intervals are of the law; runs scatter about it by {known.noise:.2g} nats')
    loss = Quantity(lambda law, columns: law.loss(**columns), '{:.4f}'.format, is_loss=True)
    return tabulate(known, points, {'loss': loss}, remarks)


def critical() -> Answer:
    """D_crit, past which more data hurts, and the loss there."""
    known = which_law('capybara', 'bitwidth')
    points = inputs(known, [column for column in known.law.COLUMNS if column != 'D'])
    size = lambda law, columns: law.critical_data_size(**columns)
    loss = lambda law, columns: law.loss(**columns, D=np.minimum(size(law, columns), 1e100))  # infinite for B = 1
    remarks = [remark for point in points for remark in known.remarks(N=point['N'])]
    for point, D in itertools.product(points, several(TOKENS, amount)):
        columns = columns_of([point])
        critical = known.value(functools.partial(size, columns=columns)).item()
        if critical < D:
            there, least = known.law.loss(**columns, D=D).item(), loss(known.law, columns).item()
            remarks.append(
                f'TOO MANY TOKENS for {" ".join(cells_of(point).values())}: {human(D)} give a loss of {there:.4f},'
                f' {human(critical)} one of {least:.4f}'
            )
    quantities = {'critical tokens': Quantity(size, human), 'loss there': Quantity(loss, '{:.4f}'.format)}
    return tabulate(known, points, quantities, remarks)


def layout() -> Answer:
    """The best exponent and mantissa bits for each number of bits."""
    known = which_law('capybara')
    points = [{'P': bits} for bits in several(BITS, at_least_two) or np.arange(3.0, 17.0)]
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
    return tabulate(known, points, quantities, [])


def exchange() -> Answer:
    """The N for which other bits are best at the cost at which these bits are best for this N."""
    known = which_law('capybara')
    choices = several(MODEL, model), several(BITS, at_least_two), several(NEW_BITS, at_least_two)
    points = [dict(zip(('N', 'P', 'new_P'), choice)) for choice in itertools.product(*choices)]
    quantities = {'new N': Quantity(lambda law, columns: law.precision_model_exchange(**columns), human)}
    return tabulate(known, points, quantities, [])


def plan() -> Answer:
    """What to train for a budget, and how."""
    for flag in (MFU, DAYS):
        if flag.present and not GPU.present:
            raise ValueError(f'--{flag.name} is of a --gpu, which is not given')
    if not 0 < MFU.value <= 1:
        raise ValueError(f'--mfu={MFU.value:g} must be above 0, and at most 1')
    if DAYS.value is not None and not 0 < DAYS.value < np.inf:
        raise ValueError(f'--days={DAYS.value:g} must be above 0')
    for flag in (BLOCK_SIZE, MODEL, TOKENS):
        if len(flag.value or ()) > 1:
            raise ValueError(f'--{flag.name}={",".join(flag.value)}: plan takes one')
    if MODEL.value and TOKENS.value:
        raise ValueError('--model and --tokens leave no choice but the bits; give one of them, or neither')
    compute = amount('compute', COMPUTE.value)
    given = {'block_size': several(BLOCK_SIZE, block), 'N': several(MODEL, model), 'D': several(TOKENS, amount)}
    known = which_law('capybara')
    made = training_plans.make_plan(known, compute, **{name: (values or [None])[0] for name, values in given.items()})
    gpu = GPU.value and device_specs.find(GPU.value)
    return Answer(*training_plans.describe(made, gpu, MFU.value, DAYS.value))


def report(path: str) -> Answer:
    """Writes the HTML report of a table of runs."""
    from experiments.laws import html_report  # which draws: the other commands don't wait for matplotlib

    table = paths.parse(path, 'a table of runs')
    output = paths.parse(OUTPUT.value, '--output') if OUTPUT.value else table.with_suffix('.html')
    how = dict(exclude_e0=EXCLUDE_E0.value, objective=objective(), errors=ERRORS.value, held_out=HELD_OUT.value)
    data = html_report.write(path, output, **how)
    return Answer({'output': str(output), **data}, [f'written to {output}'])


def which_law(*allowed: str) -> KnownLaw:
    """The law that the flags say, one of these."""
    if RUNS.value:
        family = known_laws.LAWS[LAW_NAME.value]
        table = known_laws.runs_for(family, RUNS.value, exclude_e0=EXCLUDE_E0.value)
        known = known_laws.fitted(known_laws.fit(family, table, objective=objective(), errors=ERRORS.value), table)
    else:
        known = known_laws.read_law(LAW.value) if LAW.value else known_laws.PUBLISHED
    if allowed and known.name not in allowed:
        raise ValueError(f'this question is one for the law {" or ".join(allowed)}, not for {known.origin}')
    return known


def inputs(known: KnownLaw, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The points that the flags ask for, as the law's loss takes them: every model with all tokens, formats, ..."""
    axes = {'N': (MODEL, model), 'D': (TOKENS, amount), 'E': (FORMAT, layout_of), 'B': (BLOCK_SIZE, block)}
    axes |= {'P': (BITS, at_least_two), 'b': (BITS, amount)}
    used = {column: axis for column, axis in axes.items() if column in columns}
    for flag in (FORMAT, BLOCK_SIZE, BITS):
        if flag.present and all(flag is not other for other, _ in used.values()):
            takes = ', '.join(known.law.COLUMNS)
            raise ValueError(f'--{flag.name} has no meaning for the law {known.name}, which takes {takes}')
    values = [several(*axis) for axis in used.values()]
    for (flag, _), given in zip(used.values(), values):
        if not given:
            raise ValueError(f'the law {known.name} needs --{flag.name}')
    points = [dict(zip(used, point)) for point in itertools.product(*values)]
    return [{**point, **dict(zip('EM', point['E']))} if 'E' in point else point for point in points]


def tabulate(
    known: KnownLaw,
    points: list[dict[str, Any]],
    quantities: Mapping[str, Quantity],
    remarks: Sequence[str],
) -> Answer:
    """A row a point, with quantities and their intervals."""
    columns = columns_of(points)
    rows, cells = [dict(point) for point in points], [cells_of(point) for point in points]
    for name, (quantity, write, is_loss) in quantities.items():
        of_law = lambda law, quantity=quantity: np.broadcast_to(quantity(law, columns), len(points))
        intervals = {('interval', f'95 % interval of {name}'): known.interval(of_law)}
        if is_loss:
            intervals['prediction interval', '95 % interval of a run'] = known.prediction_interval(of_law)
        for i, value in enumerate(known.value(of_law)):
            rows[i][name], cells[i][name] = value, UNKNOWN if np.isnan(value) else write(value)
            for (key, title), ends in intervals.items():
                if ends is not None:
                    rows[i][f'{name}, {key}'] = ends[:, i]
                    cells[i][title] = interval_text(ends[:, i], write)
    remarks = [*remarks, known.says_assumed] if known.says_assumed else remarks
    lines = [f'law         {known.origin}', '', *aligned(list(cells[0]), [list(row.values()) for row in cells])]
    remarks = list(dict.fromkeys([*remarks, *[known.says_unknown] * any(UNKNOWN in row.values() for row in cells)]))
    return Answer({**known.describe(), 'rows': rows, 'remarks': remarks}, lines + [''] * bool(remarks) + remarks)


def columns_of(points: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The numbers of points, as the methods of laws take them."""
    return {
        name: np.array([point[name] for point in points], object if name == 'B' else float)
        for name in points[0]
        if name != 'format'
    }


def cells_of(point: Mapping[str, Any]) -> dict[str, str]:
    """A point, for people."""
    cells = {}
    for name, value in point.items():
        match name:
            case 'N' | 'D':
                cells[{'N': 'N', 'D': 'tokens'}[name]] = human(value)
            case 'E':
                cells['format'] = format_name(value, point['M'])
            case 'B':
                cells['block'] = value if isinstance(value, str) else f'{value:g}'
            case 'P' | 'b' | 'new_P':
                cells[{'P': 'bits', 'b': 'bits', 'new_P': 'new bits'}[name]] = f'{value:g}'
            case 'format':
                cells['best format'] = value
    return cells


def plain(value: Any) -> Any:
    """What JSON has: no arrays, and null for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def several(flag: flags.FlagHolder, parse: Callable[[str, str], Any]) -> list[Any]:
    """What stands in a list flag, parsed."""
    return [parse(flag.name, text.strip()) for text in flag.value or ()]


def amount(name: str, text: str) -> float:
    """A positive number such as 1e9, 1.5T or 300M."""
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+)(e[+-]?\d+)?([KMBT]?)', text, re.IGNORECASE)
    value = float(match[1] + (match[2] or '')) * known_laws.UNITS.get(match[3].upper(), 1) if match else 0
    if not 0 < value < np.inf:
        raise ValueError(f'--{name}={text!r} must be a number above 0, such as 1e9, 300M or 1.5T')
    return value


def model(name: str, text: str) -> float:
    """N, of a size of configs/capybara.py or as a number."""
    sizes = training_plans.model_sizes()
    try:
        return float(sizes[text] if text in sizes else amount(name, text))
    except ValueError as error:
        raise ValueError(f'{error}, or one of {", ".join(sizes)}') from None


def layout_of(name: str, text: str) -> tuple[int, int]:
    """E and M of a format."""
    fmt = parse_format({'bf16': 'bfloat16', 'e8m7': 'bfloat16'}.get(text.lower(), text.lower()))
    return fmt.exponent_bits, fmt.mantissa_bits


def block(name: str, text: str) -> float | str:
    """A block size."""
    if text in ('channel', 'tensor'):
        return text
    if not re.fullmatch(r'\d+', text) or int(text) < 1:
        raise ValueError(f'--{name}={text!r} must be a whole number above 0, channel or tensor')
    return int(text)


def at_least_two(name: str, text: str) -> float:
    """Bits of a floating-point number."""
    value = amount(name, text)
    if value < 2:
        raise ValueError(f'--{name}={text!r} must be at least 2: a sign, and exponent or mantissa')
    return value


if __name__ == '__main__':
    cli.start(main, takes_arguments=True)
