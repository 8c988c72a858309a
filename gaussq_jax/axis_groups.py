"""How weight matrices that stand side by side can be read: their inputs, their outputs, and what stacks them all."""

import collections
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gaussq_jax.axis_clues import (
    MOST_STACKS,
    Axes,
    AxisReading,
    Clue,
    Readings,
    by_axes,
    common_axes,
    union,
)


class Member(NamedTuple):
    """A matrix of a group."""

    clue: Clue
    bias: Clue | None
    path: str
    stacks: tuple[int, ...]
    experts: tuple[bool, ...]

    @property
    def left(self) -> tuple[int, ...] | None:
        return self.clue.left(self.stacks)

    @property
    def bias_shape(self) -> tuple[int, ...] | None:
        """Of its bias, without the stacks; None where there is no bias."""
        if self.bias is None:
            return None
        left = self.bias.left(self.stacks)
        return None if left is None else tuple(self.bias.shape[axis] for axis in left)


def readings_of_group(members: Sequence[Member], widths: frozenset[int]) -> Readings | None:
    """Those of matrices side by side, which may be stacked together, as experts are."""
    options = [_readings_by_splits(members, widths)]
    for axis in _shared_axes_of_group(members):
        deeper = lambda member, axis=axis: member._replace(
            stacks=(*member.stacks, axis), experts=(*member.experts, True)
        )
        further = [deeper(member) if _is_deep(member) else member for member in members]
        options.append(readings_of_group(further, widths))
    return union(options)


def _is_deep(member: Member) -> bool:
    left, clue = member.left, member.clue
    return left is not None and len(left) > 2 and not clue.is_conv and clue.stacks is None


def _shared_axes_of_group(members: Sequence[Member]) -> Iterator[int]:
    deep = [member for member in members if _is_deep(member)]
    if not deep or len(deep[0].stacks) >= MOST_STACKS:
        return
    clues = [clue for member in deep for clue in (member.clue, member.bias) if clue is not None]
    yield from common_axes(clues, deep[0].stacks)


def _readings_by_splits(members: Sequence[Member], widths: frozenset[int]) -> Readings | None:
    """Those in which what the stacks leave of each matrix is inputs and outputs."""
    readings, open_members = {}, {}
    for member in members:
        if member.left is None or (member.bias is not None and member.bias_shape is None):
            return None
        if member.clue.stacks is not None:
            if not member.clue.fits(member.stacks):
                return None
            continue
        splits = splits_of(member.clue, member.left, member.bias_shape)
        readings[member.path] = _with_stacks(member, splits) | _stacked_alone(member)
        if not readings[member.path]:
            return None
        if len(splits) > 1:
            open_members[member] = splits
    if open_members and next(_shared_axes_of_group(members), None) is None:
        for member, splits in _by_mirrored_pair(open_members, widths).items():
            readings[member.path] = _with_stacks(member, splits)
    return readings


def _stacked_alone(member: Member) -> dict[Axes, AxisReading]:
    """The readings of a matrix with a bias that has a first axis like it: a stack, or blocks on a diagonal."""
    bias = member.bias_shape
    if not _is_deep(member) or not bias or len(bias) < 2 or bias[0] != member.clue.shape[member.left[0]]:
        return {}
    if len(member.stacks) >= MOST_STACKS:
        return {}
    deeper = member._replace(stacks=(*member.stacks, 0), experts=(*member.experts, True))
    return _with_stacks(deeper, splits_of(deeper.clue, deeper.left, deeper.bias_shape))


