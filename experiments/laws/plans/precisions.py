"""The precisions that a law can choose between: what it takes for each, the operands, and how it is trained here."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.laws.known_laws import KnownLaw
from experiments.laws.law_choices import UNQUANTIZED as UNQUANTIZED_INPUTS
from experiments.laws.notation import BF16, format_name
from experiments.laws.recipes import (
    BFLOAT16,
    UNQUANTIZED,
    Operand,
    Recipe,
    find_recipe,
    of_bits,
    one_operand_each,
    parse_operand,
    parse_sampled,
    read_recipe,
    recipe_of,
    sampled,
)
from gaussq_jax.formats import parse_format
from gaussq_jax.scaling_laws import CapybaraLaw

FEWEST_BITS, MOST_LOW_BITS, MOST_BITS = 3, 8, 16
USUAL_BITS = (4, 6, 8, 16)  # that GPUs multiply
USUAL_BITWIDTHS = (2, 8)  # of sampled weights, if the law doesn't say of which it is
USUAL_BLOCKS = (32, 256)  # of a law that doesn't say
UNIFORM_BITS = (4, 8, 16)  # of weights, activations, keys and values alike
OF_PRECISION = UNQUANTIZED_INPUTS.keys() - {'P_post'}  # columns of what is trained


class Precision(NamedTuple):
    """One choice.

    Attributes:
      name: 'e2m1', 'bf16', '4 bits', 'mxfp4 / bf16'.
      inputs: what the law's loss takes beside N and D.
      recipe: the operands of the GEMMs.
      bits: of the choice, where bits are what it is; else None.
      method: of this program's configs, as their arguments; or None, and
      no_method: why there is none.
    """

    name: str
    inputs: dict[str, Any]
    recipe: Recipe
    bits: float | None = None
    method: str | None = None
    no_method: str = ''


UNQUANTIZED_METHOD = 'method=bf16'
BF16_BITS = 16


def precisions(
    known: KnownLaw,
    *,
    block_size: float | str = 128,
    formats: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    is_ideal: bool = True,
) -> list[Precision]:
    """What there is to choose between, by the columns of precision that the law takes.

    Args:
      known: any law.
      block_size: of formats, where a law takes both.
      formats: of recipes whose names say none, as `read_recipe` takes them.
      inputs: what else a law of one's own takes, the same for all.
      is_ideal: whether bits are what is paid for: 16 of them then have their best format as others do, and BF16, which
        is not quantized, is there only if it is that; else BF16 is there in any case.

    Raises:
      ValueError: for a column that nothing says; for inputs that the law doesn't take or that are chosen here; for
        formats of recipes that it doesn't know.
    """
    columns = set(known.law.COLUMNS) - {'N', 'D'}
    given = dict(inputs or {})
    chosen = next((columns_ for columns_ in _CHOICES if columns_ <= columns), frozenset())
    for name in given:
        if name not in columns - chosen:
            allowed = ', '.join(sorted(columns - chosen)) or 'none'
            raise ValueError(f'--input={name} has no meaning for a plan of the law {known.name}; it takes {allowed}')
    if missing := sorted(columns - chosen - set(given) - set(known.law.DEFAULTS)):
        raise ValueError(f'the law {known.name} needs --input={missing[0]}=VALUE for a plan')
    names = {name for of in _recipes_of(known.law) for name in of}
    if strangers := [name for name in formats or {} if name.lower() not in names]:
        raise ValueError(
            f'--recipes={strangers[0]}={formats[strangers[0]]}: the recipes that the law {known.name} knows are'
            f' {", ".join(sorted(names)) or "none"}'
        )
    choices = _CHOICES[chosen](known, block_size, dict(formats or {}), is_ideal)
    if of_precision := sorted(OF_PRECISION.intersection(given)):
        unpriced = Recipe(None, None, None, f'nothing says the operands of {", ".join(of_precision)}')
        choices = [choice._replace(name='as given', recipe=unpriced, method=None) for choice in choices]
    return [choice._replace(inputs={**choice.inputs, **given}) for choice in choices]


def _formats(known, block_size, formats, is_ideal):
    """For each whole number of bits its best format; the law of one operand each. BF16 is not quantized: B = 1.

    On a device, formats of more than 8 bits are left out: no unit but BF16's takes them, and they lose more than BF16.
    """
    law = known.law
    most = MOST_BITS if is_ideal else MOST_LOW_BITS
    layouts = [best_trainable(law, bits) for bits in range(FEWEST_BITS, most + 1)]
    layouts += [BF16] * (not is_ideal)
    return [_of_layout(E, M, block_size) for E, M in layouts]


def _of_layout(E, M, block_size):
    name, bits = format_name(E, M), 1 + E + M
    if name == 'bf16':
        return Precision(name, {'E': E, 'M': M, 'B': 1}, UNQUANTIZED, bits, UNQUANTIZED_METHOD)
    recipe = one_operand_each(Operand(parse_format(name), block_size, 'fp32'))
    method = f'method=fqt,format={name},block_size={block_size}'
    return Precision(name, {'E': E, 'M': M, 'B': block_size}, recipe, bits, method)


def best_trainable(law: CapybaraLaw, bits: int) -> tuple[int, int]:
    """E and M of least loss, of the formats that there are."""
    layouts = [(E, bits - 1 - E) for E in range(bits) if is_format(E, bits - 1 - E)]
    E, M = np.array(layouts).T
    return layouts[np.argmax(law.critical_data_size(N=1.0, E=E, M=M, B=2))]


def is_format(E: int, M: int) -> bool:
    try:
        parse_format(f'e{E}m{M}')
    except ValueError:
        return (E, M) == BF16
    return True


def _bitwidths(known, block_size, formats, is_ideal):
    """Weights sampled at whole bitwidths, of those of the runs behind the law, and not at all."""
    low, high = known.ranges.get('b', USUAL_BITWIDTHS)
    choices = []
    for b in range(math.ceil(low), int(high) + 1):
        choices.append(Precision(f'b = {b}', {'b': float(b)}, sampled(b), b, f'method=gaussws,b_init={b},b_target={b}'))
    return [*choices, Precision('bf16', {'b': np.inf}, UNQUANTIZED, BF16_BITS, UNQUANTIZED_METHOD)]


def _bits(known, block_size, formats, is_ideal):
    """Weights, activations and gradients of P bits, in no format that the law knows."""
    return [_of_bits(f'{bits} bits', {'P': float(bits)}, bits, known) for bits in USUAL_BITS]


def _uniform_bits(known, block_size, formats, is_ideal):
    """Weights, activations, keys and values alike."""
    choices = []
    for bits in UNIFORM_BITS:
        inputs = {name: float(bits) for name in ('P_w', 'P_a', 'P_kv')}
        choices.append(_of_bits(f'W{bits} A{bits} KV{bits}', inputs, bits, known))
    return choices


def _of_bits(name, inputs, bits, known):
    no_format = f'the law {known.name} knows the bits, and no format'
    if bits == BF16_BITS:
        return Precision('bf16', inputs, UNQUANTIZED, bits, UNQUANTIZED_METHOD)
    return Precision(name, inputs, of_bits(bits, no_format), bits, None, no_format)


def _blocks(known, block_size, formats, is_ideal):
    """Group sizes of quantization-aware training, whose format a law of group sizes doesn't say; B = 1 is none."""
    low, high = known.ranges.get('B', USUAL_BLOCKS)
    unknown = f'the law {known.name} says no format of weights and activations'
    sizes = [2**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    choices = [
        Precision(f'groups of {B}', {'B': B}, Recipe(None, None, None, unknown), None, None, unknown) for B in sizes
    ]
    return [*choices, Precision('bf16', {'B': 1}, UNQUANTIZED, BF16_BITS, UNQUANTIZED_METHOD)]


def _recipes(known, block_size, formats, is_ideal):
    """Every forward recipe that the law knows with every backward one, if it knows any.

    What names both passes, as 'nvfp4' and 'gaussws 3' do, is not mixed with others.
    """
    choices = []
    for forward, backward in _pairs(*_recipes_of(known.law)):
        inputs = {'forward': forward, 'backward': backward}
        if forward == 'bf16' and backward in ('bf16', ''):
            choices.append(Precision('bf16', inputs, UNQUANTIZED, BF16_BITS, UNQUANTIZED_METHOD))
            continue
        recipe = read_recipe(forward, backward, formats)
        bits = recipe.bits and (recipe.bits[0] + 2 * recipe.bits[1]) / 3
        name = f'{forward} / {backward}' if backward else forward
        is_renamed = {forward, backward} & {name.lower() for name in formats}
        method = _no_method(forward, backward) if is_renamed else _method_of(forward, backward)
        choices.append(Precision(name, inputs, recipe, bits, *method))
    return choices


def _pairs(of_N, of_D):
    whole = {name for name in of_N if _says_both(name, name if name in of_D else '')}
    backward = ['bf16', *(name for name in of_D if name not in whole)] if of_D else ['']
    for forward in ['bf16', *of_N]:
        if forward in whole:
            yield forward, forward if forward in of_D else ''
        else:
            yield from itertools.product([forward], backward)


def _says_both(forward, backward):
    """Whether it is a name that sweeps of ours have for a run, or a recipe's."""
    word, _, setting = forward.partition(' ')
    in_some = backward and setting and find_recipe(word) and not parse_operand(forward)  # of its layers, or steps
    return word in ('fqt', 'qat', 'gaussws', 'diffq') or recipe_of(forward, backward) or in_some


def _recipes_of(law):
    """The names of the forward and of the backward recipes that a law knows."""
    matches = [re.fullmatch(r'(eff_[ND])\[(.*)\]', constant) for constant in law.constants()]
    return [[match[2] for match in matches if match and match[1] == kind] for kind in ('eff_N', 'eff_D')]


def _method_of(forward, backward):
    """The arguments of configs that train a recipe by its name; or None, and why."""
    name, _, setting = forward.partition(' ')
    operand = parse_operand(setting)
    if (recipe := recipe_of(forward, backward)) and recipe.operands:
        return f'method=fqt,recipe={recipe.name}', ''
    if not backward and (sampled := parse_sampled(forward)) and sampled.bits:
        under = f',recipe={sampled.recipe.name}' if sampled.recipe else ''
        return f'method={sampled.method},b_init={sampled.bits},b_target={sampled.bits}{under}', ''
    if not backward and name in ('fqt', 'qat') and operand and operand.block_size:
        return f'method={name},{_settings(operand)}', ''
    operands = {'P1+P2': parse_operand(forward), 'P3+P4+P5+P6': parse_operand(backward)}
    if None in operands.values():
        return _no_method(forward, backward)
    low_bit = set(operands.values()) - {BFLOAT16}
    if len(low_bit) > 1:
        return None, f'no recipe has the passes of {forward} / {backward}; one of your own can'
    (operand,) = low_bit
    if not operand.block_size:
        return None, f'nothing says which values share a scale in {forward} / {backward}'
    targets = '+'.join(targets for targets, of_targets in operands.items() if of_targets == operand)
    return f'method=fqt,{_settings(operand)},targets={targets}', ''


def _no_method(forward, backward):
    return None, f'this program has no method that is {forward!r}' + f' / {backward!r}' * bool(backward)


def _settings(operand):
    scale = f',scale={operand.scale}' if operand.scale in ('mx', 'nvfp4') else ''
    name = 'e2m1' if operand.scale == 'nvfp4' else operand.fmt.name
    return f'format={name},block_size={operand.block_size}{scale}'


def _nothing(known, block_size, formats, is_ideal):
    """A law that knows no precision is one of BF16."""
    return [Precision('bf16', {}, UNQUANTIZED, BF16_BITS, UNQUANTIZED_METHOD)]


_CHOICES: dict[frozenset[str], Callable[..., list[Precision]]] = {  # by the columns that they choose
    frozenset({'E', 'M', 'B'}): _formats,
    frozenset({'P_w', 'P_a', 'P_kv'}): _uniform_bits,
    frozenset({'forward', 'backward'}): _recipes,
    frozenset({'b'}): _bitwidths,
    frozenset({'P'}): _bits,
    frozenset({'B'}): _blocks,
    frozenset(): _nothing,
}
