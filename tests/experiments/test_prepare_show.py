"""`prepare --show`: chats as a model reads them, with what it learns."""

import json

import pytest
from programs import import_program, run_program
from small_chats import CHATS, write_tokenizer

from experiments.data import special_tokens

prepare = import_program('prepare')


@pytest.fixture
def show(tmp_path, capsys):
    """Runs the program on these documents; what it prints."""
    write_tokenizer(tmp_path)

    def show(documents, number=1, **given):
        lines = [json.dumps(document) + '\n' for document in documents]
        (tmp_path / 'chats.jsonl').write_text(''.join(lines))
        flags = dict(DATASET=str(tmp_path / 'chats.jsonl'), TOKENIZER=str(tmp_path / 'tokenizer.json'), OUTPUT=None)
        flags |= dict(TEXT_FEATURE='messages', INVALID_TEXT='error', HELD_OUT=0.05, SHARD='0/1', DATA_DIR='')
        flags |= dict(TRAIN_SPLIT='train', VALIDATION_SPLIT='validation', CACHE_DIR=str(tmp_path), VOCAB_SIZE=0)
        flags |= {name.upper(): value for name, value in special_tokens.ASK.items()}
        run_program(prepare, **flags | {'SHOW': number} | given)
        return capsys.readouterr().out

    return show


def test_it_shows_what_is_learned_and_writes_nothing(show, tmp_path):
    before = sorted(tmp_path.iterdir())
    out = show([{'messages': chat} for chat in CHATS], number=2)
    assert out.count('===') == 4 and 'row 1' in out
    assert 'user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Ho, naïve 🙂 one<|im_end|>\n⟧\n' in out
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / 'chats.jsonl'])


def test_what_a_terminal_would_obey_is_escaped(show):
    chat = [{'role': 'user', 'content': 'a\x1b[2J'}, {'role': 'assistant', 'content': 'b'}]
    assert 'a\\x1b[2J<|im_end|>' in show([{'messages': chat}])


def test_errors_name_the_document(show):
    documents = [{'messages': CHATS[0]}, {'messages': CHATS[0][:1]}]
    with pytest.raises(SystemExit, match=r'row 1 \(line 2\): there is nothing to learn in it'):
        show(documents, number=2)
    with pytest.raises(SystemExit, match=r'--show is of chats: --text_feature=messages or prompt\+completion'):
        show(documents, TEXT_FEATURE='text')
