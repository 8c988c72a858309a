"""Print a table of float formats: those of ml_dtypes and all-finite ones of 3 to 8 bits, or those named.

python -m gaussq_jax [FORMAT ..]
"""

import sys

from gaussq_jax.formats import ML_DTYPES_FORMATS, FloatFormat, parse_format
from gaussq_jax.text_table import text_table

COLUMNS = ('format', 'special', 'bits', 'bias', 'largest', 'least normal', 'least subnormal', 'numbers >= 0')


def main(names: list[str]):
    if {'-h', '--help'} & set(names):
        sys.exit(__doc__)
    try:
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


if __name__ == '__main__':
    main(sys.argv[1:])
