"""What is known of leaves before their shapes are compared, and what stacks leave of their axes.

Stacks are axes, in turn, each counted among those that the ones before have left.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

MATRIX, NORM, HEAD_NORM, EMBEDDING, OTHER = 'matrix', 'norm', 'head norm', 'embedding', 'other'
MOST_STACKS = 4  # models of an ensemble, stages of a pipeline, layers, experts


class Clue(NamedTuple):
    """What is known of a leaf before shapes are compared."""

    shape: tuple[int, ...]
    kind: str = OTHER
    in_before_out: bool | None = None  # of a matrix: its framework's order of axes; None if it has none
    is_conv: bool = False  # (window.., in, out), by name
    stacks: tuple[int, ...] | None = None  # of a matrix that is read otherwise: the axes that count matrices
    layers: tuple[int, ...] | None = None  # where all axes have names: those that count layers

    def left(self, stacks: Sequence[int]) -> tuple[int, ...] | None:
        """The axes that the stacks leave; None if the leaf hasn't all of these."""
        axes = list(range(len(self.shape)))
        for axis in stacks:
            if axis >= len(axes) or not axes:
                return None
            del axes[axis]
        return tuple(axes)

    def removed(self, stacks: Sequence[int]) -> tuple[int, ...]:
        """The axes that the stacks are, all of which the leaf has, in their order."""
        axes = list(range(len(self.shape)))
        return tuple(axes.pop(axis) for axis in stacks)

    def fits(self, stacks: Sequence[int]) -> bool:
        """Whether the leaf has these stacks, if it is no matrix that is read by its shape.

        They leave as many axes as its kind has, count layers where names say so, and, in a matrix that is read
        otherwise, are among its own.
        """
        left = self.left(stacks)
        if left is None:
            return False
        removed = set(self.removed(stacks))
        if self.layers is not None and not set(self.layers) <= removed:
            return False
        if self.stacks is not None:
            return removed <= set(self.stacks)
        own = {NORM: (1,), HEAD_NORM: (1, 2), EMBEDDING: (2,)}.get(self.kind)
        return own is None or len(left) in own


class AxisReading(NamedTuple):
    """What the axes of a leaf are."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    experts: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    why: str = ''


Axes = tuple[frozenset[int], tuple[int, ...], tuple[int, ...]]  # batch, rows, columns: what makes readings differ
Readings = dict[str, dict[Axes, AxisReading]]  # of each matrix


def common_axes(clues: Sequence[Clue], stacks: Sequence[int]) -> Iterator[int]:
    """The axes that all have, of one size, after the stacks; -1 for the last one where they differ in their number."""
    lefts = [clue.left(stacks) for clue in clues]
    if any(not left for left in lefts):
        return
    shapes = [tuple(clue.shape[axis] for axis in left) for clue, left in zip(clues, lefts)]
    fewest, most = min(map(len, shapes)), max(map(len, shapes))
    for axis in (*range(fewest), *([-1] if most > fewest else [])):
        if len({shape[axis] for shape in shapes}) == 1:
            yield axis


def union(options: Sequence[Readings | None]) -> Readings | None:
    """The readings of all options that hold; of two alike the one that came first."""
    holding = [option for option in options if option is not None]
    if not holding:
        return None
    return {
        path: {axes: reading for option in reversed(holding) for axes, reading in option[path].items()}
        for path in holding[0]
    }


def by_axes(readings: Sequence[AxisReading]) -> dict[Axes, AxisReading]:
    """Of two alike the first."""
    different = {}
    for reading in readings:
        different.setdefault((frozenset(reading.batch), reading.rows, reading.cols), reading)
    return different
