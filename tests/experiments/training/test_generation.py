"""Writing text: each token follows from the last `window` tokens, as the model sees them alone; texts as they come."""

import inspect
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from exported_runs import make_run

from experiments.data.tokenizers import Tokenizer, load_tokenizer
from experiments.data.vocabularies import SentencePiece
from experiments.training import generation
from experiments.training.token_choice import Sampling
from gaussq_jax import models

generate = generation.generate
PROMPT = jnp.array([60, 3, 14], jnp.int32)


@pytest.fixture(scope='module')
def llama():
    """A model, and weights with which its choices are far apart."""
    model = models.Llama(vocab_size=61, num_layers=1, hidden_size=16, mlp_size=16, num_heads=2, dtype=jnp.float32)
    params = model.init(jax.random.key(0), PROMPT[None])['params']
    return model, jax.tree.map(lambda leaf: 30 * leaf if leaf.ndim > 1 else leaf, params)


def written_one_by_one(model, weights, prompt, num_tokens, window):
    """The likeliest tokens, each from a sequence of its own length, without padding."""
    tokens = [int(token) for token in prompt]
    for _ in range(num_tokens):
        logits = model.apply({'params': weights}, jnp.array([tokens[-window:]], jnp.int32))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(('num_tokens', 'window'), [(6, 5), (4, 2)])
def test_likeliest_tokens(llama, num_tokens, window):
    """Within the window and beyond it, with a prompt shorter and longer than it; padding is never seen."""
    arguments = dict(num_tokens=num_tokens, window=window)
    tokens = generate(*llama, PROMPT, key=jax.random.key(0), temperature=0.0, **arguments)
    expected = written_one_by_one(*llama, PROMPT, **arguments)
    assert tokens.tolist() == expected
    assert len(set(expected)) > 1


class Coin:
    """A model whose next token is 0 or 2, with odds of 4 to 1 at temperature 1."""

    def apply(self, variables, tokens):
        logits = jnp.log(jnp.array([0.8, 0.0, 0.2])) + variables['params']
        return jnp.broadcast_to(logits, (*tokens.shape, 3))


@pytest.mark.parametrize(('temperature', 'probability'), [(1.0, 0.2), (0.5, 1 / 17), (2.0, 1 / 3)])
def test_tokens_are_drawn_from_the_tempered_softmax(temperature, probability):
    draw = lambda seed: generate(
        *(Coin(), 0.0, PROMPT), key=jax.random.key(seed), num_tokens=2000, window=4, temperature=temperature
    )
    tokens = np.asarray(draw(0))
    assert set(tokens) == {0, 2}
    deviation = np.sqrt(probability * (1 - probability) / tokens.size)
    assert abs((tokens == 2).mean() - probability) < 4 * deviation
    np.testing.assert_array_equal(draw(0), tokens)
    assert (np.asarray(draw(1)) != tokens).any()


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_tokens_that_the_tokenizer_does_not_have(temperature):
    """They are never written, though the model would."""
    tokens = generate(
        *(Coin(), jnp.array([0.0, 0.0, 9.0]), PROMPT),
        key=jax.random.key(0),
        num_tokens=20,
        window=4,
        temperature=temperature,
        vocab_size=2,
    )
    assert set(tokens.tolist()) == {0}


@pytest.mark.parametrize('ends', [(0,), (2,), (1, 2)])
def test_an_end_is_the_last_token_written(ends):
    """Any of them; one in the prompt ends nothing."""
    draw = lambda **arguments: generate(
        *(Coin(), 0.0, jnp.array([2, 0, 1, 2])),
        key=jax.random.key(0),
        num_tokens=50,
        window=4,
        temperature=1.0,
        **arguments,
    )
    endless = draw().tolist()
    first = next(i for i, token in enumerate(endless) if token in ends)
    assert draw(ends=ends).tolist() == endless[: first + 1]
    assert draw(ends=(1,)).tolist() == endless


# --- texts ------------------------------------------------------------------------------------------


