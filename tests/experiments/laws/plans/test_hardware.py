"""Prices by hand: which unit takes two operands, exactly, and what three GEMMs then cost on each device."""

import pathlib
import re

import numpy as np
import pytest

from experiments.laws.plans import hardware
from experiments.laws.plans.hardware import HARDWARE, UNITS, price
from experiments.laws.recipes import read_recipe
from gaussq_jax.formats import FloatFormat, parse_format

DEVICES = [name for name in HARDWARE if name != 'ideal']
# Ratios of the makers' rates: of FP8, FP6, FP4, INT8 and INT4, over BF16's; None without a unit.
RATIOS = {
    'a100': (None, None, None, 2, 4),
    'h100': (2, None, None, 2, None),
    'h200': (2, None, None, 2, None),
    'b200': (2, 2, 4, 2, None),
    'b300': (2, 2, 6, 150 / 2250, None),
    'mi300x': (2, None, None, 2, None),
    'mi355x': (2, 4, 4, 2, None),
    'tpu-v5p': (1, None, None, 2, None),
    'tpu-v6e': (1, None, None, 2, None),
    'tpu-7x': (2, None, None, None, None),
}


FP8 = ('mxfp8', 'fp8_rowwise', 'fp8_tensorwise', 'deepseek_fp8')


def is_about(found, expected):
    """But for what makers round; or both None."""
    return found is expected if None in (found, expected) else found == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize('name', DEVICES)
def test_rates_have_the_ratios_that_makers_publish(name):
    rates = HARDWARE[name].rates
    for unit, ratio in zip(('fp8', 'fp6', 'fp4', 'int8', 'int4'), RATIOS[name]):
        assert is_about(rates[unit] / rates['bf16'] if unit in rates else None, ratio)
    assert HARDWARE[name].memory_bytes > 30e9 and HARDWARE[name].memory_bandwidth > 1e12


def test_what_is_told_to_differ_does():
    """B300's FP4 is three times its FP8; 7x has 4614 against 2307."""
    b300, ironwood = HARDWARE['b300'].rates, HARDWARE['tpu-7x'].rates
    assert b300['fp4'] == 3 * b300['fp8']
    assert (ironwood['fp8'], ironwood['bf16']) == (4614e12, 2307e12)
    assert set(HARDWARE) == {'ideal', *RATIOS}


@pytest.mark.parametrize('name', DEVICES)
@pytest.mark.parametrize(
    'recipe', ['fqt e2m1 16', 'fqt e4m3 128', 'fqt e0m7 channel', 'qat e2m1 32', 'gaussws 3', 'bf16']
)
def test_one_operand_in_bf16_is_the_rate_of_bf16(name, recipe):
    """On all of them: P2, P4 and P6, quantized weights, sampled ones."""
    value, note = price(HARDWARE[name], read_recipe(recipe))
    assert value == 1
    assert ('stays BF16' in note) == recipe.startswith(('fqt', 'qat'))
    assert ('sampled weights are BF16' in note) == recipe.startswith('gaussws')


@pytest.mark.parametrize(
    ('name', 'recipe', 'value'),
    [
        ('h100', 'fp8/fp8', 1 / 2),
        ('h100', 'mxfp4/mxfp4', 1 / 2),  # in FP8
        ('h100', 'int4/int4', 1 / 2),  # in INT8
        ('a100', 'int8/int8', 1 / 2),
        ('a100', 'int4/int4', 1 / 4),
        ('a100', 'int4/int8', (1 / 4 + 2 / 2) / 3),
        ('a100', 'fp8/fp8', 1),
        ('b200', 'mxfp4/mxfp4', 1 / 4),
        ('b200', 'nvfp4/bf16', (1 / 4 + 2) / 3),  # the format, in all layers
        ('b200', 'bf16/nvfp4', (1 + 2 / 4) / 3),
        ('b200', 'mxfp4/mxfp8', (1 / 4 + 2 / 2) / 3),
        ('b200', 'mxfp6/mxfp6', 1 / 2),
        ('b200', 'e2m2/e2m2', 1 / 2),  # in FP6
        ('b200', 'e1m1/e1m1', 1 / 4),  # in E2M1
        ('b200', 'int4/int4', 1 / 2),
        ('b300', 'mxfp4/mxfp4', 1 / 6),
        ('b300', 'int8/int8', 1),  # its INT8 is slower than BF16
        ('mi355x', 'e2m2/e2m2', 1 / 4),  # its FP6 is as fast as FP4
        ('mi300x', 'mxfp4/mxfp4', 1 / 2),
        ('tpu-v5p', 'fp8/fp8', 1),
        ('tpu-v6e', 'mxfp4/mxfp4', 1),
        ('tpu-v6e', 'int8/int8', 1 / 2),
        ('tpu-7x', 'mxfp4/mxfp4', 1 / 2),
        ('tpu-7x', 'int8/int8', 1),  # no unit is published
        ('h100', 'e3m4/e3m4', 1),  # 8 bits, and no unit holds them
        ('h100', 'fp16/fp16', 1),
        ('tpu-7x', 'fp16/fp16', None),
        ('b200', 'e6m9/e6m9', None),
        ('b200', 'nvfp4/nvfp4', 1 / 4 + 10 / 62 * 3 / 4),  # 10 of 62 layers stay BF16
        ('b200', 'nvfp4 16/nvfp4 16', 1 / 4),
        ('h100', 'nvfp4/nvfp4', (1 + 10 / 62) / 2),
        ('b200', 'quartet/quartet', 1 / 4),
        ('b300', 'quartet2/quartet2', 1 / 6),
        ('mi355x', 'fp4_all_the_way/fp4_all_the_way', 1 / 4),
        *((name, f'{fp8}/{fp8}', 1 / 2) for name in ('h100', 'b200', 'mi300x') for fp8 in FP8),
        ('tpu-v6e', 'fp8_rowwise/fp8_rowwise', 1),
        ('b200', 'gaussws 3 nvfp4/', (1 + 1 + 1 / 4) / 3 * 52 / 62 + 10 / 62),  # dW alone has two low-bit operands
        ('b200', 'gaussws mxfp8/', (1 + 1 + 1 / 2) / 3),
        ('ideal', 'mxfp8/mxfp8', 8 / 16),
        ('ideal', 'nvfp4/nvfp4', 1 / 4 + 10 / 62 * 3 / 4),
        ('ideal', 'gaussws 3 mxfp8/', None),
        ('ideal', 'e2m2/e2m2', 5 / 16),
        ('ideal', 'mxfp4/bf16', (4 + 2 * 16) / 3 / 16),
    ],
)
def test_prices_by_hand(name, recipe, value):
    assert is_about(price(HARDWARE[name], read_recipe(*recipe.split('/'))).value, value)


