"""Tables in Markdown."""

from experiments.reports.markdown import markdown_table


def test_what_a_cell_says_is_kept_in_it():
    """A bar would begin another, the end of a line another row."""
    table = markdown_table(('a', 'b'), [('x|y', 'one\ntwo'), ('', '1')])
    assert table.splitlines() == ['| a | b |', '| --- | --- |', r'| x\|y | one two |', '|  | 1 |']
    assert markdown_table(('a',), []).splitlines() == ['| a |', '| --- |']
