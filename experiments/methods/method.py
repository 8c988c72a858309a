"""What programs know of a method of low-precision training, in one record a method."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import gaussq_jax as gq
from gaussq_jax import recipes


class RoundedWeights(NamedTuple):
    """How weights are rounded where they are used."""

    quantizer: gq.Quantizer
    full_precision: tuple[recipes.KeptLayers, ...] = ()  # rules for matrices that are in bfloat16


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: what it does to the weights, and to the operands of the linear layers' matmuls.

    Its functions take the whole config, of which `config.quantization` has its settings, and raise ValueError for
    settings that can't be, before anything is made.

    Attributes:
      name: as `config.method` has it.
      settings: the shared settings (`settings.SHARED`) that it uses; any other has to stay at its default.
      make_transform: the ParamTransform of the weights.
      describe: its settings in a few words, for people.
      weights: how weights are rounded where they are used; None where they are cast to bfloat16 alone, and where each
        block has a format of its own.
      recipe: what it rounds: operands of the matmuls, in training, or the weights alone; None where that is nothing.
      idle: of the shared settings that it uses, those that do nothing beside the values of the others.
      own_settings: settings that no other method has, and their defaults: fields of `config.quantization` with it.
      default_format: what it rounds to where `config.quantization.format` is empty; empty: to none.
      learns_bitwidths: whether each block learns how many bits it needs.

    Example:
      >>> from experiments import methods
      >>> methods.METHODS['qat'].settings[:4]
      ('parts', 'format', 'block_size', 'scale')
    """

    name: str
    settings: tuple[str, ...]
    make_transform: Callable[[ConfigDict], gq.ParamTransform]
    describe: Callable[[ConfigDict], str]
    weights: Callable[[ConfigDict], RoundedWeights | None]
    recipe: Callable[[ConfigDict], recipes.Recipe | None] = lambda config: None
    idle: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
    own_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    default_format: str = ''
    learns_bitwidths: bool = False
