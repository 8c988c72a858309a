"""What leaves are for, where a name doesn't tell: by the leaves beside them, their number of axes, their share.

All of it corrects DEFAULT_RULES; what a rule of the caller's says stands.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gaussq_jax.axis_names import axes_by_module
from gaussq_jax.param_rules import DEFAULT_RULES, NORMS, CastOnly, Keep, Rule, RuleFinder
from gaussq_jax.param_tree import Leaf, is_floating

LEAST_SHARE = 0.001  # of all weights; what no rule names and is less is cast
UNNAMED_LEAF = 'no rule names it'
MOST_OF_A_HEAD = 0.1  # of all weights, that a head by its place may have

_HEAD = CastOnly('.*', 'a head: the only linear layer beside the blocks', optional=True)
_ROUTER = Keep('.*', 'a router: a gate beside experts', optional=True)
_MATRIX = DEFAULT_RULES[-1]
_LAST_LAYER = re.compile(r'(fc|linear|dense|Dense|Linear)(_\d+)?')
_EXPERTS = re.compile(r'\w*([Ee]xperts?|[Mm]o[eE])\w*')


class Doubt(NamedTuple):
    """Why it can't be told what a leaf is for."""

    why: str


def find_purposes(
    leaves: Mapping[str, Leaf], rules: Sequence[Rule], *, is_part: bool, is_layer: bool
) -> dict[str, Rule | Doubt | None]:
    """The rule that says what each leaf of floating-point numbers is for, by path; None where no rule names it.

    Args:
      leaves: by path.
      rules: in order, the first match wins.
      is_part: whether the leaves are a part of a tree.
      is_layer: whether they are one layer's slice, without the axis that counts layers.

    Raises:
      ValueError: if rules name a leaf, but with other axes.
    """
    finder = RuleFinder(rules)
    found = {
        name: finder.find(name, leaf.value.ndim + is_layer)
        for name, leaf in leaves.items()
        if is_floating(leaf.value) and leaf.is_param
    }
    by_default = {name: rule for name, rule in found.items() if any(rule is default for default in DEFAULT_RULES)}
    matrices = [name for name, rule in by_default.items() if rule is _MATRIX and leaves[name].value.ndim > 1]
    share = _shares(leaves, found)
    for name, rule in by_default.items():
        found[name] = _corrected(leaves, name, rule, share[name], matrices)
    if not is_part:
        for name in _heads_by_place(leaves, found, matrices):
            small = share[name] <= MOST_OF_A_HEAD
            found[name] = _HEAD if small else Doubt(f'the only linear layer beside blocks, {share[name]:.0%}: a head?')
    for name, rule in found.items():
        if rule is None and leaves[name].value.ndim > 1 and share[name] >= LEAST_SHARE:
            found[name] = Doubt(f'{UNNAMED_LEAF}, {share[name]:.2%} of the weights')
    return found


def alike(name: str) -> str:
    """What is one for the paths of leaves that differ in their numbers alone."""
    return re.sub(r'\d+', '#', name)


def _shares(leaves: Mapping[str, Leaf], found: Mapping[str, Rule | None]) -> dict[str, float]:
    """Of each leaf: the share of the weights that it has, with those alike that are named by the same rule."""
    sizes = collections.Counter()
    for name, rule in found.items():
        sizes[alike(name), id(rule)] += leaves[name].value.size
    total = max(sum(sizes.values()), 1)
    return {name: sizes[alike(name), id(rule)] / total for name, rule in found.items()}


def _corrected(
    leaves: Mapping[str, Leaf], name: str, rule: Rule, share: float, matrices: Sequence[str]
) -> Rule | Doubt:
    """What a rule of DEFAULT_RULES comes to for a leaf."""
    leaf, (*modules, last) = leaves[name], name.split('/')
    module, what = modules[-1] if modules else '', getattr(rule, 'why', '')
    if leaf.value.ndim < 2:
        return rule
    if what in ('a norm', 'an embedding') and leaf.module is not None and not isinstance(axes_by_module(leaf), str):
        return _MATRIX if last in ('w', 'weight') else rule  # its class knows better than its name
    if what in ('of a state-space layer', 'batch statistics') and share >= LEAST_SHARE and last != 'A_log':
        return Doubt(f'named as what a layer keeps beside its weights, but {share:.2%} of these')
    if what == 'a head':
        above = name[: len(name) - len(f'{module}/{last}')]
        of_head = [other for other in leaves if other.startswith(above) and other.endswith(f'/{last}')]
        if above and not _is_head(module) and len(of_head) > 2:
            return Doubt('in a network that is named as a head')
    if rule is _MATRIX and 'opt_state' in modules:
        return Doubt("in an optimizer's state: give the parameters alone")
    if rule is _MATRIX and last in ('w', 'weight') and leaf.module is None and 'conv' in module.lower():
        return Doubt('named as a convolution, of no framework whose order of axes is known')
    if rule is _MATRIX and last == 'kernel' and NORMS.fullmatch(module):
        return Doubt('named as a norm, with as many axes as a matrix')
    if rule is _MATRIX and module == 'gate' and _is_router(leaves, name, modules, matrices):
        return _ROUTER
    return rule


def _is_head(module: str) -> bool:
    (head,) = (rule for rule in DEFAULT_RULES if isinstance(rule, CastOnly) and rule.why == 'a head')
    return bool(re.fullmatch(head.path_regex, f'{module}/kernel'))


def _is_router(leaves: Mapping[str, Leaf], name: str, modules: list[str], matrices: Sequence[str]) -> bool:
    """Whether a `gate` stands beside experts, and isn't one of the matrices of a gated MLP."""
    above = '/'.join(modules[:-1])
    beside = [other for other in matrices if other != name and other.startswith(f'{above}/'.lstrip('/'))]
    if any(leaves[other].value.shape == leaves[name].value.shape for other in beside):
        return False
    names = {other[len(above) :].lstrip('/').partition('/')[0] for other in beside} | set(modules[-2:-1])
    return any(_EXPERTS.fullmatch(one) for one in names)


def _heads_by_place(leaves: Mapping[str, Leaf], found: Mapping[str, Rule | None], matrices: Sequence[str]) -> list[str]:
    """The weight of the one linear layer right under the root, if blocks beside it make its inputs and none takes its
    outputs, and no leaf is named a head.
    """
    paths = [name.split('/') for name in matrices if found[name] is _MATRIX]
    root = 0  # how many first names all paths share, such as 'params'
    while paths and len({path[root] for path in paths}) == 1 and min(map(len, paths)) > root + 2:
        root += 1
    at_root = [path for path in paths if len(path) == root + 2 and leaves['/'.join(path)].value.ndim == 2]
    named = any(isinstance(rule, CastOnly) and rule.why == 'a head' for rule in found.values())
    if len(at_root) != 1 or not _LAST_LAYER.fullmatch(at_root[0][root]) or named:
        return []
    head = '/'.join(at_root[0])
    others = {size for name in matrices if name != head for size in leaves[name].value.shape}
    inputs, outputs = leaves[head].value.shape
    in_blocks = any(len(path) > root + 2 for path in paths)
    return [head] if in_blocks and inputs in others and outputs not in others else []
