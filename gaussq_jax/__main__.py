"""Print a table of float formats, those of ml_dtypes and all-finite ones of 3 to 8 bits, or those named; or of recipes.

python -m gaussq_jax [FORMAT ..]
python -m gaussq_jax recipes [RECIPE ..]
"""

import sys

from gaussq_jax import recipes
from gaussq_jax.formats import ML_DTYPES_FORMATS, FloatFormat, parse_format
from gaussq_jax.text_table import text_table

COLUMNS = ('format', 'special', 'bits', 'bias', 'largest', 'least normal', 'least subnormal', 'numbers >= 0')
OPERANDS = {  # what each is, of Y = X W, dX = dY W^T and dW = X^T dY
    'P1': 'X of Y',
    'P2': 'W of Y',
    'P3': 'dY of dX',
    'P4': 'W of dX',
    'P5': 'dY of dW',
    'P6': 'X of dW',
}


def main(names: list[str]):
    if {'-h', '--help'} & set(names):
        sys.exit(__doc__)
    try:
        if names[:1] == ['recipes']:
            return print('\n\n'.join(recipe_text(recipes.find(name)) for name in names[1:] or recipes.RECIPES))
        formats = [parse_format(name) for name in names] or [*ML_DTYPES_FORMATS.values(), *finite_formats()]
    except ValueError as error:
        sys.exit(f'error: {error}')
    print(text_table([COLUMNS, *map(row, formats)], left=(0, 1)))


def row(fmt: FloatFormat) -> tuple[str, ...]:
    """Its cells, of `COLUMNS`."""
    numbers = (fmt.max, fmt.smallest_normal, fmt.smallest_subnormal)
    shown = ('-' if number is None else f'{number:.7g}' for number in numbers)
    return (fmt.name, fmt.special_values, str(fmt.bits), str(fmt.bias), *shown, str(len(fmt.values())))


def finite_formats() -> list[FloatFormat]:
    """E + M from 2 to 7, with at most six exponent bits and at least one mantissa bit."""
    return [FloatFormat(e, total - e) for total in range(2, 8) for e in range(min(total, 7))]


def recipe_text(recipe: recipes.Recipe) -> str:
    """What its operands are rounded to, those alike in one line, and where it is from."""
    by_quantizer = {}
    for name, quantizer in recipe.operands.items():
        by_quantizer.setdefault(quantizer.summary, []).append(OPERANDS[name])
    rows = [('', ', '.join(operands), summary) for summary, operands in by_quantizer.items()]
    if recipe.full_precision:
        rows.append(('', 'in full precision', '; '.join(map(str, recipe.full_precision))))
    if recipe.backward_from == 'quantized':
        rows.append(('', 'backward', 'from the quantized operands of the forward pass'))
    if recipe.ends == 'forward':
        rows.append(('', 'from end_step on', 'the forward pass in full precision'))
    return f'{recipe.name}: {recipe.about} ({recipe.source})\n{text_table(rows, left=(0, 1, 2))}'


if __name__ == '__main__':
    main(sys.argv[1:])
