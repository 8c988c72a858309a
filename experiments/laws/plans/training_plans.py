"""What a scaling law says to train for a budget, by prices that are paid: precision, model, tokens; the command."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from configs import capybara
from experiments import methods
from experiments.laws.answers import columns_of
from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import human, model_sizes
from experiments.laws.plans import hardware as hardware_
from experiments.laws.plans.hardware import HARDWARE, Hardware, Price
from experiments.laws.plans.precisions import Precision, precisions
from experiments.laws.plans.serving import Serving
from gaussq_jax.hardware_dot_general import XLA_FLAG
from gaussq_jax.scaling_laws import CapybaraLaw, optimal_training
from gaussq_jax.scaling_laws.optima import OPERATIONS


class Option(NamedTuple):
    """What to train in one precision, and what comes of it; NaN where its price isn't known."""

    precision: Precision
    price: Price
    N: float  # weights of the linear layers
    D: float  # tokens
    loss: float
    interval: tuple[float, float] | None  # of the loss, 95 %; None if the law has none, NaN if the loss is unknown
    prediction_interval: tuple[float, float] | None  # the same of a run's loss, with noise and what the law misses

    @property
    def is_unknown(self) -> bool:
        """Whether the runs behind the law leave its loss open."""
        return self.interval is not None and math.isnan(self.interval[0])

    @property
    def cost(self) -> float:
        """Of training, in operations of BF16."""
        return OPERATIONS * self.N * self.D * self.price.value

    def describe(self) -> dict[str, Any]:
        """For programs."""
        choice, numbers = self.precision, self._asdict()
        del numbers['precision']
        numbers |= {'price': self.price.value, 'note': self.price.note}
        numbers |= {'loss': math.nan} if self.is_unknown else {}
        return {'format': choice.name, 'bits': choice.bits, **choice.inputs, **numbers}


class PlannedTraining(NamedTuple):
    """A model of configs/capybara.py, trained for the budget in the precision that is best for it."""

    size: str
    option: Option
    total_steps: int
    critical_tokens: float  # past which more of them hurt
    command: str | None  # None if this program can't train it, and then why
    no_command: str
    dtype: str  # of what the command multiplies
    command_price: float | None  # of an operation of the command: that of the option on FP8 units, else that of BF16


class Task(NamedTuple):
    """What is asked for: a budget and where it is paid, what is given, and what the model is for."""

    known: KnownLaw
    compute: float  # C = 6 N D price + 2 N tokens_served serve_price
    hardware: Hardware
    choices: Sequence[Precision]
    N: float | None  # given, or
    D: float | None  # given, or neither
    serve: Serving | None
    size: str | None = None  # of configs/capybara.py, if N is one's

    @property
    def prices(self) -> list[Price]:
        """Of the choices, on the hardware."""
        return [hardware_.price(self.hardware, choice.recipe, self.size) for choice in self.choices]

    @property
    def serving_operations(self) -> float:
        """That serving adds for each weight."""
        return self.serve.operations_a_weight(self.hardware) if self.serve else 0.0


class Plan(NamedTuple):
    """What to train for a budget."""

    known: KnownLaw
    compute: float
    hardware: Hardware
    block_size: float | str | None  # None if the law has none
    serve: Serving | None
    bits: float | None  # the best, a real number, where bits are paid for; None if more or fewer are always better
    bits_interval: tuple[float, float] | None
    options: list[Option]
    best: Option  # of those whose price is known
    unserved: Option | None  # the best if nothing were served
    training: PlannedTraining