@pytest.mark.parametrize(('recipe', 'bits'), [('fqt e2m1 16', 4), ('fqt e2m2 128', 5), ('gaussws 3', 3), ('bf16', 16)])
def test_ideal_is_the_price_of_the_paper(recipe, bits):
    assert price(HARDWARE['ideal'], read_recipe(recipe)).value == bits / 16


def test_what_is_not_known_has_no_price():
    for hardware_ in HARDWARE.values():
        value, note = price(hardware_, read_recipe('QuEST', 'bf16'))
        assert value is None and "'quest' is the name of no format" in note
    assert price(HARDWARE['ideal'], read_recipe('gaussws')) == (None, 'its bits are learned')
    assert price(HARDWARE['h100'], read_recipe('gaussws')).value == 1
    several = 'its weights and its other operands have different bits'
    assert price(HARDWARE['ideal'], read_recipe('gaussws 3 nvfp4')) == (None, several)


def test_layers_are_counted_where_the_model_is_known():
    """Of 2 layers none is kept, of 24 four."""
    recipe = read_recipe('nvfp4', 'nvfp4')
    told = {size: price(HARDWARE['b200'], recipe, size) for size in ('tiny', '679m')}
    assert told == {'tiny': (1 / 4, ''), '679m': (1 / 4 * 20 / 24 + 4 / 24, '17% of the linear layers stay BF16')}


def test_what_is_not_in_a_price_is_said():
    notes = lambda name, recipe: price(HARDWARE[name], read_recipe(recipe, recipe)).note
    assert notes('b200', 'mxfp4') == notes('b200', 'nvfp4 16') == notes('mi355x', 'mxfp8') == notes('h100', 'fp8') == ''
    assert 'scales by 16 are applied outside of the units of mi355x' in notes('mi355x', 'nvfp4')
    assert 'scales by 128 are applied outside of the units of b200' in notes('b200', 'e4m3 128')
    assert notes('h100', 'e4m3 channel') == ''  # sums are scaled, at their end
    assert notes('h100', 'fp8_rowwise') == notes('h100', 'fp8_tensorwise') == notes('b200', 'quartet2') == ''
    assert notes('h100', 'deepseek_fp8') == 'scales by 128 are applied outside of the units of h100: that is not priced'
    assert notes('b200', 'nvfp4') == '16% of the linear layers stay BF16'
    assert 'float4_e2m1fn runs in FP8 on h100' in notes('h100', 'mxfp4')
    assert notes('tpu-v6e', 'fp8') == 'tpu-v6e multiplies FP8 no faster than BF16'


def all_formats():
    for E in range(7):
        for M in range(6):
            try:
                yield FloatFormat(E, M)
            except ValueError:
                continue


def test_units_take_what_they_hold_exactly():
    """Found by trying every power of two, in float64, for every format up to E6M5."""
    shifts = 2.0 ** np.arange(-40, 41)
    for fmt in all_formats():
        values = fmt.values()
        for unit in ('fp4', 'fp6', 'fp8', 'int4', 'int8'):
            carriers = [parse_format(name) for name in UNITS[unit]]
            same = any((c.exponent_bits, c.mantissa_bits) == (fmt.exponent_bits, fmt.mantissa_bits) for c in carriers)
            holds = any(
                set((values * shift).tolist()) <= set(carrier.values().tolist())
                for carrier in carriers
                for shift in shifts
            )
            is_allowed = unit.startswith('fp') or not fmt.exponent_bits
            assert hardware.takes(unit, fmt) == (is_allowed and (same or holds)), (unit, fmt)


def test_the_paper_s_e4m3_is_taken_to_be_the_unit_s():
    """480, its largest number, is none of OCP's: the layout decides, as the docstring says."""
    paper, ocp = parse_format('e4m3'), parse_format('float8_e4m3fn')
    assert paper.max not in ocp.values() and hardware.takes('fp8', paper)


def test_the_page_has_these_rates():
    """docs/scaling_laws.md, in TFLOP/s."""
    page = (pathlib.Path(__file__).parents[4] / 'docs/scaling_laws.md').read_text(encoding='utf-8')
    for name in DEVICES:
        (row,) = re.findall(rf'^\| `{name}` \|(.*)\|$', page, re.MULTILINE)
        *cells, source = (cell.strip() for cell in row.split('|'))
        rates = [HARDWARE[name].rates.get(unit) for unit in ('bf16', 'fp8', 'fp6', 'fp4', 'int8', 'int4')]
        assert cells == ['' if rate is None else f'{rate / 1e12:g}' for rate in rates]
        assert source == HARDWARE[name].source
