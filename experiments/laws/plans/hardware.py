"""What a recipe of training costs on accelerators, relative to BF16: by their peak rates, operands' formats, and units.

A GEMM runs at a low-bit rate only where one kind of unit takes both of its operands; else at BF16's. Of the units that
hold both exactly, it runs on the fastest. `ideal` is no device but the Capybara paper's: a GEMM costs bits / 16.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.devices import device_specs
from experiments.laws.recipes import BFLOAT16, Operand, Recipe
from gaussq_jax.formats import FloatFormat, parse_format

UNITS = {  # what each takes as it is, in any combination of two
    'fp4': ('float4_e2m1fn',),
    'fp6': ('float6_e2m3fn', 'float6_e3m2fn'),
    'fp8': ('float8_e4m3fn', 'float8_e5m2'),
    'int4': ('e0m3',),
    'int8': ('e0m7',),
    'bf16': ('bfloat16',),
    'fp16': ('float16',),
}


class Hardware(NamedTuple):
    """One device, or `ideal`, which has no rates.

    Attributes:
      rates: of dense GEMMs by unit, a key of UNITS: operations/s.
      memory_bytes, memory_bandwidth: bytes, bytes/s; None if not known.
      source: of all of this.
      scales: the kinds of block scales that its units take, as an Operand's `scale`; others are applied outside.
      runs_fp8: whether `config.quantization.arithmetic='hardware'` gets its FP8 units, as XLA does of NVIDIA's.
    """

    name: str
    rates: Mapping[str, float]
    memory_bytes: float | None
    memory_bandwidth: float | None
    source: str
    scales: tuple[str, ...] = ()
    runs_fp8: bool = False

    @property
    def is_ideal(self) -> bool:
        return not self.rates


class Price(NamedTuple):
    """The cost of an operation relative to BF16's, or None if it isn't known; and what has to be said of it."""

    value: float | None
    note: str = ''


def _hardware(name: str, device: str, scales: tuple[str, ...] = (), runs_fp8: bool = False) -> Hardware:
    """A device by the name that plans have for it. GPUs multiply FP16 as fast as BF16; TPUs don't."""
    spec = device_specs.find(device)
    rates = spec.rates if name.startswith('tpu') else {**spec.rates, 'fp16': spec.peak_flops}
    return Hardware(name, rates, spec.memory_bytes, spec.memory_bandwidth, spec.source, scales, runs_fp8)


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware('ideal', {}, None, None, 'cost C = 6/16 N D P of the Capybara paper (arXiv 2501.02423)'),
        _hardware('a100', 'a100-80gb'),
        *(_hardware(name, name, runs_fp8=True) for name in ('h100', 'h200')),
        *(_hardware(name, name, ('mx', 'nvfp4'), runs_fp8=True) for name in ('b200', 'b300')),
        _hardware('mi300x', 'mi300x'),
        _hardware('mi355x', 'mi355x', ('mx',)),
        *(_hardware(name, name) for name in ('tpu-v5p', 'tpu-v6e', 'tpu-7x')),
    )
}


def price(hardware: Hardware, recipe: Recipe, size: str | None = None) -> Price:
    """What an operation of training costs: the mean over the three GEMMs, of one forward and two backward.

        on a device  r_bf16 (1 / r_Y + 1 / r_dX + 1 / r_dW) / 3
        ideal        (bits_forward + 2 bits_backward) / 3 / 16

    r is the rate of the fastest unit for both operands: a peak, so that what scales, casts and Hadamard transforms cost
    is not in it. Ideal bits are those of the operand with the fewest. The share of the layers that a recipe keeps in
    full precision costs 1.

    Args:
      hardware: of HARDWARE.
      recipe: as `read_recipe` makes it.
      size: of configs/capybara.py, whose layers are counted; None for the share that the recipe's rules say.

    Example:
      >>> from experiments.laws.recipes import read_recipe
      >>> price(HARDWARE['h100'], read_recipe('fp8', 'bf16')).value  # 1/3 of the operations at twice the rate
      0.8333...
      >>> price(HARDWARE['b200'], read_recipe('fqt e2m1 16'))
      Price(value=1.0, note='a GEMM of which one operand stays BF16 runs at the rate of BF16')
      >>> price(HARDWARE['b200'], read_recipe('nvfp4', 'nvfp4'), '679m')  # 4 of 24 layers at 1, 20 at 1/4
      Price(value=0.375, note='17% of the linear layers stay BF16')
    """
    if hardware.is_ideal:
        if recipe.bits is None:
            return Price(None, _why_no_bits(recipe))
        forward, backward = recipe.bits
        value, notes = (forward + 2 * backward) / 3 / BFLOAT16.fmt.bits, []
    elif recipe.forward is None or recipe.backward is None:
        return Price(None, recipe.note)
    else:
        costs, notes = zip(*(gemm_price(hardware, *operands) for operands in (recipe.forward, *recipe.backward)))
        value, notes = None if None in costs else sum(costs) / 3, [recipe.note, *notes]
    if kept := recipe.kept_share(size):
        value = None if value is None else kept + (1 - kept) * value
        notes = [*notes, f'{kept:.0%} of the linear layers stay BF16']
    return Price(value, '; '.join(dict.fromkeys(filter(None, notes))))


