"""What programs make of their arguments, and how they show what others wrote."""

import io
import os
import pathlib
import sys

import pytest

from experiments import cli
from experiments.files import foreign_text

CONFIG = pathlib.Path(cli.__file__).parents[1] / 'configs' / 'tiny.py'


def test_errors_are_lines_of_printable_characters():
    assert foreign_text.printable('naïve 日本: a\nb') == 'naïve 日本: a\nb'
    assert foreign_text.printable('\x1b[31m\t\r\0\ud800\u202e') == r'\x1b[31m\t\r\x00\ud800\u202e'
    assert foreign_text.printable('x' * 5000) == 'x' * 999 + '…'
    assert foreign_text.printable('\n' * 100).count('\n') == foreign_text.MOST_LINES


def test_text_for_a_terminal():
    """Of any language: Persian has characters without width; a terminal's sequences and turned texts are shown."""
    text = 'می\u200cخواهم 👩\u200d🔬\n\tdef f():'
    assert foreign_text.escaped(text) == text
    assert foreign_text.escaped('\x1b]0;title\x07\u202e\x9b1m') == r'\x1b]0;title\x07\u202e\x9b1m'


@pytest.mark.parametrize('arguments', ['', ':smoke', ':smoke,method=bf16'])
def test_configs_of_the_checkout(tmp_path, monkeypatch, arguments):
    """From anywhere; one that is there has precedence, and what is nowhere is its reader's to refuse."""
    monkeypatch.chdir(tmp_path)
    assert cli.config_file(f'configs/tiny.py{arguments}') == f'{CONFIG}{arguments}'
    for other in ('configs/none.py', 'x' * 300, '', 'a\0b'):
        assert cli.config_file(f'{other}{arguments}') == f'{other}{arguments}'
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'tiny.py').touch()
    assert cli.config_file(f'configs/tiny.py{arguments}') == f'configs/tiny.py{arguments}'


@pytest.mark.parametrize('form', ['--config=configs/tiny.py:smoke', '--config configs/tiny.py:smoke'])
def test_both_forms_of_the_flag(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['program', *form.split(), '--workdir=x'])
    monkeypatch.setattr(cli, '_mend_streams', lambda: None)
    monkeypatch.setattr(cli.app, 'run', lambda main, argv, flags_parser: seen.append(argv))
    seen = []
    cli.start(print)
    assert f'{CONFIG}:smoke' in ' '.join(seen[0]) and seen[0][-1] == '--workdir=x'


def test_interrupted_programs_end_with_the_code_that_shells_know(monkeypatch, capfd):
    """Wherever they are: without a traceback, and at once, with what they have printed."""

    def main(argv):
        print('so far', end='')
        raise KeyboardInterrupt

    def end(code):
        raise SystemExit(code, capfd.readouterr().out)

    monkeypatch.setattr(sys, 'argv', ['program'])
    monkeypatch.setattr(cli, '_mend_streams', lambda: None)
    monkeypatch.setattr(cli, '_be_quiet', lambda: None)
    monkeypatch.setattr(cli.app, 'run', lambda main, argv, flags_parser: main(argv))
    monkeypatch.setattr(cli.os, '_exit', end)
    with pytest.raises(SystemExit) as ended:
        cli.start(main)
    assert ended.value.args == (130, 'so far')


def test_streams(monkeypatch):
    """One that is closed, one that is narrow, and one that has no encoding, as a notebook's."""
    narrow = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', narrow)
    monkeypatch.setattr(sys, 'stderr', None)
    cli._mend_streams()
    print('± 1', flush=True)
    print('nowhere', file=sys.stderr)
    assert narrow.buffer.getvalue().decode().strip() == r'\xb1 1'
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    cli._mend_streams()
    assert os.fstat(sys.stderr.fileno())
    sys.stderr.close()


def test_prompts_are_utf8_whatever_the_locale_is():
    """In the locale C, Python has of each byte beyond ASCII a surrogate."""
    for text in ('def é', os.fsencode('def é').decode('ascii', 'surrogateescape')):
        assert cli.typed(text, '--prompt') == 'def é'
    with pytest.raises(ValueError, match=r"^--prompt='.udce9' is no UTF-8"):
        cli.typed('\udce9', '--prompt')
