"""Tables are the same text wherever they are made: in a pipe, on a narrow terminal that has colours, in a notebook."""

import pytest
import rich.console

from gaussq_jax.text_table import text_table

ROWS = [
    ('leaf', 'bits', 'note'),
    ('query', '4.25'),
    ('[red]down[/]', '11', 'é\t漢\r\u2028字'),
    ('x' * 12_000, '', ':warning: …'),
]
TABLE = '\n'.join(
    [
        f'{"leaf":<12000}  bits  note',
        f'{"query":<12000}  4.25',
        f'{"[red]down[/]":<12000}    11  é\\t漢\\r\\u2028字',
        f'{"x" * 12_000}        :warning: …',
    ]
)


@pytest.mark.parametrize('surroundings', ['pipe', 'terminal', 'notebook'])
def test_where_it_is_made(monkeypatch, capsys, surroundings):
    """Nothing is wrapped, coloured, replaced or shown elsewhere; what looks like rich's markup is text."""
    if surroundings == 'terminal':
        for name, value in {'COLUMNS': '20', 'FORCE_COLOR': '1', 'TERM': 'xterm-256color'}.items():
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(rich.console, '_is_jupyter', lambda: surroundings == 'notebook')
    assert text_table(ROWS, left=(0, 2)) == TABLE
    assert capsys.readouterr() == ('', '')


def test_few_or_no_cells():
    assert (text_table([]), text_table([('a',)]), text_table([(), ('a', 'b')])) == ('', 'a', '\na  b')
