"""Pictures that programs draw: which kinds there are, how they look, and how they are written."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gaussq_jax.atomic_files import new_file

matplotlib.use('agg')  # no window is opened

KINDS = ('.png', '.svg', '.pdf')
LONGEST_NAME = 40  # letters, of which the first and the last are kept
STYLE = {'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}  # for plt.rc_context


def check(path: pathlib.Path):
    """ValueError, before anything is measured, for a picture that could not be written."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(f'--output={path} must end in {", ".join(KINDS[:-1])} or {KINDS[-1]}')
    if not path.parent.is_dir():
        raise ValueError(f'--output={path}: there is no folder {path.parent}')


def plain(text: str, most: int = LONGEST_NAME) -> str:
    """A name as a picture has it: no formula of matplotlib's, and of so many letters at the most.

    Example:
      >>> plain('runs of the year/' + 30 * 'a' + '/gaussws-with-a-price')
      'runs of the year/aa…gaussws-with-a-price'
    """
    if len(text) > most:
        end = most // 2
        text = f'{text[: most - end - 1]}…{text[-end:]}'
    return text.replace('$', r'\$')


def evenly_chosen(values: Sequence[Any], most: int) -> list[Any]:
    """So many of the values at the most, the first and the last among them, for which there is room.

    Example:
      >>> evenly_chosen('abcdefg', 3)
      ['a', 'd', 'g']
    """
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def save(figure: Figure, path: pathlib.Path):
    """Writes a figure in one step, in the kind that its path's ending says."""
    with new_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150)
