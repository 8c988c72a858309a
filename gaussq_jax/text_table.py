"""Tables of text: what is printed in columns."""

import io
from collections.abc import Collection, Iterable, Sequence


def text_table(rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lines of columns, two spaces apart, without spaces at their ends; laid out by `rich`, however wide.

    A row is a line: what isn't printable in a cell is escaped, as Python does in its strings.

    Args:
      rows: of cells, the first of them the names of the columns, if they have any. A shorter row ends early.
      left: columns whose cells are words, and begin below each other; those of the others, numbers, end so.

    Example:
      >>> print(text_table([('leaf', 'bits'), ('query', '4.25'), ('down', '11')]))
      leaf   bits
      query  4.25
      down     11
    """
    from rich.console import Console  # which nothing but a table needs
    from rich.table import Table
    from rich.text import Text

    rows = [[''.join(c if c.isprintable() else ascii(c)[1:-1] for c in cell) for cell in row] for row in rows]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in range(max(map(len, rows), default=0)):
        table.add_column(justify='left' if column in left else 'right', no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    lines, width = io.StringIO(), sum(2 + 2 * len(cell) for row in rows for cell in row)  # enough for wide letters
    Console(file=lines, width=width, color_system=None, force_terminal=False, force_jupyter=False).print(table)
    return '\n'.join(line.rstrip() for line in lines.getvalue().splitlines())
