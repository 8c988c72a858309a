"""Numbers as people write them, formats by their names, and the recipes that they make."""

import math

import numpy as np
import pytest

from experiments.laws.tables.run_cells import NumberReader, read_run

CONSTANT = {'quantization.b_init': '3.0', 'quantization.b_target': '3.0'}
RUN = {'N': '1e6', 'D': '1e9', 'loss': '3'}


def number(text, *others, column='N', commas=False):
    return NumberReader({column: [text], 'others': others}, commas)(column, text)


def run(extra=(), **cells):
    return read_run({**RUN, **cells}, NumberReader({}, False), extra)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        *(
            ('30.5M', 30_500_000),
            ('1.2B', 1.2e9),
            ('1.1B', 1_100_000_000),
            ('100 B', 1e11),
            ('7b', 7e9),
            ('1.5T', 1.5e12),
        ),
        *(('500k', 5e5), ('.5M', 5e5), ('7e9', 7e9), ('1e3M', 1e9), (' 12 ', 12), ('1_000', 1000), (7, 7), (2.5, 2.5)),
        *(('1,234,567', 1_234_567), ('1,234.5', 1234.5), ('1,234,567.5', 1_234_567.5), ('30,500.5 M', 3.05005e10)),
    ],
)
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize('text', ['', ' ', None, 'NaN', 'None', 'null', 'N/A', '-'])
def test_empty_cells(text):
    assert math.isnan(number(text))


@pytest.mark.parametrize(
    'text', ['50%', '1.2.3', '1,2', '12,34,567', '1.234.567', '0x10', 'many', '1 000', '1e3MB', 'M', True, [1], '0,123']
)
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match=r'^N=.* is not a number$'):
        number(text)


def test_only_amounts_have_units():
    with pytest.raises(ValueError, match=r"^loss='3B' is not a number$"):
        number('3B', column='loss')


def test_one_group_of_thousands_is_told_by_others_of_its_column():
    read = NumberReader({'N': ['1,234', '1,234,567'], 'D': ['1,234']}, False)
    assert read('N', '1,234') == 1234
    with pytest.raises(ValueError, match=r"^D='1,234' may be 1234 or 1\.234: write it without a comma$"):
        read('D', '1,234')


def test_decimal_commas_where_no_comma_separates_cells():
    assert number('3,14', commas=True) == 3.14
    assert number('3,141', '2,5', commas=True) == 3.141
    assert number('1,5e9', commas=True) == 1.5e9
    assert number('1,5B', commas=True) == 1.5e9
    assert number('7', '2,5', commas=True) == 7
    assert number('1,234,567', commas=True) == 1_234_567


@pytest.mark.parametrize(
    ('text', 'others', 'error'),
    [
        ('3,141', (), r"N='3,141' may be 3141 or 3\.141"),
        ('1,234,567', ('2,5',), "N='1,234,567' has no decimal comma, as other numbers of the table have"),
        ('1.234', ('2,5',), r"N='1\.234' has no decimal comma"),
    ],
)
def test_what_commas_leave_open(text, others, error):
    with pytest.raises(ValueError, match=error):
        number(text, *others, commas=True)


@pytest.mark.parametrize(
    ('name', 'E', 'M', 'B'),
    [
        *(('mxfp4', 2, 1, 32), ('NVFP4', 2, 1, 16), ('mxfp8', 4, 3, 32), ('mxfp6', 3, 2, 32), ('mxint8', 0, 7, 32)),
        *(('mxfp8_e5m2', 5, 2, 32), ('mxfp6_e2m3', 2, 3, 32), ('fp8', 4, 3, None), ('fp4', 2, 1, None)),
        *(('int4', 0, 3, None), ('INT8', 0, 7, None), ('bf16', 8, 7, 1), ('fp16', 5, 10, 1), ('fp32', 8, 23, 1)),
        *(('e3m2', 3, 2, None), ('E4M3', 4, 3, None), ('float8_e4m3fn', 4, 3, None), ('bfloat16', 8, 7, 1)),
    ],
)
def test_formats(name, E, M, B):
    found = run(format=name)
    assert (found['E'], found['M'], found['B'], found['P']) == (E, M, B, 1 + E + M)


