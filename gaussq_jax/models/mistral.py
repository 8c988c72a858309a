"""Mistral: Llama's layers without biases. Its window of attention, where it has one that counts, is refused."""

from typing import ClassVar

from gaussq_jax.models.huggingface_config import field, size_or_none
from gaussq_jax.models.llama import Llama
from gaussq_jax.models.llama_family import llama_family

DEFAULT_WINDOW = 4096  # of a configuration that says nothing of it


class Mistral(Llama):
    """A Mistral language model that attends to all tokens before: a `Llama` without biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = Mistral(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4, head_dim=24)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
      >>> params['layers']['attention']['query']['kernel'].shape
      (2, 64, 96)

    Source: Jiang et al., Mistral 7B (arXiv 2310.06825); `modeling_mistral.py` of transformers 5.
    """

    attention_bias: ClassVar[bool] = False
    mlp_bias: ClassVar[bool] = False


def _read(config):
    field(config, 'num_key_value_heads')  # of which transformers has a default that is none of ours
    return {}


MISTRAL = llama_family(
    'mistral',
    Mistral,
    'MistralForCausalLM',
    read=_read,
    written=lambda model: dict(sliding_window=None),
    reads_sentencepiece=False,
    window=lambda config: size_or_none({'sliding_window': DEFAULT_WINDOW, **config}, 'sliding_window'),
)