def make_plan(
    known: KnownLaw,
    compute: float,
    hardware: Hardware = HARDWARE['ideal'],
    *,
    block_size: float | str = 128,
    N: float | None = None,
    D: float | None = None,
    serve: Serving | None = None,
    recipes: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Plan:
    """The precision, N and D of least loss at cost C, and the nearest training that there is a config for.

        C = 6 N D price(precision) + 2 N served price(its format),   in operations of BF16

    Args:
      known: any law.
      compute: C.
      hardware: of HARDWARE, where operations are paid for; `ideal` is the Capybara paper's C = 6/16 N D P.
      block_size: a number, 'channel' or 'tensor', of formats that a law with block sizes chooses from.
      N: weights of the linear layers, if they are given; or
      D: tokens, if they are.
      serve: what the model is to serve.
      recipes: the formats of recipes whose names say none, {'quest': 'mxfp4'}.
      inputs: what else a law of one's own takes.

    Raises:
      ValueError: for a block size or a format that the law or the training doesn't know; if the runs behind the law
        leave open what is best; if there is nothing best, or serving alone costs more than C.
    """
    has_formats = {'E', 'M', 'B'} <= set(known.law.COLUMNS)
    if has_formats and block_size == 1:
        raise ValueError('B=1 must be above 1: without a penalty the fewest bits are best')
    choices = _choices(known, hardware, block_size, serve, recipes, inputs)
    task = Task(known, compute, hardware, choices, N, D, serve)
    sizes = _sizes_within(task)
    options = options_of(task)
    best = best_of(options, known)
    unserved = best_of(options_of(task._replace(serve=None)), known) if serve and N is None else None
    bits = interval = None
    if isinstance(known.law, CapybaraLaw) and hardware.is_ideal and not serve:
        bits, interval = _real_bits(task, block_size)
    block_size = block_size if has_formats else None
    return Plan(
        known,
        compute,
        hardware,
        block_size,
        serve,
        bits,
        interval,
        options,
        best,
        unserved,
        _nearest(task, sizes, best.N),
    )


def hardware_rows(
    known: KnownLaw,
    compute: float,
    *,
    block_size: float | str = 128,
    serve: Serving | None = None,
    recipes: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What each precision comes to on all HARDWARE for one budget: dicts of hardware, option, price, N, D, loss, note.

    A price that isn't known is None, and N, D and loss with it; a loss that the runs leave open is None.
    """
    rows = []
    for hardware in HARDWARE.values():
        choices = _choices(known, hardware, block_size, serve, recipes, inputs)
        for option in options_of(Task(known, compute, hardware, choices, None, None, serve), with_intervals=False):
            N, D, loss = (None if math.isnan(x) else x for x in (option.N, option.D, option.loss))
            row = {'hardware': hardware.name, 'option': option.precision.name, 'price': option.price.value}
            rows.append({**row, 'N': N, 'D': D, 'loss': loss, 'note': option.price.note})
    return rows


def _choices(known, hardware, block_size, serve, recipes, inputs):
    """Those of the law; if it knows what rounding after training costs, it rounds to the format that is served."""
    choices = precisions(known, block_size=block_size, formats=recipes, inputs=inputs, is_ideal=hardware.is_ideal)
    if serve and 'post' in known.law.constants():
        if 'P_post' in (inputs or {}):
            raise ValueError(f'--input=P_post is what weights are served in: --serve_format={serve.format} says it')
        rounded = {'P_post': float(serve.weights.fmt.bits)}
        choices = [choice._replace(inputs=choice.inputs | rounded) for choice in choices]
    return choices


def options_of(task: Task, *, with_intervals: bool = True) -> list[Option]:
    """For each precision its price, the N and D that are best for it, or what is left for one of them, and the loss."""
    prices = task.prices
    priced = [i for i, price in enumerate(prices) if price.value is not None]
    nothing = Option(None, None, math.nan, math.nan, math.nan, None, None)
    options = [nothing._replace(precision=choice, price=price) for choice, price in zip(task.choices, prices)]
    if not priced:
        return options
    price = np.array([prices[i].value for i in priced])
    columns = columns_of([task.choices[i].inputs for i in priced])
    N, D, _ = optimal_training(
        task.known.law, task.compute, price=price, serve=task.serving_operations, N=task.N, D=task.D, **columns
    )
    losses = _losses(task.known, N, D, columns, with_intervals)
    for i, *values in zip(priced, N.tolist(), D.tolist(), *losses):
        options[i] = Option(task.choices[i], prices[i], *values)
    return options


def _losses(known, N, D, columns, with_intervals):
    """The losses, their intervals, and those of runs."""
    loss = lambda law: np.broadcast_to(law.loss(N=N, D=D, **columns), np.shape(N))
    if not with_intervals:
        return known.value(loss).tolist(), [None] * len(N), [None] * len(N)
    ends = known.interval(loss), known.prediction_interval(loss)
    return loss(known.law).tolist(), *([None] * len(N) if end is None else list(zip(*end.tolist())) for end in ends)


def best_of(options: Sequence[Option], known: KnownLaw) -> Option:
    """The option of least loss, of those with a price.

    Raises:
      ValueError: if there is none; if the runs leave its loss open.
    """
    priced = [option for option in options if option.price.value is not None]
    if not priced:
        raise ValueError(f'no plan follows from {known.origin}: no price is known: {options[0].price.note}')
    best = min(priced, key=lambda option: option.loss)
    if best.is_unknown:
        raise ValueError(f'no plan follows from {known.origin}: what is best is {known.says_unknown}')
    return best


def _real_bits(task, block_size):
    """The best real number of bits, where a bit costs a sixteenth of BF16; its interval."""

    def bits(law: CapybaraLaw):
        if task.N is not None:
            return law.optimal_precision_for_model(task.N, task.compute, block_size)
        if task.D is not None:
            return law.optimal_precision_for_data(task.D, block_size)
        return law.compute_optimal(task.compute, block_size).P

    try:
        best, interval = float(task.known.value(bits)), task.known.interval(bits)
    except ValueError:  # of no real number of bits
        return None, None
    return best, None if interval is None else tuple(interval.tolist())


def _sizes_within(task):
    """The sizes that the budget has a step for; with D given, for which it has the cheapest precision.

    Raises:
      ValueError: if there are none.
    """
    sizes, D = model_sizes(), task.D
    steps = {size: _tokens_a_step(capybara.get_config(f'size={size},method=bf16')) for size in sizes}
    least = min(steps.values())
    if D is not None and least > D:
        raise ValueError(f'{human(D)} tokens are fewer than one step has: {least:,}')
    sizes = {size: N for size, N in sizes.items() if D is None or steps[size] <= D}
    costs = {}
    for size, N in sizes.items():
        prices = [price.value for price in task._replace(size=size).prices if price.value is not None]
        if not prices:
            return sizes
        costs[size] = N * (OPERATIONS * (D or steps[size]) * min(prices) + task.serving_operations)
    if within := {size: N for size, N in sizes.items() if costs[size] <= task.compute}:
        return within
    what = ['one step' if D is None else f'{human(D)} tokens', *['the tokens to serve'] * (task.serve is not None)]
    cost = min(costs.values())
    raise ValueError(f'C={task.compute:.3g} is too little: the least model takes {cost:.3g} for {" and ".join(what)}')


def _tokens_a_step(config):
    return config.batch_size * config.sequence_length


def _nearest(task, sizes, N):
    """The size whose N is nearest, by the ratio, on the tokens that the budget has for it in its best precision.

    With D given, in the best precision within the budget.

    Raises:
      ValueError: for a format or a block size that can't be trained.
    """
    size = min(sizes, key=lambda size: abs(math.log(sizes[size] / N)))
    given, task = float(sizes[size]), task._replace(size=size)
    options = options_of(task._replace(N=given)) if task.D is None else _affordable(task, given)
    best = min((option for option in options if option.price.value is not None), key=lambda option: option.loss)
    return _training(task, size, best)


def _affordable(task, N):
    """At this N and the D that is given, the precisions within the budget."""
    left = task.compute - task.serving_operations * N
    affordable = [
        (choice, price)
        for choice, price in zip(task.choices, task.prices)
        if price.value is not None and OPERATIONS * N * task.D * price.value <= left
    ]
    choices, prices = zip(*affordable)
    N, D = np.full(len(choices), N), np.full(len(choices), task.D)
    losses = _losses(task.known, N, D, columns_of([choice.inputs for choice in choices]), with_intervals=True)
    return [Option(*values) for values in zip(choices, prices, N.tolist(), D.tolist(), *losses)]


def _training(task, size, best):
    method, no_command = best.precision.method, best.precision.no_method
    if wrong := _not_transformed(size, best.precision.recipe):
        method, no_command = None, wrong
    config = capybara.get_config(f'size={size},{method or "method=bf16"}')
    recipe = methods.matmul_recipe(config)  # refuses what it can't do
    on_units = task.hardware.runs_fp8 and recipe is not None and _runs_on_fp8_units(recipe)
    steps = max(1, round(best.D / _tokens_a_step(config)))
    command = price = None
    if method:
        method += ',arithmetic=hardware' * on_units
        arguments = [f'--config=configs/capybara.py:size={size},{method}', f'--config.total_steps={steps}']
        if steps <= config.optimizer.warmup_steps:
            arguments.append(f'--config.optimizer.warmup_steps={steps // 10}')
        command = f'XLA_FLAGS={XLA_FLAG} ' * on_units + shlex.join(['python', '-m', 'experiments.train', *arguments])
        price = best.price.value if on_units else 1.0
    critical = float(task.known.value(lambda law: law.critical_data_size(best.N, **best.precision.inputs)))
    return PlannedTraining(size, best, steps, critical, command, no_command, config.dtype, price)


def _runs_on_fp8_units(recipe):
    try:
        recipe.replace(arithmetic='hardware')
    except ValueError:
        return False
    return True


def _not_transformed(size, recipe):
    """Why a recipe's Hadamard transforms don't fit the widths of a size; '' if they do."""
    _, *widths, _ = capybara.SIZES[size]
    operands = recipe.named.operands.values() if recipe.named else ()
    blocks = max((quantizer.hadamard.size for quantizer in operands if quantizer.hadamard), default=1)
    if all(width % blocks == 0 for width in widths):  # powers of two
        return ''
    return (
        f'{recipe.named.name} transforms blocks of {blocks}, and {size} has widths of {" and ".join(map(str, widths))}'
    )
