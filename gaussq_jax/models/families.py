"""The families of models that programs know, by name."""

import inspect
from typing import Any

from gaussq_jax.models.family import ModelFamily
from gaussq_jax.models.gpt2 import GPT_2
from gaussq_jax.models.llama import LLAMA
from gaussq_jax.models.mistral import MISTRAL
from gaussq_jax.models.qwen2 import QWEN2
from gaussq_jax.models.qwen3 import QWEN3

FAMILIES = {family.name: family for family in (LLAMA, GPT_2, MISTRAL, QWEN2, QWEN3)}


def register_family(family: ModelFamily) -> ModelFamily:
    """Adds a family: from then on its name is one of `config.model.family`, and of `model_type` in checkpoints.

    Raises:
      ValueError: another family has the name.

    Example:
      >>> register_family(FAMILIES['gpt2']).name
      'gpt2'
    """
    if FAMILIES.setdefault(family.name, family) is not family:
        raise ValueError(f'a family {family.name!r} is there already')
    return family


def find_family(name: str) -> ModelFamily:
    """The family of this name; ValueError with those there are."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f'family={name!r:.80}: allowed are {", ".join(map(repr, FAMILIES))}')
    return FAMILIES[name]


def family_of(model: Any) -> ModelFamily:
    """The family of a model; ValueError for a module of none."""
    for family in FAMILIES.values():
        if type(model) is inspect.unwrap(family.module):
            return family
    names = ', '.join(family.module.__name__ for family in FAMILIES.values())
    raise ValueError(f'model={type(model).__name__} must be one of {names}')
