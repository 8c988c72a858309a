"""What there is to say of a plan: to programs, and to people."""

import itertools
import math
from typing import Any

from experiments.laws.notation import UNKNOWN, human, interval_text, value_text
from experiments.laws.plans.precisions import USUAL_BITS
from experiments.laws.plans.serving import WEIGHTS_ONLY
from experiments.laws.plans.training_plans import Option, Plan
from experiments.laws.recipes import BFLOAT16
from gaussq_jax.text_table import text_table

DAY = 86400
MOST_DEVICES = 1e15


def describe(plan: Plan, mfu: float = 0.4, days: float | None = None) -> tuple[dict[str, Any], list[str]]:
    """A plan as JSON-able data, and as lines.

    Args:
      plan: of `make_plan`.
      mfu: the part of the peak of BF16, or of the units that are priced, that training attains.
      days: to be done in; None for the days of one device.

    Raises:
      ValueError: for so few days that the devices can't be counted.
    """
    hardware, training, best = plan.hardware, plan.training, plan.best
    option = training.option
    data = plan._asdict() | {
        'known': plan.known.describe(),
        'hardware': {'name': hardware.name, 'source': hardware.source, 'rates': dict(hardware.rates)},
        'serve': plan.serve and {'tokens': plan.serve.tokens, 'format': plan.serve.format},
        'best': best.describe(),
        'unserved': plan.unserved and plan.unserved.describe(),
        'options': [option.describe() for option in plan.options],
        'training': training._asdict() | {'option': option.describe()},
        'remarks': remarks(plan),
    }
    lines = [
        f'law         {plan.known.origin}',
        f'budget      {budget_text(plan)}',
        *serving_lines(plan, data),
        f'best        {best_text(plan)}',
        '',
        text_table(options_table(plan)),
        '',
        f'nearest     {training.size} of configs/capybara.py: N = {human(option.N)}, where {human(best.N)} is best;'
        ' within the budget',
        f'            {option.precision.name}, {human(option.D)} tokens ({training.total_steps:,} steps); loss '
        + loss_text(option),
        *memory_lines(plan, data),
    ]
    if not hardware.is_ideal:
        data['hardware'] |= {'mfu': mfu, 'training_time': training_time(plan, mfu, days)}
        lines += time_lines(plan, data['hardware']['training_time'], mfu)
    if training.command is None:
        lines.append(f'command     none: {training.no_command}')
    else:
        lines += ['command', f'    {training.command}']
    return data, [*lines, '', *data['remarks']]


def budget_text(plan: Plan) -> str:
    """The budget, in what it is counted, and the block size."""
    counted = 'at 16 bits' if plan.hardware.is_ideal else f'in BF16 on {plan.hardware.name}'
    blocks = '' if plan.block_size is None else f'; scales by {plan.block_size}'
    return f'{plan.compute:.4g} operations, as 6 N D {counted}{blocks}'


def best_text(plan: Plan) -> str:
    """The best number of bits, where bits are what is paid for; else the best precision."""
    if plan.block_size is None or not plan.hardware.is_ideal or plan.serve:
        return f'{plan.best.precision.name}:'
    if plan.bits is None:
        return 'no real number of bits; in whole bits:'
    return value_text(plan.bits, plan.bits_interval, '{:.3f}'.format, '95 %: ') + ' bits; in whole bits:'


def serving_lines(plan: Plan, data: dict[str, Any]) -> list[str]:
    """What is served, its part of the budget, and what it does to the best model."""
    if plan.serve is None:
        return []
    serve, best = plan.serve, plan.best
    share = 1 - best.cost / plan.compute
    what = 'weights alone' if serve.format.endswith(WEIGHTS_ONLY) else 'weights and activations'
    what += f' in {serve.format.removesuffix(WEIGHTS_ONLY)}'
    data['serve'] |= {'price': serve.price(plan.hardware).value, 'stored_bits': serve.stored_bits, 'share': share}
    lines = [
        f'serving     {human(serve.tokens)} tokens, {what}, {share:.0%} of the budget:'
        f' 2 N a token, at {data["serve"]["price"]:.3g} of the price of BF16'
    ]
    ratio = best.D / best.N
    data['serve']['tokens_a_weight'] = ratio
    if plan.unserved:
        alone = plan.unserved.D / plan.unserved.N
        data['serve']['tokens_a_weight_unserved'] = alone
        lines.append(f'            {ratio:.3g} tokens a weight are best to train with; without serving, {alone:.3g}')
    return lines


