"""Tables that are written come back as they were, and run nothing in a spreadsheet."""

import csv

import pytest

from experiments.files import csv_files

CELLS = ['=1+1', '+1', '-1', '-x', '@SUM(A1)', "'quoted", '\tx', 'a,b', 'say "it"', 'two\nlines', '', '1e-3', 'naïve']


def test_a_table_comes_back(tmp_path):
    csv_files.write(tmp_path / 'table.csv', ['name', '=cmd', 'loss'], [(cell, cell, -1.5) for cell in CELLS])
    rows = [row for _, row in csv_files.read(tmp_path / 'table.csv')]
    assert set(rows[0]) == {'name', '=cmd', 'loss'}
    assert [row['name'] for row in rows] == [cell.strip(' ') if cell != '\tx' else cell for cell in CELLS]
    assert {row['loss'] for row in rows} == {'-1.5'}


def test_no_cell_is_a_formula(tmp_path):
    """A number may begin with its sign."""
    csv_files.write(tmp_path / 'table.csv', ['name'], [(cell,) for cell in [*CELLS, -1.5]])
    with open(tmp_path / 'table.csv', newline='') as file:
        cells = [row[0] for row in csv.reader(file) if row]
    assert [cell for cell in cells if cell.startswith(csv_files.FORMULAS)] == ['+1', '-1', '-1.5']
    assert "'=1+1" in cells


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('', 'has no header'),
        ('a,a\n1,2\n', "has more than one column 'a'"),
        ('a,b\n1\n', 'line 2: it has 1 cells, and the table 2 columns'),
        ('a,b\n1,2,3\n', 'line 2: it has 3 cells'),
        ('a,b\n"1,2\n', 'line 2: it is damaged'),
        ('a\n' + 'x' * 200_000, 'line 2: it is damaged: field larger'),
        (b'a\n\xff\n', 'is no text in UTF-8'),
        ('a\n' + '1\n' * (csv_files.MOST_ROWS + 1), 'has more than 100,000 rows'),
    ],
    ids=range(8),
)
def test_what_is_not_read(tmp_path, text, error):
    path = tmp_path / 'table.csv'
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=f'table.csv.*{error}'):
        list(csv_files.read(path))