def pieces_of(tokenizer, prompt, tokens):
    """What is given after each token, and at last."""
    text = generation.Text(tokenizer, prompt, room=99)
    pieces = [text.new_piece()]
    for token in tokens:
        text.add(token)
        pieces.append(text.new_piece())
    return [*pieces, text.new_piece(is_last=True)]


@pytest.mark.parametrize('text', ['naïve', '日本', '🙂!', 'a\ufffdb', ''])
def test_pieces_are_whole_characters(text):
    """None waits longer than its bytes do, except for what looks like half a character."""
    tokenizer = load_tokenizer('bytes')
    ids = tokenizer.encode(text).tolist()
    for at in range(len(ids) + 1):
        pieces = pieces_of(tokenizer, ids[:at], ids[at:])
        assert ''.join(pieces) == text
        assert all(len(piece) <= 1 or '\ufffd' in piece for piece in pieces[1:])


def test_bytes_that_are_no_character():
    """They wait for what follows, and come at last."""
    assert pieces_of(load_tokenizer('bytes'), [97], [0xC3, 98, 0xE6]) == ['a', '', '\ufffdb', '', '\ufffd']


def test_what_is_decoded_otherwise_later_is_given_again():
    class Fickle:
        special = types.SimpleNamespace(eos=(9,))

        def decode(self, ids):
            return {1: 'a', 2: 'bc', 3: 'bcd'}[len(ids)]

    assert pieces_of(Fickle(), [0], [0, 0]) == ['a', '', '', '\nbcd']


def test_texts_of_several_prompts():
    """Each is what it is alone; drawn ones depend on their place. An end is no part of a text."""
    run = make_run('method=gaussws')

    def write(prompts, temperature=0.0, **how):
        how = dict(num_tokens=12, sampling=Sampling(temperature), seed=0) | how
        *_, texts = generation.write_texts(run.experiment, run.state, run.tokenizer, prompts, **how)
        return texts

    alone = [str(write([prompt])[0]) for prompt in ('def ', 'x')]
    texts = write(['def ', 'x'])
    assert [str(text) for text in texts] == alone and all(not text.fills_window for text in texts)
    how = dict(num_tokens=12, temperature=0.0, seed=0)
    assert generation.write_text(run.experiment, run.state, run.tokenizer, 'x', **how) == alone[1]
    first, second = write(['def ', 'def '], 1.0)
    assert first.tokens != second.tokens and write(['def ', 'x'], 1.0)[0].tokens == first.tokens
    assert write(['def ', 'x'], 1.0, seed=1)[0].tokens != first.tokens
    window = run.experiment.config.sequence_length
    (text,) = write(['x' * (window - 3)])  # after the end of a document
    assert text.fills_window and len(text.tokens) == text.room == 3
    with pytest.raises(ValueError, match=f'a prompt has {window + 1} tokens: allowed are 1 to {window}'):
        write(['x' * window])
    (text,) = write(['x' * (window + 1)], slides=True)
    assert len(text.tokens) == 12
    ended = generation.Text(run.tokenizer, [97], room=1)
    ended.add(run.tokenizer.end_of_document)
    assert (str(ended), ended.has_ended, ended.fills_window) == ('a', True, False)


def test_spaces_between_prompt_and_continuation_are_kept():
    """Of a SentencePiece model as they usually are, whose pieces begin with their space."""
    contents, text = io.BytesIO(), 'def foo(bar): return foo'
    lines = inspect.getsource(inspect).splitlines()
    options = dict(vocab_size=400, model_type='bpe', byte_fallback=True, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=contents, **options)
    tokenizer = Tokenizer(SentencePiece(contents.getvalue()))
    ids = tokenizer.encode(text).tolist()
    begins_with_space = lambda at: tokenizer.decode(ids[:at]) + ' ' + tokenizer.decode(ids[at:]) == text
    assert any(begins_with_space(at) for at in range(1, len(ids))), 'else this test holds nothing'
    for at in range(len(ids)):
        prompt = [tokenizer.end_of_document, *ids[:at]]
        assert generation.whole_text(tokenizer, prompt, ids[at:]) == text
