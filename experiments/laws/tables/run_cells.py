"""What the cells of a run say: numbers as people write them, its format and blocks, and the recipe that these make."""

import decimal
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from experiments.files import foreign_text
from experiments.laws.law_choices import UNQUANTIZED
from experiments.laws.notation import UNITS, block_name
from experiments.laws.recipes import OPERANDS as NAMED
from experiments.methods import METHODS
from gaussq_jax.formats import parse_format
from gaussq_jax.scaling_laws.inputs import REFERENCE

MOST_LETTERS = 200  # of a method or a recipe
AMOUNTS = 'N', 'D', 'C'  # which may have a unit, as 30.5M
OPERANDS = {'P_w': 'w', 'P_a': 'a', 'P_kv': 'kv', 'P_post': 'post'}
NUMBERS = 'N', 'D', 'loss', 'E', 'M', 'b', 'P', *OPERANDS
WORDS = 'format', 'method', 'seed', 'name', 'run', 'learning_rate', 'dataset'
DONE = '', 'done', 'finished', 'complete', 'completed', 'success', 'succeeded'
NO_LABELS = 'nan', 'none', 'null', 'na', 'n/a', '<na>', '-'  # as other programs write an empty cell
OF_BF16 = {column: UNQUANTIZED[column] for column in 'EMBb'} | {'format': REFERENCE}
WITHOUT_BLOCKS = (8, 7), (5, 10), (8, 23)  # E and M
# E, M and the size of a block, of those that have one by definition. Sources: OCP Microscaling Formats v1.0, section 5;
# for nvfp4 NVIDIA, arXiv 2509.25149.
FORMATS = {
    **{name: (of.fmt.exponent_bits, of.fmt.mantissa_bits, of.block_size or None) for name, of in NAMED.items()},
    **{f'int{bits}': (0, bits - 1, None) for bits in range(2, 9)},
    'fp32': (8, 23, None),
    'float32': (8, 23, None),
    'mxfp8_e5m2': (5, 2, 32),
    'mxfp6_e2m3': (2, 3, 32),
    'mxint8': (0, 7, 32),
}
AMOUNT = re.compile(r'((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?) ?([KMBT])', re.IGNORECASE | re.ASCII)
COMMAS = {  # of a number: what they are
    'of thousands': re.compile(r'[+-]?[1-9]\d{0,2}(,\d{3})+(,\d{3}|\.\d*)( ?[KMBT])?', re.IGNORECASE | re.ASCII),
    'either': re.compile(r'[+-]?[1-9]\d{0,2},\d{3}( ?[KMBT])?', re.IGNORECASE | re.ASCII),
    'decimal': re.compile(r'[+-]?\d*,\d+(e[+-]?\d+)?( ?[KMBT])?', re.IGNORECASE | re.ASCII),
}


class NumberReader:
    """Reads the numbers of a table, whose commas are of thousands or decimal.

    '1,234,567' and '1,234.5' have commas of thousands, and '1,234' has in a column with such a number. Where no comma
    separates cells, '3,14' has a decimal comma, and '3,141' has in a table with such a number. Else those are errors.
    """

    def __init__(self, columns: Mapping[str, Iterable[Any]], has_decimal_commas: bool):
        kinds = {name: set(map(_commas, cells)) for name, cells in columns.items()}
        self._of_thousands = {name for name, found in kinds.items() if 'of thousands' in found}
        self._is_decimal = has_decimal_commas and any('decimal' in found for found in kinds.values())

    def __call__(self, column: str, value: Any) -> float:
        """A float64, NaN for an empty cell; of N, D and C also from 30.5M, 1.2B and the like.

        Raises:
          ValueError: for what is no number, or may be two.
        """
        if not word(value):
            return math.nan
        text = self._with_point(column, value.strip()) if isinstance(value, str) else value
        try:
            if column in AMOUNTS and isinstance(text, str) and (match := AMOUNT.fullmatch(text)):
                return float(decimal.Decimal(match[1]) * int(UNITS[match[2].upper()]))
            if isinstance(text, bool):
                raise TypeError
            return float(text)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f'{column}={value!r:.80} is not a number') from None

    def _with_point(self, column: str, text: str) -> str:
        """The number as Python reads it."""
        commas = _commas(text)
        told = f'{column}={text!r:.80}'
        if self._is_decimal:
            if commas == 'of thousands' or (commas is None and re.fullmatch(r'[+-]?\d*\.\d+', text)):
                raise ValueError(f'{told} has no decimal comma, as other numbers of the table have: write all alike')
            return text.replace(',', '.') if commas else text
        if commas == 'of thousands' or (commas == 'either' and column in self._of_thousands):
            return text.replace(',', '')
        if commas == 'either':
            readings = text.replace(',', ''), text.replace(',', '.')
            raise ValueError(f'{told} may be {" or ".join(readings)}: write it without a comma')
        return text


