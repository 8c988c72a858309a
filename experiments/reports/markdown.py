"""Tables in Markdown, as the README and the pages in docs/ have them."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what a cell says is kept in it.

    Example:
      >>> print(markdown_table(('method', 'loss'), [('bf16', '1.79')]))
      | method | loss |
      | --- | --- |
      | bf16 | 1.79 |
    """
    lines = (header, ['---'] * len(header), *rows)
    kept = lambda text: ' '.join(text.split()).replace('|', r'\|')
    return '\n'.join(f'| {" | ".join(map(kept, line))} |' for line in lines)
