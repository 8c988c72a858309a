"""Qwen2: Llama's layers with biases of queries, keys and values."""

from typing import ClassVar

from gaussq_jax.models.huggingface_config import field
from gaussq_jax.models.llama import Llama
from gaussq_jax.models.llama_family import llama_family, window_of_qwen


class Qwen2(Llama):
    """A Qwen2 or Qwen2.5 language model: a `Llama` whose queries, keys and values have biases, and nothing else has.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = Qwen2(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4, num_kv_heads=2)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
      >>> params['layers']['attention']['key']['bias'].shape, 'bias' in params['layers']['attention']['out']
      ((2, 32), False)

    Source: Yang et al., Qwen2 (arXiv 2407.10671), section 2.2; `modeling_qwen2.py` of transformers 5.
    """

    attention_bias: ClassVar[bool] = True
    out_bias: ClassVar[bool] = False
    mlp_bias: ClassVar[bool] = False


def _read(config):
    field(config, 'num_key_value_heads')  # of which transformers has a default that is none of ours
    return {}


QWEN2 = llama_family(
    'qwen2',
    Qwen2,
    'Qwen2ForCausalLM',
    read=_read,
    written=lambda model: dict(use_sliding_window=False),
    reads_sentencepiece=False,
    window=window_of_qwen,
)
