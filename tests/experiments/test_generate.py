"""The program that writes text: what its flags are, and what a terminal is shown."""

import io
import types

import pytest
from exported_runs import make_run
from programs import import_program, run_program

from experiments import workdirs
from experiments.training import generation

generate = import_program('generate')


@pytest.mark.parametrize('is_terminal', [False, True])
def test_the_program(monkeypatch, is_terminal):
    """It writes what the run's weights do; a terminal obeys nothing of it."""
    run, asked = make_run('method=bf16'), []

    def write_text(*of_run, **how):
        asked.append((*of_run, how))
        return 'def \x1b[31m'

    monkeypatch.setattr(workdirs, 'open_either', lambda *_: run)
    monkeypatch.setattr(generation, 'write_text', write_text)
    stream = io.StringIO()
    monkeypatch.setattr(stream, 'isatty', lambda: is_terminal, raising=False)
    monkeypatch.setattr(generate, 'sys', types.SimpleNamespace(stdout=stream))
    monkeypatch.setattr('builtins.print', lambda text: stream.write(text))
    run_program(generate, WORKDIR='runs/x', PROMPT='def ', NUM_TOKENS=5, TEMPERATURE=0.5, SEED=3)
    how = dict(num_tokens=5, temperature=0.5, seed=3)
    assert asked == [(run.experiment, run.state, run.tokenizer, 'def ', how)]
    assert stream.getvalue() == (r'def \x1b[31m' if is_terminal else 'def \x1b[31m')


def test_a_real_text():
    """Of random weights: the prompt, and something after it; the same again for the same seed."""
    run = make_run('method=gaussws')
    write = lambda seed: generation.write_text(
        run.experiment, run.state, run.tokenizer, 'def ', num_tokens=20, temperature=1.0, seed=seed
    )
    assert write(0).startswith('def ') and len(write(0)) > 4
    assert write(0) == write(0) != write(1)
