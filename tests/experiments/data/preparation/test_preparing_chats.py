"""Chats are prepared with which of their tokens are learned, and with where each of them ends."""

import json

import numpy as np
import pytest
from small_blocks import SmallSource
from small_chats import CHATML, CHATS, TEMPLATES, write_tokenizer

from experiments.data import special_tokens
from experiments.data.chats import ChatEncoder
from experiments.data.preparation import manifest, preparing
from experiments.data.preparation.encoding import SPLITS, Settings, split_of
from experiments.data.preparation.preparing import Pass
from experiments.data.token_data import open_prepared
from experiments.data.tokenizers import load_tokenizer

ALL = [[{**turn, 'content': f'{i} {turn["content"]}'} for turn in chat] for i in range(20) for chat in CHATS[:2]]
FORGED = [{'role': 'user', 'content': '<|im_end|>'}, {'role': 'assistant', 'content': 'x'}]


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    return load_tokenizer(str(tmp_path / 'tokenizer.json'))


def prepare(folder, tokenizer, chats=ALL, workers=1, invalid_text='error'):
    settings = Settings('chats', 'messages', invalid_text=invalid_text, held_out=0.3)
    passes = [Pass(None, SmallSource([chats]), range(1))]
    return preparing.prepare(folder, settings, tokenizer, passes=passes, workers=workers, shard_bytes=1000).manifest


@pytest.mark.parametrize('workers', [1, 2])
def test_chats_are_prepared(tmp_path, tokenizer, monkeypatch, workers):
    monkeypatch.setattr(preparing, 'SMALL_BYTES', 0)
    prepared = prepare(tmp_path / 'a', tokenizer, workers=workers)
    assert prepared.is_chats and prepared == manifest.read_manifest(tmp_path / 'a')
    assert len(prepared.splits['train'].shards) > 2
    encoder, held_out = ChatEncoder(tokenizer), {split: [] for split in SPLITS}
    for chat in ALL:
        key = json.dumps((chat,), sort_keys=True).encode()
        held_out[split_of(key, 0.3)].append(encoder.encode((chat,)))
    for split, expected in held_out.items():
        data = open_prepared(tmp_path / 'a', split, tokenizer, tmp_path / 'cache')
        assert np.concatenate(data.shards).tolist() == np.concatenate([ids for ids, _, _ in expected]).tolist()
        assert np.concatenate(data.masks).tolist() == np.concatenate([mask for _, mask, _ in expected]).tolist()
        assert data.document_lengths.tolist() == [len(ids) for ids, _, _ in expected]
        assert data.num_bytes == sum(num_bytes for _, _, num_bytes in expected)
        assert data.num_learned == sum(int(mask.sum()) for _, mask, _ in expected)


def test_forged_turns_are_told_or_left_out(tmp_path, tokenizer):
    chats = [*ALL[:5], FORGED, *ALL[5:]]
    with pytest.raises(ValueError, match=r'file0, row 5: .*; invalid_text=skip leaves it out'):
        prepare(tmp_path / 'a', tokenizer, chats)
    splits = prepare(tmp_path / 'b', tokenizer, chats, invalid_text='skip').splits
    assert sum(split.counts.num_invalid for split in splits.values()) == 1
    assert sum(split.counts.num_documents for split in splits.values()) == len(ALL)


@pytest.mark.parametrize('role', ['x', 'user'])
def test_a_template_that_fails_is_told_with_the_place(tmp_path, role):
    """On one document alone, which can be left out; on all of them, which ends it whatever is asked for."""
    write_tokenizer(tmp_path, "{% if 'ROLE' in messages | map(attribute='role') %}{{ 1 % 0 }}{% endif %}" + CHATML)
    path = tmp_path / 'chat_template.jinja'
    path.write_text(path.read_text().replace('ROLE', role))
    tokenizer = load_tokenizer(str(tmp_path / 'tokenizer.json'))
    chats = [*ALL, [{'role': 'x', 'content': ''}, *ALL[0]]]
    failed = r'file0, row \d+: .*chat template fails on messages\[:\d\]: integer modulo by zero'
    with pytest.raises(ValueError, match=failed + ('.*skip leaves it out' if role == 'x' else '$')):
        prepare(tmp_path / 'a', tokenizer, chats)
    if role == 'x':
        splits = prepare(tmp_path / 'b', tokenizer, chats, invalid_text='skip').splits.values()
        assert sum(split.counts.num_invalid for split in splits) == 1
    else:
        with pytest.raises(ValueError, match=failed):
            prepare(tmp_path / 'b', tokenizer, chats, invalid_text='skip')


def test_another_template_is_another_folder(tmp_path, tokenizer):
    prepare(tmp_path / 'a', tokenizer)
    write_tokenizer(tmp_path, TEMPLATES['chatml'].replace('im_start|>', 'im_start|>the '))
    with pytest.raises(ValueError, match='was prepared with chat_template='):
        prepare(tmp_path / 'a', load_tokenizer(str(tmp_path / 'tokenizer.json')))
    for changes in ({'template': TEMPLATES['llama-3']}, {'template': None}, {'special': {'add_bos_token': 'true'}}):
        write_tokenizer(tmp_path, changes.get('template', CHATML))
        special = special_tokens.ASK | changes.get('special', {})
        other = load_tokenizer(str(tmp_path / 'tokenizer.json'), special, is_given=True)
        with pytest.raises(ValueError, match=r'/a was prepared with (chat_template|before_prompt|documents)'):
            open_prepared(tmp_path / 'a', 'train', other, tmp_path / 'cache')
    write_tokenizer(tmp_path, CHATML)
    assert prepare(tmp_path / 'a', tokenizer).is_complete


def test_another_beginning_of_prompts_is_told_with_the_flags(tmp_path, tokenizer):
    prepare(tmp_path / 'a', tokenizer)
    ends = str(tokenizer.end_of_document)
    asked = special_tokens.ASK | {'bos_token_id': ends, 'eos_token_id': ends, 'add_bos_token': 'true'}
    path = str(tmp_path / 'tokenizer.json')
    others = [load_tokenizer(path, {**asked, 'add_bos_token': leads}) for leads in ('true', 'false')]
    for present, other in (others, others[::-1]):
        folder = tmp_path / f'{present.special.add_bos}'
        prepare(folder, other)
        flags = f'--config.special_tokens.add_bos_token={str(other.special.add_bos).lower()}'
        flags = f'--config.special_tokens.bos_token_id={ends} {flags}' if other.special.add_bos else flags
        with pytest.raises(ValueError, match=f'was prepared with before_prompt .*: give {flags}, or prepare it anew'):
            open_prepared(folder, 'train', present, tmp_path / 'cache')
