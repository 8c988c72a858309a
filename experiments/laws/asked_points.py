"""The points that flags ask a law about: every model with all tokens, formats, and what else it takes."""

import itertools
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.laws.answers import Point
from experiments.laws.known_laws import KnownLaw
from experiments.laws.notation import (
    parse_amount,
    parse_bits,
    parse_bitwidth,
    parse_block,
    parse_layout,
    parse_model,
    parse_recipe,
)
from gaussq_jax.scaling_laws.inputs import REFERENCE

INPUTS = {  # of laws, each with its flag and what parses that
    'N': ('model', parse_model),
    'D': ('tokens', parse_amount),
    'E': ('format', parse_layout),
    'B': ('block_size', parse_block),
    'P': ('bits', parse_bits),
    'b': ('bits', parse_bitwidth),
    'new_P': ('new_bits', parse_bits),
    'forward': ('forward', parse_recipe),
    'backward': ('backward', parse_recipe),
}
FLAGS = ('format', 'block_size', 'bits', 'forward', 'backward', 'input')  # of points, beside model and tokens


def points_of(args: flags.FlagValues, known: KnownLaw, columns: Sequence[str]) -> list[Point]:
    """The points that are asked for, as the law's loss takes them: every model with all tokens, formats, ..."""
    others = other_inputs(args, known)
    if missing := [name for name in columns if name not in (*INPUTS, 'M', *others, *known.law.DEFAULTS)]:
        raise ValueError(f'the law {known.name} needs --input={missing[0]}=...')
    columns = [column for column in columns if column in INPUTS or column in others]  # M comes with E
    used = [INPUTS[column][0] for column in columns if column in INPUTS]
    for name in FLAGS[:-1]:
        if args[name].present and name not in used:
            takes = ', '.join(known.law.COLUMNS)
            raise ValueError(f'--{name} has no meaning for the law {known.name}, which takes {takes}')
    recipes = [REFERENCE, *getattr(known.law, 'eff_N', ())]
    if missing := [name for name in used if not args[name].value and name != 'forward']:
        raise ValueError(f'the law {known.name} needs --{missing[0]}')
    values = [
        others[name] if name in others else several(args, name) or recipes  # which alone may be left out
        for name in columns
    ]
    points = [dict(zip(columns, point)) for point in itertools.product(*values)]
    return [{**point, **dict(zip('EM', point['E']))} if 'E' in point else point for point in points]


def inputs_of_plan(args: flags.FlagValues, known: KnownLaw) -> dict[str, float]:
    """Those of a law that a plan does not choose, one value each."""
    given = other_inputs(args, known)
    if name := next((name for name, values in given.items() if len(values) != 1), None):
        raise ValueError(f'--input={name}={",".join(f"{value:g}" for value in given[name])}: plan takes one')
    return {name: value for name, (value,) in given.items()}


def other_inputs(args: flags.FlagValues, known: KnownLaw) -> dict[str, list[float]]:
    """Inputs of a law that have no flag of their own, from --input; ValueError for one that the law doesn't take."""
    takes = [name for name in known.law.COLUMNS if name not in (*INPUTS, 'M')]
    given = {}
    for text in args.input:
        name, _, values = text.partition('=')
        if name not in takes:
            raise ValueError(f'--input={text!r}: the law {known.name} takes by it {", ".join(takes) or "nothing"}')
        given.setdefault(name, []).extend(parse_bitwidth(f'input={name}', value.strip()) for value in values.split(','))
    return given


def product(args: flags.FlagValues, columns: Sequence[str]) -> list[Point]:
    """Every combination of what the flags of these inputs give."""
    return [dict(zip(columns, point)) for point in itertools.product(*(several(args, name) for name in columns))]


def several(args: flags.FlagValues, column: str) -> list[Any]:
    """What stands in the flag of an input, which is a list, parsed."""
    flag, parse = INPUTS[column]
    return [parse(flag, text.strip()) for text in args[flag].value or ()]
