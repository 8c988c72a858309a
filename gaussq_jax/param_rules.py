"""What the leaves of a parameter tree are for: weight matrices, what is only cast, and what is kept as it is.

An ordered list of rules decides by the leaf's path (`param_tree`), first match wins. A rule for weight matrices may say
which of their axes are batch, rows and columns; where it doesn't, `axis_evidence` reads them, or refuses.
"""

import collections
import dataclasses
import math
import operator
import re
from collections.abc import Sequence
from typing import Any

import jax

LAYER, EXPERT, HEAD, IN, OUT = ROLES = ('layer', 'expert', 'head', 'in', 'out')


@dataclasses.dataclass(frozen=True)
class MatrixRule:
    """Leaves that are weight matrices: sampled, in square blocks of rows x columns.

    A leaf is read as a stack of matrices: its axes are transposed to (batch axes, row axes, column axes), rows and
    columns are flattened each. The rows are the inputs, the axes that the layer contracts; the columns are the outputs.

    Attributes:
      path_regex: regular expression for the whole path of the leaf.
      batch_axes: axes that count matrices, such as the layer axis of a scanned model; often ().
      row_axes: axes that are flattened into rows; at least one.
      col_axes: axes that are flattened into columns; at least one.
      expert_axes: those of the batch axes that count experts; the others count layers.
      head_axes: those of the row or column axes that count attention heads.
      optional: whether it is no error if the rule matches no leaf.

    A rule with axes applies to leaves of so many axes. In a rule without (all three None), each leaf's axes are read
    from the evidence in the tree: see docs/parameter_trees.md.

    Raises:
      ValueError: for an invalid regular expression; axes that are not 0, 1, .., n - 1, each once, or given in part;
        expert and head axes that are not among them.

    Example:
      >>> rule = MatrixRule(r'.*/experts/kernel', batch_axes=(0,), row_axes=(1,), col_axes=(2,), expert_axes=(0,))
      >>> rule.roles
      ('expert', 'in', 'out')
    """

    path_regex: str
    batch_axes: tuple[int, ...] | None = None
    row_axes: tuple[int, ...] | None = None
    col_axes: tuple[int, ...] | None = None
    expert_axes: tuple[int, ...] = dataclasses.field(default=(), repr=False)
    head_axes: tuple[int, ...] = dataclasses.field(default=(), repr=False)
    optional: bool = dataclasses.field(default=False, repr=False)

    def __post_init__(self):
        _check_regex(self)
        names = ('batch_axes', 'row_axes', 'col_axes', 'expert_axes', 'head_axes')
        for name in names:
            if isinstance(getattr(self, name), int):
                raise ValueError(f'{name}={getattr(self, name)}: it must be a tuple of axes')
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        given = [getattr(self, name) is not None for name in names[:3]]
        if not any(given):
            if self.expert_axes or self.head_axes:
                raise ValueError(
                    f'{self}: expert_axes and head_axes need batch_axes, row_axes and col_axes beside them'
                )
            return
        integers = all(given) and all(type(axis) is int for axis in self.axes)
        if not (integers and self.row_axes and self.col_axes) or sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(
                f'{self}: batch_axes, row_axes and col_axes must name the axes 0, 1, .., n - 1 once each,'
                ' at least one of them a row axis and one a column axis'
            )
        if self.batch_axes != (*self.layer_axes, *(axis for axis in self.batch_axes if axis in self.expert_axes)) or (
            not set(self.expert_axes) <= set(self.batch_axes)
        ):
            raise ValueError(f'{self}: expert_axes={self.expert_axes} must be the last of the batch axes')
        if not set(self.head_axes) <= set(self.row_axes + self.col_axes):
            raise ValueError(f'{self}: head_axes={self.head_axes} must be among the row and column axes')

    @property
    def axes(self) -> tuple[int, ...]:
        """The leaf's axes in the order batch, rows, columns."""
        if self.row_axes is None:
            raise ValueError(f'{self} names no axes: they are read from a tree')
        return self.batch_axes + self.row_axes + self.col_axes

    @property
    def layer_axes(self) -> tuple[int, ...]:
        """The batch axes that count layers."""
        return tuple(axis for axis in self.batch_axes if axis not in self.expert_axes)

    @property
    def roles(self) -> tuple[str, ...]:
        """What each axis of the leaf is, of ROLES; a head axis is also an input or an output."""
        of_axis = dict.fromkeys(self.layer_axes, LAYER) | dict.fromkeys(self.expert_axes, EXPERT)
        of_axis |= dict.fromkeys(self.row_axes, IN) | dict.fromkeys(self.col_axes, OUT)
        of_axis |= dict.fromkeys(self.head_axes, HEAD)
        return tuple(of_axis[axis] for axis in range(len(self.axes)))

    def without_axis(self, axis: int) -> 'MatrixRule':
        """The rule of what is left of a leaf at one index along a batch axis."""
        left = {
            name: tuple(other - (other > axis) for other in getattr(self, name) if other != axis)
            for name in ('batch_axes', 'row_axes', 'col_axes', 'expert_axes', 'head_axes')
        }
        return dataclasses.replace(self, **left)

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
      why: what these leaves are, as `describe` shows it.
      optional: whether it is no error if the rule matches no leaf.

    Raises:
      ValueError: for an invalid regular expression.
    """

    path_regex: str
    why: str = dataclasses.field(default='', repr=False, compare=False)
    optional: bool = dataclasses.field(default=False, repr=False)

    def __post_init__(self):
        _check_regex(self)


@dataclasses.dataclass(frozen=True)
class Keep(CastOnly):
    """Leaves that stay as they are, dtype included: batch statistics, decay rates of state-space layers, routers.

    Attributes and errors are those of `CastOnly`.
    """


def _check_regex(rule: Any):
    try:
        re.compile(rule.path_regex)
    except (re.error, TypeError) as error:
        kind = type(rule).__name__
        raise ValueError(f'{kind} path_regex={rule.path_regex!r} is no regular expression: {error}') from None


Rule = MatrixRule | CastOnly

# Names that tell what a leaf is for, in the models of flax's examples, T5X, MaxText, Hugging Face, big_vision, bonsai,
# Equinox, haliax, levanter and Haiku.
NORMS = re.compile(r'\w*([Nn]orm|ln|LN|bn|BN)\d*|(ln|norm|bn)_\w+|\w*[Nn]orm_\d+')
_EMBEDDINGS = r'\w*embeddings?|cls(_token)?|probe|register_tokens'
_HEADS = (
    r'(\w+_)?head|logits|logits_dense|logitdense|to_logits|classifier|qa_outputs|seq_relationship|predictions/decoder'
    r'|unembed|vocab_proj'
)

DEFAULT_RULES: tuple[Rule, ...] = (
    Keep(r'(.*/)?\w*[Rr]outer\w*(/[^/]+){0,3}', 'a router', optional=True),
    Keep(r'(.*/)?(batch_stats|_overwrite_with_gradient|cache)/.*', 'a collection of its own', optional=True),
    Keep(r'(.*/)?(mean|var)', 'batch statistics', optional=True),
    Keep(r'(.*/)?(A_log|log_a|dt_bias|D|a_param|a_imag_param)', 'of a state-space layer', optional=True),
    CastOnly(r'(.*/)?(\w+_)?lora_[ab]', 'a low-rank adapter', optional=True),
    CastOnly(r'(.*/)?((\w*_)?(bias|scale|offset|gamma|beta)|b)', 'a bias or scale', optional=True),
    CastOnly(rf'(.*/)?({_EMBEDDINGS})', 'an embedding', optional=True),
    CastOnly(rf'(.*/)?({NORMS.pattern})/(\d+/)?(weight|w)', 'a norm', optional=True),
    CastOnly(r'(.*/)?(\w*([Ee]mbed|tokens)\w*|wte|wpe)/(\d+/)?(weight|w)', 'an embedding', optional=True),
    CastOnly(rf'(.*/)?({_HEADS})/([^/]+/)?(kernel|weight|w)', 'a head', optional=True),
    MatrixRule(r'(.*/)?(kernel|weight(_[ih]h)?|w(_[ih])?|wi(_\d+)?|wo)', optional=True),
)


class RuleFinder:
    """Which of the rules name a leaf; those for one path alone, of which there may be thousands, are looked up.

    Args:
      rules: in order, first match wins.

    Example:
      >>> finder = RuleFinder((CastOnly('.*/head'), MatrixRule('.*', (), (0,), (1,))))
      >>> finder.find('model/head', 2), [type(rule).__name__ for rule in finder.named('model/head')]
      (CastOnly(path_regex='.*/head'), ['CastOnly', 'MatrixRule'])
    """

    def __init__(self, rules: Sequence[Rule]):
        self._of_path, self._others = collections.defaultdict(list), []
        for place, rule in enumerate(rules):
            path = re.sub(r'\\(.)', r'\1', rule.path_regex)
            if re.escape(path) == rule.path_regex:
                self._of_path[path].append((place, rule))
            else:
                self._others.append((place, re.compile(rule.path_regex), rule))

    def named(self, path: str) -> list[Rule]:
        """The rules that match the path, in order."""
        others = [(place, rule) for place, regex, rule in self._others if regex.fullmatch(path)]
        return [rule for _, rule in sorted([*self._of_path.get(path, []), *others], key=operator.itemgetter(0))]

    def find(self, path: str, number_of_axes: int) -> Rule | None:
        """The first rule that matches the leaf, or None for a leaf that no rule names.

        Args:
          path: the leaf's path by name.
          number_of_axes: of the whole leaf.

        Raises:
          ValueError: if rules name the leaf but with other axes.
        """
        named = self.named(path)
        for rule in named:
            if isinstance(rule, CastOnly) or rule.row_axes is None or len(rule.axes) == number_of_axes:
                return rule
        if named:
            raise ValueError(
                f'no rule explains the {number_of_axes} axes of {path!r}. It is named by'
                f' {", ".join(map(str, named))}, but with another number of axes. Put a MatrixRule that says which are'
                f' batch, rows and columns, or CastOnly({re.escape(path)!r}), before the other rules'
            )
        return None


def check_rules(rules: Any) -> tuple[Rule, ...]:
    """The rules as a tuple; ValueError for what is none."""
    if isinstance(rules, Rule | None):
        raise ValueError(f'rules={rules!r}: it must be a sequence of rules, such as (rule, *DEFAULT_RULES)')
    for rule in rules:
        if not isinstance(rule, Rule):
            raise ValueError(f'rules holds {rule!r}; allowed are MatrixRule, CastOnly and Keep')
    return tuple(rules)


def _flat_shape(shape: Sequence[int], rows: int) -> tuple[int, int]:
    return math.prod(shape[:rows]), math.prod(shape[rows:])
