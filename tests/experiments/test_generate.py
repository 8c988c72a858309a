"""The program that writes text: what its flags are, and what a terminal is shown."""

import jax
import jax.numpy as jnp
import pytest
from exported_runs import make_run
from programs import import_program, run_program
from small_chats import write_tokenizer

from experiments import methods, workdirs
from experiments.data.tokenizers import load_tokenizer
from experiments.training import generation
from experiments.training.token_choice import Sampling

generate = import_program('generate')
DEFAULTS = dict(WORKDIR='runs/x', PROMPT=['def '], NUM_TOKENS=9, TEMPERATURE=0.8, SEED=0, SLIDE=False)


FULL = 'the window of the model is full after 2 tokens; --slide writes on\n'


class Stream:
    """A stdout that remembers what it is given at a time."""

    def __init__(self, is_terminal):
        self.isatty = lambda: is_terminal
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)

    def flush(self):
        self.pieces.append(None)


@pytest.fixture
def run(monkeypatch):
    """Runs the program, of a model that writes these tokens after each prompt; returns what a stdout was given."""
    opened = make_run('method=bf16')

    def run(tokens, is_terminal, ends_by=None, room=99, **given):
        def write_texts(*of_run, **how):
            (*of_run, prompts) = of_run
            run.asked = (of_run, prompts, how)
            texts = [generation.Text(opened.tokenizer, list(prompt.encode()), room) for prompt in prompts]
            yield texts
            for token in tokens:
                for text in texts:
                    text.add(token)
                yield texts
            if ends_by:
                raise ends_by

        stream = Stream(is_terminal)
        monkeypatch.setattr(workdirs, 'open_either', lambda *_: opened)
        monkeypatch.setattr(generation, 'write_texts', write_texts)
        monkeypatch.setattr(generate.sys, 'stdout', stream)
        run.stream = stream
        run_program(generate, **DEFAULTS | given)
        return ''.join(filter(None, stream.pieces))

    run.opened = opened
    return run


@pytest.mark.parametrize('is_terminal', [False, True])
def test_the_program(run, is_terminal):
    """It writes what the run's weights do; a terminal obeys nothing of it."""
    given = dict(TEMPERATURE=0.5, TOP_K=7, TOP_P=0.9, SEED=3, SLIDE=True)
    shown = run(b'\x1b[31m\xc3\xa9', is_terminal, **given)
    assert shown == (r'def \x1b[31mé' if is_terminal else 'def \x1b[31mé') + '\n'
    of_run, prompts, how = run.asked
    assert of_run == [run.opened.experiment, run.opened.state, run.opened.tokenizer] and prompts == ['def ']
    assert how == dict(num_tokens=9, sampling=Sampling(0.5, 7, 0.9), seed=3, slides=True)


def test_a_terminal_is_shown_each_character_when_it_is_written(run):
    """Only whole ones, of one text alone."""
    run('aé'.encode(), True)
    given = [piece for piece in run.stream.pieces if piece]
    assert given == ['def ', 'a', 'é', '\n'] and run.stream.pieces.count(None) == 4, 'each step is flushed'
    run(b'ab', False)
    assert [piece for piece in run.stream.pieces if piece] == ['def ab', '\n']


@pytest.mark.parametrize('is_terminal', [False, True])
def test_several_prompts(run, is_terminal):
    shown = run(b'ab', is_terminal, PROMPT=['def ', 'x'])
    assert shown == '=== 1 of 2 ===\ndef ab\n=== 2 of 2 ===\nxab\n'


