"""Texts as they come: whole characters, each text what it is alone, up to the end of a document."""

import inspect
import io
import types

import pytest
import sentencepiece
from exported_runs import make_run

from experiments.data.tokenizers import Tokenizer, load_tokenizer
from experiments.data.vocabularies import SentencePiece
from experiments.training import generation
from experiments.training.token_choice import Sampling


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
    with pytest.raises(ValueError, match=rf'prompts\[0\] has {window + 1} tokens: allowed are 1 to {window}'):
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


def test_prompts_may_be_tokens_and_need_not_be_shown():
    """The same is written after them."""
    run = make_run('method=bf16')
    experiment, state, tokenizer = run.experiment, run.state, run.tokenizer
    how = dict(num_tokens=3, sampling=Sampling(0), seed=0)
    write = lambda prompts, **more: list(generation.write_texts(experiment, state, tokenizer, prompts, **how, **more))
    (shown,), (hidden,) = write(['def '])[-1], write([tokenizer.encode_prompt('def ')], shows_prompts=False)[-1]
    assert hidden.tokens == shown.tokens and str(shown) == f'def {hidden}'
