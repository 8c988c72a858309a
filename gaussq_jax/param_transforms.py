"""ParamTransform: what happens to a parameter tree before the model sees it, as a pair of pure functions.

The BF16 baseline, Gaussian weight sampling and DiffQ's uniform noise are values of this one type, so that
a training loop never asks which method it runs:

    state = transform.init(params)
    loss = lambda params, state: f(model.apply({'params': transform.apply(key, params, state)}, batch))
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gaussq_jax.bitwidths import effective_bitwidths
from gaussq_jax.param_rules import DEFAULT_RULES, MatrixRule, Rule, find_rule, is_floating, leaf_path, match_rules
from gaussq_jax.weight_sampling import block_grid, check_block_size, check_dtype, sample_weights
from kernels_pallas.float_rounding import round_to_dtype
from kernels_pallas.weight_sampling import select

Params = Any  # a pytree of weights: linen, NNX, Equinox, Haiku
State = dict[str, jax.Array]  # leaf path -> b_i


class InitFn(Protocol):
    def __call__(self, params: Params) -> State:
        """The learned bitwidths of these params at the start: {leaf path: b_i, all ones}; {} if none are learned.

        Raises:
          ValueError: if the rules don't fit the tree (see `match_rules`), or two sampled leaves share one noise.
        """


class ApplyFn(Protocol):
    def __call__(
        self,
        key: jax.Array | None,
        params: Params,
        state: State,
        *,
        path: Sequence[str] = (),
        layer: jax.Array | int | None = None,
    ) -> Params:
        """The weights that the model multiplies with, a tree like `params`.

        Args:
          key: a JAX PRNG key, new for each step; None for no noise, weights still rounded.
          params: the whole tree; or, with `layer`, one layer's slice of the tree under `path`.
          state: as `init` made it from the whole tree, also for a slice.
          path: names from the root to `params`, such as ('layers',).
          layer: index of the slice along the first batch axis of its leaves' rules; may be traced.

        Raises:
          ValueError: if `state` is not of this tree.
        """


class BitwidthsFn(Protocol):
    def __call__(self, state: State) -> dict[str, jax.Array]:
        """{leaf path: b_t, one number a block}: for penalties, sizes and metrics."""


class ParamTransform(NamedTuple):
    """Three pure functions: `init(params)`, `apply(key, params, state)`, `bitwidths(state)`.

    Gradients go straight through `apply` to the params; the state gets a gradient of its own.
    """

    init: InitFn
    apply: ApplyFn
    bitwidths: BitwidthsFn


def gaussian_weight_sampling(
    b_init: float = 6.0,
    b_target: float = 4.0,
    *,
    rules: Sequence[Rule] = DEFAULT_RULES,
    block_size: int = 32,
    dtype: Any = jnp.bfloat16,
    implementation: str | None = None,
) -> ParamTransform:
    """Gaussian weight sampling: W_hat = round(W + R * max |W| * 2^(1 - b_t)) by block, R = round(N(0, 1) / 2).

    Weight matrices (see `rules`) are sampled as `sample_weights` does; all other floating leaves are rounded to
    `dtype`; the rest is untouched. The noise of a leaf comes from the key and the leaf's path alone:
    the leaf's key is fold_in(key, h), h the first four bytes (little-endian) of the SHA-256 of its path.

    Args:
      b_init: bitwidth at the start, in bits.
      b_target: bitwidth that b_t decays to, in bits.
      rules: ordered rules that say which leaves are weight matrices, and what their axes mean.
      block_size: side of the square blocks that share a bitwidth.
      dtype: of the weights handed to the model, bfloat16 or float32.
      implementation: as for `sample_weights`.

    Raises:
      ValueError: unless 1 <= b_target <= b_init; for a dtype, block size or implementation that isn't allowed.

    Example:
      >>> pqt = gaussian_weight_sampling(b_init=6, b_target=4)
      >>> params = {'up': {'kernel': jnp.ones((64, 128)), 'bias': jnp.ones(128)}}
      >>> state = pqt.init(params)
      >>> {path: b_i.shape for path, b_i in state.items()}
      {'up/kernel': (2, 4)}
      >>> pqt.apply(jax.random.key(0), params, state)['up']['kernel'].dtype
      dtype(bfloat16)

    Source: arXiv 2505.11170, section 3.
    """
    return _WeightSampling(
        'rounded_normal', b_init, b_target, tuple(rules), block_size, dtype, implementation
    ).transform()


def uniform_weight_sampling(
    b_init: float = 6.0,
    b_target: float = 4.0,
    *,
    rules: Sequence[Rule] = DEFAULT_RULES,
    block_size: int = 32,
    dtype: Any = jnp.bfloat16,
    implementation: str | None = None,
) -> ParamTransform:
    """DiffQ-style noise: as `gaussian_weight_sampling`, with R ~ U(-1/2, 1/2) and the same step.

    Arguments and errors are those of `gaussian_weight_sampling`.

    Source: DiffQ, arXiv 2104.09987, with the blocks and the step of arXiv 2505.11170.
    """
    return _WeightSampling('uniform', b_init, b_target, tuple(rules), block_size, dtype, implementation).transform()


def cast_params(dtype: Any = jnp.bfloat16) -> ParamTransform:
    """The baseline: every floating leaf rounded to `dtype`; nothing sampled, nothing learned.

    Args:
      dtype: bfloat16 or float32.

    Raises:
      ValueError: for another dtype.

    Example:
      >>> cast_params().apply(None, {'w': jnp.float32(1.001)}, {})
      {'w': Array(1, dtype=bfloat16)}
    """
    dtype = check_dtype(dtype)

    def apply(key, params, state, *, path=(), layer=None):
        del key, path, layer
        _check_state(state, ())
        return jax.tree.map(functools.partial(_cast, dtype=dtype), params)

    return ParamTransform(init=lambda params: {}, apply=apply, bitwidths=lambda state: {})


def path_hash(path: str) -> int:
    """32 bits that name a leaf in `jax.random.fold_in`: the first four bytes of SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], 'little')


