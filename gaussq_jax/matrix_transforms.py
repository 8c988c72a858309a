"""What the transforms of weight matrices do: sample them, or fake-quantize them, each by itself.

`param_transforms` makes ParamTransforms of these.
"""

import abc
import dataclasses
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gaussq_jax import explicit_sharding
from gaussq_jax.bitwidths import effective_bitwidths, format_for_bitwidth, holds_noise, most_bits_held
from gaussq_jax.block_scaling import fake_quantize
from gaussq_jax.formats import FloatFormat
from gaussq_jax.kept_layers import KeptLayers, kept
from gaussq_jax.param_purposes import UNNAMED_LEAF
from gaussq_jax.param_reading import (
    KEPT,
    SAMPLED,
    UNNAMED,
    check_explained,
    checked_readings,
    exact_rules,
    read_params,
    sampled_shapes,
)
from gaussq_jax.param_rules import Rule
from gaussq_jax.param_tree import is_floating, leaf_path, map_leaves, path_hash
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.rounding import as_format
from gaussq_jax.weight_sampling import check_block_size, check_dtype, check_format, sample_weights, shape_in_blocks
from kernels_pallas.rounding_on_bits import round_to_dtype
from kernels_pallas.weight_sampling import select

_logger = logging.getLogger(__name__)

