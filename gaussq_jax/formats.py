"""FloatFormat: a low-bit floating-point format, ExMy, as data."""

import dataclasses
import operator
import re

import numpy as np

from kernels_pallas.rounding_on_bits import Representable

SPECIAL_VALUES = ('finite', 'ieee', 'fn')
_OCP_MAX = {(4, 3): 448.0, (3, 2): 28.0, (2, 3): 7.5, (2, 1): 6.0}  # of the 'fn' formats


@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """A floating-point format of one sign bit, E exponent bits and M mantissa bits, with subnormals.

        value(e, f) = f 2^(1 - bias - M)              e = 0
                      (1 + f / 2^M) 2^(e - bias)      e > 0,    bias = 2^(E - 1) - 1, or 0 if E < 2

    Without exponent bits (E = 0) only the first line is left: a fixed-point format.

    Attributes:
      exponent_bits: E, 0 to 8.
      mantissa_bits: M, 0 to 10.
      special_values: what the codes at the top mean.
        'finite': numbers, all of them, as in the Capybara paper. E1M1's largest is 3, E4M3's 480.
        'ieee': the codes of the top exponent are infinity and NaN, as in float16 and bfloat16; E4M3's largest is 240.
        'fn': as OCP has it, for four formats only. E4M3 has one NaN and no infinity, its largest is 448; E3M2,
          E2M3 and E2M1 have neither, their largest are 28, 7.5 and 6.

    Raises:
      ValueError: for bits or special values other than these; for E = 8 with 'finite', whose largest number is
        beyond float32; for E = 0 with 'ieee'; for a format without a positive number.

    Example:
      >>> FloatFormat(2, 1).values()
      array([0. , 0.5, 1. , 1.5, 2. , 3. , 4. , 6. ])
      >>> FloatFormat(4, 3).max, FloatFormat(4, 3, 'ieee').max, FloatFormat(4, 3, 'fn').max
      (480.0, 240.0, 448.0)

    Source: arXiv 2501.02423, section 3 ('finite'); IEEE 754; OCP Microscaling Formats v1.0, section 5.3 ('fn').
    """

    exponent_bits: int
    mantissa_bits: int
    special_values: str = 'finite'

    def __post_init__(self):
        for name, most in (('exponent_bits', 8), ('mantissa_bits', 10)):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, '__index__') or not 0 <= value <= most:
                raise ValueError(f'{name}={value!r}: it must be an integer from 0 to {most}')
            object.__setattr__(self, name, operator.index(value))
        bits = (self.exponent_bits, self.mantissa_bits)
        layout = 'E{}M{}'.format(*bits)
        if self.special_values not in SPECIAL_VALUES:
            allowed = ', '.join(map(repr, SPECIAL_VALUES))
            raise ValueError(f'special_values={self.special_values!r} is not one of {allowed}')
        if self.special_values == 'fn' and bits not in _OCP_MAX:
            allowed = ', '.join('E{}M{}'.format(*bits) for bits in _OCP_MAX)
            raise ValueError(f"{layout} has no special_values='fn'; OCP's formats are {allowed}")
        if self.special_values == 'finite' and self.exponent_bits == 8:
            raise ValueError(f"{layout} 'finite' is beyond float32; E = 8 must be 'ieee', as bfloat16 (E8M7) is")
        if self.special_values == 'ieee' and self.exponent_bits == 0:
            raise ValueError(f"{layout} has no exponent that could stand for infinity and NaN; use 'finite'")
        if not self.max > 0:
            raise ValueError(f'{layout} {self.special_values!r} has no positive number')

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The name that `parse_format` reads: ml_dtypes' where it has one; 'e4m3' if finite, or else 'e4m2_ieee'."""
        short = f'e{self.exponent_bits}m{self.mantissa_bits}'
        standard = {fmt: name for name, fmt in ML_DTYPES_FORMATS.items()}
        return standard.get(self, short if self.special_values == 'finite' else f'{short}_{self.special_values}')

    @property
    def bits(self) -> int:
        """1 + E + M."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent's code."""
        return 2 ** (self.exponent_bits - 1) - 1 if self.exponent_bits else 0

    @property
    def min_exponent(self) -> int:
        """1 - bias: below 2^min_exponent the numbers are equally spaced, by 2^(min_exponent - M)."""
        return 1 - self.bias

    @property
    def max(self) -> float:
        """The largest number."""
        if self.special_values == 'fn':
            return _OCP_MAX[self.exponent_bits, self.mantissa_bits]
        codes = 2 ** (self.exponent_bits + self.mantissa_bits)
        if self.special_values == 'ieee':
            codes -= 2**self.mantissa_bits
        return self._value(codes - 1)

    @property
    def smallest_normal(self) -> float | None:
        """2^(1 - bias), the smallest number with an implicit leading bit; None if there are subnormals only."""
        smallest = 2.0**self.min_exponent
        return smallest if smallest <= self.max else None

    @property
    def smallest_subnormal(self) -> float | None:
        """2^(1 - bias - M); None if there are no subnormals (M = 0)."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits) if self.mantissa_bits else None

    @property
    def representable(self) -> Representable:
        """The numbers, as kernels are told of them."""
        return Representable(self.mantissa_bits, self.min_exponent, self.max)

    def values(self) -> np.ndarray:
        """All non-negative numbers, ascending, float64: the codes 0, 1, .. of the exponent and mantissa bits."""
        codes = range(2 ** (self.exponent_bits + self.mantissa_bits))
        return np.array([value for code in codes if (value := self._value(code)) <= self.max])

    def _value(self, code: int) -> float:
        exponent, fraction = divmod(code, 2**self.mantissa_bits)
        significand = fraction + (2**self.mantissa_bits if exponent else 0)
        return significand * 2.0 ** (max(exponent, 1) - self.bias - self.mantissa_bits)


ML_DTYPES_FORMATS = {
    'bfloat16': FloatFormat(8, 7, 'ieee'),
    'float16': FloatFormat(5, 10, 'ieee'),
    'float8_e3m4': FloatFormat(3, 4, 'ieee'),
    'float8_e4m3': FloatFormat(4, 3, 'ieee'),
    'float8_e4m3fn': FloatFormat(4, 3, 'fn'),
    'float8_e5m2': FloatFormat(5, 2, 'ieee'),
    'float6_e2m3fn': FloatFormat(2, 3, 'fn'),
    'float6_e3m2fn': FloatFormat(3, 2, 'fn'),
    'float4_e2m1fn': FloatFormat(2, 1, 'fn'),
}


def parse_format(name: str) -> FloatFormat:
    """The format of a name: ml_dtypes' names mean what ml_dtypes means, a bare 'e4m3' the paper's all-finite format.

    Args:
      name: one of `ML_DTYPES_FORMATS`; 'e<E>m<M>' for 'finite'; 'e<E>m<M>_ieee'.

    Raises:
      ValueError: for another name, or a format that isn't there; lists the known.

    Example:
      >>> parse_format('e4m3').max, parse_format('float8_e4m3fn').max, parse_format('float8_e4m3').max
      (480.0, 448.0, 240.0)

    Source: arXiv 2501.02423, section 3; the documentation of ml_dtypes.
    """
    if name in ML_DTYPES_FORMATS:
        return ML_DTYPES_FORMATS[name]
    known = f"known are {', '.join(ML_DTYPES_FORMATS)}, 'e<E>m<M>' such as e3m2, and 'e<E>m<M>_ieee'"
    match = re.fullmatch(r'e([0-8])m([0-9]|10)(_ieee)?', name) if isinstance(name, str) else None
    if not match:
        raise ValueError(f'format {name!r} is unknown; {known}')
    try:
        return FloatFormat(int(match[1]), int(match[2]), 'ieee' if match[3] else 'finite')
    except ValueError as error:
        raise ValueError(f'format {name!r}: {error}; {known}') from None