def test_blocks_are_those_of_the_format_or_of_the_column():
    assert run(format='fp8', B='128')['B'] == 128
    assert run(format='mxfp4', B='32')['B'] == 32
    assert run(E='4', M='3', B='tensor', format='fp8')['B'] == 'tensor'


def test_bits_are_those_of_the_column_or_of_the_format():
    found = run(P='6', P_w='4', P_a='8')
    assert (found['P'], found['P_w'], found['P_a']) == (6, 4, 8) and math.isnan(found['P_kv'])
    assert run(E='4', M='3')['P'] == 8 and run(E='4', M='3', P='9')['P'] == 9 and run(method='bf16')['P'] == 16
    assert np.isnan(run()['P'])


@pytest.mark.parametrize(
    ('cells', 'error'),
    [
        (dict(format='mxfp4', B='16'), "B='16', and the format 'mxfp4' has blocks of 32"),
        (dict(format='nvfp4', B='channel'), "B='channel', and the format 'nvfp4' has blocks of 16"),
        (dict(format='e4m3', E='5'), "E='5', and the format 'e4m3' has 4"),
        (dict(format='fp5'), r"format 'fp5' is unknown; known are .*e<E>m<M>.*mxfp4"),
        (dict(P='0'), "P='0' must be above 0"),
        (dict(P_w='-4'), "P_w='-4' must be above 0"),
        (dict(M='-1'), "M='-1' must be at least 0"),
        (dict(extra=('epochs',), epochs='few'), "epochs='few' is not a number"),
    ],
)
def test_what_a_run_cannot_be(cells, error):
    with pytest.raises(ValueError, match=f'^{error}'):
        run(**cells)


@pytest.mark.parametrize(
    ('cells', 'recipe'),
    [
        ({}, ''),
        (dict(method='bf16', format='e2m1', B='16'), 'bf16'),
        (dict(format='BF16'), 'bf16'),
        (dict(E='8', M='7', B='1'), 'bf16'),
        (dict(method='fqt', format='e2m1', B='16'), 'fqt e2m1 16'),
        (dict(method='fqt', format='e2m1', B='32x32'), 'fqt e2m1 32x32'),
        (dict(method='qat', format='', B=32.0), 'qat e4m3 32'),
        (dict(method='qat', E='2', M='1', B='channel'), 'qat e2m1 channel'),
        ({**CONSTANT, 'method': 'gaussws', 'b': '3.0000002', 'B': '32'}, 'gaussws 3'),
        ({**CONSTANT, 'method': 'gaussws', 'quantization.b_target': '2', 'b': '4.5', 'B': '32'}, 'gaussws'),
        (dict(method='gaussws', b='4'), 'gaussws'),
        (dict(format='MXFP4'), 'mxfp4'),
        (dict(format='nvfp4', B='16'), 'nvfp4'),
        (dict(format='E4M3', B='128'), 'e4m3 128'),
        (dict(E='4', M='3'), 'e4m3'),
        (dict(method='Quartet'), 'quartet'),
        (dict(P='8'), '8 bits'),
        (dict(P='16'), 'bf16'),
        (dict(b='3'), '3 bits'),
        (dict(P_w='4', P_a='8'), 'w4 a8'),
        (dict(format='mxfp4', forward='QuEST'), 'quest'),
    ],
)
def test_the_recipe_of_a_run(cells, recipe):
    found = run(**cells)
    assert (found['forward'], found['backward']) == (recipe, '')


