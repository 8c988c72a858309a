"""FloatFormat and parse_format: values, ranges and names against the definition, and against ml_dtypes."""

import dataclasses
import re

import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest

import gaussq_jax as gq

FORMATS = list(oracle.all_formats())


def test_every_format_has_the_values_of_its_definition():
    for exponent_bits, mantissa_bits, special_values in FORMATS:
        fmt = gq.FloatFormat(exponent_bits, mantissa_bits, special_values)
        expected, _ = oracle.code_values(exponent_bits, mantissa_bits, special_values)
        values = fmt.values()
        assert values.dtype == np.float64, fmt
        np.testing.assert_array_equal(values, expected, err_msg=str(fmt))
        assert fmt.max == expected[-1], fmt
        assert fmt.bits == 1 + exponent_bits + mantissa_bits, fmt
        assert fmt.bias == (2 ** (exponent_bits - 1) - 1 if exponent_bits else 0), fmt


def test_smallest_normal_and_smallest_subnormal():
    """The first code with exponent 1 and the code 1, where the format has such numbers."""
    for exponent_bits, mantissa_bits, special_values in FORMATS:
        fmt = gq.FloatFormat(exponent_bits, mantissa_bits, special_values)
        values, _ = oracle.code_values(exponent_bits, mantissa_bits, special_values)
        has_normals = exponent_bits > 0 and len(values) > 2**mantissa_bits
        assert fmt.smallest_normal == (values[2**mantissa_bits] if has_normals else None), fmt
        assert fmt.smallest_subnormal == (values[1] if mantissa_bits else None), fmt


@pytest.mark.parametrize('name', oracle.STANDARD)
def test_standard_names_mean_what_ml_dtypes_means(name):
    """Every code of the type decoded by ml_dtypes, and its finfo."""
    fmt, dtype = gq.parse_format(name), oracle.standard_dtype(name)
    assert (fmt.exponent_bits, fmt.mantissa_bits, fmt.special_values) == oracle.STANDARD[name]
    codes = np.arange(2 ** (fmt.bits - 1), dtype=np.uint16 if dtype.itemsize == 2 else np.uint8)
    with np.errstate(invalid='ignore'):
        decoded = codes.view(dtype).astype(np.float64)
    np.testing.assert_array_equal(fmt.values(), decoded[np.isfinite(decoded)])
    info = ml_dtypes.finfo(dtype)
    assert (fmt.max, fmt.bits) == (float(info.max), info.bits)
    assert fmt.smallest_normal == float(info.smallest_normal)
    assert fmt.smallest_subnormal == float(info.smallest_subnormal)


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('e1m1', [0, 1, 2, 3]),
        ('e2m1', [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ('e1m2', [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
        ('e0m7', [k / 64 for k in range(128)]),
        ('e2m0', [0, 1, 2, 4]),
        ('e0m1', [0, 1]),
        ('e1m0', [0, 2]),
        ('e1m1_ieee', [0, 1]),
        ('e2m1_ieee', [0, 0.5, 1, 1.5, 2, 3]),
    ],
)
def test_small_formats(name, values):
    assert gq.parse_format(name).values().tolist() == values


@pytest.mark.parametrize(
    ('name', 'largest'),
    [('e3m2', 28), ('e4m3', 480), ('e5m2', 114688), ('float8_e4m3', 240), ('float8_e4m3fn', 448), ('e7m0', 2.0**64)],
)
def test_largest_values(name, largest):
    assert gq.parse_format(name).max == largest


def test_one_exponent_bit_is_fixed_point():
    """E1M(m) has the grid of 2 * E0M(m + 1)."""
    for mantissa_bits in range(10):
        one, none = gq.FloatFormat(1, mantissa_bits), gq.FloatFormat(0, mantissa_bits + 1)
        np.testing.assert_array_equal(one.values(), 2 * none.values())


def test_changing_the_values_changes_no_format():
    gq.parse_format('e2m1').values()[:] = 0
    assert gq.parse_format('e2m1').values()[-1] == 6


# --- names ----------------------------------------------------------------------------------------


def test_names_are_unique_and_parse_back():
    formats = [gq.FloatFormat(*triple) for triple in FORMATS]
    assert len({fmt.name for fmt in formats}) == len(formats)
    for fmt in formats:
        assert gq.parse_format(fmt.name) == fmt


def test_the_two_families_of_names():
    for exponent_bits, mantissa_bits, special_values in FORMATS:
        name = gq.FloatFormat(exponent_bits, mantissa_bits, special_values).name
        if special_values == 'finite':
            assert name == f'e{exponent_bits}m{mantissa_bits}'
        elif (exponent_bits, mantissa_bits, special_values) not in oracle.STANDARD.values():
            assert name == f'e{exponent_bits}m{mantissa_bits}_ieee'
    for name, triple in oracle.STANDARD.items():
        assert gq.FloatFormat(*triple).name == name


def test_other_spellings():
    assert gq.parse_format('e4m3_ieee') == gq.parse_format('float8_e4m3')
    assert gq.parse_format('e8m7_ieee') == gq.parse_format('bfloat16')
    assert gq.FloatFormat(4, 3) == gq.parse_format('e4m3') != gq.parse_format('float8_e4m3fn')


def test_formats_are_frozen_and_hashable():
    fmt = gq.parse_format('e4m3')
    assert {fmt: 1}[gq.FloatFormat(4, 3, 'finite')] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        fmt.mantissa_bits = 2


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ((9, 3), ['exponent_bits', '9', '0', '8']),
        ((-1, 3), ['exponent_bits', '-1', '0', '8']),
        ((4, 11), ['mantissa_bits', '11', '0', '10']),
        ((4, -1), ['mantissa_bits', '-1', '0', '10']),
        ((4.5, 3), ['exponent_bits', '4.5']),
        ((4, '3'), ['mantissa_bits', "'3'"]),
        ((8, 7), ['bfloat16', 'finite']),
        ((8, 0, 'finite'), ['bfloat16', 'finite']),
        ((0, 3, 'ieee'), ['E0M3', "'finite'"]),
        ((0, 0), ['E0M0', 'no positive number']),
        ((1, 0, 'ieee'), ['E1M0', 'ieee', 'no positive number']),
        ((5, 2, 'fn'), ["special_values='fn'", 'E5M2', 'E4M3', 'E3M2', 'E2M3', 'E2M1']),
        ((4, 3, 'fnuz'), ["'fnuz'", 'finite', 'ieee', 'fn']),
    ],
)
def test_refused_formats(arguments, words):
    with pytest.raises(ValueError, match=''.join(f'(?=.*{re.escape(word)})' for word in words)):
        gq.FloatFormat(*arguments)


@pytest.mark.parametrize(
    'name',
    [
        'float8_e4m3fnuz',
        'float8_e5m2fnuz',
        'float8_e4m3b11fnuz',
        'float8_e8m0fnu',
        'float32',
        'float8',
        'int8',
        'e4m3fn',
        'E4M3',
        'e4m3 ',
        'e04m3',
        'e4m3_finite',
        'float8_e4m3_ieee',
        '',
    ],
)
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError) as refusal:
        gq.parse_format(name)
    message = str(refusal.value)
    assert repr(name) in message
    for known in [*oracle.STANDARD, 'e4m3']:
        assert known in message


@pytest.mark.parametrize('name', ['e8m3', 'e9m1', 'e4m11', 'e0m0', 'e0m3_ieee', 'e1m0_ieee'])
def test_names_of_formats_that_are_refused(name):
    with pytest.raises(ValueError):
        gq.parse_format(name)
