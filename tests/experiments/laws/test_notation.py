"""Amounts and formats as people write them."""

import math

import pytest

from experiments.laws import notation


def test_human_amounts():
    amounts = {1732e12: '1730T', 393.4e9: '393B', 1.2e9: '1.2B', 999.6e3: '1M', 41e6: '41M', 512: '512', 2e18: '2e+18'}
    amounts |= {math.inf: 'infinite', -math.inf: 'unknown'}
    assert {value: notation.human(value) for value in amounts} == amounts
    assert notation.parse_amount('x', '1.5T') == 1.5e12 and notation.parse_amount('x', '2e3m') == 2e9


@pytest.mark.parametrize('layout', [(8, 7), (4, 3), (0, 7), (1, 1)])
def test_the_name_of_a_format_is_read_as_that_format(layout):
    assert notation.parse_layout('format', notation.format_name(*layout)) == layout


def test_a_recipe_of_both_passes_is_named_once():
    names = [('nvfp4', 'nvfp4'), ('quest', 'mxfp8'), ('mxfp4', ''), ('', 'mxfp8'), ('', '')]
    assert [notation.recipe_name(*passes) for passes in names] == ['nvfp4', 'quest and mxfp8', 'mxfp4', 'mxfp8', '']


def test_an_interval_that_is_not_known():
    assert notation.value_text(1.0, None, '{:.1f}'.format) == '1.0'
    assert notation.value_text(1.0, (math.nan, math.nan), '{:.1f}'.format) == 'unknown'
    assert notation.value_text(1.0, (0.5, 2.0), '{:.1f}'.format, '95 %: ') == '1.0 (95 %: 0.5 to 2.0)'
