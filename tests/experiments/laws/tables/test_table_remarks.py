"""Numbers that look like other units, and recipes that a law doesn't know, are told."""

import re

import numpy as np
import pytest

from experiments.laws.tables.table_remarks import of_recipes, of_units


@pytest.mark.parametrize(
    ('N', 'D', 'loss', 'told'),
    [
        ([1e8, 1e9], [2e9, 2e10], [3.0, 2.5], []),
        ([2.6e4, 2.4e5], [3e5, 3e5], [2.2, 1.7], []),  # tiny ones
        ([125, 1e9], [2e9, 2e10], [3.0, 2.5], ['N is below 10,000 in 1 of 2 runs, 125 the least: is it in millions']),
        (
            [1e8, 1e9],
            [2.5, 20],
            [3.0, 2.5],
            ['10,000, in 2 of 2 runs, as 20 for N = 1B: is it in millions or billions'],
        ),
        ([1e8, 1e9], [2e9, 2e7], [3.0, 2.5], ['in 1 of 2 runs, as 2e.07 for N = 1B']),
        ([1e8, 1e9], [2e9, 2e18], [3.0, 2.5], ['D is above 1e16 in 1 of 2 runs, 2e.18 the most: are these FLOPs']),
        ([1e15, 1e9], [2e16, 2e10], [3.0, 2.5], ['N is above 1e14 in 1 of 2', 'D is above']),
        ([1e8, 1e9], [2e9, 2e10], [20.5, 12.2], ['the loss is above 13, worse than chance .* in 1 of 2 runs, 20.5']),
        ([1e8, 1e9], [2e9, 2e10], [0.9, 0.8], ['all losses are below 1, 0.9 the most: are they bits per byte']),
        ([], [], [], []),
    ],
)
def test_units(N, D, loss, told):
    remarks = list(of_units({'N': np.array(N), 'D': np.array(D), 'loss': np.array(loss)}))
    assert len(remarks) == len(told)
    for remark, pattern in zip(remarks, told):
        assert re.search(pattern, remark)


def test_recipes_that_a_law_does_not_tell_apart():
    columns = {
        'forward': np.array(['bf16', 'mxfp4', 'bf16', '', 'mxfp4']),
        'backward': np.array(['', 'bf16', '', '', '']),
        'P': np.array([16.0, 4, 16, 16, 4]),
    }
    (told,) = of_recipes(columns, ('N', 'D'), 'Chinchilla')
    assert told == (
        'Chinchilla does not tell apart runs of bf16, mxfp4 and bf16, none told, mxfp4: what these cost is in its'
        ' residuals'
    )
    (told,) = of_recipes(columns, ('N', 'D', 'P'), 'Kumar')
    assert told.startswith('Kumar does not tell apart runs of bf16, none told: ')
    assert not list(of_recipes(columns, ('N', 'D', 'forward', 'backward'), 'Effective'))
    assert not list(of_recipes({name: column[:1] for name, column in columns.items()}, ('N', 'D'), 'Chinchilla'))