def _commas(cell: Any) -> str | None:
    """What its commas are, a key of COMMAS; None if it has none, or is no number."""
    if not isinstance(cell, str) or ',' not in cell:
        return None
    return next((kind for kind, pattern in COMMAS.items() if pattern.fullmatch(cell.strip())), None)


def read_run(cells: Mapping[str, Any], number: NumberReader, extra: Sequence[str]) -> dict[str, Any] | str:
    """The columns of a run, or why it is left out.

    Args:
      cells: by our columns, those that the table has.
      number: reads its numbers.
      extra: columns that a law of one's own needs, which are numbers.

    Raises:
      ValueError: naming the column, for what it can't be.
    """
    status = word(cells.get('status'))
    if status.lower() not in DONE:
        return f'with status {status:.80}'
    size = 'D' if 'D' in cells else 'C'
    for column in ('loss', 'N', size):
        if not word(cells[column]):
            is_nan = column == 'loss' and str(cells[column]).strip().lower() == 'nan'
            return 'whose loss is not finite' if is_nan else f'without {"a loss" if column == "loss" else column}'
    numbers = {column: number(column, cells.get(column)) for column in (*NUMBERS, *extra)}
    if not math.isfinite(numbers['loss']):
        return 'whose loss is not finite'
    if size == 'C' and numbers['N']:
        numbers['D'] = number('C', cells['C']) / (6 * numbers['N'])
    if is_history(cells) and numbers['D'] == 0:
        return 'at a step before the first token'
    for column in ('N', size, 'loss'):
        if not 0 < numbers['D' if column == 'C' else column] < math.inf:
            raise ValueError(f'{column}={cells[column]!r:.80} must be a positive number')
    for column in ('E', 'M', 'b', 'P', *OPERANDS):
        may_be_0 = column in ('E', 'M')
        if numbers[column] < 0 or (numbers[column] == 0 and not may_be_0):
            raise ValueError(f'{column}={cells[column]!r:.80} must be {"at least" if may_be_0 else "above"} 0')
    words = {column: word(cells.get(column)) for column in WORDS}
    words['method'], *recipes = (_label(name, cells.get(name)) for name in ('method', 'forward', 'backward'))
    run = words | numbers | _precision(numbers, words, cells)
    bits = _constant_bits(cells, number) if learns_bitwidths(run['method']) else None
    if bits is not None:
        run['b'] = bits  # where the mean of the bitwidths has the rounding of a float32
    run['forward'], run['backward'] = map(str.lower, recipes)
    if 'forward' not in cells:
        run['forward'], run['backward'] = _recipes(run, cells, is_constant=bits is not None)
    if math.isnan(run['P']):
        run['P'] = 1 + run['E'] + run['M']
    return run | {'_step': number('_step', cells.get('_step')) if is_history(cells) else math.nan}


def is_history(columns: Collection[str]) -> bool:
    """Whether rows are steps of runs, as Weights & Biases has them: a table of runs says how each has ended."""
    return '_step' in columns and 'status' not in columns


def word(value: Any) -> str:
    """The text of a cell, none for one that is empty."""
    text = '' if value is None else str(value).strip()
    return '' if text.lower() in NO_LABELS else text


def _label(column: str, value: Any) -> str:
    """A name that is shown wherever its runs are, and so has printable letters, and not too many."""
    text = ' '.join(word(value).split())
    if len(text) > MOST_LETTERS:
        raise ValueError(f'{column}={text!r:.80} has {len(text):,} letters; allowed are {MOST_LETTERS}')
    return foreign_text.printable(text)


def learns_bitwidths(method: str) -> bool:
    return method in METHODS and METHODS[method].learns_bitwidths


def _constant_bits(cells: Mapping[str, Any], number: NumberReader) -> float | None:
    """The bitwidth of sampled weights that don't learn it, None if they do, or if it isn't told."""
    names = 'quantization.b_init', 'quantization.b_target'
    first, last = (number(name, cells.get(name)) for name in names)
    return first if first == last else None


