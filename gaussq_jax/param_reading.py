"""How each leaf of a parameter tree is read: by what authority, as which matrices; or what isn't told, in one error.

What the axes of a leaf are is told by a rule that names them; else by the names that its framework keeps of them; else
by the framework's own convention; else by what the shapes in the tree say together (`axis_evidence`). Where these
disagree, or leave several readings, the leaf is unexplained. docs/parameter_trees.md has the details.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from gaussq_jax.axis_clues import EMBEDDING, HEAD_NORM, MATRIX, NORM, OTHER, AxisReading, Clue
from gaussq_jax.axis_evidence import read_axes
from gaussq_jax.axis_names import axes_by_module, axes_by_names, layer_axes
from gaussq_jax.param_purposes import UNNAMED_LEAF, Doubt, find_purposes
from gaussq_jax.param_rules import DEFAULT_RULES, NORMS, CastOnly, Keep, MatrixRule, Rule
from gaussq_jax.param_tree import HAIKU, Leaf, is_floating, read_leaves

SAMPLED, CAST, KEPT, UNEXPLAINED = ACTIONS = ('sampled', 'cast', 'kept', 'unexplained')
UNNAMED = ('error', 'warn', 'cast')
MOST_LISTED = 20
MOST_CANDIDATES = 6

_CONV = re.compile(r'(?!.*Local)\w*[Cc]onv\w*')
_POINTWISE = re.compile(r'^pw|[Pp]oint')  # often a linear layer
_UNORDERED = re.compile(r'transpose|deconv|up_?conv|einsum|local', re.IGNORECASE)  # outputs may lie before inputs
_HEAD_NORM = re.compile(r'_?(q|k|query|key)_?(norm|ln|layernorm)(_\d+)?', re.IGNORECASE)


class Verdict(NamedTuple):
    """What becomes of a leaf, and why."""

    action: str  # one of ACTIONS
    why: str
    matrices: tuple[MatrixRule, ...] = ()  # SAMPLED: one, for this leaf alone; UNEXPLAINED: those that are left


class Reading(NamedTuple):
    """How a leaf is read."""

    shape: tuple[int, ...]
    dtype: Any
    given: Rule | None  # that said what the leaf is for
    action: str  # as of Verdict, and so are the rest
    why: str
    matrices: tuple[MatrixRule, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_params(
    params: Any, rules: Sequence[Rule], *, unnamed: str = 'error', path: Sequence[str] = (), is_layer: bool = False
) -> dict[str, Reading]:
    """How the leaves of a tree are read, by path; those that can't be are among them.

    Args:
      params: pytree of weights, or of their shapes.
      rules: ordered rules that say what leaves are for; the first match wins.
      unnamed: what becomes of a leaf of two or more axes that no rule names: 'error', it is unexplained; 'warn' or
        'cast', it is cast, with a warning or without.
      path: names from the root to `params`, where they are a part of a tree.
      is_layer: whether params are one layer's slice of that part, without the axis that counts layers.

    Raises:
      ValueError: if two leaves have one path, or rules name a leaf, but with other axes; for an NNX module.
    """
    leaves = read_leaves(params, path)
    found = find_purposes(leaves, rules, is_part=bool(path) or is_layer, is_layer=is_layer)
    if unnamed != 'error':
        found = {name: CastOnly('.*', rule.why) if _is_unnamed(rule) else rule for name, rule in found.items()}
    told = {name: _told(leaves, name, rule, is_layer) for name, rule in found.items() if isinstance(rule, MatrixRule)}
    is_transposed = any(_is_transposed(leaves, name, of_leaf) for name, of_leaf in told.items())
    clues = {
        name: _clue(leaves, name, rule, told.get(name), is_transposed)._replace(layers=layer_axes(leaves[name]))
        for name, rule in found.items()
    }
    left, contradictory = read_axes(clues)

    def read(name: str, leaf: Leaf) -> Verdict:
        if name not in found:
            why = 'another variable than nnx.Param' if is_floating(leaf.value) else 'no floating-point numbers'
            return Verdict(KEPT, why)
        rule = found[name]
        if rule is None:
            return Verdict(CAST, 'it is small, and no rule names it')
        if isinstance(rule, Doubt):
            return _doubtful(leaf, rule)
        if isinstance(rule, CastOnly):
            return Verdict(KEPT if isinstance(rule, Keep) else CAST, rule.why or f'named by {rule}')
        if isinstance(told[name], Verdict):
            return told[name]
        readings = [told[name]] if told[name] else left[name]
        candidates = tuple(_matrix_rule(name, reading) for reading in readings)
        if name in contradictory:
            return Verdict(UNEXPLAINED, 'no reading fits the norms, biases and stacks around it', candidates)
        if not told[name] and is_transposed and any(max(one.cols) < max(one.rows) for one in readings):
            why = 'a kernel of this tree is (out, in), by its bias or by a rule, and linen and NNX have (in, out)'
            return Verdict(UNEXPLAINED, why, candidates)
        if len(readings) > 1:
            return Verdict(UNEXPLAINED, 'its shape has several readings, and nothing around it tells', candidates)
        if leaf.value.dtype not in (jnp.float32, jnp.bfloat16):
            return Verdict(UNEXPLAINED, f'it is {leaf.value.dtype}: only float32 and bfloat16 are sampled', candidates)
        rows = readings[0].rows
        if told[name] is None and len(rows) > 1 and leaf.value.shape[rows[-1]] == 1:
            if clues[name].is_conv or len(rows) > 2:
                return Verdict(CAST, 'a depthwise convolution, or one of a single channel')
            return Verdict(UNEXPLAINED, 'heads of one number, or a depthwise convolution', candidates)
        return Verdict(SAMPLED, readings[0].why, candidates)

    return {
        name: Reading(
            tuple(getattr(leaf.value, 'shape', ())),
            getattr(leaf.value, 'dtype', None),
            found.get(name),
            *read(name, leaf),
        )
        for name, leaf in leaves.items()
    }


def checked_readings(params: Any, rules: Sequence[Rule], *, unnamed: str = 'error') -> dict[str, Reading]:
    """`read_params` of a whole tree, if all of it can be read.

    Raises:
      ValueError: as `read_params`; with all leaves that are unexplained, and rules for them; for a rule that isn't
        optional and matches no leaf that an earlier one has left; if no leaf is sampled.
    """
    readings = read_params(params, rules, unnamed=unnamed)
    check_explained(readings)
    taken = {id(reading.given) for reading in readings.values()}
    for rule in rules:
        if not rule.optional and id(rule) not in taken:
            raise ValueError(
                f'{rule} matches no leaf that an earlier rule has not taken. The leaves are {_listing(readings)}'
            )
    if all(reading.action != SAMPLED for reading in readings.values()):
        raise ValueError(
            f'the rules sample no leaf of this tree: nothing would be quantized. The leaves are {_listing(readings)};'
            ' give rules=(MatrixRule(...), ...) for those that are weight matrices'
        )
    return readings


def check_explained(readings: Mapping[str, Reading], *, is_part: bool = False):
    """ValueError for leaves that are unexplained."""
    if any(reading.action == UNEXPLAINED for reading in readings.values()):
        told = '; transform.resolve(params) reads parts of a tree as the whole is read' if is_part else ''
        raise ValueError(f'{explain(readings)}\ngq.describe(params, transform) shows how all leaves are read{told}')


def matrix_rules(params: Any, rules: Sequence[Rule], *, unnamed: str = 'error') -> dict[str, MatrixRule]:
    """The rule of every leaf that is sampled, by path: with its axes, and for this leaf alone.

    Args and Raises: as for `checked_readings`.

    Example:
      >>> params = {'up': {'kernel': jnp.zeros((8, 16)), 'bias': jnp.zeros(16)}}
      >>> matrix_rules(params, DEFAULT_RULES)
      {'up/kernel': MatrixRule(path_regex='up/kernel', batch_axes=(), row_axes=(0,), col_axes=(1,))}
    """
    return sampled_rules(checked_readings(params, rules, unnamed=unnamed))


def sampled_rules(readings: Mapping[str, Reading]) -> dict[str, MatrixRule]:
    """The rule of every leaf that is sampled, by path."""
    return {name: reading.matrices[0] for name, reading in readings.items() if reading.action == SAMPLED}


def sampled_shapes(readings: Mapping[str, Reading]) -> dict[str, tuple[int, ...]]:
    """The shape (batch.., m, n) of the matrices of every leaf that is sampled, by path."""
    return {name: rule.matrix_shape(readings[name].shape) for name, rule in sampled_rules(readings).items()}


def exact_rules(readings: Mapping[str, Reading]) -> tuple[Rule, ...]:
    """Rules that say of each leaf, by its whole path, what the readings say."""
    matrices = [dataclasses.replace(rule, optional=True) for rule in sampled_rules(readings).values()]
    kept = [
        Keep(re.escape(name), reading.why, optional=True)
        for name, reading in readings.items()
        if reading.action == KEPT
    ]
    return (*matrices, *kept, CastOnly('.*', optional=True))


def explain(readings: Mapping[str, Reading]) -> str:
    """What is wrong with the leaves that are unexplained, with the rules that would say how each is read.

    Leaves alike but for numbers in their paths are told as one.
    """
    unexplained = {name: reading for name, reading in readings.items() if reading.action == UNEXPLAINED}
    alike = {}
    for name, reading in unexplained.items():
        pattern = re.sub(r'\d+', lambda _: r'\d+', re.escape(name).replace(r'\-', '-'))
        axes = tuple(rule.axes for rule in reading.matrices)
        alike.setdefault((pattern, reading.shape, reading.why, axes), []).append((name, reading))
    share = sum(reading.size for reading in unexplained.values()) / sum(reading.size for reading in readings.values())
    lines = [
        f'{len(unexplained)} of {len(readings)} leaves are unexplained, {share:.1%} of the weights. Put rules for them'
        ' before the others:'
    ]
    for (pattern, shape, why, _), of_pattern in list(alike.items())[:MOST_LISTED]:
        name, reading = of_pattern[0]
        more = f' and {len(of_pattern) - 1} more' if len(of_pattern) > 1 else ''
        regex = pattern if more else re.escape(name).replace(r'\-', '-')
        lines.append(f'  {name}{more}, {shape}: {why}')
        likely = sorted(reading.matrices, key=_unlikely)
        lines += [f'    {paste(rule, regex, shape)}' for rule in likely[:MOST_CANDIDATES]]
        if len(likely) > MOST_CANDIDATES:
            lines.append(f'    or one of {len(likely) - MOST_CANDIDATES} other readings')
        lines.append(f"    gq.CastOnly(r'{regex}')  # no weight matrix; gq.Keep leaves it as it is")
    if len(alike) > MOST_LISTED:
        lines.append(f'  and {len(alike) - MOST_LISTED} more kinds; gq.describe(params, transform) has them all')
    return '\n'.join(lines)


def paste(rule: MatrixRule, regex: str, shape: Sequence[int]) -> str:
    """The rule as one would write it, and what it makes of the shape."""
    others = ''.join(f', {name}={getattr(rule, name)}' for name in ('expert_axes', 'head_axes') if getattr(rule, name))
    *batch, rows, cols = rule.matrix_shape(shape)
    stack = ' x '.join(map(str, batch)) + ' matrices of ' if batch else ''
    axes = f'batch_axes={rule.batch_axes}, row_axes={rule.row_axes}, col_axes={rule.col_axes}'
    return f"gq.MatrixRule(r'{regex}', {axes}{others})  # {stack}{rows} inputs -> {cols} outputs"


def _unlikely(rule: MatrixRule) -> tuple:
    """By which readings are sorted: stacks along the first axis come first, inputs among outputs last."""
    stacks = {(0,): 0, (): 1, (1,): 2}.get(rule.batch_axes, 3)
    return stacks, rule.row_axes[0] > min(rule.col_axes), rule.axes


def _is_unnamed(rule: Rule | Doubt | None) -> bool:
    return isinstance(rule, Doubt) and rule.why.startswith(UNNAMED_LEAF)


def _told(leaves: Mapping[str, Leaf], name: str, rule: MatrixRule, is_layer: bool) -> AxisReading | Verdict | None:
    """What a rule, names or a framework's class say of a weight matrix; None where they say nothing."""
    leaf = leaves[name]
    if rule.row_axes is not None:
        if is_layer and not rule.layer_axes:
            raise ValueError(f'{rule} has no batch axis that counts layers, and a layer of {name!r} was given')
        rule = rule.without_axis(rule.layer_axes[0]) if is_layer else rule
        return AxisReading(rule.batch_axes, rule.row_axes, rule.col_axes, rule.expert_axes, rule.head_axes, 'by a rule')
    if leaf.value.ndim < 2:
        return Verdict(CAST, 'it has less than two axes')
    if leaf.module is not None:
        reading = axes_by_module(leaf)
        if isinstance(reading, str) and rule not in DEFAULT_RULES:
            return Verdict(UNEXPLAINED, f'{rule} says that it is a weight matrix, but it is {reading}')
        return Verdict(CAST, reading) if isinstance(reading, str) else reading
    if (reading := axes_by_names(leaf)) is None:
        return None
    bias = _bias(leaves, name)
    expected = [leaf.value.shape[axis] for axis in (*reading.batch, *reading.cols)]
    if bias is not None and sorted(bias.value.shape) != sorted(expected):
        why = f'{reading.why}, but its bias has the shape {bias.value.shape}'
        return Verdict(UNEXPLAINED, why, (_matrix_rule(name, reading),))
    return reading


