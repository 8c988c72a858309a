"""Every format there is: its values round to themselves, all else as the definition and gfloat have it."""

import functools

import gfloat
import jax
import numpy as np
import numpy_float_formats as oracle
import pytest
from numpy_float_formats import assert_same_bits

import gaussq_jax as gq

GFLOAT_MODES = {
    'nearest_even': gfloat.RoundMode.TiesToEven,
    'nearest_away': gfloat.RoundMode.TiesToAway,
    'toward_zero': gfloat.RoundMode.TowardZero,
}


def gfloat_format(exponent_bits, mantissa_bits, special_values):
    ieee = special_values == 'ieee'
    return gfloat.FormatInfo(
        name='',
        k=1 + exponent_bits + mantissa_bits,
        precision=mantissa_bits + 1,
        bias=2 ** (exponent_bits - 1) - 1,
        is_signed=True,
        domain=gfloat.Domain.Extended if ieee else gfloat.Domain.Finite,
        has_nz=True,
        num_high_nans=2**mantissa_bits - 1 if ieee else 0,
        has_subnormals=True,
        is_twos_complement=False,
    )


def gfloat_has(triple):
    """Not: fixed point, one exponent bit that is taken for infinity, and OCP's largest values."""
    return triple[0] > 0 and triple[2] != 'fn' and triple[::2] != (1, 'ieee')


def gfloat_cast(x, triple, rounding, saturate):
    with np.errstate(all='ignore'):
        x = x.astype(np.float64)
        return gfloat.round_ndarray(gfloat_format(*triple), x, GFLOAT_MODES[rounding], sat=saturate).astype(np.float32)


@functools.partial(jax.jit, static_argnames=('fmt', 'roundings', 'saturate'))
def round_in_ways(x, fmt, roundings, saturate):
    return [gq.round_to_format(x, fmt, rounding=rounding, saturate=saturate) for rounding in roundings]


@pytest.mark.parametrize(
    'exponent_bits', [pytest.param(bits, marks=() if bits in (0, 4, 8) else pytest.mark.slow) for bits in range(9)]
)
def test_every_format(exponent_bits):
    """To nearest even, and some to nearest away or toward zero; in turn saturating or not."""
    for triple in (triple for triple in oracle.all_formats() if triple[0] == exponent_bits):
        mantissa_bits, special_values = triple[1:]
        roundings = [('nearest_even',), ('nearest_even', 'nearest_away'), ('nearest_even', 'toward_zero')][
            mantissa_bits % 3
        ]
        saturate = special_values == 'finite' or (mantissa_bits + 1) % 4 < 2
        fmt = gq.FloatFormat(*triple)
        x = oracle.critical_float32(triple, size=4000, seed=mantissa_bits)
        values = np.concatenate([fmt.values(), -fmt.values()]).astype(np.float32)
        for rounding, result in zip(roundings, round_in_ways(np.concatenate([x, values]), fmt, roundings, saturate)):
            result = np.asarray(result)
            assert_same_bits(result[len(x) :], values)
            expected = oracle.cast(x, triple, rounding, saturate).astype(np.float32)
            assert_same_bits(result[: len(x)], expected)
            if gfloat_has(triple):
                assert_same_bits(expected, gfloat_cast(x, triple, rounding, saturate))
