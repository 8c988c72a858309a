"""ParamTransform: what happens to a parameter tree before the model sees it, as a pair of pure functions.

The BF16 baseline, Gaussian weight sampling, DiffQ's uniform noise and straight-through quantization-aware training
are values of this one type, so that a training loop never asks which method it runs:

    state = transform.init(params)
    loss = lambda params, state: f(model.apply({'params': transform.apply(key, params, state)}, batch))
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gaussq_jax import packed
from gaussq_jax.bitwidths import format_for_bitwidth
from gaussq_jax.formats import FloatFormat
from gaussq_jax.kept_layers import KeptLayers, check_kept_layers
from gaussq_jax.matrix_transforms import (
    MatrixTransform,
    Params,
    QuantizationAware,
    State,
    WeightSampling,
    cast,
    check_empty,
)
from gaussq_jax.packed import Formats, Layout, ModelSize
from gaussq_jax.param_purposes import find_purposes
from gaussq_jax.param_rules import DEFAULT_RULES, Keep, Rule, check_rules
from gaussq_jax.param_tree import map_leaves, read_leaves
from gaussq_jax.quantizer import Quantizer, check_quantizer
from gaussq_jax.weight_sampling import check_dtype


class InitFn(Protocol):
    def __call__(self, params: Params) -> State:
        """The learned bitwidths of these params at the start: {leaf path: b_i, all ones}; {} if none are learned.

        Raises:
          ValueError: if the rules don't fit the tree (see `describe`), or two sampled leaves share one noise.
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


class ResolveFn(Protocol):
    def __call__(self, params: Params) -> 'ParamTransform':
        """The same transform, with a rule for each leaf of this tree that says how it is read.

        It does the same to the tree, and reads parts of it, which have less to go by, as it reads the whole.

        Raises:
          ValueError: as `init`.
        """


class ParamTransform(NamedTuple):
    """Three pure functions: `init(params)`, `apply(key, params, state)`, `bitwidths(state)`.

    Gradients go straight through `apply` to the params; the state gets a gradient of its own. Where functions take a
    state, its leaves may also be nested by the parts of their paths, as checkpoints return them.

    The other fields say how weights are read, and what becomes of them, for those who lay them out, size, pack and
    describe them; a transform without them is complete for training.
    """

    init: InitFn
    apply: ApplyFn
    bitwidths: BitwidthsFn
    resolve: ResolveFn | None = None
    rules: tuple[Rule, ...] = DEFAULT_RULES
    unnamed: str = 'error'
    block_size: int | None = None  # side of the square blocks that share a bitwidth; None where none is learned
    matrices: str = 'sampled'  # what becomes of weight matrices, or 'quantized', 'cast'
    format: str = 'bfloat16'  # that these are rounded to
    dtype: str = 'bfloat16'  # of all weights that it hands out, but for those that are kept
    full_precision: tuple[KeptLayers, ...] = ()  # which of the weight matrices are only cast

    def learned_layout(self, params: Params, state: State, *, formats: Formats = format_for_bitwidth) -> Layout:
        """`gq.learned_layout` by the bitwidths, rules and blocks of this transform, with its arguments and errors."""
        return packed.learned_layout(params, self.bitwidths(state), formats=formats, **self._blocks())

    def uniform_layout(self, params: Params, fmt: FloatFormat | str, **kind: Any) -> Layout:
        """`gq.uniform_layout` of the weights that this transform's rules name, with its arguments and errors."""
        kind = {'full_precision': self.full_precision, **kind}
        return packed.uniform_layout(params, fmt, **kind, rules=self.rules, unnamed=self.unnamed)

    def formats_within_budget(self, params: Params, state: State, mean_stored_bits: float) -> Formats:
        """`gq.formats_within_budget` by the bitwidths, rules and blocks of this transform, with its errors."""
        return packed.formats_within_budget(params, self.bitwidths(state), mean_stored_bits, **self._blocks())

    def model_size(self, params: Params, state: State, *, formats: Formats = format_for_bitwidth) -> ModelSize:
        """`gq.model_size` by the bitwidths, rules and blocks of this transform, with its arguments and errors."""
        return packed.model_size(params, self.bitwidths(state), formats=formats, **self._blocks())

    def save_packed(
        self,
        path: str | os.PathLike,
        params: Params,
        state: State,
        *,
        formats: Formats = format_for_bitwidth,
        info: Mapping[str, Any] | None = None,
    ) -> ModelSize:
        """`gq.save_packed` with each block in the format of its learned bitwidth; arguments and errors are its own.

        Example:
          >>> import tempfile
          >>> pqt, params = gaussian_weight_sampling(b_init=4), {'up': {'kernel': jnp.ones((64, 32))}}
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     size = pqt.save_packed(f'{directory}/up.safetensors', params, pqt.init(params))
          >>> size.mean_stored_bits
          6.0078125
        """
        return packed.save_packed(path, params, self.learned_layout(params, state, formats=formats), info=info)

    def _blocks(self) -> dict[str, Any]:
        if self.block_size is None:
            raise ValueError('this transform learns no bitwidths; uniform_layout(params, fmt) has one format for all')
        return dict(block_size=self.block_size, rules=self.rules, unnamed=self.unnamed)


