"""Heat maps: a number a cell by its colour, and in digits where there is room; cividis, which every eye reads alike."""

import math
from collections.abc import Callable, Iterable, Sequence

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize

from experiments.reports import palette
from experiments.reports.pictures import plain

COLORS = 'cividis'
MOST_NUMBERED = 12  # columns of cells that are wide enough for digits
NAME_HEIGHT, DIGITS_HEIGHT = 11.0, 8.5  # points, of a row that has a name, and of one with digits in it
DARK_BELOW = 0.45  # of the colour map: digits on it are white


def scale(values: Iterable[float], *, least_span: float, from_zero: bool = False) -> Normalize:
    """The colours of finite values, over a span of at least `least_span`, so that trifles look like trifles.

    Args:
      values: those that are shown with these colours; NaN and infinity don't count.
      least_span: in their unit.
      from_zero: whether the span begins at 0.

    Example:
      >>> norm = scale([4.0, 4.2], least_span=1.0)
      >>> round(norm.vmin, 3), round(norm.vmax, 3)
      (3.6, 4.6)
    """
    finite = [float(value) for value in values if math.isfinite(value)] or [0.0]
    low, high = 0.0 if from_zero else min(finite), max(finite)
    if high - low < least_span:
        low, high = (0.0, least_span) if from_zero else ((low + high - least_span) / 2, (low + high + least_span) / 2)
    return Normalize(low, high)


def draw_layers(
    axes: Axes,
    values: np.ndarray,
    names: Sequence[str],
    norm: Normalize,
    *,
    number: Callable[[float], str] = '{:.2f}'.format,
) -> QuadMesh:
    """Draws a number of each matrix of each layer: layers from left to right, matrices from top to bottom.

    Args:
      axes: what it is drawn on.
      values: (matrices, layers). NaN, where a layer has no such matrix, is pale and empty; infinity is pale, with its
        sign in it.
      names: of the matrices.
      norm: the colours, as of `scale`.
      number: what is written into a cell where there are at most MOST_NUMBERED layers, and cells are as high as digits.

    Returns:
      What a colour bar is made of.
    """
    num_layers = values.shape[1]
    mesh = draw_cells(axes, np.arange(num_layers + 1) - 0.5, values, norm)
    name_rows(axes, names)
    axes.set_xlabel('layer')
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    if num_layers <= MOST_NUMBERED:
        axes.set_xticks(range(num_layers))
        if row_height(axes, len(names)) >= DIGITS_HEIGHT:
            _write_numbers(axes, values, mesh, number)
    return mesh


def name_rows(axes: Axes, names: Sequence[str], *, rows_of_each: int = 1):
    """Names rows, or groups of so many, from the top on: each, or each second, third .. one where they are too low."""
    every = max(1, math.ceil(NAME_HEIGHT / row_height(axes, len(names))))
    middles = rows_of_each * (np.arange(len(names)) + 0.5) - 0.5
    axes.set_yticks(middles[::every], [plain(name) for name in names[::every]])


def row_height(axes: Axes, num_rows: int) -> float:
    """In points; as it is before a layout makes room for labels, which takes little of it."""
    return 72 * axes.get_position().height * axes.figure.get_figheight() / max(num_rows, 1)


def draw_cells(axes: Axes, edges: np.ndarray, values: np.ndarray, norm: Normalize) -> QuadMesh:
    """Draws a cell a value, the first row at the top, row i between i - 1/2 and i + 1/2.

    Args:
      axes: what it is drawn on.
      edges: (columns + 1), of the columns, in the unit of the x axis.
      values: (rows, columns); those that aren't finite are pale.
      norm: the colours.
    """
    masked = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(edges, np.arange(len(values) + 1) - 0.5, masked, cmap=COLORS, norm=norm, rasterized=True)
    axes.set_facecolor(palette.PALE)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(len(values) - 0.5, -0.5))
    axes.tick_params(length=0)
    return mesh


def color_bar(mappable: ScalarMappable, axes: Axes | Sequence[Axes], label: str):
    """A colour bar beside the axes, which share its colours."""
    first = axes if isinstance(axes, Axes) else axes[0]
    bar = first.figure.colorbar(mappable, ax=axes, label=label, pad=0.015, aspect=30)
    bar.outline.set_visible(False)


def edges_between(steps: np.ndarray) -> np.ndarray:
    """The edges of columns at these increasing steps: halfway to the next one, and as far beyond the first and last.

    Example:
      >>> edges_between(np.array([10.0, 20.0, 40.0])).tolist()
      [5.0, 15.0, 30.0, 50.0]
    """
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.array([2 * steps[0] - middles[0], *middles, 2 * steps[-1] - middles[-1]])


def _write_numbers(axes: Axes, values: np.ndarray, mesh: QuadMesh, number: Callable[[float], str]):
    for (row, column), value in np.ndenumerate(values):
        if math.isnan(value):
            continue
        is_dark = math.isfinite(value) and mesh.norm(value) < DARK_BELOW
        text = number(value) if math.isfinite(value) else ('∞' if value > 0 else '−∞')
        style = dict(ha='center', va='center', fontsize=7, color='white' if is_dark else 'black')
        axes.text(column, row, text, **style)
