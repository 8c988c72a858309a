"""Language models whose weights can be transformed from outside: Llama and GPT-2, in flax.linen."""

from gaussq_jax.models.from_huggingface import from_huggingface, model_from_huggingface
from gaussq_jax.models.gpt2 import GPT2
from gaussq_jax.models.llama import Llama
from gaussq_jax.models.quantized_dot_general import QuantizedDotGeneral
from gaussq_jax.models.to_huggingface import to_huggingface
from gaussq_jax.param_rules import CastOnly, MatrixRule

# How their weights are read: layers are stacked along the first axis.
RULES = (
    MatrixRule('layers/.*/kernel', batch_axes=(0,), row_axes=(1,), col_axes=(2,), optional=True),
    CastOnly('.*', optional=True),
)

__all__ = [
    'GPT2',
    'RULES',
    'Llama',
    'QuantizedDotGeneral',
    'from_huggingface',
    'model_from_huggingface',
    'to_huggingface',
]