def _bias(leaves: Mapping[str, Leaf], name: str) -> Leaf | None:
    module, _, last = name.rpartition('/')
    names = (f'{last}_bias', *(['bias'] if last in ('kernel', 'weight') else ['b'] if last == 'w' else []))
    return next((leaves[path] for path in (f'{module}/{bias}'.lstrip('/') for bias in names) if path in leaves), None)


def _is_transposed(leaves: Mapping[str, Leaf], name: str, told: AxisReading | Verdict | None) -> bool:
    """Whether a `kernel` is known to be (out, in), as Hugging Face's FlaxConv1D has it."""
    if name.rpartition('/')[2] != 'kernel':
        return False
    if isinstance(told, AxisReading):
        return max(told.cols) < min(told.rows)
    bias, shape = _bias(leaves, name), leaves[name].value.shape
    return bias is not None and len(shape) == 2 and bias.value.shape == shape[:1] != shape[1:]


def _clue(leaves: Mapping[str, Leaf], name: str, rule: Rule | None, told: Any, is_transposed: bool) -> Clue:
    shape, (*modules, last) = tuple(leaves[name].value.shape), name.split('/')
    module = modules[-1] if modules else ''
    if isinstance(told, AxisReading):
        return Clue(shape, MATRIX, stacks=told.batch)
    if isinstance(rule, MatrixRule) and told is None:
        is_haiku = leaves[name].module == HAIKU and last == 'w'
        may_be_linear = len(shape) < 4 and _POINTWISE.search(module)
        is_conv = (last == 'kernel' or is_haiku) and bool(_CONV.fullmatch(module)) and not may_be_linear
        is_ordered = (last == 'kernel' and not is_transposed) or (is_haiku and is_conv)
        return Clue(shape, MATRIX, (is_ordered and not _UNORDERED.search(module)) or None, is_conv)
    if not shape or (rule is not None and rule not in DEFAULT_RULES):
        return Clue(shape)  # whatever its name says, its axes may be others
    has_scale = '/'.join((*modules, 'scale')) in leaves
    if len(shape) > 2 or leaves[name].module is not None:
        return Clue(shape)  # a norm over several axes, or of a framework whose norms have other axes
    if last == 'scale' or (last == 'bias' and has_scale) or (last in ('weight', 'w') and NORMS.fullmatch(module)):
        return Clue(shape, HEAD_NORM if _HEAD_NORM.fullmatch(module) else NORM)
    return Clue(shape, EMBEDDING if last == 'embedding' else OTHER)


def _doubtful(leaf: Leaf, doubt: Doubt) -> Verdict:
    """A leaf that can't be told what it is for; if it is a weight matrix, it has one of these readings."""
    readings, _ = read_axes({leaf.path: Clue(tuple(leaf.value.shape), MATRIX)})
    return Verdict(UNEXPLAINED, doubt.why, tuple(_matrix_rule(leaf.path, reading) for reading in readings[leaf.path]))


def _matrix_rule(name: str, reading: AxisReading) -> MatrixRule:
    axes = (reading.batch, reading.rows, reading.cols)
    return MatrixRule(re.escape(name), *axes, expert_axes=reading.experts, head_axes=reading.heads)


def _listing(names: Any) -> str:
    names = list(names)
    more = f' and {len(names) - MOST_LISTED} more' if len(names) > MOST_LISTED else ''
    return ', '.join(map(repr, names[:MOST_LISTED])) + more if names else 'none'
