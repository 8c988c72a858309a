"""A recipe of low-precision training: what is rounded to what, in which layers, as data."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaussq_jax.kept_layers import KeptLayers, check_kept_layers, kept
from gaussq_jax.param_rules import DEFAULT_RULES, Rule
from gaussq_jax.param_transforms import ParamTransform, cast_params, quantization_aware
from gaussq_jax.quantized_dot_general import TARGETS, quantized_dot_general
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.three_gemms import Flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What each operand of the linear layers' GEMMs is rounded to, or the weights alone, and where.

        Y = P1(X) P2(W),    dX = P3(dY) P4(W)^T,    dW = P6(X)^T P5(dY)

    Attributes:
      name: a word, of which `find` knows those here.
      P1, P2, P3, P4, P5, P6: as for `quantized_dot_general`, None for operands that are not quantized.
      weights: of a recipe for weights alone, what they are rounded to, straight through; None for others.
      backward_from, arithmetic: as for `quantized_dot_general`.
      full_precision: rules for the linear layers that are not quantized.
      ends: what is not quantized any more at the end of a training that has one: 'all', or the 'forward' pass.
      about: what is special, in a line.
      source: where it is from.

    Raises:
      ValueError: for operands beside `weights`, for neither, and as `quantized_dot_general`.

    Example:
      >>> own = Recipe(name='own', P1=Quantizer('e4m3'), P2=Quantizer('e2m1'))
      >>> dot_general = own.dot_general('layers/mlp/up')
      >>> dot_general(jnp.ones((1, 32)), jnp.ones((32, 2)), (((1,), (0,)), ((), ())))
      Array([[32., 32.]], dtype=float32)
    """

    name: str
    P1: Quantizer | None = None
    P2: Quantizer | None = None
    P3: Quantizer | None = None
    P4: Quantizer | None = None
    P5: Quantizer | None = None
    P6: Quantizer | None = None
    weights: Quantizer | None = None
    backward_from: str = 'operands'
    arithmetic: str = 'simulated'
    full_precision: tuple[KeptLayers, ...] = ()
    ends: str = 'all'
    about: str = ''
    source: str = ''

    def __post_init__(self):
        quantized_dot_general(**self._matmuls)
        if self.weights is not None and not isinstance(self.weights, Quantizer):
            raise ValueError(f'weights={self.weights!r} of the recipe {self.name}: it must be a Quantizer, or None')
        if (self.weights is None) == (not self.operands):
            raise ValueError(f'the recipe {self.name} must have operands P1 to P6, or weights, and not both')
        if self.ends not in ('all', 'forward'):
            raise ValueError(f"ends={self.ends!r} of the recipe {self.name}: allowed are 'all' and 'forward'")
        if self.weights is not None and self.backward_from != 'operands':
            raise ValueError(f'backward_from={self.backward_from!r} of the recipe {self.name}: weights alone have none')
        object.__setattr__(self, 'full_precision', check_kept_layers(self.full_precision))

    @property
    def operands(self) -> dict[str, Quantizer]:
        """The Quantizer of each operand that has one, by the names P1 to P6."""
        return {name: quantizer for name in TARGETS if (quantizer := getattr(self, name)) is not None}

    @property
    def _matmuls(self) -> dict[str, Any]:
        return {**self.operands, 'backward_from': self.backward_from, 'arithmetic': self.arithmetic}

    @property
    def needs_key(self) -> bool:
        """Whether its matmuls draw random bits."""
        return any(quantizer.needs_key for quantizer in self.operands.values())

    def replace(self, **changes: Any) -> 'Recipe':
        """The recipe with other values of these attributes."""
        return dataclasses.replace(self, **changes)

    def without(self, part: str) -> 'Recipe':
        """The recipe with one part left out, named 'nvfp4-hadamard', to see what that is good for.

        Args:
          part: 'stochastic': values are rounded to nearest even instead; 'hadamard': nothing is transformed; 'tiles':
            values that share a scale lie along one axis.

        Raises:
          ValueError: for another part, and for one that the recipe hasn't.

        Example:
          >>> own = Recipe(name='own', P2=Quantizer('e2m1', block_size=(16, 16)))
          >>> own.without('tiles').name, own.without('tiles').P2.block_size
          ('own-tiles', 16)
        """
        if part not in _LEFT_OUT:
            raise ValueError(f'{part!r} is no part of a recipe that is left out; those are {", ".join(_LEFT_OUT)}')
        changed = {name: _LEFT_OUT[part](quantizer) for name, quantizer in self.operands.items()}
        if changed == self.operands:
            raise ValueError(f'the recipe {self.name} has no {part} to leave out')
        return self.replace(**changed, name=f'{self.name}-{part}', about=f'{self.about}; without {part}')

    def deterministic(self) -> 'Recipe':
        """The same without randomness, as it is outside of training steps."""
        return self.replace(**{name: quantizer.deterministic() for name, quantizer in self.operands.items()})

    def without_weights(self) -> 'Recipe | None':
        """What it does to activations and gradients, of weights that something else rounds; None if that is nothing."""
        if not {'P1', 'P3', 'P5', 'P6'} & self.operands.keys():
            return None
        return self.replace(P2=None, P4=None, backward_from='operands', arithmetic='simulated')

    def kept(self, path: str, num_layers: int | None = None) -> np.ndarray:
        """Which layers of a stack are in full precision, bool (num_layers,); of a layer in no stack bool ()."""
        return kept(self.full_precision, path, num_layers)

    def dot_general(
        self,
        path: str = '',
        layer: jax.Array | int | None = None,
        *,
        num_layers: int | None = None,
        when: Flag | tuple[Flag, Flag] = True,
        weight_gradient_dtype: Any = None,
    ) -> Callable[..., jax.Array]:
        """The `dot_general` of one linear layer.

        Args:
          path: of the linear layer, names joined by '/', of which `full_precision` speaks.
          layer: its index in a stack of layers, which may be traced; None if it is in no stack.
          num_layers: of the stack; needed with `layer`.
          when: whether it quantizes now, as for what `quantized_dot_general` returns.
          weight_gradient_dtype: as for `quantized_dot_general`.

        Returns:
          f(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, *, out_sharding=None, key=None),
          as `quantized_dot_general` returns it; in a layer that is kept the key has no effect.

        Raises:
          ValueError: for a layer without num_layers, or the other way round; for one that the stack hasn't; rules that
            need to know the stack.
        """
        if (layer is None) != (num_layers is None):
            raise ValueError(f'layer={layer!r} and num_layers={num_layers!r}: both are given, or none')
        if layer is not None and not isinstance(layer, jax.Array) and layer not in range(num_layers):
            raise ValueError(f'layer={layer!r} of num_layers={num_layers!r}: allowed are 0 to num_layers - 1')
        is_kept = self.kept(path, num_layers)
        exact = quantized_dot_general(weight_gradient_dtype=weight_gradient_dtype)
        if is_kept.all() or not self.operands:
            return lambda *args, key=None, **kwargs: exact(*args, **kwargs)
        quantized = quantized_dot_general(**self._matmuls, weight_gradient_dtype=weight_gradient_dtype)
        if is_kept.any():
            is_on = jnp.asarray(~is_kept)[layer] if isinstance(layer, jax.Array) else bool(~is_kept[layer])
            when = tuple(_and(is_on, flag) for flag in when) if isinstance(when, tuple) else _and(is_on, when)
        return lambda *args, **kwargs: quantized(*args, when=when, **kwargs)

    def transform(self, rules: Sequence[Rule] = DEFAULT_RULES, *, dtype: Any = jnp.bfloat16) -> ParamTransform:
        """The transform of the parameters: `quantization_aware` of weights alone; the cast of others to `dtype`."""
        if self.weights is None:
            return cast_params(dtype, rules=rules)
        return quantization_aware(self.weights, rules=rules, full_precision=self.full_precision, dtype=dtype)


def _along_one_axis(quantizer: Quantizer) -> Quantizer:
    size = quantizer.block_size
    return dataclasses.replace(quantizer, block_size=size[1] if isinstance(size, tuple) else size)


_LEFT_OUT = {
    'stochastic': lambda q: dataclasses.replace(q, rounding=q.deterministic().rounding),
    'hadamard': lambda q: dataclasses.replace(q, hadamard=None),
    'tiles': _along_one_axis,
}


def _and(flag: Flag, other: Flag) -> Flag:
    return flag and other if isinstance(flag, bool) and isinstance(other, bool) else jnp.logical_and(flag, other)
