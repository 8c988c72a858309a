"""What programs know of a family of models, in one record a family."""

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn

from gaussq_jax.param_rules import CastOnly, MatrixRule

PARTS = types.MappingProxyType(
    {'qkv': 'attention/(query|key|value)', 'out': 'attention/out', 'up': 'mlp/(gate|up)', 'down': 'mlp/down'}
)
HEAD = 'lm_head.weight'  # which no prefix precedes
NOT_SETTINGS = {  # fields of a model that say nothing of its architecture
    *('vocab_size', 'dtype', 'dot_general', 'dot_general_cls', 'layer_transform', 'remat_policy', 'scan_unroll'),
    *('constrain', 'parent', 'name'),
}
KINDS = (int, float, bool, int | None, float | None)  # of the other fields


@dataclasses.dataclass(frozen=True)
class ModelFamily:
    """A linen module, how its parameters are read and laid out, and what Hugging Face calls them.

    The module takes `vocab_size`, `num_layers`, `hidden_size`, `dtype`, `dot_general_cls`, `layer_transform`,
    `remat_policy`, `scan_unroll` and `constrain`, as `Llama` does, beside the sizes that are the family's own; its
    layers are scanned: each of their parameters has them along its first axis. A model writes text with a cache (see
    `key_value_cache`) if its `__call__` takes two more arguments: `positions`, which it hands to `layers.scan_layers`
    and each layer's `layers.Attention`, and `logits_at`, which tokens it returns logits of (`layers.take_tokens`). Any
    other sees all of the text anew for each token. It trains on rows of several documents if its `__call__` takes
    `segment_ids`, which go to `layers.scan_layers` and `layers.Attention`, too.

    Attributes:
      name: of the family, in configs and as Hugging Face's `model_type`.
      module: the class, or a function that wraps it (`functools.wraps`).
      axes: (regex of the leaf's path, a name for each of its axes), first match wins: which axes are split over a mesh.
        Names are 'layer', 'vocab', 'hidden', 'mlp', 'heads' (of queries and keys, a head's numbers side by side) and
        'values' (of the values' heads). Leaves that no regex matches are not split.
      parts: name -> regex of the linear layers of that kind, from what follows `layers/` to what precedes `/kernel`.
      layers: the name of the stacked layers, at the top of the tree.
      head_size: settings of a model -> how many outputs of queries and keys are a head's; None without heads.
      huggingface: its checkpoints; None where there are none.

    Raises:
      ValueError: a field of the module is of a type that configs can't say.

    Example:
      >>> from gaussq_jax import models
      >>> models.FAMILIES['llama'].axis_names('layers/attention/out/kernel')
      ('layer', 'values', 'hidden')
    """

    name: str
    module: type[nn.Module] | Callable[..., nn.Module]
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    parts: Mapping[str, str] = dataclasses.field(default_factory=lambda: PARTS)
    layers: str = 'layers'
    head_size: Callable[[Mapping[str, Any]], int | None] = lambda settings: (
        settings.get('head_dim')
        or (settings['hidden_size'] // settings['num_heads'] if 'num_heads' in settings else None)
    )
    huggingface: 'HuggingFaceFormat | None' = None

    def __post_init__(self):
        for name, hint in self.settings.items():
            if hint not in KINDS:
                module = inspect.unwrap(self.module).__name__
                raise ValueError(f'{module}.{name}: a setting must be an int, float or bool, not {hint}')

    @property
    def rules(self) -> tuple[MatrixRule | CastOnly, ...]:
        """How all its linear layers are read: (layer, in, out)."""
        kernels = MatrixRule(f'{self.layers}/.*/kernel', batch_axes=(0,), row_axes=(1,), col_axes=(2,), optional=True)
        return (kernels, CastOnly('.*', optional=True))

    @functools.cached_property
    def settings(self) -> dict[str, type]:
        """The fields that say what a model of it is, and their types, of KINDS."""
        module = inspect.unwrap(self.module)
        hints = typing.get_type_hints(module)
        names = [field.name for field in dataclasses.fields(module) if field.name not in NOT_SETTINGS]
        return {name: hints[name] for name in names}

    @functools.cached_property
    def required(self) -> set[str]:
        """Of these, the ones without a default."""
        fields = dataclasses.fields(inspect.unwrap(self.module))
        return {field.name for field in fields if field.default is dataclasses.MISSING} & self.settings.keys()

    @property
    def takes_segments(self) -> bool:
        """Whether its model tells the documents of a row from each other."""
        return 'segment_ids' in inspect.signature(inspect.unwrap(self.module).__call__).parameters

    def is_of_layers(self, path: str) -> bool:
        """Whether a leaf has the layers along its first axis."""
        return path.startswith(f'{self.layers}/')

    def tensor_name(self, path: str, layer: int) -> str:
        """Hugging Face's name of a leaf (of one layer, if it is one of theirs), without the prefix."""
        name = self.huggingface.tensors[path].name
        return f'{self.huggingface.layers}.{layer}.{name}' if self.is_of_layers(path) else name

    def tensor_names(self, path: str, num_layers: int) -> list[str]:
        """`tensor_name` of a leaf: of each layer if it is one of theirs, else one name."""
        return [self.tensor_name(path, layer) for layer in range(num_layers if self.is_of_layers(path) else 1)]

    def is_lookup(self, path: str) -> bool:
        """Whether a leaf is a table with a row for each token."""
        return (self.axis_names(path) or ('',))[0] == 'vocab'

    def axis_names(self, path: str) -> tuple[str, ...] | None:
        """The names of a leaf's axes; None of one that is not split."""
        return next((names for regex, names in self.axes if re.fullmatch(regex, path)), None)


@dataclasses.dataclass(frozen=True)
class HuggingFaceFormat:
    """A family's configuration and tensors as `save_pretrained` writes them.

    Attributes:
      prefix: of all tensors' names but HEAD; may be missing in what is read.
      layers: what names the tensors of layer i, as f'{layers}.{i}.'.
      tensors: path of a leaf -> the tensor that holds it, named within its layer if it is a layer's.
      build: config -> the model; ValueError, naming the field, for one that ours can't follow.
      describe: model -> the config that `build` takes.
      longest: the field of the longest sequence, if our model doesn't have it.
      window: config -> how many tokens a token sees there at the most, by `sliding_window`; None if all before it.
      reads_sentencepiece: whether the family's own tokenizer in transformers reads a tokenizer.model.
    """

    prefix: str
    layers: str
    tensors: Mapping[str, 'HuggingFaceTensor']
    build: Callable[[Mapping[str, Any]], nn.Module]
    describe: Callable[[Any], dict[str, Any]]
    longest: str | None = None
    window: Callable[[Mapping[str, Any]], int | None] = lambda config: None
    reads_sentencepiece: bool = True


class HuggingFaceTensor(typing.NamedTuple):
    """A tensor by its name; the leaf is it, transposed or not, or a part of it.

    torch's Linear keeps (out, in), GPT-2's Conv1D (in, out) as we do, with query, key and value side by side.
    """

    name: str
    is_transposed: bool = False
    part: int = 0  # of as many equal parts of the last axis
    parts: int = 1

    def leaf(self, tensor: np.ndarray) -> np.ndarray:
        """The leaf, a view of the tensor (two or one axes); a last axis that isn't of equal parts fits no leaf."""
        size = -(-tensor.shape[-1] // self.parts)
        part = tensor[..., self.part * size : (self.part + 1) * size]
        return part.T if self.is_transposed else part


def tensor_of_leaves(tensors: Sequence[HuggingFaceTensor], leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor whose leaves these are, all of them, in any order: what `HuggingFaceTensor.leaf` undoes."""
    arrays = [leaf.T if tensor.is_transposed else leaf for tensor, leaf in zip(tensors, leaves)]
    parts = [arrays[index] for index in np.argsort([tensor.part for tensor in tensors])]
    return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