def splits_of(clue: Clue, left: tuple[int, ...], bias: tuple[int, ...] | None) -> list[AxisReading]:
    """What the axes that stacks leave may be: inputs and outputs, in an order that the framework and a bias allow."""
    number = len(left)
    if number < 2:
        return []
    if clue.is_conv and number > 2:
        convention = 'convolution (window.., in, out)'
        splits = [((*left[:-1],), left[-1:])]
        if clue.in_before_out is None:  # a transposed one may have them the other way round
            splits.append(((*left[:-2], left[-1]), left[-2:-1]))
    else:
        convention = 'kernel (in, out)' if number == 2 else ''
        splits = [(left[:at], left[at:]) for at in range(1, number)]
        if clue.is_conv:  # of two axes: a linear layer, or a depthwise convolution (window, channels)
            either = [*splits, *(split[::-1] for split in splits)]
            fits = bias is None or any(tuple(clue.shape[axis] for axis in cols) == bias for _, cols in either)
            return [AxisReading((), rows, cols) for rows, cols in either] if fits else []
        if number > 2 and bias is None:  # of an einsum, with the inputs among the outputs: 'btd,ndh->btnh'
            splits.append((left[-2:-1], (*left[:-2], left[-1])))
        if clue.in_before_out is None:
            convention = ''
            splits += [(left[at:], left[:at]) for at in range(1, number)]
    why = convention
    if bias is not None:
        splits = [(rows, cols) for rows, cols in splits if tuple(clue.shape[axis] for axis in cols) == bias]
        why = convention or f'its bias {bias} has the outputs'
    return [AxisReading((), rows, cols, heads=_heads(rows, cols, clue.is_conv), why=why) for rows, cols in splits]


def _heads(rows: tuple[int, ...], cols: tuple[int, ...], is_conv: bool) -> tuple[int, ...]:
    """Where inputs or outputs have two axes, the first counts heads."""
    return () if is_conv else tuple(axes[0] for axes in (rows, cols) if len(axes) == 2)


def _by_mirrored_pair(
    open_members: Mapping[Member, list[AxisReading]], widths: frozenset[int]
) -> dict[Member, list[AxisReading]]:
    """Fused heads: (d, heads, head_dim) beside (heads, head_dim, d), where d is the width of the norms around."""
    if any(member.clue.in_before_out is None for member in open_members):
        return {}
    shapes = [tuple(member.clue.shape[axis] for axis in member.left) for member in open_members]
    mirrored = {
        one[0]
        for one, other in itertools.permutations(shapes, 2)
        if one[0] == other[-1]
        and one[1:] == other[:-1]
        and (not widths or one[0] in widths)
        and all(size != beside for size, beside in zip(one, other))  # else both may be stacks along that axis
    }
    if not mirrored:
        return {}
    of_members = collections.defaultdict(list)
    for width in mirrored | (
        widths or {size for shape in shapes for at in range(len(shape)) for size in _sizes(shape, at)}
    ):
        of_width = {
            member: [split for split in splits if _has_width(member, split, width, width in mirrored)]
            for member, splits in open_members.items()
        }
        if all(of_width.values()):
            for member, splits in of_width.items():
                of_members[member] += [split._replace(why=f'heads; inputs or outputs are {width}') for split in splits]
        elif width in mirrored:
            return {}
    return of_members


def _has_width(member: Member, split: AxisReading, width: int, in_one_axis: bool) -> bool:
    """Whether inputs, all before the outputs, or outputs are so many."""
    sides = [axes for axes in (split.rows, split.cols) if len(axes) == 1 or not in_one_axis]
    return max(split.rows) < min(split.cols) and width in [_size(member, axes) for axes in sides]


def _sizes(shape: tuple[int, ...], at: int) -> tuple[int, int]:
    return math.prod(shape[:at]), math.prod(shape[at:])


def _size(member: Member, axes: Sequence[int]) -> int:
    return math.prod(member.clue.shape[axis] for axis in axes)


def _with_stacks(member: Member, splits: Sequence[AxisReading]) -> dict[Axes, AxisReading]:
    removed = member.clue.removed(member.stacks)
    experts = tuple(itertools.compress(removed, member.experts))
    batch = (*(axis for axis in removed if axis not in experts), *experts)
    stacked = 'stacked, ' + ', '.join(f'{member.clue.shape[axis]} on axis {axis}' for axis in batch) if batch else ''
    why = lambda split: '; '.join(filter(None, [split.why, stacked]))
    return by_axes([split._replace(batch=batch, experts=experts, why=why(split)) for split in splits])
