"""How a tensor is quantized, as data: format, what shares a scale, how that is chosen, how values are rounded."""

import dataclasses
import operator
from typing import Any

from gaussq_jax.formats import FloatFormat
from gaussq_jax.hadamard import Hadamard
from gaussq_jax.rounding import as_format
from kernels_pallas.rounding_on_bits import ROUNDINGS

SCALES = ('absmax', 'mx', 'nvfp4')
SCALE_ROUNDINGS = ('floor', 'rceil', 'ceil', 'even', 'nearest')
FITS = ('absmax', 'rms', 'four_over_six', 'eden')
_NVFP4_BLOCK_SIZES = (16, (1, 16), (16, 1), (16, 16))


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """How a tensor is quantized: to which format, and what shares a scale.

    Attributes:
      fmt: a FloatFormat, or a name for `parse_format`.
      block_size: what shares a scale, along an axis that is chosen where the quantizer is used.
        an integer: so many consecutive values along the axis; the last block may be shorter.
        'channel': the whole of the axis.
        'tensor': the whole tensor; under `jax.vmap` and `jax.shard_map`, each slice or shard, as of NVFP4's g.
        (rows, cols): a tile of `cols` values along the axis and `rows` along the other one of the last two axes.
      scale: how a block's scale follows from A, its largest magnitude (see `fit`).
        'absmax': S = fmt.max / A in float32, Y = round(X S) / S.
        'mx': s a power of two (see `scale_rounding`), its exponent clipped to +-127, Y = s round(X / s): OCP's MX if
          the block size is 32.
        'nvfp4': for E2M1 in blocks of 16, or tiles of 16 along an axis, two scales: g = 2688 / max|X| of the tensor,
          s = A g / 6 rounded to float8_e4m3fn, Y = s / g round(X g / s); zeros if s is 0.
      rounding: as for `round_to_format`; of the values, scales are rounded to nearest. Stochastic, the mean of what
        doesn't saturate is X within 2^-17 of the format's step there, times the scale.
      scale_rounding: of 'mx'; emax = floor(log2 fmt.max). The first four are named as in torchao. s is at most
        2^(127 - emax): otherwise a few of float32's largest numbers would become infinite; they saturate instead.
        'floor': s = 2^(floor(log2 A) - emax), as OCP has it. The largest values may saturate.
        'rceil': s = 2^ceil(log2(A / fmt.max)): the least power of two with which nothing saturates.
        'ceil': s = 2^(ceil(log2 A) - emax).
        'even': s = 2^(floor(log2 A') - emax), A' being A rounded to the format's mantissa bits, halves up.
        'nearest': s = 2^round(log2(A / fmt.max)).
      fit: what A is.
        'absmax': the largest magnitude of the block.
        'rms': c RMS of the block, where c fmt.max-scaled rounding errs least, in the mean of squares, for normally
          distributed values: 2.92 for E2M1. Values beyond saturate. For 'mx' and 'absmax' scales.
        'four_over_six': of 'nvfp4': the largest magnitude of each block is scaled to 6 or to 4, whichever makes the
          smaller sum of squared errors in the block; g = 1536 / max|X|, so that E4M3 holds both scales.
        'eden': of 'nvfp4': U = X g / s with A scaled to 6.07, and afterwards s sum(U^2) / sum(U round(U)), rounded
          stochastically to float8_e4m3fn, in the place of s: of randomly transformed X the mean of Y is X. It takes a
          key.
      prescale: Y = round(X S prescale) / (S prescale): less than 1, it leaves room above the largest magnitude. With
        3/4, 'mx' scales of E2M1 and 'floor' saturate nothing but a few of float32's largest numbers, as of
        `scale_rounding`.
      hadamard: a Hadamard transform of X along the axis, before it is quantized, and undone afterwards; None for none.
      clips_gradient: whether the gradient is 0 where X, transformed, is beyond what its block's scale holds. Of the
        operands of a linear layer, P1 and P2 have one.

    Raises:
      ValueError: naming the argument, for a value other than these.

    Example:
      >>> quantizer = Quantizer('e4m3', block_size=128)
      >>> quantizer.fmt, quantizer.block_size, quantizer.scale
      (FloatFormat(exponent_bits=4, mantissa_bits=3, special_values='finite'), 128, 'absmax')

    Source: arXiv 2501.02423, section 3; OCP Microscaling Formats v1.0, section 6.3; NVIDIA's NVFP4; 'rceil' is of
    arXiv 2506.08027, 'four_over_six' of 2512.02010, 'eden' of 2601.22813; 'rms', prescale and clipped gradients of
    2505.14669.
    """

    fmt: FloatFormat | str
    _: dataclasses.KW_ONLY
    block_size: int | str | tuple[int, int] = 32
    scale: str = 'absmax'
    rounding: str = 'nearest_even'
    scale_rounding: str = 'floor'
    fit: str = 'absmax'
    prescale: float = 1.0
    hadamard: Hadamard | None = None
    clips_gradient: bool = False

    def __post_init__(self):
        object.__setattr__(self, 'fmt', as_format(self.fmt))
        object.__setattr__(self, 'block_size', _check_block_size(self.block_size))
        allowed = dict(scale=SCALES, rounding=ROUNDINGS, scale_rounding=SCALE_ROUNDINGS, fit=FITS)
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                raise ValueError(f'{name}={value!r} is not one of {", ".join(map(repr, values))}')
        is_e2m1 = self.fmt.name in ('e2m1', 'float4_e2m1fn')
        if self.scale == 'nvfp4' and not (is_e2m1 and self.block_size in _NVFP4_BLOCK_SIZES):
            raise ValueError(
                f"scale='nvfp4' with fmt {self.fmt} and block_size={self.block_size!r}: it is defined for e2m1"
                f' and block_size={" or ".join(map(str, _NVFP4_BLOCK_SIZES))}'
            )
        if self.scale_rounding != 'floor' and self.scale != 'mx':
            raise ValueError(f'scale_rounding={self.scale_rounding!r} is of mx scales, and not of scale={self.scale!r}')
        if self.fit != 'absmax' and (self.fit == 'rms') == (self.scale == 'nvfp4'):
            raise ValueError(
                f'fit={self.fit!r} with scale={self.scale!r}: four_over_six and eden are of nvfp4 scales, rms of others'
            )
        if self.fit == 'rms' and self.fmt.bits > 8:
            raise ValueError(
                f"fit='rms' with fmt {self.fmt}: it is for formats of at most 8 bits, which clip normal values"
            )
        if self.fit == 'eden' and (self.rounding == 'stochastic' or self.prescale != 1):
            raise ValueError(
                "fit='eden' rounds scales stochastically, and takes no stochastic rounding and no prescale"
            )
        if not isinstance(self.prescale, int | float) or not 0 < self.prescale <= 1:
            raise ValueError(f'prescale={self.prescale!r} must be more than 0 and at most 1')
        if not isinstance(self.hadamard, Hadamard | None):
            raise ValueError(f'hadamard={self.hadamard!r}: it must be a Hadamard, such as Hadamard(16), or None')
        if not isinstance(self.clips_gradient, bool):
            raise ValueError(f'clips_gradient={self.clips_gradient!r}: allowed are True and False')

    @property
    def summary(self) -> str:
        """What it does, in a few words: 'float8_e4m3fn by 32, mx rceil'."""
        scale = self.scale if self.scale_rounding == 'floor' else f'{self.scale} {self.scale_rounding}'
        words = [f'{self.fmt} by {block_size_text(self.block_size)}', scale]
        words += [] if self.fit == 'absmax' else [self.fit]
        words += [] if self.rounding == 'nearest_even' else [self.rounding]
        words += [] if self.prescale == 1 else [f'times {self.prescale:g}']
        if self.hadamard is not None:
            fixed = 'fixed signs' if isinstance(self.hadamard.signs, tuple) else f'{self.hadamard.signs} signs'
            words += [f'Hadamard {self.hadamard.size}' + (f', {fixed}' if self.hadamard.signs != 'none' else '')]
        return ', '.join(words + ['clipped gradient'] * self.clips_gradient)

    @property
    def needs_key(self) -> bool:
        """Whether it draws random bits, for rounding or for signs."""
        return (
            self.rounding == 'stochastic'
            or self.fit == 'eden'
            or (self.hadamard is not None and self.hadamard.is_random)
        )

    def deterministic(self) -> 'Quantizer':
        """The same without randomness: rounding to nearest even for stochastic, no signs for random ones, no eden."""
        rounding = 'nearest_even' if self.rounding == 'stochastic' else self.rounding
        hadamard = self.hadamard
        if hadamard is not None and hadamard.is_random:
            hadamard = dataclasses.replace(hadamard, signs='none')
        fit = 'absmax' if self.fit == 'eden' else self.fit
        return dataclasses.replace(self, rounding=rounding, hadamard=hadamard, fit=fit)


def block_size_text(block_size: int | str | tuple[int, int]) -> str:
    """(16, 32) -> '16x32'; 32 -> '32'."""
    return 'x'.join(map(str, block_size)) if isinstance(block_size, tuple) else str(block_size)


def check_quantizer(quantizer: Any):
    """ValueError unless it is a Quantizer."""
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"quantizer={quantizer!r}: it must be a Quantizer, such as Quantizer('e4m3')")


def _check_block_size(block_size: Any) -> int | str | tuple[int, int]:
    is_size = lambda size: not isinstance(size, bool) and hasattr(size, '__index__') and size > 0
    if is_size(block_size):
        return operator.index(block_size)
    if isinstance(block_size, (tuple, list)) and len(block_size) == 2 and all(map(is_size, block_size)):
        return tuple(map(operator.index, block_size))
    if isinstance(block_size, str) and block_size in ('channel', 'tensor'):
        return block_size
    raise ValueError(f"block_size={block_size!r}: allowed are a positive integer, 'channel', 'tensor' and (rows, cols)")
