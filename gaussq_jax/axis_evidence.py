"""Which axes of weights are stacks, inputs and outputs, from what the shapes in a tree say together.

A hypothesis says which subtrees are stacked, along which axis. It holds if every leaf under a stack has that axis, of
one size; if what is left of each norm's scale is one axis, and of a bias the outputs of its kernel; and if what is left
of each kernel is (inputs.., outputs..). All hypotheses that hold are gone through, and a weight has all the readings
that any of them gives it: one, and it is read; several, and the tree doesn't tell.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

MATRIX, NORM, HEAD_NORM, EMBEDDING, OTHER = 'matrix', 'norm', 'head norm', 'embedding', 'other'
MOST_STACKS = 4  # models of an ensemble, stages of a pipeline, layers, experts

_EXPERTS = re.compile(r'(?!.*(layers|stages?))\w*([Ee]xpert|[Mm]o[eE])\w*')


class Clue(NamedTuple):
    """What is known of a leaf before shapes are compared."""

    shape: tuple[int, ...]
    kind: str = OTHER
    in_before_out: bool | None = None  # of a matrix: its framework's order of axes; None if it has none
    is_conv: bool = False  # (window.., in, out), by name
    stacks: tuple[int, ...] | None = None  # of a matrix that is read otherwise: the axes that count matrices
    layers: tuple[int, ...] | None = None  # where all axes have names: those that count layers


class AxisReading(NamedTuple):
    """What the axes of a leaf are."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    experts: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    why: str = ''


Axes = tuple[frozenset[int], tuple[int, ...], tuple[int, ...]]  # batch, rows, columns: what makes readings differ
Experts = tuple[bool, ...]  # of each stack, whether it counts experts
Readings = dict[str, dict[Axes, AxisReading]]  # of each matrix


def read_axes(clues: Mapping[str, Clue]) -> tuple[dict[str, list[AxisReading]], set[str]]:
    """All readings of each matrix that hold for the tree, by path; and the paths of matrices in contradiction.

    Matrices in contradiction are in subtrees for which no hypothesis holds: they have the readings that their own shape
    allows.
    """
    root, contradictory = _tree(clues), set()
    readings = _settle(root, frozenset(), contradictory)
    return {path: list(of_leaf.values()) for path, of_leaf in readings.items()}, contradictory


@dataclasses.dataclass(eq=False)
class _Node:
    path: str
    children: dict[str, '_Node'] = dataclasses.field(default_factory=dict)
    leaves: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> path
    clues: Mapping[str, Clue] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def below(self) -> list[str]:
        """The paths of all leaves under the node."""
        return [*self.leaves.values(), *itertools.chain.from_iterable(node.below for node in self.children.values())]

    @functools.cached_property
    def matrices(self) -> list[str]:
        return [path for path in self.below if self.clues[path].kind == MATRIX]

    @property
    def has_experts(self) -> bool:
        """Whether a stack that ends here counts experts: by name, since that changes no matrix."""
        *_, above, name = ['', *self.path.split('/')]
        return bool(_EXPERTS.fullmatch(name) or (_EXPERTS.fullmatch(above) and name not in ('layers', 'blocks')))

    @functools.cached_property
    def is_layer(self) -> bool:
        """Whether it is a module with a single weight matrix, and perhaps a bias."""
        return len(self.matrices) == 1 and self.matrices[0] in self.leaves.values()

    @functools.cached_property
    def group(self) -> list[tuple[str, str | None]]:
        """Matrices that stand side by side, each with its bias: of the layers right under the node, and its own."""
        members = []
        for node in self.children.values():
            if node.is_layer:
                members.append((node.matrices[0], node.bias_of(node.matrices[0])))
        if not self.is_layer or not self.path:
            own = (path for path in self.leaves.values() if self.clues[path].kind == MATRIX)
            members += [(path, self.bias_of(path)) for path in own]
        return members

    def bias_of(self, path: str) -> str | None:
        names = (f'{path.rpartition("/")[2]}_bias', *(('bias', 'b') if self.is_layer else ()))
        return next((self.leaves[name] for name in names if name in self.leaves), None)


def _tree(clues: Mapping[str, Clue]) -> _Node:
    root = _Node('', clues=clues)
    for path in clues:
        *modules, name = path.split('/')
        node = root
        for module in modules:
            below = f'{node.path}/{module}'.lstrip('/')
            node = node.children.setdefault(module, _Node(below, clues=clues))
        node.leaves[name] = path
    return root


