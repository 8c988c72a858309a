"""Codes of every format and packed bits of every width, against definitions: a list of values, a string of bits."""

import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.packed import bit_packing

FORMATS = [fmt for fmt in oracle.all_formats() if sum(fmt[:2]) < bit_packing.MOST_BITS]
WIDTHS = range(1, bit_packing.MOST_BITS + 1)


def test_every_number_of_every_format_has_its_place_in_the_list_as_code():
    """The sign on top, and the magnitudes in ascending order; whatever power of two they are multiplied by."""
    assert len(FORMATS) > 140
    for numbers in FORMATS:
        fmt, (values, _) = FloatFormat(*numbers), oracle.code_values(*numbers)
        half = 2 ** (fmt.bits - 1)
        signed = np.concatenate([values, -values]).astype(np.float32)  # -0, too
        expected = np.concatenate([np.arange(values.size), half + np.arange(values.size)])
        np.testing.assert_array_equal(bit_packing.encode(signed, 0, fmt), expected)
        decoded = bit_packing.decoded(fmt)
        assert decoded.dtype == np.float32 and decoded.shape == (2 * half,)
        oracle.assert_same_bits(decoded[expected], signed)
        assert np.isnan(np.delete(decoded, expected)).all()


@pytest.mark.parametrize('fmt', ['float4_e2m1fn', 'e3m2', 'float8_e4m3fn', 'e0m5', 'e3m0', 'float16'])
def test_powers_of_two_are_taken_out_exactly_from_the_least_to_the_largest(fmt):
    """Also where they leave float32 subnormals, or make the largest float32 numbers."""
    fmt = parse_format(fmt)
    values = bit_packing.decoded(fmt)
    codes = np.flatnonzero(~np.isnan(values)).astype(np.uint16)
    smallest = np.min(values[values > 0])
    lowest, highest = -149 - int(np.log2(smallest)), 127 - int(np.floor(np.log2(fmt.max)))
    for exponent in (lowest, max(lowest, -127), -1, 5, highest):
        scaled = np.ldexp(values[codes], exponent)
        np.testing.assert_array_equal(bit_packing.encode(scaled, exponent, fmt), codes)
    exponents = np.resize(np.arange(lowest, highest + 1), codes.shape)  # one of each
    np.testing.assert_array_equal(bit_packing.encode(np.ldexp(values[codes], exponents), exponents, fmt), codes)


@pytest.mark.parametrize('name', sorted(set(oracle.STANDARD) - {'float16'}))
def test_codes_are_those_of_ml_dtypes(name):
    """Bit for bit the bytes that other programs have for these formats."""
    fmt = parse_format(name)
    decoded = bit_packing.decoded(fmt)
    codes = np.flatnonzero(~np.isnan(decoded)).astype(f'uint{8 * np.dtype(oracle.standard_dtype(name)).itemsize}')
    oracle.assert_same_bits(codes.view(getattr(ml_dtypes, name)).astype(np.float32), decoded[codes])


@pytest.mark.parametrize('bits', WIDTHS)
@pytest.mark.parametrize('count', [0, 1, 7, 8, 9, 250])
def test_codes_follow_one_another_least_significant_bit_first(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, count).astype(np.uint16)
    stream = ''.join(f'{code:0{bits}b}'[::-1] for code in codes)
    stream += '0' * (-len(stream) % 8)
    expected = [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]
    packed = bit_packing.pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.tolist() == expected
    assert len(packed) == bit_packing.packed_bytes(count, bits)
    unpacked = bit_packing.unpack(packed, bits, count)
    assert unpacked.dtype == np.uint16 and unpacked.tolist() == codes.tolist()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_packing_is_undone_by_unpacking(data):
    bits = data.draw(st.sampled_from(WIDTHS))
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = bit_packing.pack(np.array(codes, np.uint16), bits)
    assert bit_packing.unpack(packed, bits, len(codes)).tolist() == codes
    assert len(packed) == -(-len(codes) * bits // 8)
    assert int.from_bytes(packed, 'little') == sum(code << (bits * i) for i, code in enumerate(codes))


def test_the_table_of_numbers_cannot_be_changed():
    """It is shared by all that decode."""
    with pytest.raises(ValueError, match='read-only'):
        bit_packing.decoded(FloatFormat(2, 1))[0] = 1
