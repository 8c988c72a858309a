"""What a family of models is, and layers that many of them have.

What a leaf is: the roles of its axes, as `MatrixRule.roles` has them, or 'cast' or 'kept'. A family has `rules` where
nothing in its tree tells how some leaves are read: without them these, marked by a '?', are refused.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from parameter_trees import nest

V, D, F = 96, 32, 80  # vocabulary, width, MLP
H, N, K = 4, 2, 16  # heads, those of keys and values, head_dim
E, L, C = 6, 3, 10  # experts, layers, classes


@dataclasses.dataclass(frozen=True)
class Family:
    """A model's tree."""

    leaves: dict[str, tuple]  # path -> shape, what it is, names of axes if there are
    kind: str = 'arrays'  # or 'boxed', linen's LogicallyPartitioned; or 'nnx', a state of nnx.Param
    rules: tuple = ()
    others: Any = None  # more of an NNX state: path -> a variable

    def tree(self) -> Any:
        return nest({path: self._leaf(*leaf) for path, leaf in self.leaves.items()} | dict(self.others or {}))

    def _leaf(self, shape, what, names=None):
        array = jax.ShapeDtypeStruct(shape, jnp.float32)
        if self.kind == 'nnx':
            return nnx.Param(array, **({} if names is None else {'out_sharding': names, 'eager_sharding': False}))
        return array if names is None else nn.LogicallyPartitioned(array, names)

    def expected(self) -> dict[str, str]:
        return {path: leaf[1].removeprefix('?') for path, leaf in self.leaves.items()}

    def refused(self) -> set[str]:
        """The leaves that can't be read without rules."""
        return {path for path, leaf in self.leaves.items() if leaf[1].startswith('?')}


def under(prefix, leaves):
    return {f'{prefix}/{path}': leaf for path, leaf in leaves.items()}


def stacked(axis, leaves, name=None):
    """The leaves as nn.scan stacks them."""

    def one(shape, what, names=None):
        shape, at = list(shape), axis % (len(shape) + 1)
        shape.insert(at, L)
        if what not in ('cast', 'kept'):
            *_, roles = what.rpartition('?')
            roles = roles.split()
            roles.insert(at, 'layer')
            what = what[: what.startswith('?')] + ' '.join(roles)
        names = None if names is None else (*names[:at], name, *names[at:])
        return tuple(shape), what, *([] if names is None else [names])

    return {path: one(*leaf) for path, leaf in leaves.items()}


def dense(rows, cols, *names, bias=True, what='in out'):
    of = lambda *names: [names] if names else []
    leaves = {'kernel': ((rows, cols), what, *of(*names))}
    return leaves | ({'bias': ((cols,), 'cast', *of(*names[1:]))} if bias else {})


def norm(*names, bias=True, size=D):
    leaf = ((size,), 'cast', *([names] if names else []))
    return {'scale': leaf} | ({'bias': leaf} if bias else {})


def attention(bias=True, names=(), out='out'):
    """MultiHeadDotProductAttention of linen, and of NNX."""
    leaves = {}
    for one in ('query', 'key', 'value'):
        leaves[f'{one}/kernel'] = ((D, H, K), 'in head out', *names)
        if bias:
            leaves[f'{one}/bias'] = ((H, K), 'cast')
    leaves[f'{out}/kernel'] = ((H, K, D), 'head in out', *names)
    return leaves | ({f'{out}/bias': ((D,), 'cast')} if bias else {})


def mlp(first='Dense_0', second='Dense_1', **options):
    return under(first, dense(D, F, **options)) | under(second, dense(F, D, **options))