def _settle(node: _Node, widths: frozenset[int], contradictory: set[str]) -> Readings:
    """The readings under the node; where no hypothesis holds for all of it, those of its parts."""
    readings = _readings(node, (), widths)
    if readings is not None:
        return readings
    readings, widths = {}, widths | _widths(node, ())
    for child in node.children.values():
        if not child.is_layer:
            readings |= _settle(child, widths, contradictory)
    for path, bias in node.group:
        clue, left = node.clues[path], tuple(range(len(node.clues[path].shape)))
        if clue.stacks is not None:
            continue
        splits = _splits(clue, left, node.clues[bias].shape if bias else None)
        if len(splits) == 1 and len(left) == 2:  # it is no stack, whatever is around it
            readings[path] = _by_axes(splits)
            continue
        contradictory.add(path)
        alone = _readings_of_group([_Member(clue._replace(in_before_out=None), None, path, (), ())], frozenset())
        readings[path] = (alone or {path: {}})[path]
    return readings


def _readings(node: _Node, stacks: tuple[int, ...], widths: frozenset[int], experts: Experts = ()) -> Readings | None:
    """Those of all hypotheses in which these stacks end at or above the node; None if no hypothesis holds.

    Args:
      stacks: the axes that hold the stacks; each counts the axes that the ones before have left.
      experts: of each of these, whether it counts experts.
    """
    options = []
    if node.matrices and not node.is_layer and len(stacks) < MOST_STACKS:
        for axis in _shared_axes(node, stacks):
            options.append(_readings(node, (*stacks, axis), widths, (*experts, node.has_experts)))
    options.append(_readings_here(node, stacks, widths, experts))
    return _union(options)


def _readings_here(node: _Node, stacks, widths, experts) -> Readings | None:
    """Those of all hypotheses with these stacks, and no other that ends at the node."""
    widths |= _widths(node, stacks)
    members = [_Member(node.clues[path], node.clues.get(bias), path, stacks, experts) for path, bias in node.group]
    readings = _readings_of_group(members, widths)
    of_matrices = {bias for _, bias in node.group}
    for path in node.leaves.values():
        if path not in of_matrices and not _fits(node.clues[path], stacks):
            return None
    for child in node.children.values():
        if readings is None:
            return None
        if child.is_layer:
            others = set(child.below) - {child.matrices[0], child.bias_of(child.matrices[0])}
            below = {} if all(_fits(node.clues[path], stacks) for path in others) else None
        else:
            below = _readings(child, stacks, widths, experts)
        readings = None if below is None else readings | below
    return readings


class _Member(NamedTuple):
    """A matrix of a group."""

    clue: Clue
    bias: Clue | None
    path: str
    stacks: tuple[int, ...]
    experts: tuple[bool, ...]

    @property
    def left(self) -> tuple[int, ...] | None:
        return _left(self.clue, self.stacks)

    @property
    def bias_shape(self) -> tuple[int, ...] | None:
        """Of its bias, without the stacks; None where there is no bias."""
        if self.bias is None:
            return None
        left = _left(self.bias, self.stacks)
        return None if left is None else tuple(self.bias.shape[axis] for axis in left)


def _readings_of_group(members: Sequence[_Member], widths: frozenset[int]) -> Readings | None:
    """Those of matrices side by side, which may be stacked together, as experts are."""
    options = [_readings_by_splits(members, widths)]
    for axis in _shared_axes_of_group(members):
        deeper = lambda member, axis=axis: member._replace(
            stacks=(*member.stacks, axis), experts=(*member.experts, True)
        )
        further = [deeper(member) if _is_deep(member) else member for member in members]
        options.append(_readings_of_group(further, widths))
    return _union(options)


def _is_deep(member: _Member) -> bool:
    left, clue = member.left, member.clue
    return left is not None and len(left) > 2 and not clue.is_conv and clue.stacks is None


def _shared_axes_of_group(members: Sequence[_Member]) -> Iterator[int]:
    deep = [member for member in members if _is_deep(member)]
    if not deep or len(deep[0].stacks) >= MOST_STACKS:
        return
    clues = [clue for member in deep for clue in (member.clue, member.bias) if clue is not None]
    yield from _common_axes(clues, deep[0].stacks)


def _readings_by_splits(members: Sequence[_Member], widths: frozenset[int]) -> Readings | None:
    """Those in which what the stacks leave of each matrix is inputs and outputs."""
    readings, open_members = {}, {}
    for member in members:
        if member.left is None or (member.bias is not None and member.bias_shape is None):
            return None
        if member.clue.stacks is not None:
            if not _fits(member.clue, member.stacks):
                return None
            continue
        splits = _splits(member.clue, member.left, member.bias_shape)
        readings[member.path] = _with_stacks(member, splits) | _stacked_alone(member)
        if not readings[member.path]:
            return None
        if len(splits) > 1:
            open_members[member] = splits
    if open_members and next(_shared_axes_of_group(members), None) is None:
        for member, splits in _by_mirrored_pair(open_members, widths).items():
            readings[member.path] = _with_stacks(member, splits)
    return readings


