"""Scales of tiles <-> what a file keeps of them, by their kind, which is that of a `Quantizer`.

    'mx'      E8M0, uint8: code c is the scale 2^(c - 127)
    'absmax'  float32, above 0: c is the scale c 2^(2 - floor(log2 max)), with the largest number of the tile's format
    'nvfp4'   the code of a float8_e4m3fn number, uint8, and for each matrix a float32 number that it is divided by

An absmax scale itself may be below the smallest normal float32 number, and c is not.
"""

import math

import jax.numpy as jnp
import numpy as np

from gaussq_jax.formats import FloatFormat

BYTES = {'mx': 1, 'absmax': 4, 'nvfp4': 1}  # of a tile's
DIVISOR_BYTES = 4  # of a matrix' own number, with NVFP4's scales
BIAS, LARGEST_CODE = 127, 254  # of E8M0, in which 255 is none
E4M3, LARGEST_E4M3_CODE = jnp.float8_e4m3fn, 0x7E


def shift(fmt: FloatFormat) -> int:
    """log2 of what the codes of absmax scales are multiplied by, 2 - floor(log2 max)."""
    return 3 - math.frexp(fmt.max)[1]


def encode(scales: np.ndarray, kind: str, shifts: np.ndarray | int = 0) -> np.ndarray:
    """The codes of scales, float64 of any shape; `shifts` are those of their formats.

    Example:
      >>> encode(np.array([0.25, 2]), 'mx'), encode(np.array([1.5, 448]), 'nvfp4')
      (array([125, 128], dtype=uint8), array([ 60, 126], dtype=uint8))
    """
    if kind == 'mx':
        return (np.frexp(scales)[1] - 1 + BIAS).astype(np.uint8)
    return scales.astype(E4M3).view(np.uint8) if kind == 'nvfp4' else np.ldexp(scales, -shifts).astype(np.float32)


def decode(codes: np.ndarray, kind: str, shifts: np.ndarray | int = 0) -> np.ndarray:
    """The inverse, float64.

    Raises:
      ValueError: for codes of another dtype, or that stand for no scale.

    Example:
      >>> decode(np.uint8([125, 128]), 'mx'), decode(np.uint8([60, 126]), 'nvfp4')
      (array([0.25, 2.  ]), array([  1.5, 448. ]))
    """
    dtype = np.float32 if kind == 'absmax' else np.uint8
    if codes.dtype != dtype:
        raise ValueError(f'{kind} scales are {codes.dtype}, and not {np.dtype(dtype)}')
    largest = {'mx': LARGEST_CODE, 'nvfp4': LARGEST_E4M3_CODE, 'absmax': np.finfo(np.float32).max}[kind]
    if not np.all((codes >= 0) & (codes <= largest)) or (kind == 'absmax' and not np.all(codes)):
        raise ValueError(f'{kind} scales have codes that stand for no scale')
    if kind == 'mx':
        return np.ldexp(1.0, codes.astype(np.int32) - BIAS)
    return codes.view(E4M3).astype(np.float64) if kind == 'nvfp4' else np.ldexp(codes.astype(np.float64), shifts)