def gaussian_weight_sampling(
    b_init: float = 6.0,
    b_target: float = 4.0,
    *,
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
    block_size: int = 32,
    fmt: FloatFormat | str | None = None,
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
      rules: ordered rules that say what leaves are for, and may say what the axes of weight matrices mean; what they
        don't say is read from the tree, or refused. `describe` shows how a tree is read.
      unnamed: what becomes of leaves of two or more axes that no rule names and that are at least .1 % of the weights:
        'error', `init` refuses them; 'warn' or 'cast', they are cast, with a warning or without.
      block_size: side of the square blocks that share a bitwidth.
      fmt: a low-bit format, or its name, that sampled weights are rounded to as `sample_weights` does; without noise
        (key=None) they are rounded to it, too.
      dtype: of the weights handed to the model, bfloat16 or float32.
      implementation: as for `sample_weights`.

    Raises:
      ValueError: unless 1 <= b_target <= b_init; for a dtype, block size or implementation that isn't allowed; for a
        format that can't hold the noise at b_init, saying which can, or that `dtype` can't hold.

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
    return _transform(
        WeightSampling(
            noise='rounded_normal',
            b_init=b_init,
            b_target=b_target,
            rules=check_rules(rules),
            unnamed=unnamed,
            block_size=block_size,
            fmt=fmt,
            dtype=dtype,
            implementation=implementation,
        )
    )


def uniform_weight_sampling(
    b_init: float = 6.0,
    b_target: float = 4.0,
    *,
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
    block_size: int = 32,
    fmt: FloatFormat | str | None = None,
    dtype: Any = jnp.bfloat16,
    implementation: str | None = None,
) -> ParamTransform:
    """DiffQ-style noise: as `gaussian_weight_sampling`, with R ~ U(-1/2, 1/2) and the same step.

    Arguments and errors are those of `gaussian_weight_sampling`; any format is allowed, since none holds all of a noise
    that isn't integer.

    Source: DiffQ, arXiv 2104.09987, with the blocks and the step of arXiv 2505.11170.
    """
    return _transform(
        WeightSampling(
            noise='uniform',
            b_init=b_init,
            b_target=b_target,
            rules=check_rules(rules),
            unnamed=unnamed,
            block_size=block_size,
            fmt=fmt,
            dtype=dtype,
            implementation=implementation,
        )
    )


def quantization_aware(
    quantizer: Quantizer,
    *,
    rules: Sequence[Rule] = DEFAULT_RULES,
    unnamed: str = 'error',
    full_precision: Sequence[KeptLayers] = (),
    dtype: Any = jnp.bfloat16,
) -> ParamTransform:
    """Straight-through quantization-aware training: weight matrices are fake-quantized, gradients pass unchanged.

        W_hat = round(fake_quantize(W)),    dW = dW_hat

    Scales run along the rows of a matrix (see `rules`), the axis that a linear layer contracts; 'tensor' means
    the matrix, and so does NVFP4's tensor scale. All other floating leaves are rounded to `dtype`; nothing is learned.

    Args:
      quantizer: says what shares a scale and what the weights are rounded to. If it rounds stochastically, the random
        bits of a leaf come from the key and the leaf's path alone; with key=None it rounds to nearest even.
      rules, unnamed: as for `gaussian_weight_sampling`.
      full_precision: rules for weight matrices that are cast only. They speak of a leaf's path without its last name,
        'layers/mlp/up', and of the layers in a stack of them. One that is of no matrix has no effect.
      dtype: of the weights handed to the model, bfloat16 or float32.

    Raises:
      ValueError: for what is no Quantizer, and a dtype that isn't allowed.

    Example:
      >>> qat = quantization_aware(Quantizer('e2m1', block_size='channel'))
      >>> qat.apply(None, {'up': {'kernel': jnp.array([[6.0], [2.2], [0.8]])}}, {})['up']['kernel'].ravel()
      Array([6, 2, 1], dtype=bfloat16)

    Source: arXiv 2501.02423, section 3 (P2 alone); the estimator is of arXiv 1308.3432.
    """
    check_quantizer(quantizer)
    return _transform(
        QuantizationAware(
            quantizer=quantizer,
            rules=check_rules(rules),
            unnamed=unnamed,
            full_precision=check_kept_layers(full_precision),
            dtype=dtype,
        )
    )


def cast_params(dtype: Any = jnp.bfloat16, *, rules: Sequence[Rule] = DEFAULT_RULES) -> ParamTransform:
    """The baseline: floating leaves rounded to `dtype`; nothing sampled, nothing learned.

    Args:
      dtype: bfloat16 or float32.
      rules: ordered rules, of which `Keep` alone matters here: what it names stays as it is.

    Raises:
      ValueError: for another dtype, and for what is no rule.

    Example:
      >>> cast_params().apply(None, {'w': jnp.float32(1.001)}, {})
      {'w': Array(1, dtype=bfloat16)}
    """
    dtype, rules = check_dtype(dtype), check_rules(rules)

    def apply(key, params, state, *, path=(), layer=None):
        del key
        check_empty(state)
        leaves, is_layer = read_leaves(params, path), layer is not None
        found = find_purposes(leaves, rules, is_part=bool(path) or is_layer, is_layer=is_layer)

        def cast_leaf(name, leaf):
            return leaf if isinstance(found.get(name), Keep) or name not in found else cast(leaf, dtype)

        return map_leaves(cast_leaf, params, path)

    name = jnp.dtype(dtype).name
    return ParamTransform(
        lambda params: {}, apply, lambda state: {}, rules=rules, matrices='cast', format=name, dtype=name
    )


def _transform(of: MatrixTransform) -> ParamTransform:
    return ParamTransform(
        of.init,
        of.apply,
        of.bitwidths,
        resolve=lambda params: _transform(of.resolve(params)),
        rules=of.rules,
        unnamed=of.unnamed,
        block_size=of.block_size,
        matrices=of.matrices,
        format=of.format_name,
        dtype=jnp.dtype(of.dtype).name,
        full_precision=of.full_precision,
    )
