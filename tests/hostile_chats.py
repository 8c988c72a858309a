"""Chats, with a tokenizer and its chat template, as a kind of files that may be hostile."""

import json
import pathlib
from typing import Any

import numpy as np
import small_chats
import small_checkpoints
from mutations import of_bytes, of_json, of_json_lines

from experiments.data import tokenizers
from experiments.data.preparation import preparing
from experiments.data.preparation.encoding import BlockEncoder, Settings

TARGETS = {
    'tokenizer/chat_template.jinja': (of_bytes,),
    'tokenizer/tokenizer_config.json': (of_json, of_json, of_bytes),
    'chats.jsonl': (of_json_lines, of_bytes),
}


def write(folder: pathlib.Path):
    (folder / 'tokenizer').mkdir()
    small_chats.write_tokenizer(folder / 'tokenizer', small_chats.MARKED)
    small_checkpoints.change_json(folder / 'tokenizer/tokenizer_config.json', chat_template=small_chats.CHATML)
    lines = [json.dumps({'messages': chat, 'prompt': 'a', 'completion': 'b'}) for chat in 8 * small_chats.CHATS]
    (folder / 'chats.jsonl').write_text(''.join(f'{line}\n' for line in lines))


def read(folder: pathlib.Path) -> dict[str, Any]:
    tokenizer = tokenizers.load_tokenizer(str(folder / 'tokenizer/tokenizer.json'))
    of_features = {}
    for text_feature in ('messages', 'prompt+completion'):
        settings = Settings(str(folder / 'chats.jsonl'), text_feature)
        (one,) = preparing.open_passes(settings, cache_dir=folder)
        encoder = BlockEncoder(settings, tokenizer)
        parts = [part for block in one.source.blocks(0) for part in encoder.encode(block, 'train').values()]
        assert all(part.mask.any() for part in parts if len(part.mask)), 'a chat of which nothing is learned'
        of_features[text_feature] = np.concatenate([np.empty(0, np.uint16), *(part.tokens for part in parts)])
    return {'arrays': of_features}
