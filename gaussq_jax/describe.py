"""A table of how a parameter tree is read: what becomes of each leaf, and why."""

import dataclasses
import html
import math
import re
from typing import Any

from gaussq_jax.packed.layout import kept_matrices
from gaussq_jax.param_reading import CAST, KEPT, SAMPLED, UNEXPLAINED, Reading, explain, read_params
from gaussq_jax.param_transforms import ParamTransform
from gaussq_jax.text_table import text_table
from gaussq_jax.weight_sampling import shape_in_blocks

COLUMNS = ('leaf', 'shape', 'action', 'axes', 'matrices', 'blocks', 'format', 'share', 'why')
NUMBERS = ('blocks', 'share')


@dataclasses.dataclass(frozen=True, repr=False)
class Description:
    """What `describe` found; printed, it is a table, and in a notebook a table of HTML.

    Attributes:
      leaves: by path, how each leaf is read.
      matrices: what becomes of weight matrices: 'sampled', 'quantized' or 'cast'.
      format: that these are rounded to, and `dtype` that others are.
      block_size: side of the blocks that share a bitwidth, or None.
      full_precision: by path, how many of a leaf's matrices are only cast, and of how many, where rules keep any.
    """

    leaves: dict[str, Reading]
    matrices: str
    format: str
    dtype: str
    block_size: int | None
    full_precision: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def totals(self) -> dict[str, int]:
        """How many weights are sampled (or quantized), cast, kept and unexplained."""
        totals = dict.fromkeys((self.matrices, CAST, KEPT, UNEXPLAINED), 0)
        for path, reading in self.leaves.items():
            num_kept, of = self.full_precision.get(path, (0, 1))
            totals[CAST] += reading.size * num_kept // of
            totals[self._action(path)] += reading.size * (of - num_kept) // of
        return totals

    def _action(self, path: str) -> str:
        reading, (num_kept, of) = self.leaves[path], self.full_precision.get(path, (0, 1))
        if num_kept == of:
            return CAST
        if reading.action == SAMPLED or (reading.action == UNEXPLAINED and self.matrices == CAST):
            return self.matrices
        return reading.action

    @property
    def summary(self) -> str:
        """The totals in a line."""
        total = max(sum(self.totals.values()), 1)
        parts = [f'{count:,} {action} ({count / total:.1%})' for action, count in self.totals.items() if count]
        return ', '.join([*parts, f'in {len(self.leaves)} leaves'])

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, of `COLUMNS`; leaves alike but for numbers in their paths are one row."""
        alike = {}
        for name, reading in self.leaves.items():
            roles = tuple(rule.roles for rule in reading.matrices)
            kept = self.full_precision.get(name)
            key = (re.sub(r'\d+', '#', name), reading.shape, reading.action, reading.why, roles, kept)
            alike.setdefault(key, []).append((name, reading))
        total = max(sum(self.totals.values()), 1)
        return [self._row(same, total) for same in alike.values()]

    def _row(self, same: list[tuple[str, Reading]], total: int) -> tuple[str, ...]:
        name, reading = same[0]
        more = f' (x {len(same)})' if len(same) > 1 else ''
        roles = matrices = blocks = ''
        if reading.action == SAMPLED:
            (rule,) = reading.matrices
            *batch, rows, columns = rule.matrix_shape(reading.shape)
            roles = ' '.join(rule.roles)
            matrices = ' x '.join(map(str, [*batch, f'({rows} -> {columns})']))
            if self.block_size:
                blocks = f'{math.prod(shape_in_blocks(rule.matrix_shape(reading.shape), self.block_size))}'
        action, why = self._action(name), reading.why
        formats = {self.matrices: self.format, CAST: self.dtype, KEPT: str(reading.dtype or ''), UNEXPLAINED: ''}
        share = f'{reading.size * len(same) / total:.2%}'
        shape = ' x '.join(map(str, reading.shape)) or 'a number'
        if name in self.full_precision:
            why += '; {} of {} in full precision'.format(*self.full_precision[name])
        return (name + more, shape, action, roles, matrices, blocks, formats[action], share, why)

    def __str__(self) -> str:
        table = [COLUMNS, *self.rows()]
        used = [column for column in zip(*table) if any(column[1:])]
        left = [place for place, (name, *_) in enumerate(used) if name not in NUMBERS]
        text = f'{text_table(zip(*used), left=left)}\n{self.summary}'
        return f'{text}\n{explain(self.leaves)}' if self.totals[UNEXPLAINED] else text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        style = 'text-align: left; padding-right: 1em'
        cells = lambda tag, row: ''.join(f'<{tag} style="{style}">{html.escape(cell)}</{tag}>' for cell in row)
        rows = ''.join(f'<tr>{cells("td", row)}</tr>' for row in self.rows())
        told = f'<pre>{html.escape(explain(self.leaves))}</pre>' if self.totals[UNEXPLAINED] else ''
        return f'<table><tr>{cells("th", COLUMNS)}</tr>{rows}</table><p>{html.escape(self.summary)}</p>{told}'


def describe(params: Any, transform: ParamTransform) -> Description:
    """How a transform reads a parameter tree: leaf by leaf what it is for, its axes, and by what authority.

    It never refuses a tree for what it can't read: leaves that are unexplained are in the table, and below it the rules
    to choose from.

    Args:
      params: pytree of weights, or of their shapes.
      transform: whose rules say how it is read.

    Returns:
      A Description: `print` it, or leave it as the last line of a notebook's cell; `.summary` is a line.

    Raises:
      ValueError: if two leaves have one path, or rules name a leaf, but with other axes; for an NNX module; for rules
        of the first or last layers that name a leaf in no stack of layers.

    Example:
      >>> params = {'up': {'kernel': jnp.ones((64, 128)), 'bias': jnp.ones(128)}}
      >>> print(describe(params, gq.gaussian_weight_sampling()))
      leaf       shape     action   axes    matrices     blocks  format     share  why
      up/bias    128       cast                                  bfloat16   1.54%  a bias or scale
      up/kernel  64 x 128  sampled  in out  (64 -> 128)       8  bfloat16  98.46%  kernel (in, out)
      8,192 sampled (98.5%), 128 cast (1.5%), in 2 leaves
    """
    readings = read_params(params, transform.rules, unnamed=transform.unnamed)
    full_precision = {}
    for path, reading in readings.items():
        if transform.full_precision and reading.action == SAMPLED:
            (rule,) = reading.matrices
            is_kept = kept_matrices(transform.full_precision, path, rule, rule.matrix_shape(reading.shape))
            if is_kept.any():
                full_precision[path] = (int(is_kept.sum()), is_kept.size)
    how = (transform.matrices, transform.format, transform.dtype, transform.block_size)
    return Description(readings, *how, full_precision)
