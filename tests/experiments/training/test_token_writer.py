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
    assert writer._read._cache_size() == 4  # prompts of 16, 32 and 40 tokens; the first in texts of 16 and 32
    assert writer._read_next._cache_size() == 3  # texts of 16, 32 and 40
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


@pytest.mark.parametrize('name', ['llama3', 'gpt2'])
def test_a_whole_window_in_bfloat16(name):
    """Each token is the likeliest of a model that sees all of the text at once, within rounding."""
    model, weights = make_model(name, 'bfloat16')
    prompts = [[token] for token in range(8)]
    texts = written(TokenWriter(model, weights, window=WINDOW), prompts, num_tokens=WINDOW, **GREEDY)
    seen = np.array([prompt + text[:-1] for prompt, text in zip(prompts, texts)], np.int32)
    logits = np.asarray(jax.jit(model.apply)({'params': weights}, seen))
    margins = logits.max(-1) - np.take_along_axis(logits, np.array(texts)[:, :, None], -1)[:, :, 0]
    assert margins.shape == (8, WINDOW) and margins.max() < 0.03 * np.abs(logits).max() < logits.std()


@pytest.mark.parametrize(('num_tokens', 'window'), [(6, 5), (4, 2)])
def test_beyond_the_window(num_tokens, window):
    """With a prompt shorter and longer than it: each token follows from the last ones, of no padding."""
    model, weights = make_model('llama')
    (text,) = written(
        TokenWriter(model, weights, window=window), [PROMPTS[0]], num_tokens=num_tokens, slides=True, **GREEDY
    )
    tokens = list(PROMPTS[0])
    for _ in range(num_tokens):
        logits = model.apply({'params': weights}, np.array([tokens[-window:]], np.int32))
        tokens.append(int(logits[0, -1].argmax()))
    assert text == tokens[len(PROMPTS[0]) :] and len(set(text)) > 1


@pytest.mark.parametrize('name', ['llama', 'gpt2'])
def test_logits_are_computed_where_a_token_is_chosen(name):
    """Not at every position of the prompts, of which there are many."""
    model, weights = make_model(name)
    writer = TokenWriter(model, weights, window=WINDOW)
    batch = {'tokens': np.zeros((3, 32), np.int32), 'last': np.zeros(3, np.int32)}
    for program in (writer._see, lambda *of: writer._read(*of, WINDOW)):
        shapes = str(jax.make_jaxpr(program)(weights, batch))
        assert f'f32[3,1,{VOCABULARY}]' in shapes and f'[3,32,{VOCABULARY}]' not in shapes


def test_the_cache_has_room_for_the_texts_and_no_more(monkeypatch):
    """It isn't padded twice."""
    model, weights = make_model('llama')
    writer, lengths = TokenWriter(model, weights, window=WINDOW), []
    read = writer._read
    monkeypatch.setattr(writer, '_read', lambda *of: lengths.append(of[-1]) or read(*of))
    for prompt, num_tokens in ((9, 8), (9, 9), (17, 16), (17, 17)):
        next(writer.write([[1] * prompt, [2]], num_tokens=num_tokens, **GREEDY))
    assert lengths == [16, 32, 32, WINDOW]


# --- what is drawn, and where a text ends -----------------------------------------------------------


class Coin:
    """A model whose next token is 0 or 2, with odds of 4 to 1 at temperature 1."""

    def apply(self, variables, tokens):
        logits = jnp.log(jnp.array([0.8, 0.0, 0.2])) + variables['params']
        return jnp.broadcast_to(logits, (*tokens.shape, 3))


def tossed(number, seed=0, temperature=1.0, added=0.0, prompt=(60, 3, 14), **settings):
    """The tokens that the coin gives."""
    writer = TokenWriter(Coin(), added, window=4, **settings)
    how = dict(num_tokens=number, sampling=Sampling(temperature), key=jax.random.key(seed), slides=True)
    return written(writer, [prompt], **how)[0]


@pytest.mark.parametrize(('temperature', 'probability'), [(1.0, 0.2), (0.5, 1 / 17), (2.0, 1 / 3)])
def test_tokens_are_drawn_from_the_tempered_softmax(temperature, probability):
    tokens = tossed(2000, 0, temperature)
    assert set(tokens) == {0, 2}
    deviation = np.sqrt(probability * (1 - probability) / len(tokens))
    assert abs(tokens.count(2) / len(tokens) - probability) < 4 * deviation
    assert tossed(50, 0, temperature) == tokens[:50] != tossed(50, 1, temperature)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_tokens_that_the_tokenizer_does_not_have(temperature):
    """They are never written, though the model would."""
    assert set(tossed(20, 0, temperature, added=jnp.array([0.0, 0.0, 9.0]), vocab_size=2)) == {0}


@pytest.mark.parametrize('ends', [(0,), (2,), (1, 2)])
def test_an_end_is_the_last_token_written(ends):
    """Any of them; one in the prompt ends nothing."""
    endless = tossed(50, prompt=(2, 0, 1, 2))
    first = next(i for i, token in enumerate(endless) if token in ends)
    assert tossed(50, prompt=(2, 0, 1, 2), ends=ends) == endless[: first + 1]
    assert tossed(50, prompt=(2, 0, 1, 2), ends=(1,)) == endless


def test_logits_that_are_not_finite_are_an_error():
    """Of the text that is being written, by its place; after those before it."""
    model, weights = make_model('llama')
    weights['embed']['embedding'] = weights['embed']['embedding'].at[5].set(jnp.nan)
    writer = TokenWriter(model, weights, window=WINDOW)
    assert len(written(writer, [[1]], num_tokens=2, **GREEDY)[0]) == 2
    with pytest.raises(ValueError, match=r'^the logits after 3 tokens of prompts\[1\] are not finite$'):
        written(writer, [[1], [1, 5, 1]], num_tokens=2, **GREEDY)


@pytest.mark.parametrize(
    ('prompts', 'how', 'message'),
    [
        ([], {}, '^prompts is empty: at least one is needed'),
        ([[1], []], {}, r'^prompts\[1\] has no tokens: at least one is needed'),
        (
            [[1], [1] * (WINDOW + 1)],
            {},
            rf'^prompts\[1\] has {WINDOW + 1} tokens: allowed are 1 to {WINDOW}, the window',
        ),
        ([[1, VOCABULARY]], {}, rf'^prompts\[0\] has the token {VOCABULARY}: allowed are 0 to {VOCABULARY - 1}'),
        ([[-1]], {}, r'^prompts\[0\] has the token -1: allowed'),
        ([[1]], dict(num_tokens=0), '^num_tokens=0: allowed are integers from 1 on'),
        ([[1]], dict(num_tokens=-3), '^num_tokens=-3: allowed'),
        ([[1]], dict(rows=[0, 1]), '^rows has 2 names: allowed are 1, one for each prompt'),
        ([[1]], dict(rows=[2**31]), r'^rows has the name 2147483648: allowed are 0 to 2\^31 - 1'),
        ([[1]], dict(rows=[-1]), '^rows has the name -1: allowed'),
    ],
)
def test_what_cannot_be_written(prompts, how, message):
    """It is told before anything is computed."""
    writer = TokenWriter(MODELS['llama']('float32'), None, window=WINDOW)
    with pytest.raises(ValueError, match=message):
        writer.write(prompts, **dict(num_tokens=4) | how, **GREEDY)


def test_a_prompt_that_is_too_long_has_an_error_of_its_own():
    with pytest.raises(token_writer.PromptTooLongError):
        TokenWriter(None, None, window=9).write([[1] * 10], num_tokens=4, **GREEDY)
