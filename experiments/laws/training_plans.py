"""What a scaling law says to train for a budget: bits, format, model and tokens; the command, and its time on GPUs."""

import itertools
import math
import shlex
from typing import Any, NamedTuple

import numpy as np

from configs import capybara
from experiments import methods
from experiments.devices.device_specs import DeviceSpec
from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import BF16, UNKNOWN, format_name, human, interval_text, model_sizes, value_text
from gaussq_jax.formats import parse_format
from gaussq_jax.scaling_laws import CapybaraLaw
from gaussq_jax.scaling_laws.capybara import COST_PER_BIT
from gaussq_jax.text_table import text_table

FEWEST_BITS, MOST_BITS = 3, 16
USUAL_BITS = (4, 6, 8, 16)  # that GPUs multiply
OPERATIONS = 6  # a weight and a token, forward and backward, whatever the bits


class Option(NamedTuple):
    """What to train in one format, and what comes of it."""

    bits: int
    format: str
    E: int
    M: int
    N: float  # weights of the linear layers
    D: float  # tokens
    loss: float
    interval: tuple[float, float] | None  # of the loss, 95 %; None if the law has none, NaN if the loss is unknown
    prediction_interval: tuple[float, float] | None  # the same of a run's loss, with noise and what the law misses

    @property
    def is_unknown(self) -> bool:
        return self.interval is not None and math.isnan(self.interval[0])

    def describe(self) -> dict[str, Any]:
        return self._asdict() | {'loss': math.nan} if self.is_unknown else self._asdict()


class PlannedTraining(NamedTuple):
    """A model of configs/capybara.py, trained for the budget in the format that is best for it."""

    size: str
    option: Option
    total_steps: int
    critical_tokens: float  # past which more of them hurt
    command: str


class Plan(NamedTuple):
    """What to train for a budget."""

    known: KnownLaw
    compute: float  # C = 6/16 N D P
    block_size: float | str
    bits: float | None  # the best, a real number; None if more or fewer are always better
    bits_interval: tuple[float, float] | None
    options: list[Option]  # one for each whole number of bits
    best: Option  # of these
    training: PlannedTraining


def make_plan(
    known: KnownLaw, compute: float, block_size: float | str, *, N: float | None = None, D: float | None = None
) -> Plan:
    """Bits, N and D of least loss at cost C = 6/16 N D P, and the nearest training that there is a config for.

    Args:
      known: a CapybaraLaw.
      compute: C, in operations as 6 N D at 16 bits.
      block_size: a number, 'channel' or 'tensor'.
      N: weights of the linear layers, if they are given; or
      D: tokens, if they are.

    Raises:
      ValueError: for a block size or a format that the law or the training doesn't know; if the runs behind the law
        leave open what is best.
    """

    def bits(law):
        if N is not None:
            return law.optimal_precision_for_model(N, compute, block_size)
        if D is not None:
            return law.optimal_precision_for_data(D, block_size)
        return law.compute_optimal(compute, block_size).P

    if block_size == 1:
        raise ValueError('B=1 must be above 1: without a penalty the fewest bits are best')
    options = whole_bits(known, compute, block_size, N=N, D=D)
    best = min(options, key=lambda option: option.loss)
    if best.is_unknown:
        raise ValueError(f'no plan follows from {known.origin}: what is best is {known.says_unknown}')
    training = nearest_training(known, best.N, compute, block_size, D=D)
    try:
        best_bits, interval = float(known.value(bits)), known.interval(bits)
    except ValueError:  # of no real number of bits
        best_bits, interval = None, None
    interval = None if interval is None else tuple(interval.tolist())
    return Plan(known, compute, block_size, best_bits, interval, options, best, training)


