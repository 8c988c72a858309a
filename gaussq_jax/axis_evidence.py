"""Which axes of weights are stacks, inputs and outputs, from what the shapes in a tree say together.

A hypothesis says which subtrees are stacked, along which axis. It holds if every leaf under a stack has that axis, of
one size; if what is left of each norm's scale is one axis, and of a bias the outputs of its kernel; and if what is left
of each kernel is (inputs.., outputs..). All hypotheses that hold are gone through, and a weight has all the readings
that any of them gives it: one, and it is read; several, and the tree doesn't tell.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping

from gaussq_jax.axis_clues import (
    MATRIX,
    MOST_STACKS,
    NORM,
    AxisReading,
    Clue,
    Readings,
    by_axes,
    common_axes,
    union,
)
from gaussq_jax.axis_groups import Member, readings_of_group, splits_of

_EXPERTS = re.compile(r'(?!.*(layers|stages?))\w*([Ee]xpert|[Mm]o[eE])\w*')
Experts = tuple[bool, ...]  # of each stack, whether it counts experts


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
        splits = splits_of(clue, left, node.clues[bias].shape if bias else None)
        if len(splits) == 1 and len(left) == 2:  # it is no stack, whatever is around it
            readings[path] = by_axes(splits)
            continue
        contradictory.add(path)
        alone = readings_of_group([Member(clue._replace(in_before_out=None), None, path, (), ())], frozenset())
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
    return union(options)


def _readings_here(node: _Node, stacks, widths, experts) -> Readings | None:
    """Those of all hypotheses with these stacks, and no other that ends at the node."""
    widths |= _widths(node, stacks)
    members = [Member(node.clues[path], node.clues.get(bias), path, stacks, experts) for path, bias in node.group]
    readings = readings_of_group(members, widths)
    of_matrices = {bias for _, bias in node.group}
    for path in node.leaves.values():
        if path not in of_matrices and not node.clues[path].fits(stacks):
            return None
    for child in node.children.values():
        if readings is None:
            return None
        if child.is_layer:
            others = set(child.below) - {child.matrices[0], child.bias_of(child.matrices[0])}
            below = {} if all(node.clues[path].fits(stacks) for path in others) else None
        else:
            below = _readings(child, stacks, widths, experts)
        readings = None if below is None else readings | below
    return readings


def _widths(node: _Node, stacks) -> frozenset[int]:
    """The sizes of norms in the node, and right under it."""
    paths = [*node.leaves.values(), *(path for child in node.children.values() for path in child.leaves.values())]
    norms = [node.clues[path] for path in paths if node.clues[path].kind == NORM]
    return frozenset(clue.shape[axis] for clue in norms for axis in clue.left(stacks) or ())


def _shared_axes(node: _Node, stacks) -> Iterator[int]:
    clues = [node.clues[path] for path in node.below]
    is_conv_alone = len(clues) == 1 and clues[0].is_conv  # its window is no stack
    return iter(()) if is_conv_alone else common_axes(clues, stacks)
