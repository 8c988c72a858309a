"""Pictures that programs draw: which kinds there are, and how they are written."""

import pathlib

from matplotlib.figure import Figure

from gaussq_jax.atomic_files import new_file

KINDS = ('.png', '.svg', '.pdf')


def check(path: pathlib.Path):
    """ValueError for a picture of another kind."""
    if path.suffix.lower() not in KINDS:
        raise ValueError(f'--output={path} must end in {", ".join(KINDS[:-1])} or {KINDS[-1]}')


def save(figure: Figure, path: pathlib.Path):
    """Writes a figure in one step, in the kind that its path's ending says."""
    with new_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150)
