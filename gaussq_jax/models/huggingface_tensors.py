"""Which tensors of Hugging Face's Llama and GPT-2 hold the values of our leaves, and how they are arranged there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

HEAD = 'lm_head.weight'  # which no prefix precedes


class Source(NamedTuple):
    """A tensor, named within its layer if it is a layer's; the leaf is it, transposed or not, or a part of it.

    torch's Linear keeps (out, in), GPT-2's Conv1D (in, out) as we do, with query, key and value side by side.
    """

    tensor: str
    is_transposed: bool = False
    part: int = 0  # of as many equal parts of the last axis
    parts: int = 1

    def leaf(self, tensor: np.ndarray) -> np.ndarray:
        """The leaf, a view of the tensor (two or one axes); a last axis that isn't of equal parts fits no leaf."""
        size = -(-tensor.shape[-1] // self.parts)
        part = tensor[..., self.part * size : (self.part + 1) * size]
        return part.T if self.is_transposed else part


class Family(NamedTuple):
    """prefix: of all names but HEAD; layers: what names a layer i as f'{layers}.{i}'; sources: by our leaves' paths."""

    prefix: str
    layers: str
    sources: dict[str, Source]

    def tensor_name(self, path: str, layer: int) -> str:
        """The tensor of a leaf (of one layer, if it is one of theirs), without the prefix."""
        name = self.sources[path].tensor
        return f'{self.layers}.{layer}.{name}' if path.startswith('layers/') else name


def tensor_of_leaves(sources: Sequence[Source], leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor whose leaves these are, all of them, in any order: what `Source.leaf` undoes."""
    arrays = [leaf.T if source.is_transposed else leaf for source, leaf in zip(sources, leaves)]
    parts = [arrays[index] for index in np.argsort([source.part for source in sources])]
    return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _transposed(name):
    return Source(name, is_transposed=True)


def _third(name, part):
    return Source(name, part=part, parts=3)


_LLAMA = {
    'embed/embedding': Source('embed_tokens.weight'),
    'layers/attention_norm/scale': Source('input_layernorm.weight'),
    'layers/attention/query/kernel': _transposed('self_attn.q_proj.weight'),
    'layers/attention/key/kernel': _transposed('self_attn.k_proj.weight'),
    'layers/attention/value/kernel': _transposed('self_attn.v_proj.weight'),
    'layers/attention/out/kernel': _transposed('self_attn.o_proj.weight'),
    'layers/mlp_norm/scale': Source('post_attention_layernorm.weight'),
    'layers/mlp/gate/kernel': _transposed('mlp.gate_proj.weight'),
    'layers/mlp/up/kernel': _transposed('mlp.up_proj.weight'),
    'layers/mlp/down/kernel': _transposed('mlp.down_proj.weight'),
    'final_norm/scale': Source('norm.weight'),
    'lm_head/kernel': _transposed(HEAD),
}
_GPT2 = {
    'embed/embedding': Source('wte.weight'),
    'position_embed/embedding': Source('wpe.weight'),
    'layers/attention_norm/scale': Source('ln_1.weight'),
    'layers/attention_norm/bias': Source('ln_1.bias'),
    'layers/attention/query/kernel': _third('attn.c_attn.weight', 0),
    'layers/attention/query/bias': _third('attn.c_attn.bias', 0),
    'layers/attention/key/kernel': _third('attn.c_attn.weight', 1),
    'layers/attention/key/bias': _third('attn.c_attn.bias', 1),
    'layers/attention/value/kernel': _third('attn.c_attn.weight', 2),
    'layers/attention/value/bias': _third('attn.c_attn.bias', 2),
    'layers/attention/out/kernel': Source('attn.c_proj.weight'),
    'layers/attention/out/bias': Source('attn.c_proj.bias'),
    'layers/mlp_norm/scale': Source('ln_2.weight'),
    'layers/mlp_norm/bias': Source('ln_2.bias'),
    'layers/mlp/up/kernel': Source('mlp.c_fc.weight'),
    'layers/mlp/up/bias': Source('mlp.c_fc.bias'),
    'layers/mlp/down/kernel': Source('mlp.c_proj.weight'),
    'layers/mlp/down/bias': Source('mlp.c_proj.bias'),
    'final_norm/scale': Source('ln_f.weight'),
    'final_norm/bias': Source('ln_f.bias'),
}

FAMILIES = {  # by model_type
    'llama': Family('model.', 'layers', _LLAMA),
    'gpt2': Family('transformer.', 'h', _GPT2),
}