def whole_bits(
    known: KnownLaw, compute: float, block_size: float | str, *, N: float | None = None, D: float | None = None
) -> list[Option]:
    """For each whole number of bits its best format, with the best N and D for it, or what is left for one of them.

    Formats are those that can be trained. BF16 is not quantized: B = 1.
    """
    law = known.law
    E, M = np.array([best_trainable(law, bits) for bits in range(FEWEST_BITS, MOST_BITS + 1)]).T
    blocks = np.array([1 if layout == BF16 else block_size for layout in zip(E.tolist(), M.tolist())], object)
    products = compute / (COST_PER_BIT * (1 + E + M))
    if N is None and D is None:
        N, D, *_ = law.compute_optimal_for_format(compute, E, M, blocks)
    elif N is None:
        N, D = products / D, D * np.ones_like(products)
    else:
        N, D = N * np.ones_like(products), products / N if D is None else D * np.ones_like(products)
    loss = lambda law: law.loss(N, D, E, M, blocks)
    columns = [column.tolist() for column in (E, M, N, D, loss(law))]
    for ends in (known.interval(loss), known.prediction_interval(loss)):
        columns.append([None] * len(E) if ends is None else zip(*ends.tolist()))
    return [Option(1 + E + M, format_name(E, M), E, M, *rest) for E, M, *rest in zip(*columns)]


def best_trainable(law: CapybaraLaw, bits: int) -> tuple[int, int]:
    """E and M of least loss, of the formats that there are."""
    layouts = [(E, bits - 1 - E) for E in range(bits) if is_format(E, bits - 1 - E)]
    E, M = np.array(layouts).T
    return layouts[np.argmax(law.critical_data_size(1.0, E, M, 2))]


def is_format(E: int, M: int) -> bool:
    try:
        parse_format(f'e{E}m{M}')
    except ValueError:
        return (E, M) == BF16
    return True


def nearest_training(
    known: KnownLaw, N: float, compute: float, block_size: float | str, *, D: float | None = None
) -> PlannedTraining:
    """The size whose N is nearest, by the ratio, on the tokens that the budget has for it in its best format.

    With D given, the nearest that the budget has at least the fewest bits for, in its best format within the budget.

    Raises:
      ValueError: for a format or a block size that can't be trained; for tokens that the budget has no size for.
    """
    sizes = model_sizes()
    bits = {size: MOST_BITS if D is None else compute / (COST_PER_BIT * sizes[size] * D) for size in sizes}
    if not (within := [size for size in sizes if bits[size] >= FEWEST_BITS]):
        least = COST_PER_BIT * min(sizes.values()) * D * FEWEST_BITS
        raise ValueError(f'{human(D)} tokens are too many: the least model takes C = {least:.3g} for them')
    size = min(within, key=lambda size: abs(math.log(sizes[size] / N)))
    options = whole_bits(known, compute, block_size, N=float(sizes[size]), D=D)
    best = min((option for option in options if option.bits <= bits[size]), key=lambda option: option.loss)
    method = 'method=bf16' if best.format == 'bf16' else f'method=fqt,format={best.format},block_size={block_size}'
    config = capybara.get_config(f'size={size},{method}')
    methods.make_dot_general_cls(config, training=True)  # refuses what it can't do
    steps = max(1, round(best.D / (config.batch_size * config.sequence_length)))
    arguments = [f'--config=configs/capybara.py:size={size},{method}', f'--config.total_steps={steps}']
    if steps <= config.optimizer.warmup_steps:
        arguments.append(f'--config.optimizer.warmup_steps={steps // 10}')
    blocks = 1 if best.format == 'bf16' else block_size
    critical = float(known.value(lambda law: law.critical_data_size(best.N, best.E, best.M, blocks)))
    return PlannedTraining(size, best, steps, critical, shlex.join(['python', '-m', 'experiments.train', *arguments]))


def training_time(option: Option, gpu: DeviceSpec, mfu: float, days: float | None) -> dict[str, dict[str, float]]:
    """By what the GEMMs run in: the days of one GPU; or, to be done in `days`, the number of GPUs and their days.

    A simulated format runs in 'bf16'; one of up to 8 bits would run in 'fp8' where there are kernels for it.
    """
    peaks = {'bf16': gpu.peak_flops} | ({'fp8': gpu.fp8_flops} if gpu.fp8_flops and option.bits <= 8 else {})
    times = {}
    for precision, peak in peaks.items():
        gpu_days = OPERATIONS * option.N * option.D / (peak * mfu) / 86400
        gpus = 1 if days is None else math.ceil(gpu_days / days)
        times[precision] = {'peak': peak, 'gpus': gpus, 'days': gpu_days / gpus}
    return times