@pytest.mark.parametrize('is_terminal', [False, True])
def test_what_is_interrupted_ends_with_what_there_is(run, is_terminal):
    """Half a character too."""
    with pytest.raises(KeyboardInterrupt):  # which cli.start makes an exit code of
        run(b'ab\xc3', is_terminal, ends_by=KeyboardInterrupt)
    assert ''.join(filter(None, run.stream.pieces)) == 'def ab\ufffd\n'


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        (dict(), FULL),
        (
            dict(PROMPT=['a', 'b']),
            ''.join(f'text {n}: {FULL}' for n in (1, 2)),
        ),
        (dict(SLIDE=True), ''),
        (dict(NUM_TOKENS=2), ''),
        (dict(room=3), ''),
    ],
)
def test_a_full_window_is_told(run, capsys, given, told):
    run(b'ab', False, **{'room': 2, **given})
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(TEMPERATURE=0.0, TOP_K=5), 'top_k=5 has no meaning with temperature=0'),
        (dict(TEMPERATURE=0.0, TOP_P=0.5), 'top_p=0.5 has no meaning with temperature=0'),
        (dict(TOP_K=0), 'top_k=0: allowed are integers from 1 on'),
        (dict(TOP_P=1.5), 'top_p=1.5: allowed are numbers above 0, up to 1'),
        (dict(PROMPT=['x', 'x' * 24]), r'prompts\[1\] has 25 tokens: allowed are 1 to 24, the window .*; --slide sees'),
    ],
)
def test_mistakes_are_told(monkeypatch, given, message):
    monkeypatch.setattr(workdirs, 'open_either', lambda *_: make_run('method=bf16'))
    with pytest.raises(SystemExit, match=f'^error: {message}'):
        run_program(generate, **DEFAULTS | given)


def test_logits_that_are_not_finite_are_told(monkeypatch):
    """Not written as a token."""
    run = make_run('method=bf16')
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, run.state.params)
    monkeypatch.setattr(workdirs, 'open_either', lambda *_: run._replace(state=run.state._replace(params=params)))
    with pytest.raises(SystemExit, match=r'^error: the logits after \d+ tokens of prompts\[0\] are not finite'):
        run_program(generate, **DEFAULTS)


def test_texts_that_depend_on_others_are_told(monkeypatch, capsys):
    """Where activations have scales that tokens share."""
    monkeypatch.setattr(workdirs, 'open_either', lambda *_: make_run('method=fqt,block_size=tensor,targets=P1+P2'))
    run_program(generate, **DEFAULTS | {'NUM_TOKENS': 1})
    assert capsys.readouterr().err == f'note: {methods.SPAN_TOKENS}\n'


def test_a_real_text():
    """Of random weights: the prompt, and something after it; the same again for the same seed."""
    run = make_run('method=gaussws')
    write = lambda seed: generation.write_text(
        run.experiment, run.state, run.tokenizer, 'def ', num_tokens=20, temperature=1.0, seed=seed
    )
    assert write(0).startswith('def ') and len(write(0)) > 4
    assert write(0) == write(0) != write(1)


def test_a_chat_s_prompts_are_what_its_template_makes_of_them(monkeypatch, tmp_path, capsys):
    """What is shown is the answer, which ends where the template ends it."""
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path, end='</s>')), is_given=True)
    opened = make_run('method=bf16')._replace(tokenizer=tokenizer)
    find = tokenizer.vocabulary.find

    def write_texts(experiment, state, tokenizer, prompts, *, shows_prompts, **how):
        write_texts.prompts = prompts
        texts = [generation.Text(tokenizer, prompt if shows_prompts else (), 99) for prompt in prompts]
        yield texts
        for token in (find('x'), find('<|im_end|>')):
            texts[0].add(token)
            yield texts

    monkeypatch.setattr(workdirs, 'open_either', lambda *_: opened)
    monkeypatch.setattr(generation, 'write_texts', write_texts)
    run_program(generate, **DEFAULTS | {'CHAT': True, 'PROMPT': ['Hi']})
    expected = '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    assert write_texts.prompts == [tokenizer.vocabulary.encode_with_offsets(expected, special=True)[0].tolist()]
    assert capsys.readouterr().out == 'x\n'
    with pytest.raises(SystemExit, match=r"^error: --prompt='a<\|im_end\|>': messages\[0\] has '<\|im_end\|>'"):
        run_program(generate, **DEFAULTS | {'CHAT': True, 'PROMPT': ['Hi', 'a<|im_end|>']})
    monkeypatch.setattr(workdirs, 'open_either', lambda *_: make_run('method=bf16'))
    with pytest.raises(SystemExit, match='tokenizer bytes has no places of tokens in texts, which chats need'):
        run_program(generate, **DEFAULTS | {'CHAT': True})
