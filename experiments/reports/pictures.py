"""Pictures that programs draw: which kinds there are, how they look, and how they are written."""

import pathlib

import matplotlib
from matplotlib.figure import Figure

from gaussq_jax.atomic_files import new_file

matplotlib.use('agg')  # no window is opened

KINDS = ('.png', '.svg', '.pdf')
STYLE = {'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}  # for plt.rc_context


def check(path: pathlib.Path):
    """ValueError, before anything is measured, for a picture that could not be written."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(f'--output={path} must end in {", ".join(KINDS[:-1])} or {KINDS[-1]}')
    if not path.parent.is_dir():
        raise ValueError(f'--output={path}: there is no folder {path.parent}')


def save(figure: Figure, path: pathlib.Path):
    """Writes a figure in one step, in the kind that its path's ending says."""
    with new_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150)
