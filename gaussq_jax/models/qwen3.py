"""Qwen3, without experts: Llama's layers, with an RMSNorm of each head's queries and keys."""

from typing import ClassVar

from gaussq_jax.models.huggingface_config import field, flag, size
from gaussq_jax.models.llama import Llama
from gaussq_jax.models.llama_family import llama_family, window_of_qwen


class Qwen3(Llama):
    """A dense Qwen3 language model: a `Llama` with an RMSNorm of each head's queries and keys, before they are rotated.

    Its parameters `layers/attention/{query,key}_norm/scale` (num_layers, head_dim) start as ones.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = Qwen3(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4, head_dim=32)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
      >>> params['layers']['attention']['query_norm']['scale'].shape
      (2, 32)

    Source: Yang et al., Qwen3 (arXiv 2505.09388), section 2; `modeling_qwen3.py` of transformers 5.
    """

    norms_heads: ClassVar[bool] = True
    mlp_bias: ClassVar[bool] = False


def _read(config):
    size(config, 'head_dim')  # of this and the next, transformers has defaults that are none of ours
    field(config, 'num_key_value_heads')
    return dict(attention_bias=flag(config, 'attention_bias'))


QWEN3 = llama_family(
    'qwen3',
    Qwen3,
    'Qwen3ForCausalLM',
    read=_read,
    written=lambda model: dict(attention_bias=model.attention_bias, use_sliding_window=False),
    reads_sentencepiece=False,
    window=window_of_qwen,
)