@pytest.mark.parametrize(
    ('cells', 'forward', 'backward'),
    [
        (dict(method='fqt', recipe='nvfp4', format='', B='32'), 'nvfp4', 'nvfp4'),
        (dict(method='fqt', recipe='', format='', B='32'), 'fqt e4m3 32', ''),
        ({**CONSTANT, 'method': 'gaussws', 'b': '3', 'recipe': 'mxfp8'}, 'gaussws 3 mxfp8', ''),
        (dict(method='gaussws', b='4', recipe='mxfp8'), 'gaussws mxfp8', ''),
        (dict(method='bf16', recipe='', start_step='0'), 'bf16', ''),
        *((dict(method='fqt', recipe='nvfp4', end_step=value), 'nvfp4', 'nvfp4') for value in ('0', 0, '', None)),
        (dict(method='fqt', recipe='nvfp4', full_precision='none'), *['nvfp4 full_precision none'] * 2),
        (dict(method='fqt', recipe='mxfp8', start_step='5', end_step='9'), *['mxfp8 start_step 5 end_step 9'] * 2),
        (dict(method='qat', format='e2m1', B='16', start_step='5'), 'qat e2m1 16 start_step 5', ''),
        (dict(method='QuEST', recipe='nvfp4', format='mxfp4', start_step='5'), 'quest mxfp4', ''),
        (dict(recipe='nvfp4', format='mxfp4'), 'mxfp4', ''),
    ],
)
def test_the_recipes_of_our_runs(cells, forward, backward):
    """A recipe says both passes; where and when it is, is part of the name. Tables of others have their own words."""
    ours = ('recipe', 'full_precision', 'start_step', 'end_step')
    found = run(**{f'quantization.{name}' if name in ours else name: value for name, value in cells.items()})
    assert (found['forward'], found['backward']) == (forward, backward)
    if forward.startswith(('nvfp4', 'gaussws')):
        assert math.isnan(found['E']) and math.isnan(found['P']) and found['B'] is None


def test_the_recipes_of_a_table():
    found = run(forward='QuEST', backward='BF16')
    assert (found['forward'], found['backward']) == ('quest', 'bf16')


@pytest.mark.parametrize('status', ['done', 'FINISHED', 'completed', 'Success', '', None])
def test_what_is_done(status):
    assert run(status=status)['loss'] == 3


@pytest.mark.parametrize('status', ['crashed', 'failed', 'running', 'KILLED', 'odd'])
def test_what_is_not_done_is_counted_under_its_name(status):
    assert run(status=status) == f'with status {status}'


def test_tokens_follow_from_flops():
    cells = {'N': '1e9', 'C': '1.2e21', 'loss': '3'}
    assert read_run(cells, NumberReader({}, False), ())['D'] == 2e11
    assert read_run({**cells, 'C': ''}, NumberReader({}, False), ()) == 'without C'
    with pytest.raises(ValueError, match=r"^C='-1' must be a positive number$"):
        read_run({**cells, 'C': '-1'}, NumberReader({}, False), ())
    with pytest.raises(ValueError, match=r"^N='0' must be a positive number$"):
        read_run({**cells, 'N': '0'}, NumberReader({}, False), ())


def test_what_a_law_of_ones_own_needs():
    assert run(extra=('epochs', 'learning_rate'), epochs='4', learning_rate='0.1')['learning_rate'] == 0.1
    assert math.isnan(run(extra=('epochs',), epochs='')['epochs'])


def test_names_of_recipes_are_shown_as_they_are_and_short():
    """They are words of others, and stand in tables, on pages and in the names of constants."""
    assert run(forward='Qu\x1b[31m\u202eEST\n 4', method='a\x07b')['forward'] == r'qu\x1b[31m\u202eest 4'
    assert run(method='a\x07b')['method'] == r'a\x07b'
    for column in ('forward', 'backward', 'method'):
        with pytest.raises(ValueError, match=rf"^{column}='xxx.* has 201 letters; allowed are 200$"):
            run(**{column: 'x' * 201})
