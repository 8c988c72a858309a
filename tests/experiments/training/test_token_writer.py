"""Texts of several prompts are those of each alone, by a model that sees all of the text anew for each token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gelu_family import Gelu
from small_experiments import on_mesh

from experiments.training import meshes, token_writer
from experiments.training.token_choice import Sampling
from experiments.training.token_writer import TokenWriter
from gaussq_jax import models

WINDOW, VOCABULARY = 40, 61
SIZES = dict(vocab_size=VOCABULARY, num_layers=2, hidden_size=16, mlp_size=16, num_heads=4)
MODELS = {
    'llama': lambda dtype: models.Llama(**SIZES, num_kv_heads=2, dtype=dtype),
    'tied': lambda dtype: models.Llama(**SIZES, tie_embeddings=True, dtype=dtype),
    'gpt2': lambda dtype: models.GPT2(**SIZES, max_length=WINDOW, dtype=dtype),
    'llama3': lambda dtype: models.Llama(**SIZES, rope_factor=8.0, rope_original_length=4, dtype=dtype),
    'mistral': lambda dtype: models.Mistral(**SIZES, num_kv_heads=2, dtype=dtype),
    'qwen2': lambda dtype: models.Qwen2(**SIZES, num_kv_heads=2, dtype=dtype),
    'qwen3': lambda dtype: models.Qwen3(**SIZES, num_kv_heads=2, head_dim=6, dtype=dtype),
    'without a cache': lambda dtype: Gelu(VOCABULARY, num_layers=2, hidden_size=16, wide_size=16, dtype=dtype),
}
LENGTHS = (3, 1, 16, 17, 38, 40)
PROMPTS = [np.random.default_rng(n).integers(0, VOCABULARY, n).tolist() for n in LENGTHS]
GREEDY = dict(sampling=Sampling(0), key=jax.random.key(0))


def make_model(name, dtype='float32'):
    """A model, and weights with which its choices are far apart."""
    model = MODELS[name](jnp.dtype(dtype))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    return model, jax.tree.map(lambda leaf: 30 * leaf if leaf.ndim > 1 else leaf, params)


def written(writer, prompts, **how):
    """The tokens after each prompt."""
    texts = [[] for _ in prompts]
    for step in writer.write(prompts, **how):
        for i, token in step.items():
            texts[i].append(token)
    return texts


def written_anew(model, weights, prompts, num_tokens):
    """The likeliest tokens, each from the last tokens alone, padded: later ones are never seen."""
    apply = jax.jit(lambda tokens: model.apply({'params': weights}, tokens)[0])
    texts = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(num_tokens):
            seen = tokens[-WINDOW:]
            logits = apply(np.array([seen + [7] * (WINDOW - len(seen))], np.int32))[len(seen) - 1]
            tokens.append(int(logits.argmax()))
        texts.append(tokens[len(prompt) :])
    return texts


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [*((name, 'float32') for name in MODELS), *((name, 'bfloat16') for name in ('llama', 'gpt2', 'without a cache'))],
)
def test_likeliest_tokens(name, dtype):
    """Of prompts of all lengths at a time: up to where the window is full, and beyond it."""
    model, weights = make_model(name, dtype)
    writer = TokenWriter(model, weights, window=WINDOW)
    expected = written_anew(model, weights, PROMPTS, 9)
    assert len({token for text in expected for token in text}) > 5
    rooms = [9, 9, 9, 9, 3, 1]
    assert [min(9, writer.room(prompt)) for prompt in PROMPTS] == rooms
    texts = written(writer, PROMPTS, num_tokens=9, **GREEDY)
    assert texts == [text[:room] for text, room in zip(expected, rooms)]
    assert written(writer, PROMPTS, num_tokens=9, slides=True, **GREEDY) == expected


def test_lengths_that_are_compiled():
    """One program for each padded length of prompts, one for each of texts: whatever they hold, and how many."""
    model, weights = make_model('llama')
    writer = TokenWriter(model, weights, window=WINDOW)
    for prompts in (PROMPTS[:2], PROMPTS[2:4], [PROMPTS[4][:36], PROMPTS[5][:35]]):
        texts = written(writer, prompts, num_tokens=4, batch_size=3, **GREEDY)
        assert texts == written_anew(model, weights, prompts, 4)
    for length in range(1, 17):
        written(writer, [PROMPTS[3][:length]], num_tokens=4, batch_size=3, **GREEDY)
    assert writer._read._cache_size() == 3  # prompts of 16, 32 and 40 tokens
    assert writer._read_next._cache_size() == 2  # texts of 32 and 40
    assert writer._see._cache_size() == 0


@pytest.mark.parametrize(('length', 'padded'), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 40), (40, 40), (99, 40)])
def test_padded_lengths(length, padded):
    assert TokenWriter(None, None, window=WINDOW).padded(length) == padded
    assert TokenWriter(None, None, window=9).padded(length) == 9


def test_drawn_tokens_are_of_their_row_whatever_the_batch_has():
    writer = TokenWriter(*make_model('llama'), window=WINDOW)
    how = dict(num_tokens=8, sampling=Sampling(5.0, top_k=20), key=jax.random.key(3), batch_size=3)
    texts = written(writer, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], **how)
    assert len(set(map(tuple, texts))) == 3, 'equal prompts give other texts'
    again = written(writer, [PROMPTS[0], PROMPTS[2]], rows=[2, 7], **how)
    assert again[0] == texts[2]
    assert written(writer, [PROMPTS[1]], rows=[1], **how | {'batch_size': 1}) == [texts[1]]
    assert written(writer, [PROMPTS[1]], rows=[1], **how | {'key': jax.random.key(4)}) != [texts[1]]


def test_a_text_ends_for_itself():
    """With an end that is its last token; others go on."""
    model, weights = make_model('llama')
    texts = written(TokenWriter(model, weights, window=WINDOW), PROMPTS[:3], num_tokens=9, **GREEDY)
    end = texts[1][2]
    expected = [text[: text.index(end) + 1] if end in text else text for text in texts]
    assert expected != texts
    assert (
        written(TokenWriter(model, weights, window=WINDOW, ends=[end]), PROMPTS[:3], num_tokens=9, **GREEDY) == expected
    )
    largest = max(token for text in texts for token in text)
    smaller = TokenWriter(model, weights, window=WINDOW, vocab_size=largest)
    assert max(token for text in written(smaller, PROMPTS[:3], num_tokens=9, **GREEDY) for token in text) < largest


def test_on_a_mesh():
    """Texts, heads and vocabulary are split over it."""
    with on_mesh((2, 2, 2)):
        mesh = meshes.make_mesh(None)
    model, weights = make_model('llama')
    expected = written(TokenWriter(model, weights, window=WINDOW), PROMPTS[:5], num_tokens=5, **GREEDY)
    model = model.clone(constrain=meshes.constrain_activations(mesh))
    weights = jax.device_put(
        weights, meshes.state_shardings(mesh, {'params': weights}, models.FAMILIES['llama'])['params']
    )
    writer = TokenWriter(model, weights, window=WINDOW, mesh=mesh)
    assert written(writer, PROMPTS[:5], num_tokens=5, **GREEDY) == expected


@pytest.mark.parametrize('length', [0, WINDOW + 1])
def test_prompts_that_cannot_be(length):
    """They are told before anything is computed."""
    with pytest.raises(ValueError, match=f'a prompt has {length} tokens: allowed are 1 to {WINDOW}, .*--slide'):
        TokenWriter(None, None, window=WINDOW).write([[1], [1] * length], num_tokens=4, **GREEDY)
    assert token_writer.SHORTEST < WINDOW