def _why_no_bits(recipe):
    if recipe.forward is None:
        return recipe.note
    return 'its weights and its other operands have different bits' if recipe.named else 'its bits are learned'


def gemm_price(hardware: Hardware, lhs: Operand, rhs: Operand) -> Price:
    """Of one GEMM with these operands, on a device."""
    unit = fastest_unit(hardware, lhs.fmt, rhs.fmt)
    if unit is None:
        return Price(None, f'no unit of {hardware.name} holds both {lhs.fmt} and {rhs.fmt} exactly')
    low_bit = [operand for operand in (lhs, rhs) if operand.fmt != BFLOAT16.fmt]
    if len(low_bit) == 1 and unit == 'bf16':
        return Price(1.0, 'a GEMM of which one operand stays BF16 runs at the rate of BF16')
    ratio, notes = hardware.rates['bf16'] / hardware.rates[unit], []
    if strangers := [operand.fmt.name for operand in low_bit if not _is_native(unit, operand.fmt)]:
        notes.append(f'{strangers[0]} runs in {unit.upper()} on {hardware.name}, which has no faster unit for it')
    elif low_bit and unit != 'fp16' and ratio == 1:
        notes.append(f'{hardware.name} multiplies {unit.upper()} no faster than BF16')
    if unit not in ('bf16', 'fp16'):
        outside = [x for x in low_bit if isinstance(x.block_size, int) and x.scale not in hardware.scales]
        for block in {x.block_size for x in outside}:
            notes.append(f'scales by {block} are applied outside of the units of {hardware.name}: that is not priced')
    return Price(ratio, '; '.join(notes))


def fastest_unit(hardware: Hardware, lhs: FloatFormat, rhs: FloatFormat) -> str | None:
    """Of the units that hold the numbers of both operands, the one with the highest rate; None if there is none."""
    able = [unit for unit in UNITS if unit in hardware.rates and takes(unit, lhs) and takes(unit, rhs)]
    return max(able, key=hardware.rates.__getitem__, default=None)


@functools.cache
def takes(unit: str, fmt: FloatFormat) -> bool:
    """Whether the numbers of a format are numbers of one that the unit multiplies, up to one power of two for all.

    That power goes into the scale. A format with as many exponent and mantissa bits as the unit's is taken to be the
    unit's: E4M3 then ends at 448, not at the paper's 480, and E5M2 at 57344. Units of integers are not for formats with
    exponent bits, though INT8 holds E2M1: nobody multiplies it so.

    Example:
      >>> [takes(unit, parse_format('e2m2')) for unit in ('fp4', 'fp6', 'fp8')]
      [False, True, True]
      >>> takes('fp4', parse_format('e1m1')), takes('fp8', parse_format('e0m3')), takes('fp8', parse_format('e3m4'))
      (True, True, False)
    """
    if unit.startswith('int') and fmt.exponent_bits:
        return False
    return _is_native(unit, fmt) or any(_holds(parse_format(name), fmt) for name in UNITS[unit])


def _is_native(unit, fmt):
    layouts = [(known.exponent_bits, known.mantissa_bits) for known in map(parse_format, UNITS[unit])]
    return (fmt.exponent_bits, fmt.mantissa_bits) in layouts


def _holds(carrier, fmt):
    """By the largest power of two that keeps them within the carrier's: what it holds, it holds times two, too."""
    shift = np.floor(np.log2(carrier.max / fmt.max))
    return bool(np.all(np.isin(fmt.values() * 2.0**shift, carrier.values())))