def describe(
    plan: Plan, gpu: DeviceSpec | None = None, mfu: float = 0.4, days: float | None = None
) -> tuple[dict[str, Any], list[str]]:
    """All that there is to say of a plan: to programs, and to people."""
    known, best, training = plan.known, plan.best, plan.training
    option = training.option
    remarks = [f'the best: {remark}' for remark in known.remarks(N=best.N, D=best.D)]
    remarks += [f'{training.size}: {remark}' for remark in known.remarks(N=option.N, D=option.D)]
    if training.critical_tokens < option.D:
        remarks.append(f'TOO MANY TOKENS for {training.size}: past {human(training.critical_tokens)} they hurt')
    remarks.append(
        'the text is the source of Python, in bytes, unless --config.dataset and --config.tokenizer say else'
    )
    if any(option.is_unknown for option in plan.options):
        remarks.append(f'{known.says_unknown}: so may another format be the best')
    remarks.append(known.says_assumed)
    if plan.bits is None:
        bits = 'no real number of'
        remarks.append(
            'by this law a real number of bits is best only for given N or D, or none is: see the whole ones'
        )
    else:
        bits = value_text(plan.bits, plan.bits_interval, '{:.3f}'.format, '95 %: ')
        if plan.bits_interval is None and known.draws:
            remarks.append(
                'no interval of the best bits: by some of the laws that the runs allow, there is no best number'
            )
    data = plan._asdict() | {
        'known': known.describe(),
        'best': best.describe(),
        'options': [option.describe() for option in plan.options],
        'training': training._asdict() | {'option': option.describe()},
        'remarks': list(dict.fromkeys(filter(None, remarks))),
    }
    lines = [
        f'law         {known.origin}',
        f'budget      {plan.compute:.4g} operations, as 6 N D at 16 bits; scales by {plan.block_size}',
        f'best        {bits} bits; in whole bits:',
        '',
        text_table(options_table(plan)),
        '',
        f'nearest     {training.size} of configs/capybara.py: N = {human(option.N)}, where {human(best.N)} is best;'
        ' within the budget',
        f'            {option.format}, {human(option.D)} tokens ({training.total_steps:,} steps); loss '
        + loss_text(option),
    ]
    if gpu is not None:
        data['gpu'] = {'name': gpu.name, 'bf16': gpu.peak_flops, 'fp8': gpu.fp8_flops, 'source': gpu.source}
        data['gpu'] |= {'mfu': mfu, 'training_time': training_time(option, gpu, mfu, days)}
        for precision, time in data['gpu']['training_time'].items():
            condition = {'bf16': 'as the command trains: in BF16', 'fp8': 'if the GEMMs were in FP8'}[precision]
            lines.append(
                f'time        {time["days"]:,.3g} days of {time["gpus"]:,} {gpu.name} at {mfu:.0%} of'
                f' {time["peak"] / 1e12:g} TFLOP/s, {condition}'
            )
        lines.append(f'            (dense peaks: {gpu.source.partition("; memory")[0]})')
    lines += ['command', f'    {training.command}', '', *data['remarks']]
    return data, lines


def options_table(plan: Plan) -> list[list[str]]:
    """The best, its neighbours, and the bits that GPUs have."""
    has = plan.best.interval is not None, plan.best.prediction_interval is not None
    titles = itertools.compress(('95 % interval', '95 % of a run'), has)
    rows = [['bits', 'format', 'N', 'tokens', 'loss', *titles, '']]
    for option in plan.options:
        if abs(option.bits - plan.best.bits) <= 2 or option.bits in USUAL_BITS:
            cells = [str(option.bits), option.format, human(option.N), human(option.D)]
            cells.append(UNKNOWN if option.is_unknown else f'{option.loss:.4f}')
            for ends in itertools.compress((option.interval, option.prediction_interval), has):
                cells.append(interval_text(ends, '{:.4f}'.format))
            rows.append([*cells, '<- best' if option is plan.best else ''])
    return rows


def loss_text(option: Option) -> str:
    write = '{:.4f}'.format
    if option.prediction_interval is None or option.is_unknown:
        return value_text(option.loss, option.interval, write, '95 %: ')
    of_law, of_run = (interval_text(ends, write) for ends in (option.interval, option.prediction_interval))
    return f'{write(option.loss)} (95 %: {of_law}; of a run {of_run})'
