"""Language models whose weights can be transformed from outside, in flax.linen: Llama, Mistral, Qwen2, Qwen3, GPT-2.

A family of models is a record, `ModelFamily`: what is registered can be trained, imported and exported as those are.
"""

from gaussq_jax.models.families import FAMILIES, family_of, find_family, register_family
from gaussq_jax.models.family import HuggingFaceFormat, HuggingFaceTensor, ModelFamily
from gaussq_jax.models.from_huggingface import from_huggingface, model_from_huggingface
from gaussq_jax.models.gpt2 import GPT2
from gaussq_jax.models.llama import LLAMA, Llama
from gaussq_jax.models.mistral import Mistral
from gaussq_jax.models.quantized_dot_general import QuantizedDotGeneral
from gaussq_jax.models.qwen2 import Qwen2
from gaussq_jax.models.qwen3 import Qwen3
from gaussq_jax.models.to_huggingface import fused_modules, fused_paths, huggingface_layout, to_huggingface

RULES = LLAMA.rules  # and of all whose layers are called so

__all__ = [
    'FAMILIES',
    'GPT2',
    'RULES',
    'HuggingFaceFormat',
    'HuggingFaceTensor',
    'Llama',
    'Mistral',
    'ModelFamily',
    'QuantizedDotGeneral',
    'Qwen2',
    'Qwen3',
    'family_of',
    'find_family',
    'from_huggingface',
    'fused_modules',
    'fused_paths',
    'huggingface_layout',
    'model_from_huggingface',
    'register_family',
    'to_huggingface',
]
