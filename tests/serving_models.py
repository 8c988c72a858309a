"""Small models under the names of Hugging Face, and matrices of extremes, for tests of what other software loads."""

import json

import jax
import numpy as np
import numpy_float_formats as oracle
import safetensors.numpy
from small_checkpoints import random_params

import gaussq_jax as gq
from gaussq_jax import models

LLAMA = dict(vocab_size=96, num_layers=2, hidden_size=128, mlp_size=256, num_heads=4, num_kv_heads=2)
RULES = (gq.MatrixRule(r'.*_proj\.weight', (), (1,), (0,)), gq.CastOnly('.*'))


def llama(tied):
    """The tensors of a Llama by name, float32 (out, in), and its config.json."""
    model = models.Llama(**LLAMA, tie_embeddings=tied)
    tensors, config = models.to_huggingface(model, random_params(model))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return tensors, config | {'max_position_embeddings': 64}


def mixed_layout(params, down, other):
    """One layout for the matrices that are called down_proj, and one for all others; each as of `uniform_layout`."""
    of_other = gq.uniform_layout(params, **other, rules=RULES)
    of_down = gq.uniform_layout(params, **down, rules=RULES)
    return of_other | {path: of_leaf for path, of_leaf in of_down.items() if 'down_proj' in path}


def write_folder(directory, tensors, config):
    directory.mkdir()
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})
    (directory / 'config.json').write_text(json.dumps(config))
    return directory


def in_bfloat16(params, layout):
    """What `quantize_params` gives, as NumPy arrays by name."""
    return {name: np.asarray(leaf) for name, leaf in gq.quantize_params(params, layout).items()}


def extremes(out=8, inputs=64):
    """Float32 (out, in): rows of zeros of both signs, of the smallest and the largest weights, and of others."""
    weights = oracle.heavy_tailed((out, inputs))
    weights[0], weights[1], weights[2, :32] = 0, -0.0, 0
    weights[3] = np.ldexp(1 + np.arange(inputs, dtype=np.float32) % 8 / 8, -125) * np.where(
        np.arange(inputs) % 3, 1, -1
    )
    weights[4] = np.ldexp(np.sign(weights[4]) * (1 + np.arange(inputs) % 2 / 2), 127)
    return weights


def of_rows(weights, name='up.weight'):
    """Params of one matrix (out, in), and its rules."""
    return {name: weights}, (gq.MatrixRule('.*', (), (1,), (0,)),)


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        oracle.assert_same_bits(found[name], weights)


def learned_params(bitwidths, inputs=64):
    """Params of a matrix (inputs, 32), its tiles of 32 in formats of these bitwidths, and their layout."""
    params = {'up': {'kernel': jax.numpy.asarray(oracle.heavy_tailed((inputs, 32)))}}
    return params, gq.learned_layout(params, {'up/kernel': np.float32(bitwidths)[:, None]})
