"""Flags of tables: what they say, and errors that name them."""

import pytest

from experiments.laws.tables.reading import parse_columns, parse_recipes, parse_where


def test_pairs():
    assert parse_columns('N=params, D=tokens,"loss=loss, eval"') == {'N': 'params', 'D': 'tokens', 'loss': 'loss, eval'}
    assert parse_columns('loss=a=b,B=') == {'loss': 'a=b', 'B': ''}
    assert parse_recipes('QuEST=mxfp4') == {'QuEST': 'mxfp4'}
    assert parse_where(['dataset=c4', 'mult=1']) == (('dataset', 'c4'), ('mult', '1'))
    assert parse_where([]) == ()


@pytest.mark.parametrize(
    ('parse', 'text', 'error'),
    [
        (parse_columns, '', "^--columns='' must be pairs such as N=params,D=tokens$"),
        (parse_columns, 'params', "^--columns='params' must be pairs"),
        (parse_columns, 'N=params,', "^--columns='N=params,' must be pairs"),
        (parse_columns, '=params', "^--columns='=params' must be pairs"),
        (parse_columns, 'N=a,N=b', "^--columns='N=a,N=b' has 'N' twice$"),
        (parse_columns, '"N=a', "^--columns='\"N=a' must be pairs"),
        (parse_columns, 'N=a\nD=b', r"^--columns='N=a\\nD=b' must be pairs"),
        (parse_recipes, 'QuEST', "^--recipes='QuEST' must be one such as QuEST=mxfp4$"),
        (parse_recipes, 'QuEST=', "^--recipes='QuEST=' says nothing for 'QuEST'$"),
        (parse_where, ['dataset'], "^--where='dataset' must be one such as dataset=c4$"),
        (parse_where, ['dataset=c4', '=c4'], "^--where='=c4' must be one"),
    ],
)
def test_what_is_no_pair(parse, text, error):
    with pytest.raises(ValueError, match=error):
        parse(text)
