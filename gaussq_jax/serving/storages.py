"""The ways in which other software stores low-bit matrices, and which layouts each of them holds exactly."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.packed.layout import LeafLayout


@dataclasses.dataclass(frozen=True)
class Storage:
    """One format for all weights of a matrix, and scales of one shape.

    Attributes:
      name: as its users call it.
      fmt: of the weights.
      tile: (inputs, outputs) that share a scale; None for all of an axis.
      scale: the kind of its scales, as of a `Quantizer`.
      is_cut_evenly: whether a reader takes the blocks to be of one size, so that matrices have to divide.

    Example:
      >>> MXFP8.name, MXFP8.fmt.name, MXFP8.tile
      ('MXFP8', 'float8_e4m3fn', (32, 1))
    """

    name: str
    fmt: FloatFormat
    tile: tuple[int | None, int]
    scale: str
    is_cut_evenly: bool = False

    def reason_against(self, of_leaf: LeafLayout, shape: tuple[int, ...]) -> str | None:
        """Why it doesn't hold a matrix (in, out) of this layout, number by number and scale by scale; None if it does.

        Scales alone can still be out of its range: `matrices` refuses those.

        Example:
          >>> from gaussq_jax import uniform_layout
          >>> layout = uniform_layout({'up': {'kernel': np.ones((64, 32), np.float32)}}, 'float6_e3m2fn')['up/kernel']
          >>> MXFP8.reason_against(layout, (64, 32)), MXFP4.reason_against(layout, (64, 32))
          (None, "its format float6_e3m2fn has numbers that float4_e2m1fn doesn't have")
        """
        rows, columns = shape[-2:]
        if lacking := [fmt.name for fmt in of_leaf.formats if not holds(self.fmt, fmt)]:
            return f"its format {lacking[0]} has numbers that {self.fmt.name} doesn't have"
        if of_leaf.scale not in (self.scale, 'mx'):
            return f'its scales are of the kind {of_leaf.scale}, not {self.scale}'
        if self.tile[1] == 1 and rows % (self.tile[0] or 1):
            return f'its {rows} inputs are no multiple of {self.tile[0]}'
        for side, size, theirs, what in zip(of_leaf.tile, (rows, columns), self.tile, ('inputs', 'outputs')):
            theirs = size if theirs is None else theirs
            if side < size and side % theirs:
                return f'{side} {what} share a scale, which is no multiple of {theirs}'
            blocks = -(-size // theirs)
            if self.is_cut_evenly and blocks > 1 and size % blocks == 0 and size % theirs:
                return f'transformers cuts its {size} {what} in {blocks} blocks of {size // blocks}, not of {theirs}'
        return None

    def bits(self, shape: tuple[int, int]) -> float:
        """What a matrix (in, out) takes, in bits, scales included.

        Example:
          >>> MXFP4.bits((64, 32)) / (64 * 32)
          4.25
        """
        scales = math.prod(-(-size // (side or size)) for size, side in zip(shape, self.tile))
        return self.fmt.bits * math.prod(shape) + scales * (32 if self.scale == 'absmax' else 8)


@functools.cache
def holds(target: FloatFormat, fmt: FloatFormat) -> bool:
    """Whether each number of a format is one of the target's.

    Example:
      >>> [holds(MXFP8.fmt, parse_format(name)) for name in ('e2m1', 'e3m3', 'e3m4')]
      [True, True, False]
    """
    return bool(np.all(np.isin(fmt.values(), target.values())))


_E2M1, _E4M3 = parse_format('float4_e2m1fn'), parse_format('float8_e4m3fn')
MXFP4 = Storage('MXFP4', _E2M1, (32, 1), 'mx')
MXFP6_E2M3 = Storage('MXFP6 (E2M3)', parse_format('float6_e2m3fn'), (32, 1), 'mx')
MXFP6_E3M2 = Storage('MXFP6 (E3M2)', parse_format('float6_e3m2fn'), (32, 1), 'mx')
MXFP8 = Storage('MXFP8', _E4M3, (32, 1), 'mx')
NVFP4 = Storage('NVFP4', _E2M1, (16, 1), 'nvfp4')
FP8_CHANNEL = Storage('FP8 by output channel', _E4M3, (None, 1), 'absmax')
FP8_BLOCK = Storage('FP8 in blocks of 128 x 128', _E4M3, (128, 128), 'absmax')
DEEPSEEK_FP8 = dataclasses.replace(FP8_BLOCK, is_cut_evenly=True)

# What other software has beside bfloat16; of as many bits, what comes first is preferred.
TARGETS = {
    'compressed-tensors': (MXFP4, NVFP4, MXFP6_E2M3, FP8_CHANNEL, FP8_BLOCK, MXFP8),
    'mlx': (MXFP4, MXFP8),
    'gguf': (MXFP4,),
    'quark-mxfp6': (MXFP6_E3M2, MXFP6_E2M3),
    'deepseek-fp8': (DEEPSEEK_FP8,),
}


def storages_that_hold(
    matrices: Mapping[str, tuple[LeafLayout, tuple[int, int]]], target: str
) -> tuple[list[Storage], str]:
    """The storages of a target that hold these matrices, by what the layout tells, the fewest bits first.

    Args:
      matrices: name -> the layout of the one matrix of a leaf and its shape (in, out).
      target: of TARGETS.

    Returns:
      The storages, and if there is none, why not.

    Example:
      >>> from gaussq_jax import uniform_layout
      >>> layout = uniform_layout({'up': {'kernel': np.ones((64, 32), np.float32)}}, 'float6_e3m2fn')['up/kernel']
      >>> storages_that_hold({'up': (layout, (64, 32))}, 'mlx')[0][0].name
      'MXFP8'
      >>> print(storages_that_hold({'up': (layout, (64, 32))}, 'gguf')[1])
      up can't be held exactly as MXFP4, its format float6_e3m2fn has numbers that float4_e2m1fn doesn't have
    """
    found, reasons = [], {}
    for storage in sorted(TARGETS[target], key=lambda storage: storage.fmt.bits):
        against = {name: storage.reason_against(*matrix) for name, matrix in matrices.items()}
        if any(against.values()):
            reasons[storage] = next((name, reason) for name, reason in against.items() if reason)
        else:
            found.append(storage)
    if found:
        return found, ''
    formats = {fmt for of_matrix, _ in matrices.values() for fmt in of_matrix.formats}
    wide = [storage for storage in reasons if all(holds(storage.fmt, fmt) for fmt in formats)] or [*reasons][-1:]
    said = '; or '.join(f'as {storage.name}, {reasons[storage][1]}' for storage in wide)
    return [], f"{reasons[wide[0]][0]} can't be held exactly {said}"


def targets_that_hold(matrices: Iterable[tuple[LeafLayout, tuple[int, ...]]], *, but: str) -> str:
    """The end of an error: all targets but one that hold these matrices, whatever their scales; '' if there is none.

    Example:
      >>> from gaussq_jax import uniform_layout
      >>> layout = uniform_layout({'up': {'kernel': np.ones((64, 32), np.float32)}}, 'float6_e3m2fn')['up/kernel']
      >>> targets_that_hold([(layout, (64, 32))], but='gguf')
      '; it can be by compressed-tensors, mlx, quark-mxfp6, transformers in bfloat16'
    """
    matrices = list(matrices)
    of_any_scale = lambda storage: storage.scale == 'mx' or all(of_leaf.scale != 'mx' for of_leaf, _ in matrices)
    holds_all = lambda storage: not any(storage.reason_against(*matrix) for matrix in matrices)
    others = [
        target
        for target, storages in TARGETS.items()
        if target != but and any(of_any_scale(storage) and holds_all(storage) for storage in storages)
    ]
    in_bfloat16 = ['transformers in bfloat16'] * all(of_leaf.dtype == jnp.bfloat16 for of_leaf, _ in matrices)
    return f'; it can be by {", ".join(others + in_bfloat16)}' if others or in_bfloat16 else ''


def check_unheld(unheld: str):
    """ValueError for a choice that there isn't."""
    if unheld not in ('error', 'bfloat16'):
        raise ValueError(f"unheld={unheld!r}: it must be 'error' or 'bfloat16'")
