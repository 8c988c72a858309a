"""Folders of Hugging Face checkpoints of the tests: models of seconds, written without transformers."""

import json

import jax
import numpy as np
import tokenizers

from experiments.files import huggingface_folder
from gaussq_jax import models

SIZES = dict(vocab_size=264, num_layers=2, hidden_size=32, mlp_size=48, num_heads=4, num_kv_heads=2)
LLAMA = models.Llama(**SIZES, rope_theta=50.0)
LLAMA_3 = models.Llama(
    **SIZES, head_dim=6, rope_factor=8.0, rope_original_length=16, rope_theta=50.0, attention_bias=True, mlp_bias=True
)
MISTRAL = models.Mistral(**SIZES, head_dim=12)
QWEN2 = models.Qwen2(**SIZES, tie_embeddings=True, norm_epsilon=1e-3)
QWEN3 = models.Qwen3(**SIZES, head_dim=16, rope_theta=1e6)
GPT2 = models.GPT2(vocab_size=264, max_length=24, num_layers=2, hidden_size=32, num_heads=4, norm_epsilon=1e-3)


def random_params(model):
    """Float32 arrays of NumPy, as a training may leave them."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), np.int32))['params']
    return jax.tree.map(lambda leaf: generator.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)


def write_checkpoint(directory, model=LLAMA, *, tokenizer=True):
    """A folder as `save_pretrained` writes it; with a tokenizer of 259 tokens, the bytes, an end and two more."""
    huggingface_folder.write(directory, model, random_params(model))
    change_json(directory / 'config.json', max_position_embeddings=40, eos_token_id=[258, 7], pad_token_id=None)
    if tokenizer:
        write_tokenizer(directory / 'tokenizer.json')
        (directory / 'tokenizer_config.json').write_text('{"eos_token": "</s>"}')
    return directory


def write_tokenizer(path):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, 'de', 'def', '</s>'])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [('d', 'e'), ('de', 'f')]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(['</s>'])
    tokenizer.save(str(path))


def change_json(path, **fields):
    """Sets fields of a JSON object; `...` takes one away."""
    contents = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in contents.items() if value is not ...}))
