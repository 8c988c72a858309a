"""Which leaf of a parameter tree is a weight matrix, and which of its axes are batch, rows and columns.

An ordered list of rules decides by the leaf's path, first match wins; the number of axes never decides whether
a leaf is sampled. Paths are key names joined by '/', such as 'layers/mlp/up/kernel'; a trailing 'value', as
NNX variables have, is dropped.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MatrixRule:
    """Leaves that are weight matrices: sampled, in square blocks of rows x columns.

    A leaf is read as a stack of matrices: its axes are transposed to (batch axes, row axes, column axes), rows and
    columns are flattened each. For a linear layer the rows are the inputs (the contracted axes).

    Attributes:
      path_regex: regular expression for the whole path of the leaf.
      batch_axes: axes that count matrices, such as the layer axis of a scanned model; usually ().
      row_axes: axes that are flattened into rows; at least one.
      col_axes: axes that are flattened into columns; at least one.

    The rule applies to leaves with as many axes as it names.

    Raises:
      ValueError: for an invalid regular expression, or axes that are not 0, 1, .., n - 1, each once.

    Example:
      >>> MatrixRule(r'.*/experts/kernel', batch_axes=(0,), row_axes=(1,), col_axes=(2,))
      MatrixRule(path_regex='.*/experts/kernel', batch_axes=(0,), row_axes=(1,), col_axes=(2,))
    """

    path_regex: str
    batch_axes: tuple[int, ...]
    row_axes: tuple[int, ...]
    col_axes: tuple[int, ...]

    def __post_init__(self):
        _check_regex(self)
        for name in ('batch_axes', 'row_axes', 'col_axes'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        integers = all(type(axis) is int for axis in self.axes)
        if not (integers and self.row_axes and self.col_axes) or sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(
                f'{self}: batch_axes, row_axes and col_axes must name the axes 0, 1, .., n - 1 once each,'
                ' at least one of them a row axis and one a column axis'
            )

    @property
    def axes(self) -> tuple[int, ...]:
        """The leaf's axes in the order batch, rows, columns."""
        return self.batch_axes + self.row_axes + self.col_axes

    def to_matrices(self, leaf: jax.Array) -> jax.Array:
        """The leaf as matrices (batch axes.., rows, columns)."""
        leaf = leaf.transpose(self.axes)
        batch, rows = len(self.batch_axes), len(self.row_axes)
        return leaf.reshape(*leaf.shape[:batch], *_flat_shape(leaf.shape[batch:], rows))

    def from_matrices(self, matrices: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The inverse of `to_matrices`, for a leaf of this shape."""
        transposed = matrices.reshape([shape[axis] for axis in self.axes])
        return transposed.transpose([self.axes.index(axis) for axis in range(len(self.axes))])

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (batch axes.., rows, columns) of `to_matrices` for a leaf of this shape."""
        transposed = [shape[axis] for axis in self.axes]
        batch, rows = len(self.batch_axes), len(self.row_axes)
        return (*transposed[:batch], *_flat_shape(transposed[batch:], rows))


@dataclasses.dataclass(frozen=True)
class CastOnly:
    """Leaves that are cast but not sampled, whatever their number of axes: embeddings, heads, norms, biases.

    Attributes:
      path_regex: regular expression for the whole path of the leaf.

    Raises:
      ValueError: for an invalid regular expression.
    """

    path_regex: str

    def __post_init__(self):
        _check_regex(self)


def _check_regex(rule: Any):
    try:
        re.compile(rule.path_regex)
    except (re.error, TypeError) as error:
        kind = type(rule).__name__
        raise ValueError(f'{kind} path_regex={rule.path_regex!r} is no regular expression: {error}') from None


Rule = MatrixRule | CastOnly

# A module that nn.scan stacked along axis 0: named layers (with no index behind it), or by linen's default. Models that
# stack along another axis, as T5X and MaxText do by default, need rules of their own: a shape doesn't tell.
_SCANNED = r'(.*/)?(layers|Scan\w+)/(?!(.*/)?\d+/)(.*/)?'
_HEADS = 'lm_head|cls_head|mlm_head|head|logits|logits_dense|to_logits|classifier|qa_outputs'

DEFAULT_RULES: tuple[Rule, ...] = (
    CastOnly(r'(.*/)?(bias|scale|embedding)'),
    CastOnly(rf'(.*/)?({_HEADS})/(.*/)?kernel'),
    # Attention with fused heads: query, key and value (d, heads, head_dim), out (heads, head_dim, d).
    MatrixRule(_SCANNED + r'(query|key|value)/kernel', (0,), (1,), (2, 3)),
    MatrixRule(_SCANNED + r'out/kernel', (0,), (1, 2), (3,)),
    MatrixRule(_SCANNED + r'[Cc]onv\w*/kernel', (0,), (1, 2), (3,)),
    MatrixRule(_SCANNED + r'[Cc]onv\w*/kernel', (0,), (1, 2, 3), (4,)),
    MatrixRule(_SCANNED + r'kernel', (0,), (1,), (2,)),
    MatrixRule(r'(.*/)?(query|key|value)/kernel', (), (0,), (1, 2)),
    MatrixRule(r'(.*/)?out/kernel', (), (0, 1), (2,)),
    # Convolutions: (window.., in, out).
    MatrixRule(r'(.*/)?[Cc]onv\w*/kernel', (), (0, 1), (2,)),
    MatrixRule(r'(.*/)?[Cc]onv\w*/kernel', (), (0, 1, 2), (3,)),
    MatrixRule(r'(.*/)?[Cc]onv\w*/kernel', (), (0, 1, 2, 3), (4,)),
    MatrixRule(r'(.*/)?kernel', (), (0,), (1,)),
)


def leaf_path(path: Sequence[Any]) -> str:
    """A leaf's path by name from a JAX key path: ('layers', 'up', 'kernel', 'value') -> 'layers/up/kernel'."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator='/').removesuffix('/value')


def find_rule(path: str, number_of_axes: int, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that matches the leaf, or None for a leaf that no rule names.

    Args:
      path: the leaf's path by name.
      number_of_axes: of the whole leaf.
      rules: in order, first match wins.

    Raises:
      ValueError: if rules name the leaf but with other axes, or if a `kernel` of three or more axes is named
        by none: what its axes mean can't be guessed.
    """
    named = [rule for rule in rules if re.fullmatch(rule.path_regex, path)]
    for rule in named:
        if isinstance(rule, CastOnly) or len(rule.axes) == number_of_axes:
            return rule
    if named or (path.rpartition('/')[2] == 'kernel' and number_of_axes > 2):
        tried = f' It is named by {", ".join(map(str, named))}, but with another number of axes.' if named else ''
        raise ValueError(
            f'no rule explains the {number_of_axes} axes of {path!r}.{tried} Put a MatrixRule that says which are'
            f' batch, rows and columns, or CastOnly({re.escape(path)!r}), before the other rules'
        )
    return None


def match_rules(params: Any, rules: Sequence[Rule]) -> tuple[dict[str, MatrixRule], list[Rule]]:
    """The MatrixRule of every leaf that is sampled, by path, and the rules that matched no leaf.

    What was understood is logged (INFO): the matrices, the rules that matched nothing, and the leaves of two or more
    axes that no rule names.

    Raises:
      ValueError: as `find_rule`; if two leaves have one path; if a leaf that is sampled is neither float32 nor
        bfloat16; if one of the caller's own rules (not of DEFAULT_RULES) matches no leaf, or none but leaves
        that an earlier rule took; if no leaf is sampled at all.

    Example:
      >>> params = {'up': {'kernel': jnp.zeros((8, 16)), 'bias': jnp.zeros(16)}}
      >>> matrices, unmatched = match_rules(params, DEFAULT_RULES)
      >>> matrices
      {'up/kernel': MatrixRule(path_regex='(.*/)?kernel', batch_axes=(), row_axes=(0,), col_axes=(1,))}
    """
    found = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_floating(leaf):
            continue
        path = leaf_path(key_path)
        if path in found:
            raise ValueError(f'two leaves have the path {path!r}, and would share bitwidths and noise; rename one')
        found[path] = rule = find_rule(path, leaf.ndim, rules)
        if isinstance(rule, MatrixRule):
            if leaf.dtype not in (jnp.float32, jnp.bfloat16):
                raise ValueError(f'{path!r} is {leaf.dtype}: only float32 and bfloat16 weights can be sampled')
            _logger.info('%s is sampled, as matrices of shape %s', path, rule.matrix_shape(leaf.shape))
        elif rule is None and leaf.ndim > 1:
            _logger.info('%s, of shape %s, is named by no rule, and cast only', path, leaf.shape)
    unmatched = [rule for rule in rules if rule not in found.values()]
    for rule in unmatched:
        _logger.info('%s matches no leaf', rule)
        if rule not in DEFAULT_RULES:
            raise ValueError(
                f'{rule} matches no leaf that an earlier rule has not taken. The leaves are {_listing(found)}'
            )
    matrices = {path: rule for path, rule in found.items() if isinstance(rule, MatrixRule)}
    if not matrices:
        raise ValueError(
            f'the rules sample no leaf of this tree: nothing would be quantized. The leaves are {_listing(found)};'
            ' give rules=(MatrixRule(...), ...) for those that are weight matrices'
        )
    return matrices, unmatched


def is_floating(leaf: Any) -> bool:
    """Whether the leaf is an array (or an array's shape and dtype) of floating-point numbers."""
    return hasattr(leaf, 'dtype') and hasattr(leaf, 'ndim') and jnp.issubdtype(leaf.dtype, jnp.floating)


def _flat_shape(shape: Sequence[int], rows: int) -> tuple[int, int]:
    return math.prod(shape[:rows]), math.prod(shape[rows:])


def _listing(paths: Any, most: int = 20) -> str:
    paths = list(paths)
    more = f' and {len(paths) - most} more' if len(paths) > most else ''
    return ', '.join(map(repr, paths[:most])) + more if paths else 'none'
