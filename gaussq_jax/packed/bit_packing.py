"""Numbers of a low-bit format <-> their codes <-> bytes, in NumPy.

A code is the sign, the exponent and the mantissa bits of a number, the sign on top. In bytes, codes of w bits follow
one another without a gap, the least significant bit first: code i has the bits i w to (i + 1) w - 1 of the stream, and
bit k of the stream is bit k % 8 of byte k // 8. So two 4-bit codes share a byte, the first in its low half, and four
6-bit codes share three; with 8 bits a byte is a code.
"""

import functools

import numpy as np

from gaussq_jax.formats import FloatFormat

CODES = 8  # that fill w bytes, whatever their width w
MOST_BITS = 16


def encode(values: np.ndarray, exponents: np.ndarray | int, fmt: FloatFormat) -> np.ndarray:
    """The codes of values / 2^exponents, which are numbers of the format.

    Args:
      values: float32, of any shape.
      exponents: integers that broadcast to that shape.
      fmt: of at most `MOST_BITS` bits.

    Returns:
      uint16, of values' shape.

    Example:
      >>> encode(np.float32([0.5, -6.0, 3.0]), 0, FloatFormat(2, 1))
      array([ 1, 15,  5], dtype=uint16)
    """
    # The format's smallest normal number becomes float32's, 2^-126: the float32 bits are then the code, further left.
    magnitude = np.ldexp(np.abs(values), -(exponents + fmt.min_exponent + 126))
    codes = magnitude.view(np.uint32) >> np.uint32(23 - fmt.mantissa_bits)
    codes |= np.signbit(values).astype(np.uint32) << np.uint32(fmt.bits - 1)
    return codes.astype(np.uint16)


@functools.cache
def decoded(fmt: FloatFormat) -> np.ndarray:
    """The number of each code, float32; NaN for codes that stand for none.

    Example:
      >>> decoded(FloatFormat(1, 1))
      array([ 0.,  1.,  2.,  3., -0., -1., -2., -3.], dtype=float32)
    """
    magnitudes = np.full(2 ** (fmt.bits - 1), np.nan, np.float32)
    values = fmt.values()
    magnitudes[: values.size] = values
    numbers = np.concatenate([magnitudes, -magnitudes])
    numbers.setflags(write=False)
    return numbers


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that so many codes of so many bits take: ceil(count bits / 8).

    Example:
      >>> packed_bytes(3, 4)
      2
    """
    return -(-count * bits // 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of `bits` bits each -> bytes; unused bits of the last byte are zero.

    Args:
      codes: uint16 (count,), each below 2^bits.
      bits: 1 to `MOST_BITS`.

    Returns:
      uint8 (ceil(count bits / 8),).

    Example:
      >>> pack(np.uint16([1, 2, 3]), 4)
      array([33,  3], dtype=uint8)
    """
    if bits == 8:
        return codes.astype(np.uint8)
    groups = np.zeros((-(-codes.size // CODES), CODES), np.uint32)
    groups.reshape(-1)[: codes.size] = codes
    packed = np.zeros((len(groups), bits), np.uint8)
    for i in range(CODES):
        byte, shift = divmod(i * bits, 8)
        shifted = groups[:, i] << np.uint32(shift)
        for position in range(byte, -(-(i + 1) * bits // 8)):
            packed[:, position] |= (shifted >> np.uint32(8 * (position - byte))).astype(np.uint8)
    return packed.reshape(-1)[: packed_bytes(codes.size, bits)]


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: uint8 -> uint16 (count,).

    Example:
      >>> unpack(np.uint8([33, 3]), 4, 3)
      array([1, 2, 3], dtype=uint16)
    """
    if bits == 8:
        return packed[:count].astype(np.uint16)
    groups = np.zeros((-(-count // CODES), bits), np.uint8)
    groups.reshape(-1)[: packed.size] = packed
    codes = np.zeros((len(groups), CODES), np.uint16)
    for i in range(CODES):
        byte, shift = divmod(i * bits, 8)
        word = np.zeros(len(groups), np.uint32)
        for position in range(byte, -(-(i + 1) * bits // 8)):
            word |= groups[:, position].astype(np.uint32) << np.uint32(8 * (position - byte))
        codes[:, i] = (word >> np.uint32(shift)) & np.uint32(2**bits - 1)
    return codes.reshape(-1)[:count]