def _precision(numbers: Mapping[str, float], words: Mapping[str, str], cells: Mapping[str, Any]) -> dict[str, Any]:
    """E, M and B of a run, and what they make of its format and b."""
    method = words['method']
    if method.lower() == 'bf16':
        return OF_BF16
    if learns_bitwidths(method) or _named_recipe(method, cells):
        return {'E': math.nan, 'M': math.nan, 'B': None}
    has_default = cells.get('format') is not None and method in METHODS  # the column is there, and empty
    fmt = words['format'] or (METHODS[method].default_format if has_default else '')
    layout, block = (numbers['E'], numbers['M']), _block_size(cells.get('B'))
    if fmt:
        *bits, own_block = _format(fmt)
        for column, of_format in zip('EM', bits):
            if not math.isnan(numbers[column]) and numbers[column] != of_format:
                raise ValueError(f'{column}={cells[column]!r:.80}, and the format {fmt!r:.80} has {of_format}')
        if own_block and word(cells.get('B')) and block != own_block:
            raise ValueError(f'B={cells["B"]!r:.80}, and the format {fmt!r:.80} has blocks of {own_block}')
        layout, block = tuple(map(float, bits)), float(own_block) if own_block else block
    if layout in WITHOUT_BLOCKS and not word(cells.get('B')):
        block = UNQUANTIZED['B']
    return {'E': layout[0], 'M': layout[1], 'B': block, 'format': fmt}


def _format(name: str) -> tuple[int, int, int | None]:
    """E, M and the size of a block, if the name says it."""
    if name.lower() in FORMATS:
        return FORMATS[name.lower()]
    try:
        parsed = parse_format(name.lower())
    except ValueError as error:
        raise ValueError(f'{error}, {", ".join(FORMATS)}') from None
    return parsed.exponent_bits, parsed.mantissa_bits, None


def _block_size(value: Any) -> float | str | None:
    """A number, 'channel' or 'tensor'; None for an empty cell and for rectangles, of which the laws know nothing."""
    text = word(value)
    if text in ('channel', 'tensor'):
        return text
    if not text or re.fullmatch(r'\d+x\d+', text):
        return None
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 1 <= size < math.inf:
        raise ValueError(f"B={value!r:.80} is neither a block size, at least 1, nor 'channel' or 'tensor'")
    return size


def _named_recipe(method: str, cells: Mapping[str, Any]) -> str:
    """The name of `gaussq_jax.recipes` that a run of ours has; '' if it has none."""
    return word(cells.get('quantization.recipe')).lower() if method in METHODS else ''


def _recipes(run: Mapping[str, Any], cells: Mapping[str, Any], *, is_constant: bool) -> tuple[str, str]:
    """What a run was trained in, forward and backward; the former says the latter unless there is a recipe.

    A recipe stands in both: 'nvfp4' and 'nvfp4'; under sampled weights in one name: 'gaussws 3 nvfp4'. What of our
    settings says in which layers and steps it is, is part of its name: 'nvfp4 full_precision none'.
    """
    method, recipe = run['method'], _named_recipe(run['method'], cells)
    if method == 'bf16' or method not in METHODS:
        return _recipe(run, word(cells.get('B')), is_constant=is_constant), ''
    where = [
        f'{name} {value}'
        for name in ('full_precision', 'start_step', 'end_step')
        if (value := str(cells.get(f'quantization.{name}') or '').strip()) not in ('', '0', '0.0')
    ]
    if recipe and not learns_bitwidths(method):
        return (' '.join([recipe, *where]),) * 2
    named = _recipe(run, word(cells.get('B')), is_constant=is_constant)
    return ' '.join(filter(None, (named, recipe, *where))), ''


def _recipe(run: Mapping[str, Any], block: str, *, is_constant: bool) -> str:
    """What a run was trained in: 'bf16', 'fqt e2m1 16', 'gaussws 3', 'mxfp4', 'e4m3 128', 'w4 a8', '6 bits'; or ''."""
    method, name = run['method'].lower(), run['format'].lower()
    if learns_bitwidths(run['method']):
        return f'{method} {run["b"]:g}' if is_constant else method
    layout = run['E'], run['M']
    if not name and not math.isnan(sum(layout)):
        name = 'e{:g}m{:g}'.format(*layout)
    if name == 'bfloat16' or layout == (8, 7) or run['b'] == math.inf or (run['P'] == 16 and not name):
        return 'bf16'
    if name and FORMATS.get(name, (0, 0, None))[2] is None:
        name += f' {block_name(run["B"]) if run["B"] else block}' if block else ''
    if not name:
        operands = [f'{letter}{run[column]:g}' for column, letter in OPERANDS.items() if not math.isnan(run[column])]
        bits = [f'{run[column]:g} bits' for column in ('P', 'b') if not math.isnan(run[column])]
        name = ' '.join(operands or bits[:1])
    return f'{method} {name}'.strip()