Params = Any  # a pytree of weights: linen, NNX, Equinox, haliax, Haiku
State = dict[str, jax.Array]  # leaf path -> b_i


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixTransform(abc.ABC):
    """The functions of a transform of weight matrices, over what its constructor fixed; others are cast or kept."""

    matrices: ClassVar[str]  # these three as ParamTransform has them
    block_size: ClassVar[int | None]
    full_precision: ClassVar[Sequence[KeptLayers]] = ()
    rules: Sequence[Rule]
    unnamed: str
    dtype: Any

    def __post_init__(self):  # refuses what can't be here, rather than in the first step
        check_dtype(self.dtype)
        if self.unnamed not in UNNAMED:
            raise ValueError(f'unnamed={self.unnamed!r}; allowed are {", ".join(UNNAMED)}')

    def resolve(self, params: Params) -> 'MatrixTransform':
        rules = exact_rules(checked_readings(params, self.rules, unnamed=self.unnamed))
        return dataclasses.replace(self, rules=rules)

    def init(self, params: Params) -> State:
        readings = checked_readings(params, self.rules, unnamed=self.unnamed)
        if self.unnamed == 'warn':
            for name, reading in readings.items():
                if reading.why.startswith(UNNAMED_LEAF):
                    _logger.warning('%s, %s, is cast only: %s', name, reading.shape, reading.why)
        shapes = sampled_shapes(readings)
        _check_hashes(shapes)
        return self.init_state(matrix_shapes=shapes)

    def apply(self, key, params, state, *, path=(), layer=None):
        if isinstance(path, str):
            raise ValueError(f'path={path!r}: it must be a sequence of names, such as {tuple(path.split("/"))}')
        path, state, is_layer = tuple(map(str, path)), flat_state(state), layer is not None
        is_part = bool(path) or is_layer
        unnamed = 'cast' if is_part else self.unnamed  # what a part is of the weights says nothing
        readings = read_params(params, self.rules, unnamed=unnamed, path=path, is_layer=is_layer)
        check_explained(readings, is_part=is_part)
        found = {name for name, reading in readings.items() if reading.action == SAMPLED}
        if is_layer and not found:
            raise ValueError(f'path={path}: no leaf under it is a weight matrix of the rules {self.rules}')
        prefix = ''.join(f'{part}/' for part in path)
        of_part = {name: b_i for name, b_i in state.items() if f'{name}/'.startswith(prefix)}
        self.check_state(state=of_part, paths=found, layer=layer)

        def transform_leaf(name, leaf):
            reading = readings[name]
            if reading.action == KEPT:
                return leaf
            if reading.action != SAMPLED:
                return cast(leaf, self.dtype)
            leaf_key = None if key is None else jax.random.fold_in(key, path_hash(name))
            rule = reading.matrices[0]
            matrices = rule.to_matrices(leaf)
            w_hat = self.transform_matrices(
                key=leaf_key,
                matrices=matrices,
                b_i=state.get(name),
                layer=layer,
                path=name,
                is_stack=bool(rule.layer_axes),
            )
            return rule.from_matrices(w_hat, leaf.shape)

        return map_leaves(transform_leaf, params, path)

    @property
    @abc.abstractmethod
    def format_name(self) -> str:
        """Of the format that matrices are rounded to."""

    @abc.abstractmethod
    def init_state(self, *, matrix_shapes: Mapping[str, tuple[int, ...]]) -> State:
        """The state at the start, of weight matrices of these shapes (batch.., m, n), by path."""

    @abc.abstractmethod
    def check_state(self, *, state: State, paths: Collection[str], layer: jax.Array | int | None):
        """ValueError unless the state is that of the matrices of these paths, or has this layer of them."""

    @abc.abstractmethod
    def bitwidths(self, state: State) -> dict[str, jax.Array]:
        """Of each block, by path."""

    @abc.abstractmethod
    def transform_matrices(
        self,
        *,
        key: jax.Array | None,
        matrices: jax.Array,
        b_i: jax.Array | None,
        layer: jax.Array | int | None,
        path: str,
        is_stack: bool,
    ) -> jax.Array:
        """W_hat of the matrices (batch.., m, n) of one leaf, or of one layer of it.

        Args:
          key: the leaf's own; None for no noise.
          matrices: of the layer, where there is one.
          b_i: the leaf's state, of all layers; None if it has none.
          layer: as for `apply`.
          path: of the leaf.
          is_stack: whether the first axis of a whole leaf's matrices counts layers.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightSampling(MatrixTransform):
    """Matrices with noise by blocks, whose bitwidths are the state."""

    matrices = 'sampled'
    noise: str
    b_init: float
    b_target: float
    block_size: int
    fmt: FloatFormat | str | None
    implementation: str | None

    def __post_init__(self):
        super().__post_init__()
        self._bitwidths_of(1.0)
        block_size = check_block_size(self.block_size)
        if self.implementation is not None:  # what None means is asked when devices are needed anyway
            select(self.implementation, block_size)
        if self.fmt is None:
            return
        fmt = check_format(self.fmt, self.dtype)
        if self.noise == 'rounded_normal' and not holds_noise(fmt, self.b_init):
            enough = format_for_bitwidth(self.b_init)
            is_enough = holds_noise(enough, self.b_init)
            which = f'{enough} can, as the narrowest' if is_enough else 'beyond 9 bits, none that bfloat16 holds can'
            raise ValueError(f"fmt={fmt} can't hold the noise of b_init={self.b_init:g} bits; {which}")

    @property
    def format_name(self) -> str:
        return jnp.dtype(self.dtype).name if self.fmt is None else check_format(self.fmt, self.dtype).name

    def init_state(self, *, matrix_shapes):
        ones = lambda shape: jnp.ones(shape_in_blocks(shape, self.block_size), jnp.float32)
        return {path: ones(shape) for path, shape in matrix_shapes.items()}

    def check_state(self, *, state, paths, layer):
        missing, unexpected = set(paths) - set(state), set(state) - set(paths)
        if missing or unexpected:
            raise ValueError(
                f'state is not of these params: it lacks {sorted(missing) or "nothing"}'
                f' and has {sorted(unexpected) or "nothing"} besides; make it by init(params) of this transform'
            )
        if layer is None or isinstance(layer, jax.core.Tracer):
            return
        for b_i in state.values():
            if not 0 <= layer < b_i.shape[0]:
                raise ValueError(f'layer={layer}: the leaf has the layers 0 to {b_i.shape[0] - 1}')

    def bitwidths(self, state):
        return {path: self._bitwidths_of(b_i) for path, b_i in flat_state(state).items()}

    def _bitwidths_of(self, b_i):
        return effective_bitwidths(b_i, self.b_init, self.b_target, b_most=self._b_most)

    @property
    def _b_most(self) -> float | None:
        """The bits whose noise survives the cast to `fmt`, if all is to survive."""
        if self.fmt is None or self.noise != 'rounded_normal':
            return None
        return max(self.b_init, most_bits_held(as_format(self.fmt)))

    def transform_matrices(self, *, key, matrices, b_i, layer, path, is_stack):
        if key is None:
            if self.fmt is not None:
                tiles = Quantizer(self.fmt, block_size=(self.block_size, self.block_size), scale='mx')
                matrices = fake_quantize(matrices, tiles)
            return round_to_dtype(matrices, self.dtype)
        leading = 0
        if layer is not None:
            leading = layer * math.prod(b_i.shape[1:-2])
            b_i = jax.lax.dynamic_index_in_dim(b_i, layer, axis=0, keepdims=False)
        return sample_weights(
            key,
            matrices,
            self._bitwidths_of(b_i),
            origin=(leading, 0, 0),
            block_size=self.block_size,
            noise=self.noise,
            fmt=self.fmt,
            dtype=self.dtype,
            implementation=self.implementation,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationAware(MatrixTransform):
    """Matrices fake-quantized, each by itself; no state."""

    matrices = 'quantized'
    block_size = None
    quantizer: Quantizer
    full_precision: Sequence[KeptLayers] = ()
    num_layers: Mapping[str, int | None] | None = None  # by path, of the tree that this is resolved for

    @property
    def format_name(self) -> str:
        return self.quantizer.fmt.name

    def resolve(self, params):
        resolved = super().resolve(params)
        readings = checked_readings(params, self.rules, unnamed=self.unnamed)
        number = lambda reading, axes: reading.shape[axes[0]] if axes else None
        layers = {
            name: number(reading, reading.matrices[0].layer_axes)
            for name, reading in readings.items()
            if reading.action == SAMPLED
        }
        return dataclasses.replace(resolved, num_layers=layers)

    def init_state(self, *, matrix_shapes):
        return {}

    def check_state(self, *, state, paths, layer):
        check_empty(state)

    def bitwidths(self, state):
        return {}

    def transform_matrices(self, *, key, matrices, b_i, layer, path, is_stack):
        if not self.full_precision:
            return self._quantize(key, matrices, layer)
        num_layers = (self.num_layers or {}).get(path)
        if num_layers is None and is_stack and layer is None:
            num_layers = len(matrices)
        if num_layers is None and layer is not None:
            raise ValueError(f'layer={layer}: of how many, full_precision needs to know: use resolve(params)')
        is_kept = kept(self.full_precision, path.rpartition('/')[0], num_layers)
        if is_kept.all() or not is_kept.any():
            return round_to_dtype(matrices, self.dtype) if is_kept.all() else self._quantize(key, matrices, layer)
        if layer is None:
            of_layers = is_kept.reshape(-1, *[1] * (matrices.ndim - 1))
            return jnp.where(of_layers, round_to_dtype(matrices, self.dtype), self._quantize(key, matrices, layer))
        cast_matrices = lambda matrices: round_to_dtype(matrices, self.dtype)
        return jax.lax.cond(
            jnp.asarray(is_kept)[layer], cast_matrices, lambda matrices: self._quantize(key, matrices, layer), matrices
        )

    def _quantize(self, key, matrices, layer):
        *batch, m, n = matrices.shape
        quantizer = self.quantizer if key is not None else self.quantizer.deterministic()
        first = 0 if layer is None else layer * math.prod(batch)

        def quantize(matrices, key, first):
            stack, keys = matrices.reshape(-1, m, n), None
            if quantizer.needs_key:
                numbers = jnp.asarray(first, jnp.int32) + jnp.arange(stack.shape[0], dtype=jnp.int32)
                keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
            quantized = jax.vmap(lambda matrix, key: fake_quantize(matrix, quantizer, axis=-2, key=key))(stack, keys)
            return quantized.reshape(*batch, m, n)

        return round_to_dtype(explicit_sharding.like(matrices, quantize)(matrices, key, first), self.dtype)


def flat_state(state: Any) -> State:
    """A state by leaf paths, from one that may be nested by the parts of these."""
    return {leaf_path(path): b_i for path, b_i in jax.tree_util.tree_leaves_with_path(state)}


def cast(leaf: Any, dtype: Any) -> Any:
    return round_to_dtype(leaf, dtype) if is_floating(leaf) else leaf


def check_empty(state: Iterable[str]):
    if state:
        raise ValueError(f'state holds {sorted(state)}, but this transform learns nothing; make it by init(params)')


def _check_hashes(paths: Iterable[str]):
    by_hash = {}
    for path in paths:
        other = by_hash.setdefault(path_hash(path), path)
        if other != path:
            raise ValueError(f'the leaves {other!r} and {path!r} have one hash and would share their noise; rename one')