@dataclasses.dataclass(frozen=True)
class _WeightSampling:
    """The three functions of a transform that samples, over what its constructor fixed."""

    noise: str
    b_init: float
    b_target: float
    rules: Sequence[Rule]
    block_size: int
    dtype: Any
    implementation: str | None

    def __post_init__(self):
        self._bitwidths_of(1.0)  # refuses what can't be here, rather than in the first step
        check_dtype(self.dtype)
        check_block_size(self.block_size)
        select(self.implementation)
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise ValueError(f'rules holds {rule!r}; allowed are MatrixRule and CastOnly')

    def transform(self) -> ParamTransform:
        return ParamTransform(self.init, self.apply, self.bitwidths)

    def init(self, params: Params) -> State:
        leaves = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        matrices, _ = match_rules(params, self.rules)
        _check_hashes(matrices)
        grid = lambda path: block_grid(matrices[path].matrix_shape(leaves[path].shape), self.block_size)
        return {path: jnp.ones(grid(path), jnp.float32) for path in matrices}

    def apply(self, key, params, state, *, path=(), layer=None):
        if isinstance(path, str):
            raise ValueError(f'path={path!r}: it must be a sequence of names, such as {tuple(path.split("/"))}')
        sampled = set()

        def transform_leaf(key_path, leaf):
            name = '/'.join((*path, *filter(None, [leaf_path(key_path)]))).removesuffix('/value')
            rule = find_rule(name, leaf.ndim + (layer is not None), self.rules) if is_floating(leaf) else None
            if isinstance(rule, MatrixRule):
                sampled.add(name)
            if not isinstance(rule, MatrixRule) or key is None:
                return _cast(leaf, self.dtype)
            _check_state({name} & set(state), {name})
            return self._sample_leaf(jax.random.fold_in(key, path_hash(name)), leaf, state[name], rule, layer)

        transformed = jax.tree_util.tree_map_with_path(transform_leaf, params)
        under_path = {name for name in state if f'{name}/'.startswith(''.join(f'{part}/' for part in path))}
        _check_state(under_path, sampled)
        if layer is not None and state and not sampled:
            raise ValueError(f'path={tuple(path)}: no leaf under it has bitwidths; those that have are {sorted(state)}')
        return transformed

    def bitwidths(self, state: State) -> dict[str, jax.Array]:
        return {path: self._bitwidths_of(b_i) for path, b_i in state.items()}

    def _bitwidths_of(self, b_i):
        return effective_bitwidths(b_i, self.b_init, self.b_target)

    def _sample_leaf(self, key, leaf, b_i, rule, layer):
        leading = 0
        if layer is not None:
            if not rule.batch_axes:
                raise ValueError(f'layer={layer} was given, but {rule} has no batch axis that could count layers')
            if not isinstance(layer, jax.core.Tracer) and not 0 <= layer < b_i.shape[0]:
                raise ValueError(f'layer={layer}: the leaf has the layers 0 to {b_i.shape[0] - 1}')
            leaf = jnp.expand_dims(leaf, rule.batch_axes[0])
            leading = layer * math.prod(b_i.shape[1 : len(rule.batch_axes)])
            b_i = jax.lax.dynamic_index_in_dim(b_i, layer, axis=0)
        w_hat = sample_weights(
            key,
            rule.to_matrices(leaf),
            self._bitwidths_of(b_i),
            origin=(leading, 0, 0),
            block_size=self.block_size,
            noise=self.noise,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        w_hat = rule.from_matrices(w_hat, leaf.shape)
        return w_hat if layer is None else jnp.squeeze(w_hat, rule.batch_axes[0])


def _cast(leaf: Any, dtype: Any) -> Any:
    return round_to_dtype(leaf, dtype) if is_floating(leaf) else leaf


def _check_state(learned: Iterable[str], sampled: Iterable[str]):
    missing, unexpected = set(sampled) - set(learned), set(learned) - set(sampled)
    if missing or unexpected:
        raise ValueError(
            f'state is not of these params: it lacks {sorted(missing) or "nothing"}'
            f' and has {sorted(unexpected) or "nothing"} besides; make it by init(params) of this transform'
        )


def _check_hashes(paths: Iterable[str]):
    by_hash = {}
    for path in paths:
        other = by_hash.setdefault(path_hash(path), path)
        if other != path:
            raise ValueError(f'the leaves {other!r} and {path!r} have one hash and would share their noise; rename one')