def memory_lines(plan: Plan, data: dict[str, Any]) -> list[str]:
    """The bytes of the nearest model, served."""
    if plan.serve is None:
        return []
    memory = plan.serve.memory(plan.training.size, plan.training.option.N, plan.hardware)
    data['serve']['memory'] = memory
    lines = [
        f'served      {_bytes(memory["weights_bytes"])} of weights of the linear layers at'
        f' {plan.serve.stored_bits:g} bits; keys and values in BF16 {_bytes(memory["cache_bytes_a_token"])} a token,'
        f' {_bytes(memory["cache_bytes_a_sequence"])} a sequence of {memory["sequence_length"]:,}'
    ]
    if memory['devices'] is not None:
        lines.append(
            f'            both fit into {memory["devices"]:,} {plan.hardware.name}, whose memory reads the weights'
            f' {memory["tokens_a_second"]:,.0f} times a second: at most as many tokens, of one sequence at a time'
        )
    return lines


def _bytes(number: float) -> str:
    for unit, size in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if number >= size:
            return f'{number / size:.3g} {unit}'
    return f'{number:.3g} bytes'


def training_time(plan: Plan, mfu: float, days: float | None) -> dict[str, dict[str, float]]:
    """The days of one device; or, to be done in `days`, their number and days: as priced, and as the command trains.

    The command multiplies in BF16 what it simulates, and on FP8 units what they can.
    """
    training, option, times = plan.training, plan.training.option, {}
    prices = {'priced': option.price.value} | ({'command': training.command_price} if training.command else {})
    for what, price in prices.items():
        peak = plan.hardware.rates['bf16'] / price
        device_days = option.cost / option.price.value / (peak * mfu) / DAY
        share = 1.0 if days is None else device_days / days
        if not share < MOST_DEVICES:
            raise ValueError(f'--days={days:g} takes {share:.3g} {plan.hardware.name}: too many to count')
        devices = math.ceil(share)
        times[what] = {'peak': peak, 'devices': devices, 'days': device_days / devices}
    return times


def time_lines(plan: Plan, times: dict[str, dict[str, float]], mfu: float) -> list[str]:
    """How long the nearest takes."""
    is_one = plan.training.option.price.value == plan.training.command_price
    conditions = {
        'priced': 'as priced, and as the command trains' if is_one else 'as priced',
        'command': 'as the command trains: in BF16',
    }
    lines = [
        f'time        {time["days"]:,.3g} days of {time["devices"]:,} {plan.hardware.name} at {mfu:.0%} of'
        f' {time["peak"] / 1e12:,.5g} TFLOP/s, {conditions[what]}'
        for what, time in times.items()
        if not (what == 'command' and is_one)
    ]
    return [*lines, f'            (dense peaks: {plan.hardware.source})']


def options_table(plan: Plan) -> list[list[str]]:
    """The options; of many bits the best, its neighbours, and those that GPUs have."""
    has = plan.best.interval is not None, plan.best.prediction_interval is not None
    titles = list(itertools.compress(('95 % interval', '95 % of a run'), has))
    shows_price = not plan.hardware.is_ideal
    rows = [['bits', 'format', *['price'] * shows_price, 'N', 'tokens', 'loss', *titles, '']]
    for option in plan.options:
        bits = option.precision.bits
        if plan.block_size is not None and abs(bits - plan.best.precision.bits) > 2 and bits not in USUAL_BITS:
            continue
        cells = ['' if bits is None else f'{bits:.4g}', option.precision.name]
        if option.price.value is None:
            rows.append([*cells, *[UNKNOWN] * shows_price, '', '', '', *[''] * len(titles), 'price unknown'])
            continue
        cells += [f'{option.price.value:.3g}'] * shows_price + [human(option.N), human(option.D)]
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


