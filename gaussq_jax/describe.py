"""A table of how a parameter tree is read: what becomes of each leaf, and why."""

import dataclasses
import html
import math
import re
from typing import Any

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
    """

    leaves: dict[str, Reading]
    matrices: str
    format: str
    dtype: str
    block_size: int | None

    @property
    def totals(self) -> dict[str, int]:
        """How many weights are sampled (or quantized), cast, kept and unexplained."""
        totals = dict.fromkeys((self.matrices, CAST, KEPT, UNEXPLAINED), 0)
        for reading in self.leaves.values():
            totals[self._action(reading)] += reading.size
        return totals

    def _action(self, reading: Reading) -> str:
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
            key = (re.sub(r'\d+', '#', name), reading.shape, reading.action, reading.why, roles)
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
        formats = {SAMPLED: self.format, CAST: self.dtype, KEPT: str(reading.dtype or ''), UNEXPLAINED: ''}
        share = f'{reading.size * len(same) / total:.2%}'
        shape = ' x '.join(map(str, reading.shape)) or 'a number'
        of_weights = (roles, matrices, blocks, formats[reading.action], share)
        return (name + more, shape, self._action(reading), *of_weights, reading.why)

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
      ValueError: if two leaves have one path, or rules name a leaf, but with other axes; for an NNX module.

    Example:
      >>> params = {'up': {'kernel': jnp.ones((64, 128)), 'bias': jnp.ones(128)}}
      >>> print(describe(params, gq.gaussian_weight_sampling()))
      leaf       shape     action   axes    matrices     blocks  format     share  why
      up/bias    128       cast                                  bfloat16   1.54%  a bias or scale
      up/kernel  64 x 128  sampled  in out  (64 -> 128)       8  bfloat16  98.46%  kernel (in, out)
      8,192 sampled (98.5%), 128 cast (1.5%), in 2 leaves
    """
    readings = read_params(params, transform.rules, unnamed=transform.unnamed)
    return Description(readings, transform.matrices, transform.format, transform.dtype, transform.block_size)
