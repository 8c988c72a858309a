"""What programs know of a method of low-precision training, in one record a method."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

import gaussq_jax as gq


def _none(config: ConfigDict) -> dict[str, gq.Quantizer]:
    del config
    return {}


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
      weights: the settings, as of `settings.make_quantizer`, by which weights are rounded where they are used; None
        where they aren't, but for the cast to bfloat16.
      operands: the Quantizer of each of the six operands P1 .. P6 that it rounds, in training.
      own_settings: settings that no other method has, and their defaults: fields of `config.quantization` with it.
      default_format: what it rounds to where `config.quantization.format` is empty; empty: to none.
      learns_bitwidths: whether each block learns how many bits it needs.

    Example:
      >>> from experiments import methods
      >>> methods.METHODS['fqt'].settings
      ('format', 'block_size', 'scale', 'rounding', 'targets')
    """

    name: str
    settings: tuple[str, ...]
    make_transform: Callable[[ConfigDict], gq.ParamTransform]
    describe: Callable[[ConfigDict], str]
    weights: Callable[[ConfigDict], dict[str, Any] | None]
    operands: Callable[[ConfigDict], dict[str, gq.Quantizer]] = _none
    own_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    default_format: str = ''
    learns_bitwidths: bool = False