def _stacked_alone(member: _Member) -> dict[Axes, AxisReading]:
    """The readings of a matrix with a bias that has a first axis like it: a stack, or blocks on a diagonal."""
    bias = member.bias_shape
    if not _is_deep(member) or not bias or len(bias) < 2 or bias[0] != member.clue.shape[member.left[0]]:
        return {}
    if len(member.stacks) >= MOST_STACKS:
        return {}
    deeper = member._replace(stacks=(*member.stacks, 0), experts=(*member.experts, True))
    return _with_stacks(deeper, _splits(deeper.clue, deeper.left, deeper.bias_shape))


def _splits(clue: Clue, left: tuple[int, ...], bias: tuple[int, ...] | None) -> list[AxisReading]:
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
    open_members: Mapping[_Member, list[AxisReading]], widths: frozenset[int]
) -> dict[_Member, list[AxisReading]]:
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


def _has_width(member: _Member, split: AxisReading, width: int, in_one_axis: bool) -> bool:
    """Whether inputs, all before the outputs, or outputs are so many."""
    sides = [axes for axes in (split.rows, split.cols) if len(axes) == 1 or not in_one_axis]
    return max(split.rows) < min(split.cols) and width in [_size(member, axes) for axes in sides]


def _sizes(shape: tuple[int, ...], at: int) -> tuple[int, int]:
    return math.prod(shape[:at]), math.prod(shape[at:])


def _size(member: _Member, axes: Sequence[int]) -> int:
    return math.prod(member.clue.shape[axis] for axis in axes)


def _with_stacks(member: _Member, splits: Sequence[AxisReading]) -> dict[Axes, AxisReading]:
    removed = _removed(member.clue, member.stacks)
    experts = tuple(itertools.compress(removed, member.experts))
    batch = (*(axis for axis in removed if axis not in experts), *experts)
    stacked = 'stacked, ' + ', '.join(f'{member.clue.shape[axis]} on axis {axis}' for axis in batch) if batch else ''
    why = lambda split: '; '.join(filter(None, [split.why, stacked]))
    return _by_axes([split._replace(batch=batch, experts=experts, why=why(split)) for split in splits])


def _by_axes(readings: Sequence[AxisReading]) -> dict[Axes, AxisReading]:
    by_axes = {}
    for reading in readings:
        by_axes.setdefault((frozenset(reading.batch), reading.rows, reading.cols), reading)
    return by_axes


def _union(options: Sequence[Readings | None]) -> Readings | None:
    """The readings of all options that hold; of two alike the one that came first."""
    holding = [option for option in options if option is not None]
    if not holding:
        return None
    return {
        path: {axes: reading for option in reversed(holding) for axes, reading in option[path].items()}
        for path in holding[0]
    }


def _widths(node: _Node, stacks) -> frozenset[int]:
    """The sizes of norms in the node, and right under it."""
    paths = [*node.leaves.values(), *(path for child in node.children.values() for path in child.leaves.values())]
    norms = [node.clues[path] for path in paths if node.clues[path].kind == NORM]
    return frozenset(clue.shape[axis] for clue in norms for axis in _left(clue, stacks) or ())


def _fits(clue: Clue, stacks) -> bool:
    """Whether the stacks leave of a leaf, if it is no matrix, as many axes as its kind has."""
    left = _left(clue, stacks)
    if left is None:
        return False
    removed = set(_removed(clue, stacks))
    if clue.layers is not None and not set(clue.layers) <= removed:
        return False
    if clue.stacks is not None:
        return removed <= set(clue.stacks)
    own = {NORM: (1,), HEAD_NORM: (1, 2), EMBEDDING: (2,)}.get(clue.kind)
    return own is None or len(left) in own


def _left(clue: Clue, stacks: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of a leaf that the stacks leave; None if it hasn't all of these."""
    axes = list(range(len(clue.shape)))
    for axis in stacks:
        if axis >= len(axes) or not axes:
            return None
        del axes[axis]
    return tuple(axes)


def _removed(clue: Clue, stacks: Sequence[int]) -> tuple[int, ...]:
    axes, removed = list(range(len(clue.shape))), []
    for axis in stacks:
        removed.append(axes.pop(axis))
    return tuple(removed)


def _shared_axes(node: _Node, stacks) -> Iterator[int]:
    clues = [node.clues[path] for path in node.below]
    is_conv_alone = len(clues) == 1 and clues[0].is_conv  # its window is no stack
    return iter(()) if is_conv_alone else _common_axes(clues, stacks)


def _common_axes(clues: Sequence[Clue], stacks) -> Iterator[int]:
    """The axes that all have, of one size, after the stacks; -1 for the last one where they differ in their number."""
    lefts = [_left(clue, stacks) for clue in clues]
    if any(not left for left in lefts):
        return
    shapes = [tuple(clue.shape[axis] for axis in left) for clue, left in zip(clues, lefts)]
    fewest, most = min(map(len, shapes)), max(map(len, shapes))
    for axis in (*range(fewest), *([-1] if most > fewest else [])):
        if len({shape[axis] for shape in shapes}) == 1:
            yield axis