def remarks(plan: Plan) -> list[str]:
    """What a reader of the plan has to know."""
    known, best, training = plan.known, plan.best, plan.training
    option = training.option
    said = [f'the best: {remark}' for remark in known.remarks(N=best.N, D=best.D)]
    said += [f'{training.size}: {remark}' for remark in known.remarks(N=option.N, D=option.D)]
    if training.critical_tokens < option.D:
        said.append(f'TOO MANY TOKENS for {training.size}: past {human(training.critical_tokens)} they hurt')
    said += [*price_remarks(plan), *command_remarks(plan)]
    if plan.serve and (note := plan.serve.price(plan.hardware).note):
        said.append(f'served in {plan.serve.format}: {note}')
    if plan.serve and (rounded := _rounded_to_serve(plan)):
        numbers = plan.serve.format.removesuffix(WEIGHTS_ONLY)
        said.append(f'what rounding {rounded} to {numbers} adds to the loss is not known by this law')
    if any(option.is_unknown for option in plan.options):
        said.append(f'{known.says_unknown}: so may another format be the best')
    said.append(known.says_assumed)
    if best_text(plan).startswith('no real number'):
        said.append('by this law a real number of bits is best only for given N or D, or none is: see the whole ones')
    elif plan.bits is not None and plan.bits_interval is None and known.draws:
        said.append('no interval of the best bits: by some of the laws that the runs allow, there is no best number')
    return list(dict.fromkeys(filter(None, said)))


def price_remarks(plan: Plan) -> list[str]:
    """What has to be said of prices, with the options that it is said of."""
    said = {}
    for option in plan.options:
        if option.price.note:
            said.setdefault((option.price.value is None, option.price.note), []).append(option.precision.name)
    of = lambda names: ', '.join(names) if len(names) < 5 else f'{names[0]} to {names[-1]}'
    told = [f'{"price unknown: " * is_unknown}{of(names)}: {note}' for (is_unknown, note), names in said.items()]
    if plan.hardware.is_ideal and any(option.price.value not in (None, 1) for option in plan.options):
        told.append(
            'ideal prices operations by their bits, as no hardware does: --hardware=h100, say, prices what runs'
        )
    return told


def command_remarks(plan: Plan) -> list[str]:
    """Whether the command trains what was priced."""
    training, option = plan.training, plan.training.option
    if training.command is None:
        return []
    said = ['the text is the source of Python, in bytes, unless --config.dataset and --config.tokenizer say else']
    price, name = option.price.value, option.precision.name
    if option.price.note not in [of.price.note for of in plan.options]:
        said.append(f'{training.size} in {name}: {option.price.note}')
    if price != training.command_price:
        said.append(
            f'{name} is simulated: the command multiplies in BF16, and takes {1 / price:.3g} times as long as priced,'
            f' which is at {price:.3g} of the price of BF16'
        )
    if 'targets=' in option.precision.method:
        said.append(f'{name} names formats alone: the command rounds to nearest, as the runs may not have done')
    if training.dtype != 'bfloat16':
        said.append(
            f'{training.size} multiplies in {training.dtype}, for CPUs; --config.dtype=bfloat16 is what is priced'
        )
    return said


def _rounded_to_serve(plan: Plan) -> str:
    """Operands that are rounded to be served, at a cost that the law doesn't say; BF16 holds all that is trained."""
    serve, recipe = plan.serve, plan.training.option.precision.recipe
    served = {'activations': serve.activations, 'weights': serve.weights}
    trained = dict(zip(served, recipe.forward or (None, None)))
    numbers = lambda operand: operand and (operand.fmt, operand.block_size)
    rounded = [x for x in served if numbers(served[x]) not in (numbers(trained[x]), numbers(BFLOAT16))]
    said = ['weights'] if 'post' in plan.known.law.constants() else []
    return ' and '.join(x for x in rounded if x not in said)
