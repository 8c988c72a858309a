"""python -m gaussq_jax: a table of formats."""

import re

import pytest

from gaussq_jax import __main__ as format_table


def test_formats_that_are_named(capsys):
    format_table.main(['e4m3', 'e0m3'])
    first, *rows = (re.split(r'  +', line) for line in capsys.readouterr().out.splitlines())
    assert first == list(format_table.COLUMNS)
    assert rows == [
        ['e4m3', 'finite', '8', '7', '480', '0.015625', '0.001953125', '128'],
        ['e0m3', 'finite', '4', '0', '1.75', '-', '0.25', '8'],
    ]


def test_all_formats_by_default(capsys):
    format_table.main([])
    names = [line.partition(' ')[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(set(names)) == len(names) > 30 and {'bfloat16', 'float4_e2m1fn', 'e2m1', 'e6m1'} <= set(names)


def test_an_unknown_format_is_one_line():
    with pytest.raises(SystemExit, match=r"^error: format 'e9m9' is unknown; .*$"):
        format_table.main(['e9m9'])
